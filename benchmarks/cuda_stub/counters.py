"""What the stub counts, and the operations of cuDNN, which would ask the driver itself; only for use over the stub."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# As in stub.c.
NAMES = [
    *("LAUNCH", "H2D_PINNED", "H2D_PAGEABLE", "D2H_PINNED", "D2H_PAGEABLE", "D2D", "STREAM_SYNC", "EVENT_SYNC"),
    *("DEVICE_SYNC", "MALLOC", "FREE", "HOST_ALLOC", "GEMM", "MEMSET", "EVENT_RECORD", "STREAM_WAIT", "H2D_BYTES"),
    *("D2H_BYTES", "IN_USE", "PEAK", "GRAPH_LAUNCH", "HOST_REGISTER", "SYNC_MEMCPY"),
]

_library = ctypes.CDLL(str(Path(__file__).with_name("libstub.so")))
_counters = (ctypes.c_longlong * len(NAMES)).in_dll(_library, "stub_counters")
# Of each convolution: what it was computed in, and whether it might have used TF32.
convolutions: list[tuple[torch.dtype, bool]] = []


def counters() -> dict[str, int]:
    return dict(zip(NAMES, list(_counters), strict=True))


def reset() -> None:
    _library.stub_reset()
    convolutions.clear()


def _convolution(
    x: Tensor,
    weight: Tensor,
    padding: Any,
    stride: Any,
    dilation: Any,
    groups: int,
    benchmark: bool,
    deterministic: bool,
    allow_tf32: bool,
) -> Tensor:
    convolutions.append((x.dtype, allow_tf32))
    sides = [
        (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    ]
    last = x.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if last else torch.contiguous_format
    return torch.empty(x.shape[0], weight.shape[0], *sides, device=x.device, dtype=x.dtype, memory_format=order).zero_()


def _batch_norm(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, *_: float) -> tuple[Any, ...]:
    channels = x.new_empty(x.shape[1] if training else 0)
    return torch.empty_like(x), channels, channels.clone(), x.new_empty(0, dtype=torch.uint8)


def _convolution_backward(gradient: Tensor, x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Any, ...]:
    mask = arguments[-1]
    bias = torch.zeros(weight.shape[0], device=x.device, dtype=weight.dtype) if mask[2] else None
    return torch.zeros_like(x) if mask[0] else None, torch.zeros_like(weight) if mask[1] else None, bias


def _batch_norm_backward(x: Tensor, gradient: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)


_aten = torch.library.Library("aten", "IMPL")
_aten.impl("cudnn_convolution", _convolution, "CUDA")
_aten.impl("cudnn_batch_norm", _batch_norm, "CUDA")
_aten.impl("convolution_backward", _convolution_backward, "CUDA")
_aten.impl("cudnn_batch_norm_backward", _batch_norm_backward, "CUDA")

_equal = torch.equal


def _equal_shapes(one: Tensor, other: Tensor) -> bool:
    """Kernels do not run, so values on the device say nothing."""
    return one.shape == other.shape if one.is_cuda or other.is_cuda else _equal(one, other)


torch.equal = _equal_shapes  # type: ignore[assignment]

_cat = torch.cat


def _cat_copying(tensors: Any, *arguments: Any, **settings: Any) -> Tensor:
    """Join by copies, which are carried out: labels and positions index something later."""
    if not all(type(one) is Tensor and one.is_cuda and one.dtype == torch.int64 and one.ndim == 1 for one in tensors):
        return _cat(tensors, *arguments, **settings)
    joined = tensors[0].new_empty(sum(map(len, tensors)))
    for part, one in zip(joined.split([len(one) for one in tensors]), tensors, strict=True):
        part.copy_(one)
    return joined


torch.cat = _cat_copying  # type: ignore[assignment]
