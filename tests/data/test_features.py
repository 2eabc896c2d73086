"""Rows of features that stay on a device are those that are read."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dogbreed.data.datasets import Indices, SplitFiles
from dogbreed.data.features import FeatureDataset, _RowsOnDevice
from dogbreed.data.images import WHOLE, View

CPU = torch.device("cpu")
USED = np.array([[True, True, False, True, True], [False, True, True, True, False]])
ROW_BYTES = 12
KEYS = [(3, 1), (0, 0), (2, 1), (1, 0), (1, 1)]


class Reader:
    def __init__(self) -> None:
        self.read: list[tuple[int, int]] = []

    def __call__(self, images: Indices, views: Indices) -> Tensor:
        assert USED[views, images].all(), "no other view is there"
        self.read += zip(images.tolist(), views.tolist(), strict=True)
        return torch.from_numpy(10.0 * images + views)[:, None].expand(-1, 3).float()


@pytest.fixture
def dataset() -> FeatureDataset:
    views = [[WHOLE] * 5, [View(flip=True)] * 5]
    files = SplitFiles([Path(str(i)) for i in range(5)], np.array([2, 0, 1, 2, 0]), [""] * 5, views)
    return FeatureDataset(files, Reader(), USED, CPU)


def rows(free: int, monkeypatch: pytest.MonkeyPatch) -> tuple[_RowsOnDevice, Reader]:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    reader = Reader()
    return _RowsOnDevice(reader, USED, CPU), reader


def test_a_batch_has_the_rows_labels_and_positions_of_its_images(dataset: FeatureDataset) -> None:
    (batch,) = dataset.__getitems__(KEYS)
    assert batch.inputs[:, 0].tolist() == [31, 0, 21, 10, 11]
    assert batch.labels.tolist() == [2, 2, 1, 0, 0]
    assert batch.indices.tolist() == [3, 0, 2, 1, 1]


def test_a_row_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, reader = rows(2 * 7 * ROW_BYTES, monkeypatch)
    for keys in (KEYS[:3], KEYS, [(4, 0), *KEYS, (4, 0)], KEYS):
        images, views = np.array(keys).T
        features = on_device(images, views)
        assert features is not None
        assert features.tolist() == [[10.0 * image + view] * 3 for image, view in keys]
    assert set(reader.read) == {*KEYS, (4, 0)}
    assert len([key for key in reader.read if key != (4, 0)]) == len(KEYS)
    assert on_device(np.array([0, 2]), np.array([0, 0])) is None, "that of a view that nobody counted on"


def test_rows_that_take_more_than_half_of_the_memory_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, _ = rows(2 * 7 * ROW_BYTES - 1, monkeypatch)
    for _ in range(2):
        assert on_device(*np.array(KEYS).T) is None
    assert on_device.table is None
