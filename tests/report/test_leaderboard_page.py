"""The page of backbones where every answer is right."""

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

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


@pytest.mark.slow
def test_no_name_lies_on_another(browser: Any, tmp_path: Path) -> None:
    """As they are on the page, in a browser: backbones that are almost equal, alone and in a crowd."""
    accuracies = {"efficientnet_lite0": 0.681, "mobilenet_v2": 0.681, "resnet18": 0.683, "efficientnet_b0": 0.7}
    rows = [
        Row(
            name,
            {"val_acc": share, "val_acc_ci95": [share - 0.05, share + 0.04], "val_loss": 1.0},
            9.6,
            10**9,
            20 + place,
        )
        for place, (name, share) in enumerate(accuracies.items())
    ]
    pair = Row("efficientnet_b0 + mobilenet_v2", rows[-1].figures, 1.0, 10**9, 43.0)
    board = Leaderboard("dogs", {"train": 96, "valid": 48}, "cpu", rows, pair, None, {}, 1.0)
    leaderboard_page.write(tmp_path / "page.html", board)
    browser.open((tmp_path / "page.html").as_uri())
    boxes = browser.driver.execute_script(
        "return [...document.querySelectorAll('svg text')].filter(text => /net/.test(text.textContent))"
        ".map(text => text.getBoundingClientRect()).map(box => [box.left, box.top, box.right, box.bottom])"
    )
    assert len(boxes) == 5
    for one, other in combinations(boxes, 2):
        wide = min(one[2], other[2]) - max(one[0], other[0])
        high = min(one[3], other[3]) - max(one[1], other[1])
        assert wide <= 0 or high < 0.3 * (one[3] - one[1]), "a line has room above its letters and below"
