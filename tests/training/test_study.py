"""A study of a run: its heads are those of separate trainings, and its table trains again."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch import Trainer
from support import runs

from dogbreed import DogBreedClassifier, DogImages
from dogbreed.models import backbones
from dogbreed.report.study import Point, Study
from dogbreed.study import main as study_main
from dogbreed.training.study import draw_images

pytestmark = pytest.mark.slow

HEAD = ("model.backbone=resnet18", "model.lr=0.01", "data.batch_size=4", "data.augment=none", "trainer.max_epochs=3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return runs.headless_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def run(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    runs.train_in(folder / "run", *HEAD, weights)
    return folder / "run"


@pytest.fixture(scope="module")
def studied(run: Path) -> Path:
    with runs.one_thread():
        assert study_main([str(run), "--folds", "3", "--output", str(run.parent / "study")]) == 0
    return run.parent / "study"


def test_what_it_leaves(studied: Path) -> None:
    content = json.loads((studied / "study.json").read_text())
    rows = list(csv.DictReader((studied / "labels.csv").open()))
    assert content["images"] == len(rows) == 3 * (6 + 3 + 3)
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    assert content["accuracy"] == pytest.approx(np.mean([row["label"] == row["suggested"] for row in rows]))
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(probabilities)
    assert [suspect["path"] for suspect in content["suspects"]] == [
        row["path"] for row in rows if row["label"] != row["suggested"]
    ]
    assert all(len(point["folds"]) == 3 for point in content["curve"])
    assert content["curve"][-1]["images"] == 24, "two thirds of 36"


def test_the_page(studied: Path) -> None:
    page = (studied / "study.html").read_text()
    suspects = json.loads((studied / "study.json").read_text())["suspects"]
    assert "Study of run" in page
    assert "<svg" in page
    assert page.count("data:image/jpeg") == len(suspects)
    assert all(suspect["path"] in page for suspect in suspects)
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_a_point_of_the_curve_is_a_training_of_its_own(run: Path, studied: Path, weights: str) -> None:
    size = backbones.preprocessing_of("resnet18", size=64)
    data = DogImages(runs.photographs(), augment="none", batch_size=4, num_workers=0, preprocessing=size, quiet=True)
    data.setup()
    pooled, fold_of = data.with_folds(3, ["train", "valid", "test"])
    files = pooled.samples["train"]
    others, fold = np.flatnonzero(fold_of != 0), np.flatnonzero(fold_of == 0)
    drawn = others[draw_images(files.labels[others], 0.4, 0)]
    data.samples = {"train": files.take(drawn), "valid": files.take(drawn), "test": files.take(fold)}
    model = DogBreedClassifier(
        3, backbone="resnet18", weights=weights.partition("=")[2], lr=0.01, class_names=data.classes,
        preprocessing=size.to_dict(),
    )  # fmt: skip
    content = json.loads((studied / "study.json").read_text())
    (point,) = [point for point in content["curve"] if abs(point["images"] - len(drawn)) <= 1]
    # As many steps as six per epoch, of four images, on all of the other folds.
    epochs = math.ceil(runs.metrics(run)["best_epoch"] * 6 / math.ceil(point["images"] / 4))
    quiet: Any = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=epochs, accelerator="cpu", num_sanity_val_steps=0, **quiet)
    trainer.fit(model, datamodule=data)
    (result,) = trainer.test(model, datamodule=data, verbose=False)
    assert point["folds"][0] == pytest.approx(result["test_acc"], abs=1e-6)


@pytest.mark.slow
def test_the_table_trains_again(studied: Path, run: Path, tmp_path: Path) -> None:
    rows = list(csv.DictReader((studied / "labels.csv").open()))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[1:])  # the first is dropped
    said = runs.train_in(tmp_path / "run", *HEAD, f"data.labels={tmp_path / 'labels.csv'}").out
    left = [sum(row["split"] == split for row in rows[1:]) for split in ("train", "valid", "test")]
    assert f"3 classes, {' / '.join(map(str, left))} images to train / validate / test" in said


def test_more_images_are_not_expected_to_do_harm(tmp_path: Path) -> None:
    curve = [
        Point(images, [accuracy], accuracy) for images, accuracy in ((10, 0.9), (20, 0.99), (40, 0.991), (80, 1.0))
    ]
    assert Study(tmp_path, tmp_path, [], curve).twice == 1.0
    assert Study(tmp_path, tmp_path, [], curve[:2]).twice is None


def test_draws_are_of_each_class_and_part_of_larger_ones() -> None:
    labels = np.array([0] * 10 + [1] * 5 + [2])
    few, more = draw_images(labels, 0.2, 3), draw_images(labels, 0.7, 3)
    assert np.bincount(labels[few]).tolist() == [2, 1, 1]
    assert set(few) <= set(more)
    assert draw_images(labels, 1.0, 3).tolist() == list(range(16))
    assert draw_images(labels, 0.2, 4).tolist() != few.tolist()


def test_what_cannot_be_studied(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: Path) -> None:
    assert study_main([str(tmp_path)]) == 2
    assert "is no folder of a finished run; python -m dogbreed.train makes one." in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    for name in ("metrics.json", "config.yaml"):
        text = (run / name).read_text().replace("trainable: head", "trainable: block")
        (tmp_path / "other" / name).write_text(text)
    assert study_main([str(tmp_path / "other")]) == 2
    assert (
        "which cannot be here: model.trainable=block, so more than the last layer differs." in capsys.readouterr().err
    )
    with pytest.raises(SystemExit):
        study_main([str(run), "--folds", "1"])
    assert "--folds is a whole number from 2" in capsys.readouterr().err
