"""`data.folds=K`: the accuracy of each fold is that of a run on the other folds."""

from copy import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from support import runs

from dogbreed import DogBreedClassifier, DogImages
from dogbreed.core.metric_lines import folds_line
from dogbreed.models import backbones

pytestmark = pytest.mark.slow

RESNET = ("model.backbone=resnet18", "model.lr=0.01", "data.batch_size=4", "data.augment=none")
MORE = ("trainer.max_epochs=4", "model.schedule=cosine", "model.prior=uniform")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.headless_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def pair(weights: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run without and with folds, and what the second said."""
    folder = tmp_path_factory.mktemp("folds")
    runs.train_in(folder / "plain", *RESNET, *MORE, weights)
    return (
        folder / "plain",
        folder / "folds",
        runs.train_in(folder / "folds", *RESNET, *MORE, weights, "data.folds=3").out,
    )


class Watch(Callback):
    """Logits of valid after each epoch."""

    def __init__(self) -> None:
        self.logits: list[torch.Tensor] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.logits.append(pl_module.predictions.logits)  # type: ignore[union-attr]


def test_the_run_stays_as_it_is(pair: tuple[Path, Path, str]) -> None:
    plain, folds = pair[:2]
    runs.assert_same_model(plain, folds)
    before, after = (runs.metrics(folder) for folder in (plain, folds))
    assert {key for key in after if key not in before} == {"folds", "folds_mean", "folds_se"}
    changed = {key for key in before if before[key] != after.get(key)}
    assert changed <= set(runs.NOT_THE_RESULT)


def test_what_is_said(pair: tuple[Path, Path, str]) -> None:
    metrics = runs.metrics(pair[1])
    assert len(metrics["folds"]) == 3
    assert metrics["folds_mean"] == pytest.approx(sum(metrics["folds"]) / 3)
    assert metrics["folds_se"] == pytest.approx(np.std(metrics["folds"], ddof=1) / 3**0.5)
    assert f"\n{folds_line(metrics)}.\n" in pair[2]
    assert f" {folds_line(metrics)}." in (pair[1] / "report.html").read_text().replace("\xa0", " ")
    line = folds_line({"folds": [0.5, 0.75], "folds_mean": 0.625, "folds_se": 0.125})
    assert line == (
        "Cross-validation over train + valid: 62.5 % ± 12.5 (mean and standard error of 2 folds: 50.0, 75.0)"
    )


def test_a_fold_is_a_run_on_the_images_of_the_others(pair: tuple[Path, Path, str], weights: str) -> None:
    metrics = runs.metrics(pair[1])
    size = backbones.preprocessing_of("resnet18", size=64)
    data = DogImages(runs.photographs(), augment="none", batch_size=4, num_workers=0, preprocessing=size, quiet=True)
    data.setup()
    pooled, fold_of = data.with_folds(3)
    accuracies = []
    for fold in range(3):
        files = pooled.samples["train"]
        train, valid = files.take(np.flatnonzero(fold_of != fold)), files.take(np.flatnonzero(fold_of == fold))
        assert set(train.paths).isdisjoint(valid.paths)
        assert {*train.paths, *valid.paths} == {*data.samples["train"].paths, *data.samples["valid"].paths}
        own, watch = copy(data), Watch()
        own.samples = {"train": train, "valid": valid}
        model = DogBreedClassifier(
            3, backbone="resnet18", weights=weights.partition("=")[2], lr=0.01, schedule="cosine",
            class_names=data.classes, preprocessing=size.to_dict(),
        )  # fmt: skip
        quiet = {
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "num_sanity_val_steps": 0,
        }
        Trainer(max_epochs=4, accelerator="cpu", callbacks=[watch], **quiet).fit(model, datamodule=own)
        shares = np.bincount(train.labels, minlength=3) / len(train)
        logits = watch.logits[int(metrics["best_epoch"]) - 1].numpy() - np.log(shares)
        accuracies.append((logits.argmax(1) == valid.labels).mean())
    assert metrics["folds"] == pytest.approx(accuracies, abs=1e-9)


def test_a_finished_run_takes_folds_when_it_goes_on(pair: tuple[Path, Path, str], tmp_path: Path) -> None:
    runs.train_in(tmp_path / "run", *RESNET, "trainer.max_epochs=1")
    ran = runs.run(f"resume={tmp_path / 'run'}", "trainer.max_epochs=2", "data.folds=2")
    assert ran.code == 0, ran.err
    assert len(runs.metrics(tmp_path / "run")["folds"]) == 2


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["data.folds=1"], "data.folds=1 is out of range; it is a whole number from 2, or null."),
        (["model.trainable=block"], "which cannot be: model.trainable=block, so more than the last layer differs."),
        (
            ["model.class_weights=balanced"],
            "heads side by side weigh all classes alike. Change that, or set data.",
        ),
        (["cache.mode=off"], "which cannot be: cache.mode=off."),
        (["trainer.gradient_clip_val=1"], "which cannot be: trainer.gradient_clip_val=1"),
        (["model.backbone=squeezenet1_1"], "its last layer, classifier.1, is not a linear one."),
        (["data.folds=10"], "too few are of"),
    ],
)
def test_where_it_cannot(more: list[str], sentence: str, tmp_path: Path) -> None:
    ran = runs.run(*runs.overrides(tmp_path / "run", *RESNET, "data.folds=3", *more))
    assert (ran.code, sentence in ran.err) == (2, True), ran.err
    assert not (tmp_path / "run").exists()
