"""Only the views that the epochs show are computed, and a longer training adds what is missing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from safetensors import safe_open

from dogbreed.cache.callback import FeatureCache
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.data.samplers import TrainBatches, used_views
from dogbreed.models.classifier import DogBreedClassifier

SMALL = Preprocessing(size=64, resize_size=72)


def parts(root: Path, folder: Path, **changes: object) -> tuple[DogBreedClassifier, DogImages, FeatureCache]:
    model = DogBreedClassifier(
        4, **({"backbone": "squeezenet1_1", "weights": "none", "preprocessing": SMALL.to_dict()} | changes)
    )
    data = DogImages.for_model(model, root, num_workers=0, batch_size=8, quiet=True)
    return model, data, FeatureCache("require", folder=folder, quiet=True)


def trainer(epochs: int, *callbacks: FeatureCache) -> Trainer:
    return Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


def rows(folder: Path) -> int:
    """Return the number of rows on disk, without the code under test."""
    total = 0
    for file in folder.glob("features/*/*.safetensors"):
        with safe_open(file, framework="np") as content:
            total += len(content.get_slice("keys")[:])
    return total


def shown(data: DogImages, epochs: int) -> set[tuple[int, int]]:
    """Return the (position, view) pairs that the training's own batches hold."""
    batches = TrainBatches(data.samples["train"], 8, data.seed)
    pairs: set[tuple[int, int]] = set()
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        pairs.update(pair for batch in batches for pair in batch)
    return pairs


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.slow
def test_as_many_rows_as_the_batches_show(dog_tree: Path, tmp_path: Path, epochs: int) -> None:
    model, data, cache = parts(dog_tree, tmp_path)
    trainer(epochs, cache).fit(model, datamodule=data)
    pairs = shown(data, epochs)
    assert len(pairs) < 2 * len(data.samples["train"])
    assert rows(tmp_path) == len(pairs) + len(data.samples["valid"]), "nobody has asked for test"
    assert {(i, v) for v, i in zip(*np.nonzero(data.used_views(epochs)["train"]), strict=True)} == pairs


@pytest.mark.slow
def test_a_longer_training_adds_what_is_missing_and_comes_to_the_same(dog_tree: Path, tmp_path: Path) -> None:
    for epochs in (1, 4):
        model, data, cache = parts(dog_tree, tmp_path / "grown")
        trainer(epochs, cache).fit(model, datamodule=data)
        assert cache.state == "built"
    fresh, data, cache = parts(dog_tree, tmp_path / "fresh")
    trainer(4, cache).fit(fresh, datamodule=data)
    assert rows(tmp_path / "grown") == rows(tmp_path / "fresh")
    for one, two in zip(model.network.parameters(), fresh.network.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.slow
def test_a_trainer_that_is_made_longer_goes_on_with_the_same_cache(dog_tree: Path, tmp_path: Path) -> None:
    model, data, cache = parts(dog_tree, tmp_path / "grown")
    loop = trainer(1, cache)
    loop.fit(model, datamodule=data)
    before = rows(tmp_path / "grown")
    loop.fit_loop.max_epochs = 4
    loop.fit(model, datamodule=data)
    assert rows(tmp_path / "grown") == len(shown(data, 4)) + len(data.samples["valid"])
    assert rows(tmp_path / "grown") > before


def test_an_evaluation_computes_its_own_split_alone(dog_tree: Path, tmp_path: Path) -> None:
    model, data, cache = parts(dog_tree, tmp_path)
    trainer(4, cache).test(model, datamodule=data, verbose=False)
    assert rows(tmp_path) == len(data.samples["test"])


@pytest.mark.slow
def test_for_lbfgs_all_are_computed(dog_tree: Path, tmp_path: Path) -> None:
    model, data, cache = parts(dog_tree, tmp_path, optimizer="lbfgs", backbone="mobilenet_v3_small")
    trainer(1, cache).fit(model, datamodule=data)
    assert rows(tmp_path) == sum(len(files) * len(files.views) for files in data.samples.values())


def test_what_was_not_computed_is_not_read(dog_tree: Path, tmp_path: Path) -> None:
    model, data, cache = parts(dog_tree, tmp_path)
    data.setup()
    cache.attach(model, data, torch.device("cpu"), epochs=1)
    unseen = np.argwhere(~data.used_views(1)["train"])[0]
    with pytest.raises(DogbreedError, match="the cache knew of fewer epochs than are trained"):
        data.reader("train")(unseen[1:], unseen[:1])


def test_an_epoch_count_without_end_stops_where_every_view_is_used() -> None:
    assert used_views(0, 10**9, 2, 50).all()
