"""`schedule=finetune`: the head first, on cached features, then more of the network from that head: one run."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
from support import runs

pytestmark = pytest.mark.slow

TINY = (
    "model.backbone=resnet18",
    "data.augment=none",
    "model.lr=0.001",
    "data.batch_size=5",
    "model.trainable=block",
    "model.optimizer=adamw",
)
MORE = (
    "schedule=finetune",
    *TINY,
    "model.schedule=constant",
    "model.weight_decay=0",
    "model.backbone_lr=null",
    "model.freeze_norm=false",
    "head_stage.epochs=3",
    "head_stage.lr=0.01",
    "head_stage.batch_size=6",
    "head_stage.optimizer=adam",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two stages, and what it said."""
    folder = tmp_path_factory.mktemp("finetune") / "run"
    return folder, runs.train_in(folder, *MORE).out


def test_the_stages_are_two_ordinary_runs(made: tuple[Path, str]) -> None:
    """The head alone, and a run whose weights are the best checkpoint of that: bit for bit the same."""
    folder, _ = made
    head = ("model.trainable=head", "model.lr=0.01", "data.batch_size=6", "model.optimizer=adam")
    runs.train_in(folder.parent / "head", *TINY, *head, "trainer.max_epochs=3")
    assert runs.history(folder / "head_stage")[-1]["val_loss"] == runs.history(folder.parent / "head")[-1]["val_loss"]
    alone, metrics = runs.metrics(folder.parent / "head"), runs.metrics(folder)
    for key in ("val_loss", "val_acc", "test_loss", "test_acc", "epochs", "best_epoch"):
        assert metrics[f"head_{key}"] == alone[key], key

    weights = f"model.weights={folder / 'head_stage/checkpoints/best.ckpt'}"
    runs.train_in(folder.parent / "second", *TINY, weights)
    runs.assert_same_model(folder, folder.parent / "second")
    assert runs.predictions(folder) == runs.predictions(folder.parent / "second")
    assert metrics["test_loss"] == runs.metrics(folder.parent / "second")["test_loss"]


def test_the_frozen_part_is_never_computed_again(made: tuple[Path, str]) -> None:
    """Each stage computes what it needs once; a second run finds both stages' features, and trains to the same end."""
    folder, out = made
    assert out.count("Computing the frozen part once: 36 images") == 2
    again = folder.parent / "again"
    assert "Computing the frozen part" not in runs.train_in(again, *MORE, "cache.mode=require").out
    assert (runs.metrics(again)["cache"], runs.metrics(again / "head_stage")["cache"]) == ("hit", "hit")
    runs.assert_same_result(folder, again)


def test_the_gain_is_that_on_the_same_images(made: tuple[Path, str]) -> None:
    folder, out = made
    before, after = (
        [int(row["correct"]) for row in runs.predictions(path)] for path in (folder / "head_stage", folder)
    )
    differences = [b - a for a, b in zip(before, after, strict=True)]
    mean = sum(differences) / len(differences)
    error = (sum((each - mean) ** 2 for each in differences) / len(differences) ** 2) ** 0.5
    metrics = runs.metrics(folder)
    assert metrics["gain_acc"] == pytest.approx(mean)
    assert metrics["gain_acc_ci95"] == pytest.approx([mean - 1.96 * error, mean + 1.96 * error])
    sentence = f"the second stage changed that by {100 * metrics['gain_acc']:+.1f} points"
    page = (folder / "report.html").read_text()
    assert sentence in out
    assert sentence in page
    assert page.count("second stage from here") == 2
    assert "The first 3 epochs trained the head alone" in page
    assert out.count("Test set: Average loss") == 1
    assert [row["epoch"] for row in runs.history(folder)] == [1, 2]


@pytest.fixture(scope="module")
def longer(made: tuple[Path, str]) -> tuple[Path, list[str]]:
    """A run with epochs enough to be stopped in either stage, and its settings."""
    more = [*MORE, "head_stage.epochs=30", "trainer.max_epochs=12"]
    runs.train_in(made[0].parent / "longer", *more)
    return made[0].parent / "longer", more


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["head_stage/checkpoints", "checkpoints"])
def test_stopped_in_either_stage(longer: tuple[Path, list[str]], stage: str) -> None:
    """Ctrl-C, and on with `resume=RUN` alone: the result is that of the run that was left alone."""
    whole, more = longer
    folder = whole.parent / f"stopped{len(stage)}"

    def stop() -> None:
        while not (folder / stage / "last.ckpt").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=stop)
    thread.start()
    ran = runs.run(*runs.overrides(folder, *more))
    thread.join()
    assert ran.code == 130
    assert f"go on with resume={folder}" in ran.err
    assert not (folder / "metrics.json").exists()
    assert (folder / "head_stage/metrics.json").exists() is (stage == "checkpoints")
    ran = runs.run(f"resume={folder}")
    assert ran.code == 0, ran.err
    assert ("Stage 1 of 2" in ran.out) is (stage != "checkpoints")
    runs.assert_same_result(whole, folder)


def test_what_cannot_be_two_stages(tmp_path: Path) -> None:
    for override, sentence in (
        ("model.trainable=head", "model.trainable=head leaves nothing for the second stage"),
        ("head_stage.epochs=-1", "head_stage.epochs=-1 is out of range; it is a whole number from 0."),
        ("head_stage.lr=0", "head_stage.lr=0 is out of range; it is more than 0."),
        ("trainer.devices=2", "Two stages (head_stage.epochs) train on one device; give trainer.devices=1."),
    ):
        ran = runs.run(*runs.overrides(tmp_path / "run", *MORE, override))
        assert ran.code == 2, override
        assert sentence in ran.err
        assert not (tmp_path / "run").exists()


def test_another_run_in_the_same_folder(made: tuple[Path, str], tmp_path: Path) -> None:
    """What its first stage left would pass for the new run's; without it, the second is not gone on with."""
    runs.train_in(tmp_path / "run", *MORE)
    (tmp_path / "run/head_stage").rename(tmp_path / "moved")
    ran = runs.run(f"resume={tmp_path / 'run'}", "trainer.max_epochs=3")
    assert ran.code == 2
    assert "needs the folder head_stage of its run" in ran.err
    (tmp_path / "moved").rename(tmp_path / "run/head_stage")
    runs.train_in(tmp_path / "run", *TINY, "overwrite=true", "trainer.max_epochs=1")
    assert not (tmp_path / "run/head_stage").exists()
    assert "head_val_loss" not in runs.metrics(tmp_path / "run")
