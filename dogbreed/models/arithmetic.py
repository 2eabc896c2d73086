"""What a GPU computes float32 in. torch lets cuDNN use TF32, with 10 bits of 23, unless that is turned off."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import torch

from dogbreed.core.errors import DogbreedError


class _Switch(NamedTuple):
    read: Callable[[], Any]
    write: Callable[[Any], None]
    values: dict[str, Any]


_lock = Lock()
_inside: Counter[str] = Counter()
_before: dict[str, list[tuple[_Switch, Any]]] = {}


def effective(precision: str, device: torch.device) -> str:
    """Return what `cache.precision` comes to on a device: without units for TF32 that is float32.

    Raises:
        DogbreedError: The device only emulates bfloat16, more slowly than it computes in float32.
    """
    has_units = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    if precision == "tf32" and not has_units:
        return "float32"
    if precision == "bfloat16" and device.type == "cuda" and not has_units:
        name = torch.cuda.get_device_name(device)
        raise DogbreedError(f"{name} only emulates bfloat16, which is slow; take cache.precision=float16 or float32.")
    return precision


@contextmanager
def float32_as(arithmetic: str, device: torch.device) -> Iterator[None]:
    """Have a CUDA device compute float32 in float32 itself, or in TF32; afterwards it is as before.

    The settings are the process's. Several threads may be inside at once.

    Args:
        arithmetic: `tf32`; anything else is float32.
        device: Where it is computed. Other kinds than CUDA have no TF32.
    """
    if device.type != "cuda":
        yield
        return
    arithmetic = "tf32" if arithmetic == "tf32" else "float32"
    with _lock:
        if not _inside[arithmetic]:
            _before[arithmetic] = [(switch, switch.read()) for switch in _switches()]
            for switch, value in _before[arithmetic]:
                if value != switch.values[arithmetic]:
                    switch.write(switch.values[arithmetic])
        _inside[arithmetic] += 1
    try:
        yield
    finally:
        with _lock:
            _inside[arithmetic] -= 1
            if not _inside[arithmetic]:
                for switch, value in _before.pop(arithmetic):
                    if value != switch.values[arithmetic]:
                        switch.write(value)


def _switches() -> Iterator[_Switch]:
    """Yield what decides on convolutions and on matrix products.

    torch has two settings of each, and complains when the older is read after the newer was set: whichever somebody
    has set is the one to use.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    yield _newer(getattr(cudnn, "conv", None), cudnn) or _Switch(
        lambda: cudnn.allow_tf32,
        lambda value: setattr(cudnn, "allow_tf32", value),
        {"float32": False, "tf32": True},
    )
    yield _newer(matmul if hasattr(matmul, "fp32_precision") else None, matmul) or _Switch(
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
        {"float32": "highest", "tf32": "high"},
    )


def _newer(setting: Any, older: Any) -> _Switch | None:
    """Return the newer setting, None where torch has none or the older one still says the same."""
    if setting is None:
        return None
    try:
        if older.allow_tf32 == (setting.fp32_precision == "tf32") and torch.backends.cudnn.fp32_precision == "none":
            return None
    except RuntimeError:  # they contradict each other
        pass
    return _Switch(
        lambda: setting.fp32_precision,
        lambda value: setattr(setting, "fp32_precision", value),
        {"float32": "ieee", "tf32": "tf32"},
    )
