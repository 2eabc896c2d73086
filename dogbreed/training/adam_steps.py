"""Several steps of Adam for linear heads side by side, in C: each head takes all of them while it is in the cache.

Where there is no compiler, no AVX2, or another optimizer, `_Stack` takes the same steps in torch. So do processors with
AVX512: the products of torch use it, and those of the C file do not.
"""

import ctypes
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from dogbreed.core import compiled

SOURCE = Path(__file__).with_name("adam_steps.c")
FLAGS = ("-O3", "-mavx2", "-mfma", "-fopenmp")  # with torch's own threads: the library of that name is loaded
PANEL = 16  # of the C file: the inputs are whole ones
IMAGES = 256  # most of a step: of more, the products of torch are as fast, and they are nearly all of the time

_pointer, _number, _float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, _pointer) for name in ("inputs", "labels")),
        ("images", _number),
        *((name, _float) for name in ("mean_part", "square_keep", "square_part")),
        *((name, _float) for name in ("unbias", "eps", "rate", "shrink", "decay")),
    )


class _Head(ctypes.Structure):
    _fields_ = tuple((name, _float) for name in ("rate", "smoothing", "decay"))


class _Values(ctypes.Structure):
    _fields_ = tuple(
        (f"{name}{moment}", _pointer) for name in ("weight", "bias") for moment in ("", "_mean", "_square")
    )


def available(weight: Tensor, optimizer: torch.optim.Optimizer, steps: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Return whether `take_steps` can take these: of float32 on a CPU, by Adam, whose first step torch has taken."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and isinstance(optimizer, torch.optim.Adam)  # AdamW is one, too
        and weight in optimizer.state
        and weight.shape[-1] % PANEL == 0
        and all(inputs.shape[-2] <= IMAGES for inputs, _ in steps)
        and all(own.is_contiguous() for step in steps for own in step)
        and _library() is not None
    )


def take_steps(
    values: Sequence[nn.Parameter],
    heads: Sequence[Sequence[float]],
    steps: Sequence[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> Tensor:
    """Take these steps with every head; return the sums [heads] of the losses over the images.

    Args:
        values: Weights [heads, classes, width] and biases [heads, classes], divided by each head's rate.
        heads: Rate, label smoothing and weight decay times rate of each.
        steps: Inputs [N, width] and labels [N] of each step; with heads in front where each has its own.
        optimizer: Of these values, Adam or AdamW; its state and number of steps go on.
        scheduler: Is stepped with it.
    """
    library, threads = _library(), torch.get_num_threads()
    assert library is not None
    many, classes, width = values[0].shape
    taken = (_Step * len(steps))(*[_of_step(*step, values, optimizer, scheduler) for step in steps])
    moments = [optimizer.state[own][name] for own in values for name in ("exp_avg", "exp_avg_sq")]
    tensors = [values[0], *moments[:2], values[1], *moments[2:]]
    assert all(own.is_contiguous() for own in tensors)
    room = classes * math.ceil(max(step.images for step in taken) / PANEL) * PANEL
    logits = torch.empty(min(many, threads) * room)
    losses = torch.empty(many, dtype=torch.float64)
    settings = (_Head * many)(*[_Head(*head) for head in heads])
    sizes = many, classes, width, steps[0][0].ndim == 3
    pointers = _Values(*[own.data_ptr() for own in tensors])
    results = logits.data_ptr(), room, losses.data_ptr()
    library.take_steps(taken, len(taken), settings, *sizes, ctypes.byref(pointers), *results, threads)
    return losses


def _of_step(
    inputs: Tensor,
    labels: Tensor,
    values: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None,
) -> _Step:
    """Return one step as the C file has it, and count it."""
    group = optimizer.param_groups[0]
    lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
    for own in values:
        optimizer.state[own]["step"] += 1
    number = int(optimizer.state[values[0]]["step"])
    if scheduler is not None:
        scheduler.step()
    decoupled = isinstance(optimizer, torch.optim.AdamW)
    moments = 1 - beta1, beta2, 1 - beta2, 1 / math.sqrt(1 - beta2**number), eps, lr / (1 - beta1**number)
    decays = (lr, 0.0) if decoupled else (0.0, 1.0)
    return _Step(inputs.data_ptr(), labels.data_ptr(), inputs.shape[-2], *moments, *decays)


@cache
def _library() -> ctypes.CDLL | None:
    if torch.backends.cpu.get_cpu_capability() != "AVX2":
        return None
    library = compiled.load(SOURCE, FLAGS)
    if library is not None:
        sizes, results = [_number] * 4, (_pointer, _number, _pointer)
        library.take_steps.argtypes = [_pointer, _number, _pointer, *sizes, _pointer, *results, _number]
        library.take_steps.restype = None
    return library
