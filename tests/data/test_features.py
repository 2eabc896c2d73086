"""Rows of features that stay on a device are those that are read."""

from copy import copy
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dogbreed.data.datasets import FeatureBatch, Indices, Part, SplitFiles
from dogbreed.data.features import FeatureDataset, _RowsOnDevice
from dogbreed.data.images import WHOLE, View

CPU = torch.device("cpu")
USED = np.array([[True, True, False, True, True], [False, True, True, True, False]])
ROW_BYTES = 12
LABELS = np.array([2, 0, 1, 2, 0])
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
    files = SplitFiles([Path(str(i)) for i in range(5)], LABELS, [""] * 5, views)
    return FeatureDataset(files, Reader(), USED, CPU)


def rows(free: int, monkeypatch: pytest.MonkeyPatch) -> tuple[_RowsOnDevice, Reader]:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    reader = Reader()
    return _RowsOnDevice(reader, USED, torch.from_numpy(LABELS), CPU), reader


def check(batch: FeatureBatch, keys: list[tuple[int, int]]) -> None:
    images = [image for image, _ in keys]
    assert batch.inputs.tolist() == [[10.0 * image + view] * 3 for image, view in keys]
    assert batch.labels.tolist() == LABELS[images].tolist()
    assert batch.indices.tolist() == images


def test_a_batch_has_the_rows_labels_and_positions_of_its_images(dataset: FeatureDataset) -> None:
    order = np.array([(9, 9), *KEYS]).T
    for keys in (KEYS, Part(order, 1, 6)):
        (batch,) = dataset.__getitems__(keys)
        check(batch, KEYS)
    batch.indices.zero_()
    assert order[0].tolist() == [9, 3, 0, 2, 1, 1], "a batch may be changed"


def test_a_row_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, reader = rows(2 * 7 * ROW_BYTES, monkeypatch)
    for keys in (KEYS[:3], KEYS, [(4, 0), *KEYS, (4, 0)], KEYS):
        check(on_device(Part.of(keys)), keys)
    assert set(reader.read) == {*KEYS, (4, 0)}
    assert len([key for key in reader.read if key != (4, 0)]) == len(KEYS)
    with pytest.raises(AssertionError, match="no other view is there"):
        on_device(Part.of([(0, 0), (2, 0)]))


def test_batches_of_one_order_are_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, reader = rows(2 * 7 * ROW_BYTES, monkeypatch)
    orders = [np.array(keys).T for keys in (KEYS, KEYS[::-1])]
    for order, keys in zip(orders, (KEYS, KEYS[::-1]), strict=True):
        for start, stop in ((0, 2), (2, 4), (4, 5)):
            check(on_device(Part(order, start, stop)), keys[start:stop])
    check(on_device(Part(orders[0], 1, 4)), KEYS[1:4])
    assert reader.read == KEYS


def test_rows_that_take_more_than_half_of_the_memory_stay_away(monkeypatch: pytest.MonkeyPatch) -> None:
    on_device, reader = rows(2 * 7 * ROW_BYTES - 1, monkeypatch)
    for _ in range(2):
        reader.read.clear()
        check(on_device(Part.of(KEYS)), KEYS)
        assert set(reader.read) == set(KEYS)
    assert on_device.table is None


def test_a_worker_is_sent_a_batch_and_not_its_order() -> None:
    part = Part(np.arange(2_000_000).reshape(2, -1), 5, 8)
    assert len(ForkingPickler.dumps(part)) < 200
    assert copy(part) == [*part] == [(5, 1_000_005), (6, 1_000_006), (7, 1_000_007)]
