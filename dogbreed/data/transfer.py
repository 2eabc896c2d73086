"""Copies between the CPU and a GPU that nobody waits for: they go through pinned memory."""

from typing import Any

import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the CPU on a device."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class LaggingValues:
    """Values that are read now and then; a GPU's are those of an earlier reading, which have arrived meanwhile."""

    def __init__(self) -> None:
        self._coming: Tensor | None = None
        self._arrived: Any = None
        self._last: list[float] | None = None

    def read(self, values: Tensor) -> list[float] | None:
        """Return the latest values [N] that are there; None before any is."""
        if not values.is_cuda:
            return list(values.tolist())
        if self._coming is not None and self._arrived.query():
            self._last, self._coming = self._coming.tolist(), None
        if self._coming is None:
            self._coming = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._coming.copy_(values.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))
        return self._last
