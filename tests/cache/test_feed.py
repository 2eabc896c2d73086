"""What a GPU is fed with: the levels of a file once, from which it makes the very inputs that a CPU makes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dogbreed.cache import extract, feed
from dogbreed.cache.store import Store
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing, load

CPU = torch.device("cpu")


def missing_of(root: Path, folder: Path, augment: str, resize: str, workers: int) -> tuple[extract.Missing, DogImages]:
    small = Preprocessing(size=64, resize_size=72, resize=resize)
    data = DogImages(root, num_workers=workers, quiet=True, preprocessing=small, augment=augment)
    data.setup()
    return extract.missing_views(Store(folder, (1,), torch.float32), data.samples, data.used_views(None)), data


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize(("augment", "workers"), [("flip", 1), ("crop", 0)])
def test_passes_hold_the_inputs_that_files_are_loaded_as(dog_tree, tmp_path, augment, resize, workers) -> None:
    missing, data = missing_of(dog_tree, tmp_path, augment, resize, workers)
    expected = {
        key: load(path, data.preprocessing, view)
        for path, views, keys in missing
        for key, view in zip(keys, views, strict=True)
    }
    seen: dict[bytes, torch.Tensor] = {}
    for keys, inputs, _ in feed.passes(missing, data, 7, CPU):
        assert inputs.shape == (7, 3, 64, 64), "one shape, the last one too"
        seen.update(zip(keys, inputs, strict=False))
    assert list(seen) == list(expected)
    assert all(torch.equal(seen[key], expected[key]) for key in expected)


def test_mirrored_views_share_the_levels_of_their_image(dog_tree, tmp_path) -> None:
    missing, data = missing_of(dog_tree, tmp_path, "flip", "squash", 0)
    chunk = feed.MissingLevels(missing, data.preprocessing, data.max_pixels).__getitems__(list(range(len(missing))))
    assert len(chunk.levels) == len(missing) < len(chunk.which)


def test_rows_that_a_thread_writes_are_at_hand_all_the_time(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(extract, "BLOCK_BYTES", 64)
    store = Store(tmp_path, (4,), torch.float32)
    block = extract.Block(store, beside=True)
    values = torch.arange(80, dtype=torch.float32).view(20, 4)
    keys = [bytes([number + 1]) * 16 for number in range(20)]
    for number, key in enumerate(keys):
        block.add([key], values[number : number + 1])
        assert all(earlier in store or earlier in block.rows for earlier in keys[: number + 1])
    block.close()
    assert not block.rows
    store.refresh()
    table = store.table(np.array([keys], extract.KEY))
    assert torch.equal(table(np.arange(20), np.zeros(20, dtype=np.int64)), values)


def test_a_disk_that_is_full_stops_what_is_computed_beside(tmp_path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise DogbreedError("No space left")

    monkeypatch.setattr(extract, "BLOCK_BYTES", 16)
    block = extract.Block(Store(tmp_path, (4,), torch.float32), beside=True)
    monkeypatch.setattr(block.store, "add", full)
    block.add([b"a" * 16], torch.zeros(1, 4))
    with pytest.raises(DogbreedError, match="No space left"):
        block.add([b"b" * 16], torch.zeros(1, 4))
    block.close()
