"""Every precision of the Trainer can be clipped, and exported so that the model loads and answers as it did."""

from pathlib import Path

import pytest
import torch
from support import runs

from dogbreed import Predictor


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-true", "64-true"])
def test_it_is_clipped_and_exported(precision: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.train_in(
        folder,
        f"trainer.precision={precision}",
        "trainer.gradient_clip_val=1.0",
        "trainer.max_epochs=1",
        "model.lr=0.01",
    )
    weights = runs.weights(folder)
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float32}
    rows = runs.predictions(folder)
    predictor = Predictor(folder, device="cpu")
    answers = predictor.predict([runs.photographs() / row["path"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert float(row["probability"]) == pytest.approx(
            answer.probability, abs=1e-6 if precision == "64-true" else 0.02
        )


@pytest.mark.slow
def test_mixed_precision_is_the_same_run_with_the_cache(tmp_path: Path) -> None:
    for mode in ("require", "off"):
        runs.train_in(tmp_path / mode, "trainer.precision=bf16-mixed", "model.lr=0.01", f"cache.mode={mode}")
    cached, uncached = (runs.history(tmp_path / mode) for mode in ("require", "off"))
    for row, other in zip(cached, uncached, strict=True):
        for name in ("train_loss", "val_loss"):
            assert row[name] == pytest.approx(other[name], rel=0, abs=1e-4)  # float32 features are 3e-3 away
