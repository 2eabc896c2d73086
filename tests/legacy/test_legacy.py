"""A run, a `model/` folder and a feature store that commit 471d083 wrote are still read; `make.py` made them."""

import json
import tarfile
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
import torchvision
import yaml
from support import runs

from dogbreed import Predictor
from dogbreed.config.compose import compose
from dogbreed.evaluate import main as evaluate

ARCHIVE = Path(__file__).with_name("run.tar.xz")
MODULES = {"torch": torch, "torchvision": torchvision, "pillow": PIL}


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Unpacks the archive into the current folder; returns what that commit answered.

    The key of a store holds the versions of the libraries, so these are said to be the versions of then.
    """
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    content = json.loads(Path("expected.json").read_text())
    # Colour profiles came later, and none of these images has one: their inputs are the same.
    monkeypatch.setattr("dogbreed.cache.extract.REVISION", 2)
    for name, version in content["versions"].items():
        module = MODULES[name]
        monkeypatch.setattr(module, "__version__", type(module.__version__)(version))
    return content


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"data": {"root": ...}}` as `{"data.root": ...}`."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        nested = isinstance(value, dict) and value
        result |= flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return result


def _literal(value: Any) -> str:
    """A value in the grammar of the command line."""
    return f"'{value}'" if isinstance(value, str) else json.dumps(value)


def test_archive_stays_small() -> None:
    assert ARCHIVE.stat().st_size < 200_000


@pytest.mark.slow
def test_resumes_on_the_features_that_are_there(expected: dict[str, Any]) -> None:
    ran = runs.run(*expected["settings"], "output_dir=run", "resume=run", "trainer.max_epochs=3")
    assert ran.code == 0, ran.err
    now, then = runs.metrics(Path("run")), expected["after_third_epoch"]
    assert now["cache"] == "hit"
    assert now["epochs"] == 3
    for name in ("train_loss", "val_loss", "val_acc", "test_loss", "test_acc", "best_epoch", "images_seen"):
        assert now[name] == pytest.approx(then[name], rel=1e-4), name
    assert [row["epoch"] for row in runs.history(Path("run"))] == [1, 2, 3]


@pytest.mark.slow
def test_trains_anew_on_the_features_that_are_there(expected: dict[str, Any]) -> None:
    """Every row and view is found, and leads to the losses of then."""
    ran = runs.run(*expected["settings"], "output_dir=again", "trainer.max_epochs=2", "cache.mode=require")
    assert ran.code == 0, ran.err
    assert runs.metrics(Path("again"))["cache"] == "hit"
    for now, then in zip(runs.history(Path("again")), runs.history(Path("run")), strict=True):
        for name in ("train_loss", "val_loss", "val_acc"):
            assert now[name] == pytest.approx(then[name], rel=1e-4), name


def test_model_gives_the_logits_it_gave(expected: dict[str, Any]) -> None:
    predictor = Predictor("run/model")
    assert predictor.class_names == ["Brindle_hound", "Cream_spitz"]
    files = list(expected["logits"])
    logits = predictor.logits(torch.stack([predictor.read(file) for file in files]))
    assert torch.allclose(logits, torch.tensor(list(expected["logits"].values())), atol=1e-4)
    then = {row["path"]: row["predicted"] for row in runs.predictions(Path("run"))}
    answers = {
        file.removeprefix("dogs/"): answer.label for file, answer in zip(files, predictor.predict(files), strict=True)
    }
    assert {path.removeprefix("dogs/"): label for path, label in then.items()} == answers


@pytest.mark.slow
def test_model_is_evaluated_as_it_was(expected: dict[str, Any]) -> None:
    assert evaluate(["run/model", "data.root=dogs", "output_dir=evaluation"]) == 0
    now, then = runs.metrics(Path("evaluation")), runs.metrics(Path("run"))
    assert now["test_loss"] == pytest.approx(then["test_loss"], abs=1e-4)
    assert now["test_acc"] == then["test_acc"]


def test_configuration_is_still_valid(expected: dict[str, Any]) -> None:
    """Every key that a run wrote then is known, and takes the value that it had."""
    then = flat(yaml.safe_load(Path("run/config.yaml").read_text()))
    assert len(then) > 100
    values = {key: value for key, value in then.items() if value is not None}
    overrides = [f"++{key}={_literal(value)}" for key, value in values.items()]
    now = flat(compose(overrides))
    assert {key: now.get(key) for key in values} == values
