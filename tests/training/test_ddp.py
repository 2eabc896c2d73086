"""Two processes on the CPU train one model: every image counts once, and each computes its share of the features."""

import re
from pathlib import Path

import pytest
import torch
from support import runs
from torch.nn.functional import cross_entropy

from dogbreed import Predictor
from dogbreed.data.images import load

TWO = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "model.lr=0.01"]


@pytest.fixture(scope="module")
def photographs() -> Path:
    """15 / 9 / 9 photographs: none of the splits can be halved."""
    return runs.photographs(3, 5, 3, 3)


def _train(folder: Path, data: Path, *more: str) -> str:
    said = runs.finish(runs.start(runs.overrides(folder, *TWO, *more, data=data), folder.parent))
    assert re.findall(r"^epoch=(\d)", said, re.MULTILINE) == ["1", "2"], said
    assert said.count("Test set: ") == 1, "one process speaks for both"
    return said


def _assert_every_image_counted_once(folder: Path, data: Path) -> None:
    """What the run says of itself is what one process finds with the exported model."""
    predictor = Predictor(folder / "model", device="cpu")
    metrics = runs.metrics(folder)
    for split, name in (("valid", "val"), ("test", "test")):
        paths = sorted((data / split).rglob("*.jpg"))
        labels = torch.tensor([predictor.class_names.index(path.parent.name.partition(".")[2]) for path in paths])
        logits = predictor.logits(torch.stack([load(path, predictor.model.preprocessing) for path in paths]))
        assert metrics[f"{name}_loss"] == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-5)
        assert metrics[f"{name}_acc"] == (logits.argmax(1) == labels).float().mean().item() or metrics[
            f"{name}_acc"
        ] == pytest.approx((logits.argmax(1) == labels).double().mean().item())
    rows = runs.predictions(folder)
    assert [data / row["path"] for row in rows] == sorted((data / "test").rglob("*.jpg"))
    best = min(runs.history(folder), key=lambda row: row["val_loss"])
    assert metrics["val_loss"] == pytest.approx(best["val_loss"], abs=1e-5), "the epoch's line counts each once too"


@pytest.mark.slow
def test_two_processes(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _train(folder, photographs)
    assert runs.metrics(folder)["cache"] == "built"
    (store,) = (file.parent for file in (tmp_path / "cache" / "features").glob("*/store.json"))
    assert len(list(store.glob("*.safetensors"))) == 2, "a block from each process"
    _assert_every_image_counted_once(folder, photographs)

    # The features that both have built serve one process alone.
    runs.train_in(tmp_path / "alone", "cache.mode=require", data=photographs)
    assert runs.metrics(tmp_path / "alone")["cache"] == "hit"


@pytest.mark.slow
def test_where_one_cannot_keep_its_features_neither_does(photographs: Path, tmp_path: Path) -> None:
    """The first makes the folder, so it alone fails; the second would otherwise wait for it for ever."""
    (tmp_path / "file").touch()
    said = _train(tmp_path / "run", photographs, f"cache.dir={tmp_path / 'file' / 'cache'}")
    assert said.count("Cache off: ") == 1
    assert "cannot be written (Not a directory)" in said
    assert runs.metrics(tmp_path / "run")["cache"] == "off"


@pytest.mark.slow
def test_two_processes_without_cache(photographs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    _train(folder, photographs, "cache.mode=off", "model.trainable=all", "data.batch_size=4")
    assert runs.metrics(folder)["cache"] == "off"
    _assert_every_image_counted_once(folder, photographs)
