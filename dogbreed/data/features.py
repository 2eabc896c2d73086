"""Batches of stored features; on a GPU the rows that were read stay there, and a batch is one selection of them."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from dogbreed.data.datasets import FeatureBatch, FeatureReader, Indices, SplitFiles
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
        self.labels = torch.from_numpy(files.labels)
        self.reader, self.used, self.device = reader, used, device
        self._rows = _RowsOnDevice(reader, used, device) if device.type == "cuda" else None

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[FeatureBatch]:
        indices, views = np.asarray(keys, dtype=np.int64).T
        positions = torch.from_numpy(indices.copy())
        features = self._rows(indices, views) if self._rows else None
        if features is None:
            features = self.reader(indices, views)
        batch = FeatureBatch(features, self.labels[positions], positions)
        if self._rows is None:
            return [batch]
        return [FeatureBatch(*(part if part.is_cuda else to_device(part, self.device) for part in batch))]


class _RowsOnDevice:
    """Rows that are read once, if all take less than half of the memory that is free on the device at first."""

    def __init__(self, reader: FeatureReader, used: NDArray[np.bool_], device: torch.device) -> None:
        self.reader, self.device = reader, device
        self.slots = np.full(used.shape, -1)
        self.slots[used] = np.arange(used.sum())
        self.there = np.zeros(int(used.sum()), np.bool_)
        self.table: Tensor | None = None
        self.fits: bool | None = None

    def __call__(self, indices: Indices, views: Indices) -> Tensor | None:
        """Return features [N, ...] on the device; None where they do not lie there."""
        slots = self.slots[views, indices]
        if self.fits is False or (slots < 0).any():  # others are the reader's to have, or to refuse
            return None
        new = ~self.there[slots]
        if new.any():
            rows = self.reader(indices[new], views[new])
            if self.table is None and not self._allocate(rows):
                return None
            assert self.table is not None
            self.table.index_copy_(0, self._moved(slots[new]), to_device(rows, self.device))
            self.there[slots[new]] = True
        assert self.table is not None
        return self.table.index_select(0, self._moved(slots))

    def _moved(self, slots: Indices) -> Tensor:
        return to_device(torch.from_numpy(slots), self.device)

    def _allocate(self, rows: Tensor) -> bool:
        size = len(self.there) * rows[0].nbytes
        self.fits = 2 * size <= torch.cuda.mem_get_info(self.device)[0]
        if self.fits:
            self.table = torch.empty(len(self.there), *rows.shape[1:], dtype=rows.dtype, device=self.device)
        return self.fits


def only_batch(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    return batches[0]
