"""A run trains as soon as its first batch has features; the others are computed when they are asked for, once."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, Trainer
from safetensors import safe_open
from support import runs
from support.fits import attach_in_blocks
from support.forks import Forked

from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.folders import LOCK
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import SplitFiles
from dogbreed.data.images import WHOLE, Preprocessing, View
from dogbreed.data.samplers import TrainBatches, turns
from dogbreed.models.classifier import DogBreedClassifier

SMALL = Preprocessing(size=64, resize_size=72)
PASS = 4  # images, of SqueezeNet on a CPU
BATCH = 5


class Notes(Callback):
    """What was computed before each step, and the steps' losses; `then` is called after the first step."""

    def __init__(self, cache: FeatureCache, then=lambda trainer, model: None) -> None:
        self.cache, self.then = cache, then
        self.rows: list[int] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rows.append(self.cache.built.rows)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        if len(self.losses) == 1:
            self.then(trainer, pl_module)


def fit(
    root: Path,
    folder: Path,
    mode: str = "require",
    *,
    then=lambda trainer, model: None,
    epochs: int = 2,
    more: Sequence[Callback] = (),
) -> Notes:
    model = DogBreedClassifier(
        4, backbone="squeezenet1_1", weights="none", preprocessing=SMALL.to_dict(), lr=0.01, trainable="head"
    )
    data = DogImages.for_model(model, root, num_workers=0, batch_size=BATCH, quiet=True)
    notes = Notes(FeatureCache(mode, folder=folder, quiet=True), then)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", callbacks=[notes.cache, notes, *more], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=1,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return notes


def keys(folder: Path) -> list[bytes]:
    """The key of every row on disk, without the code under test."""
    found = []
    for file in folder.glob("features/*/*.safetensors"):
        with safe_open(file, framework="np") as content:
            found += [key.tobytes() for key in content.get_tensor("keys")]
    return found


def is_locked(folder: Path) -> bool:
    (lock,) = folder.glob(f"features/*/{LOCK}")
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True


@pytest.fixture
def twins(dog_tree: Path, tmp_path: Path) -> Path:
    """The tree, in which half of the training images of a breed are copies of the others, and one of valid is, too."""
    root = shutil.copytree(dog_tree, tmp_path / "dogs")
    breed = sorted((root / "train").iterdir())[0]
    images = sorted(breed.iterdir())
    for source, copy in zip(images[:3], images[3:], strict=True):
        shutil.copyfile(source, copy)
    shutil.copyfile(images[0], min((root / "valid" / breed.name).iterdir()))
    return root


@pytest.mark.slow
def test_each_step_waits_for_its_own_views_and_nothing_is_computed_twice(twins: Path, tmp_path: Path) -> None:
    """With copies among the images, and a validation batch before the first step."""
    with runs.one_thread():
        cold, warm, off = (fit(twins, tmp_path / "cache", mode) for mode in ("require", "require", "off"))
    assert (cold.cache.state, warm.cache.state, off.cache.state) == ("built", "built", "off")
    assert cold.rows[0] <= 2 * (BATCH + PASS - 1), "a batch of valid, and one of train, in whole passes"
    assert cold.rows == sorted(cold.rows)
    assert cold.rows[0] < cold.rows[-1] <= cold.cache.built.rows
    assert warm.cache.built.rows == 0
    stored = keys(tmp_path / "cache")
    assert len(stored) == len(set(stored)) == cold.cache.built.rows
    assert cold.losses == pytest.approx(off.losses, rel=0, abs=1e-5)
    assert warm.losses == pytest.approx(off.losses, rel=0, abs=1e-5)
    assert max(off.losses) - min(off.losses) > 1e-3


class Watch(Callback):
    """Counts how often a hook sees the first layer of the frozen part, and the last layer."""

    def on_fit_start(self, trainer, pl_module):
        self.seen = {"frozen": 0, "head": 0}
        network = pl_module.network
        for name, layer in (("frozen", network.features[0]), ("head", network.classifier[1])):
            layer.register_forward_hook(lambda *_, name=name: self.seen.update({name: self.seen[name] + 1}))


