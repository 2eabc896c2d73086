"""The page of backbones where every answer is right."""

from pathlib import Path

from dogbreed.metrics.calibration import wilson_interval
from dogbreed.report import leaderboard_page
from dogbreed.report.leaderboard import Leaderboard, Row


def test_backbones_without_a_mistake_are_drawn(tmp_path: Path) -> None:
    figures = {"val_acc": 1.0, "val_acc_ci95": list(wilson_interval(48, 48)), "val_loss": 0.05}
    rows = [Row(name, figures, 13.8, 413_520_000, time) for name, time in (("resnet18", 40.0), ("lite", 70.0))]
    board = Leaderboard("dogs", {"train": 96, "valid": 48}, "cpu", rows, None, None, {}, 1.0)
    leaderboard_page.write(tmp_path / "page.html", board)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 1
    assert "could not be made" not in page
