"""A study of a run: its heads are those of separate trainings, and its table trains again."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from scipy import stats
from support import runs

from dogbreed import DogBreedClassifier, DogImages
from dogbreed.data.datasets import SplitFiles
from dogbreed.models import backbones
from dogbreed.report.study import ClassGain, Correction, Label, Point, Study, correction, gains
from dogbreed.study import main as study_main
from dogbreed.training.study import draw_images, twins

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
        assert study_main([str(run), "--folds", "3", "--seeds", "2", "--output", str(run.parent / "study")]) == 0
    return run.parent / "study"


def test_what_it_leaves(studied: Path) -> None:
    content = json.loads((studied / "study.json").read_text())
    rows = list(csv.DictReader((studied / "labels.csv").open()))
    assert content["images"] == len(rows) == 3 * (6 + 3 + 3)
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    assert content["accuracy"] == pytest.approx(np.mean(content["curve"][-1]["seeds"]))
    assert 0 < content["accuracy_error"] < 0.5 / math.sqrt(35), "two heads per image, of which one may err alone"
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(probabilities)
    assert sum(one["images"] for one in content["classes"]) == 36
    assert [one["accuracy"] - one["few"] for one in content["classes"]] == sorted(
        (one["accuracy"] - one["few"] for one in content["classes"]), reverse=True
    )
    weighed = [one["accuracy"] * one["images"] for one in content["classes"]]
    assert sum(weighed) / 36 == pytest.approx(content["accuracy"])
    assert all(len(suspect["alike"]) == 3 for suspect in content["suspects"])
    assert [suspect["path"] for suspect in content["suspects"]] == [
        row["path"] for row in rows if row["label"] != row["suggested"]
    ]
    assert all([len(seed) for seed in point["folds"]] == [3, 3] for point in content["curve"])
    assert content["curve"][-1]["images"] == 24, "two thirds of 36"


def test_the_page(studied: Path) -> None:
    page = (studied / "study.html").read_text()
    suspects = json.loads((studied / "study.json").read_text())["suspects"]
    assert "Study of run" in page
    assert "<svg" in page
    assert "power law" in page
    assert "Which classes gain most?" in page
    assert "This part could not be made" not in page
    galleries, _, image_map = page.partition('<h2 id="map">')
    assert galleries.count("data:image/jpeg") == len(suspects)
    assert image_map.count("data:image/jpeg") == 36
    assert all(suspect["path"] in galleries for suspect in suspects)
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
    assert point["folds"][0][0] == pytest.approx(result["test_acc"], abs=1e-6)


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
        Point(images, [[accuracy]], [accuracy], accuracy)
        for images, accuracy in ((10, 0.9), (20, 0.99), (40, 0.991), (80, 1.0))
    ]
    assert Study(tmp_path, tmp_path, [], curve).twice == 1.0
    assert Study(tmp_path, tmp_path, [], curve[:2]).twice is None


def test_refit_is_expected_to_bring_what_the_law_says(tmp_path: Path) -> None:
    curve = [Point(images, [[0.0]], [0.0], 0.9 - 2 / images) for images in (10, 20, 40, 80, 160)]
    study = Study(tmp_path, tmp_path, [], curve, refit=(100, 125))
    assert study.refit_gain == pytest.approx(2 / 100 - 2 / 125, rel=0.02)
    assert "It expects +0.4 points of refit=true (125 images in place of 100)." in study.outlook()


def test_no_error_is_claimed_where_every_image_is_right(tmp_path: Path) -> None:
    labels = [Label("one", "a", "train", "a", 0.9, 0.9)] * 40
    sure, unsure = (
        Study(tmp_path, tmp_path, labels, [Point(32, [[1.0] * 5], [accuracy], accuracy, error)]).judgement()
        for accuracy, error in ((1.0, 0.0), (0.9, 0.048))
    )
    assert sure.startswith("100.0 % of 40 images are classified as labelled by heads that have not seen them: 5 folds")
    assert unsure.startswith("90.0 ± 4.8 % (standard error) of 40 images")


def test_figures_that_are_far_apart_are_named(tmp_path: Path) -> None:
    labels, curve = [Label("one", "a", "train", "a", 0.9, 0.9)], [Point(8, [[0.7]], [0.7], 0.7, error=0.01)]
    far, near = (
        Study(tmp_path, tmp_path, labels, curve, tested=(tested, tested - 0.05, tested + 0.05)).judgement()
        for tested in (0.76, 0.75)
    )
    assert "They are 6.0 points apart, of which chance explains 5.4: the images of test are unlike the others" in far
    assert "apart" not in near


def test_gains_are_those_of_an_analysis_of_variance() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 12, 600)
    few = random.random(600).round()
    now = np.clip(few + (random.random(600) < labels / 24), 0, 1)
    names = [f"class {label}" for label in range(13)]  # of the last there is none
    made, chance = gains(names, labels, few, now)
    groups = [(now - few)[labels == label] for label in range(12)]
    between = stats.f_oneway(*groups).statistic * 11  # of 588 degrees of freedom, as good as endless
    assert chance == pytest.approx(stats.chi2.sf(between, 11), rel=1e-6)
    assert sorted(one.gain for one in made) == pytest.approx(sorted(group.mean() for group in groups))
    within = math.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / 588)
    assert [one.error * math.sqrt(one.images) for one in made] == pytest.approx([within] * 12)
    assert gains(names, labels, few, random.permutation(now))[1] > chance
    assert gains(["a", "b"], np.array([0, 1]), np.zeros(2), np.ones(2)) == (
        [ClassGain("a", 1, 0.0, 1.0, 0.0), ClassGain("b", 1, 0.0, 1.0, 0.0)],
        None,
    )


def test_a_correction_is_compared_by_image() -> None:
    before = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], dtype=bool)
    after = np.array([[1, 0, 1, 1], [1, 1, 1, 1]], dtype=bool)
    assert correction(before, after) == Correction(3 / 8, 7 / 8, only_before=1, only_after=2)
    assert correction(before, after).p_value == 1.0


def test_a_picture_with_two_labels_is_seen(tmp_path: Path) -> None:
    paths = []
    for number, seed in enumerate((0, 1, 0, 0)):  # the third is the first, smaller; the fourth the same in its class
        noise = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(noise).resize((96 - 8 * number, 96 - 8 * number), Image.Resampling.BICUBIC).save(paths[-1])
    files = SplitFiles(paths, np.array([0, 1, 1, 0]), [str(path) for path in paths], [])
    near = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.2], [1.0, 0.0], [1.0, 0.1]]))
    assert twins(files, near) == [(0, 2), (2, 3)]
    far = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert twins(files, far) == []


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
    with pytest.raises(SystemExit):
        study_main([str(run), "--seeds", "0"])
    assert "--seeds is a whole number from 1" in capsys.readouterr().err
