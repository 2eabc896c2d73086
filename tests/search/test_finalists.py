"""The best settings again with other seeds: the figures are those of whole runs, and so is the comparison."""

import csv
import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import yaml
from support import runs

from dogbreed.metrics.paired import sign_flips
from dogbreed.search.finalists import Difference, Finalist, Verdict
from dogbreed.search.run import caution, tune
from dogbreed.training.run import train

pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'dogbreed[search]'")
pytestmark = pytest.mark.slow

SPACE = "search.space={model: {lr: {low: 0.0005, high: 0.1, log: true}}}"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, data = tmp_path_factory.mktemp("weights"), runs.photographs(train=12, test=12)
    return [
        *("model.backbone=resnet18", "data.size=64", "data.num_workers=0", "trainer.accelerator=cpu", "loggers=null"),
        *("trainer.max_epochs=2", "data.batch_size=8", "progress=none", f"data.root={data}"),
        *(runs.headless_weights(folder), f"cache.dir={folder / 'cache'}"),
    ]


def test_a_search_by_a_handful_of_validation_images_says_so() -> None:
    assert caution(4) == ["It chose by 4 validation images, 25 points of val_acc each: mostly by luck."]
    assert caution(30) == []


def searched(folder: Path, settings: list[str], *more: str) -> dict[str, Any]:
    tune(overrides=[*settings, SPACE, "search.trials=6", "search.seeds=2", f"output_dir={folder}", *more])
    content: dict[str, Any] = json.loads((folder / "winner.json").read_text())
    return content


def test_the_winner_and_your_settings_are_compared_as_whole_runs_would_be(settings: list[str], tmp_path: Path) -> None:
    made = searched(tmp_path / "search", settings)
    assert made["compared_on"] == "test"
    assert made["seeds"] == [1, 2]
    *others, yours = made["finalists"]
    assert yours["name"] == "your settings"
    assert [other["objective"] for other in others] == sorted(other["objective"] for other in others)
    assert made["winner"] == others[0]["name"]
    lead = yours["objective"] < others[0]["objective"]
    assert (
        made["your_settings_lead_on_valid"] == made["verdict"].endswith("better than every trial: keep them.") == lead
    )
    best = yaml.safe_load((tmp_path / "search" / "best.yaml").read_text())
    assert best["model"]["lr"] == others[0]["params"]["model.lr"]

    right: list[dict[str, int]] = []
    for finalist in (others[0], yours):
        rate, correct = finalist["params"]["model.lr"], dict[str, int]()
        for seed, accuracy in zip(made["seeds"], finalist["test_acc_by_seed"], strict=True):
            folder = tmp_path / f"{finalist['name']}-{seed}".replace(" ", "-")
            run = train(overrides=[*settings, f"model.lr={rate}", f"seed={seed}", f"output_dir={folder}"])
            assert run.metrics["test_acc"] == pytest.approx(accuracy)
            for row in csv.DictReader((folder / "predictions.csv").read_text().splitlines()):
                correct[row["path"]] = correct.get(row["path"], 0) + (row["label"] == row["predicted"])
        right.append(correct)
    differences = [right[0][path] - right[1][path] for path in right[0]]
    assert len(differences) == made["images"] == 36
    assert made["accuracy_difference"]["mean"] == pytest.approx(mean(differences) / 2)
    assert made["accuracy_difference"]["p_value"] == pytest.approx(sign_flips(differences))


def test_without_test_images_each_training_image_is_classified_by_a_head_that_has_not_seen_it(
    settings: list[str], tmp_path: Path
) -> None:
    made = searched(tmp_path, settings, "test=false", "search.objective=val_acc", "search.direction=maximize")
    assert made["compared_on"] == "folds"
    assert made["images"] == 36
    assert "on 36 training images, each by a head trained without it. By accuracy" in made["verdict"]
    *others, yours = made["finalists"]
    assert "test_acc" not in yours
    assert [other["objective"] for other in others] == sorted((other["objective"] for other in others), reverse=True)


@pytest.mark.parametrize("lead", [True, False])
def test_it_is_said_where_your_settings_are_the_best(lead: bool) -> None:
    finalists = [Finalist("trial 1", {}), Finalist("your settings", {})]
    for finalist in finalists:
        finalist.correct["test"], finalist.losses["test"] = torch.tensor([1, 0]), torch.tensor([0.1, 0.2])
        finalist.accuracies["test"] = [0.5]
    same = Difference(0.0, -0.1, 0.1, 1.0)
    said = Verdict(finalists, [1], "test", "val_loss", same, same, lead).sentence()
    assert said.endswith(
        "p = 1). On valid your settings are better than every trial: keep them." if lead else "p = 1)."
    )


def test_no_seeds_no_comparison(settings: list[str], tmp_path: Path) -> None:
    search = tune(overrides=[*settings, SPACE, "search.trials=2", "search.seeds=0", f"output_dir={tmp_path}"])
    assert not (tmp_path / "winner.json").exists()
    assert search.best().value == min(trial.value for trial in search.finished())
