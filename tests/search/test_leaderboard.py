"""Backbones side by side: every figure against one that is computed otherwise, and what cannot take part."""

import csv
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import runs
from support.places import ROOT
from torchvision.models import get_model

from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.core.errors import Interrupted
from dogbreed.data.images import load
from dogbreed.models import backbones
from dogbreed.search.leaderboard import RATE, _backbones, multiply_adds
from dogbreed.training.build import build_data, build_model
from dogbreed.training.run import train
from dogbreed.tune import main

CLASSES = 3


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("leaderboard")
    weights = folder / "resnet18.pth"
    torch.save(backbones.create("resnet18", 7, weights="none", seed=5).state_dict(), weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.delenv("DOGBREED_CACHE", raising=False)
        yield [
            *(setting for setting in runs.STACKABLE if not setting.startswith("model.backbone")),
            f"data.root={runs.photographs()}",
            "data.augment=none",
            "data.batch_size=8",
            f"search.backbones=[mobilenet_v3_small,squeezenet1_1,{{resnet18: {weights}}}]",
        ]


@pytest.fixture(scope="module")
def board(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("board")
    assert main([*settings, f"output_dir={folder}", "progress=none"]) == 0
    assert (folder / "leaderboard.html").read_text(encoding="utf-8").count("<svg") == 1
    written: dict[str, Any] = json.loads((folder / "leaderboard.json").read_text())
    return written


@pytest.mark.slow
def test_the_head_is_that_of_a_run_with_the_same_settings(
    settings: list[str], board: dict[str, Any], tmp_path: Path
) -> None:
    assert [row["figures"]["val_acc"] for row in board["rows"]] == sorted(
        (row["figures"]["val_acc"] for row in board["rows"]), reverse=True
    )
    row = next(row for row in board["rows"] if row["name"] == "resnet18")
    own = [setting for setting in settings if not setting.startswith(("search", "model.weights"))]
    folder = tmp_path / "run"
    train(
        overrides=[*own, "model.backbone=resnet18", f"model.weights={row['weights']}", f"model.lr={row['lr']}",
                   f"output_dir={folder}", "progress=none"]
    )  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("val_acc", "test_acc", "test_acc_ci95"):
        assert row["figures"][name] == pytest.approx(metrics[name])
    for name in ("val_loss", "test_loss"):
        assert row["figures"][name] == pytest.approx(metrics[name], abs=1e-4)
    assert row["images_per_second"] > 0
    assert row["megabytes"] == pytest.approx((11_176_512 + 513 * CLASSES) * 4 / 1e6, rel=0.002)  # and batch norm's own


@pytest.mark.slow
def test_baselines_and_the_ensemble_are_what_scikit_learn_and_numpy_make_of_the_features(
    settings: list[str], board: dict[str, Any]
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics.pairwise import cosine_similarity

    row = next(row for row in board["rows"] if row["name"] == "resnet18")
    own = [setting for setting in settings if not setting.startswith(("search", "model.weights"))]
    config = Config.from_dict(compose([*own, "model.backbone=resnet18", f"model.weights={row['weights']}"]))
    data = build_data(config, quiet=True)
    data.prepare_data()
    data.setup()
    network = build_model(config, data, None).network.eval()
    network.fc = torch.nn.Identity()
    features, labels = {}, {split: files.labels for split, files in data.samples.items()}
    for split, files in data.samples.items():
        with torch.no_grad():
            features[split] = network(torch.stack([load(path, data.preprocessing) for path in files.paths])).numpy()

    def accuracy(split: str, scores: Any) -> float:
        return float((scores.argmax(1) == labels[split]).mean())

    unit = features["train"] / np.linalg.norm(features["train"], axis=1, keepdims=True)
    means = np.stack([unit[labels["train"] == label].mean(0) for label in range(CLASSES)])
    solvers = [LogisticRegression(C=c, max_iter=5000, tol=1e-8) for c in (0.001, 0.01, 0.1, 1.0, 10.0)]
    losses = []
    for solver in solvers:
        solver.fit(features["train"], labels["train"])
        losses.append(-solver.predict_log_proba(features["valid"])[np.arange(9), labels["valid"]].mean())
    best = solvers[int(np.argmin(losses))]
    for split, name in (("valid", "val"), ("test", "test")):
        found = row["baselines"]
        assert found["class_means"][f"{name}_acc"] == accuracy(split, cosine_similarity(features[split], means))
        assert found["lbfgs"][f"{name}_acc"] == accuracy(split, best.predict_proba(features[split]))
    assert row["baselines"]["lbfgs"]["val_loss"] == pytest.approx(min(losses), abs=1e-3)


@pytest.mark.slow
def test_an_ensemble_stands_below_with_its_gain(board: dict[str, Any]) -> None:
    rows = {row["name"]: row for row in board["rows"]}
    first, second = sorted(rows.values(), key=lambda row: row["figures"]["val_loss"])
    ensemble, gain = board["ensemble"], board["gain"]
    assert ensemble["name"] == f"{first['name']} + {second['name']}"
    assert ensemble["multiply_adds"] == first["multiply_adds"] + second["multiply_adds"]
    images = board["images"]["test"]
    difference = ensemble["figures"]["test_acc"] - rows[gain["member"]]["figures"]["test_acc"]
    assert (gain["only_ensemble"] - gain["only_member"]) / images == pytest.approx(difference)
    # The cross-entropy of a mean of probabilities is at most the mean of the two (Jensen).
    means = (first["figures"]["test_loss"] + second["figures"]["test_loss"]) / 2
    assert ensemble["figures"]["test_loss"] <= means
    fastest = min(board["rows"], key=lambda row: row["milliseconds"])
    assert board["front"][0] == fastest["name"]


@pytest.mark.slow
def test_what_cannot_take_part_is_named_and_the_second_time_features_are_there(
    settings: list[str], board: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert list(board["failed"]) == ["squeezenet1_1"]
    assert main([*settings, f"output_dir={tmp_path}"]) == 0
    said = capsys.readouterr().out
    assert "squeezenet1_1 cannot take part: its last layer" in said
    assert "Computing features" not in said
    assert re.search(r"^backbone +valid +test +95 % CI +loss +kNN", said, re.MULTILINE)
    again = json.loads((tmp_path / "leaderboard.json").read_text())
    rates = [row["images_per_second"] for row in board["rows"]]
    assert [row["images_per_second"] for row in again["rows"]] == rates
    assert ([row["rate_remembered"] for row in board["rows"]], [row["rate_remembered"] for row in again["rows"]]) == (
        [False, False], [True, True]
    )  # fmt: skip
    assert "* remembered: measured on this machine when the features were computed" in said
    assert re.search(rf"^{board['rows'][0]['name']} .* {rates[0]:.0f}\* ", said, re.MULTILINE)
    for file in Path(os.environ["XDG_CACHE_HOME"]).rglob(RATE):
        kept = json.loads(file.read_text())
        file.write_text(json.dumps(kept | {"machine": {"processor": "another"}}))
    assert main([*settings, f"output_dir={tmp_path / 'elsewhere'}", "progress=none"]) == 0
    elsewhere = json.loads((tmp_path / "elsewhere" / "leaderboard.json").read_text())
    assert [row["images_per_second"] for row in elsewhere["rows"]] == [None, None]
    for before, after in zip(board["rows"], again["rows"], strict=True):
        assert (before["figures"], before["baselines"]) == (after["figures"], after["baselines"])


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("search.backbones=resnet18", "search.backbones is a list of names"),
        ("search.backbones=[]", "search.backbones is empty"),
        ("search.backbones=[{resnet18: 3}]", "search.backbones is a list of names"),
        ("search.backbones=[resnet81]", "did you mean resnet18?"),
        ("trainer.max_epochs=0", "needs trainer.max_epochs >= 1"),
        ("model.trainable=all", "compares heads on cached features"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, sentence: str
) -> None:
    key = setting.partition("=")[0]
    kept = [own for own in settings if not own.startswith(f"{key}=")]
    assert main([*kept, setting, f"output_dir={tmp_path / 'none'}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_backbone_that_is_named_twice_takes_part_once() -> None:
    names = "search.backbones=[resnet18,{resnet18: my.pth},resnet18,{resnet18: imagenet}]"
    assert _backbones(Config.from_dict(compose([names]))) == [("resnet18", "imagenet"), ("resnet18", "my.pth")]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", pytest.param("vit_b_16", marks=pytest.mark.slow)])
def test_multiply_adds_are_those_of_the_table_of_the_cloud(name: str) -> None:
    with (ROOT / "launch" / "aws" / "networks.csv").open(newline="") as file:
        counted = {row["network"]: float(row["macs"]) for row in csv.DictReader(file)}
    assert multiply_adds(get_model(name), 224) / 1e6 == pytest.approx(counted[name], abs=0.006)


def test_the_experiment_names_ten_networks_that_are_known() -> None:
    names = [name if isinstance(name, str) else next(iter(name)) for name in _ten()]
    assert len(set(names)) == 10
    for name in names:
        if not name.startswith("timm/"):
            backbones.check_name(name)


def _ten() -> list[Any]:
    chosen: list[Any] = compose(["experiment=leaderboard"])["search"]["backbones"]
    return chosen


def test_a_ctrl_c_stops_all_backbones(dog_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no reason to leave one of them out."""
    started: list[str] = []

    def stopped(config: Config, *_: Any) -> None:
        started.append(config.model.backbone)
        raise Interrupted("Stopped while features were computed.")

    monkeypatch.setattr("dogbreed.search.leaderboard._entry", stopped)
    backbones = "search.backbones=[squeezenet1_1,resnet18]"
    assert main([*runs.TINY, f"data.root={dog_tree}", f"output_dir={tmp_path / 'run'}", backbones]) == 130
    assert started == ["squeezenet1_1"]