@pytest.mark.slow
def test_hooks_see_the_run_alone(dog_tree: Path, tmp_path: Path) -> None:
    """Those of a debugger would take the frozen part, which runs between two steps, for a step of its own."""
    seen = []
    for _ in ("cold", "warm"):
        watch = Watch()
        fit(dog_tree, tmp_path / "cache", more=[watch])
        seen.append(watch.seen)
    assert seen[0] == seen[1]
    assert seen[0]["head"] > seen[0]["frozen"] == 0


def test_turns_are_those_of_the_batches() -> None:
    """Of an epoch in the middle, as a run that goes on has it."""
    files = SplitFiles([Path("one")] * 23, np.zeros(23, np.int64), ["0"] * 23, [[WHOLE] * 23, [View(flip=True)] * 23])
    batches = TrainBatches(files, batch_size=4, seed=3)
    batches.set_epoch(2)
    pairs = [pair for batch in batches for pair in batch]
    turn = turns(3, 2, 2, 23, 4)
    assert [turn[view, image] for image, view in pairs] == list(range(23))
    others = [turn[1 - view, image] for image, view in pairs]
    assert others == [*range(23, 27), *range(4, 23)], "those of the first batch come last"


def _files(data: DogImages, count: int):
    from dogbreed.data.datasets import SplitFiles

    return SplitFiles(
        [Path(str(n)) for n in range(count)], np.zeros(count, np.int64), ["0"] * count, data._views(count)
    )


@pytest.mark.slow
def test_an_image_that_is_gone_in_the_middle_of_an_epoch(dog_tree: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dog_tree, tmp_path / "dogs")

    def lose(trainer: Trainer, model: DogBreedClassifier) -> None:
        assert is_locked(tmp_path / "cache"), "who needs the same waits"
        for path in (root / "train").rglob("*.jp*g"):
            path.unlink()

    with pytest.raises(DogbreedError, match="cannot be used: missing"):
        fit(root, tmp_path / "cache", then=lose)
    assert len(keys(tmp_path / "cache")) >= BATCH, "what was computed is kept"
    assert not is_locked(tmp_path / "cache")


@pytest.mark.slow
def test_a_disk_that_fills_up_in_the_middle_of_an_epoch(tmp_path: Path, largest_file) -> None:
    with largest_file(100_000):
        ran = runs.run(*runs.overrides(tmp_path / "run", "cache.mode=require", "progress=none"))
    assert ran.code == 2
    assert "could not be written" in ran.err
    assert ran.err.strip().count("\n") == 0
    assert not list(tmp_path.rglob(".*.tmp"))
    assert not is_locked(tmp_path / "cache")
    assert runs.run(*runs.overrides(tmp_path / "run", "cache.mode=require")).code == 0, "later there is room"


@pytest.mark.slow
def test_weights_that_change_meanwhile_are_no_features(dog_tree: Path, tmp_path: Path) -> None:
    def change(trainer: Trainer, model: DogBreedClassifier) -> None:
        with torch.no_grad():
            next(model.network.parameters()).mul_(2)
        trainer.limit_val_batches = 1.0

    with pytest.raises(DogbreedError, match="has changed while its features were computed"):
        fit(dog_tree, tmp_path / "cache", then=change)


@pytest.mark.slow
def test_another_process_waits_and_comes_to_the_same(dog_tree: Path, tmp_path: Path) -> None:
    others: list[Forked] = []

    def start(trainer: Trainer, model: DogBreedClassifier) -> None:
        others.append(Forked(attach_in_blocks, [dog_tree, tmp_path / "cache"], runs.environment()))

    with runs.one_thread():
        fit(dog_tree, tmp_path / "cache", then=start, epochs=1)
    said = others[0].communicate()[0].split()
    assert said[-1] == "built", "the views of later epochs, and test"
    assert len(set(keys(tmp_path / "cache"))) == 72, "all views of all images"
