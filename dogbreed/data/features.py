"""Batches of stored features; on a GPU the rows that were read stay there, and a batch is one selection of them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dogbreed.data.datasets import FeatureBatch, FeatureReader, Indices, Part, SplitFiles
from dogbreed.data.transfer import to_device


class FeatureDataset(Dataset[FeatureBatch]):
    """Stored features, a whole batch at once, on the device where they are needed if that is a GPU.

    Args:
        files: Of the split.
        reader: Of its features.
        used: Which of its views are read, [views, images].
        device: Where the batches go.
    """

    def __init__(self, files: SplitFiles, reader: FeatureReader, used: NDArray[np.bool_], device: torch.device) -> None:
        self.labels, self.reader = torch.from_numpy(files.labels), reader
        self._on_device = _RowsOnDevice(reader, used, self.labels, device) if device.type == "cuda" else None

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[FeatureBatch]:
        part = Part.of(keys)
        if self._on_device:
            return [self._on_device(part)]
        indices, views = part.columns
        positions = torch.from_numpy(indices.copy())
        return [FeatureBatch(self.reader(indices, views), self.labels[positions], positions)]


class _RowsOnDevice:
    """Rows that are read once, if all take less than half of the memory that is free on the device at first.

    What a batch needs besides is moved once per order, and each batch is a part of it.
    """

    def __init__(self, reader: FeatureReader, used: NDArray[np.bool_], labels: Tensor, device: torch.device) -> None:
        self.reader, self.labels, self.device = reader, labels, device
        self.slots = np.full(used.shape, -1)
        self.slots[used] = np.arange(used.sum())
        self.there = np.zeros(int(used.sum()), np.bool_)
        self.table: Tensor | None = None
        self.fits: bool | None = None
        self._order: Indices | None = None

    def __call__(self, part: Part) -> FeatureBatch:
        """Return a batch on the device."""
        if part.order is not self._order:
            self._take(part.order)
        rows = slice(part.start, part.stop)
        if self._all_there or self._read(*part.columns):
            assert self.table is not None
            features = self.table.index_select(0, self._slots[rows])
        else:
            features = to_device(self.reader(*part.columns), self.device)
        return FeatureBatch(features, self._labels[rows], self._positions[rows])

    def _take(self, order: Indices) -> None:
        """Move what is the same for all batches of an order."""
        indices, views = order
        slots, positions = self.slots[views, indices], torch.from_numpy(indices.copy())
        columns = torch.stack([torch.from_numpy(slots), self.labels[positions], positions])
        self._slots, self._labels, self._positions = to_device(columns, self.device)
        self._order, self._all_there = order, bool((slots >= 0).all() and self.there[slots].all())

    def _read(self, indices: Indices, views: Indices) -> bool:
        """Read the rows that are not in the table; return whether all are there now."""
        slots = self.slots[views, indices]
        if self.fits is False or (slots < 0).any():  # others are the reader's to have, or to refuse
            return False
        new = ~self.there[slots]
        if new.any():
            rows = self.reader(indices[new], views[new])
            if self.table is None and not self._allocate(rows):
                return False
            assert self.table is not None
            where = torch.from_numpy(slots[new])
            self.table.index_copy_(0, to_device(where, self.device), to_device(rows, self.device))
            self.there[slots[new]] = True
        return True

    def _allocate(self, rows: Tensor) -> bool:
        size = len(self.there) * rows[0].nbytes
        self.fits = 2 * size <= torch.cuda.mem_get_info(self.device)[0]
        if self.fits:
            self.table = torch.empty(len(self.there), *rows.shape[1:], dtype=rows.dtype, device=self.device)
        return self.fits


def only_batch(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    return batches[0]
