"""The report in a real browser: it complains of nothing, asks for nothing, and shows everything of every run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import runs
from support.browser import Browser
from support.reports import HISTORY, METRICS, NAMES, PAIRS, SECTIONS, make_run

from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.images import Preprocessing
from dogbreed.metrics.predictions import Predictions
from dogbreed.models import backbones
from dogbreed.monitor.rules import overfit
from dogbreed.report import training_report
from dogbreed.report.inputs import ReportInputs

pytestmark = pytest.mark.slow

WINDOWS = [(theme, width) for theme in ("light", "dark") for width in (1200, 390)]
BOTH = [("light", 1200), ("dark", 390)]  # each theme and each width once
LARGEST = 5_000_000  # bytes of a report


def check(browser: Browser, page: Path, windows: Sequence[tuple[str, int]] = BOTH) -> None:
    """Nothing is wrong with a page, whatever is folded open, in both themes and on a phone."""
    assert page.stat().st_size < LARGEST
    for theme, width in windows:
        browser.open(page, theme=theme, width=width)
        browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        where = f"{theme}, {width} pixels"
        assert browser.errors == [], where
        assert browser.outside == [], where
        assert browser.broken_pictures() == [], where
        assert browser.too_wide() == [], where
        assert browser.poor_contrast() == [], where


def of_120_breeds(root: Path, planted: Path) -> ReportInputs:
    """A run over real photographs. It takes the first breed for the second, and a test photograph is a training one."""
    folders = sorted((root / "test").iterdir())
    names = [folder.name.partition(".")[2] for folder in folders]

    def samples(split: str) -> SplitFiles:
        files = [sorted((root / split / folder.name).iterdir()) for folder in folders]
        labels = [label for label, inside in enumerate(files) for _ in inside]
        return SplitFiles([file for inside in files for file in inside], np.array(labels, dtype=np.int64), [], [])

    train, test = samples("train"), samples("test")
    with Image.open(train.paths[700]) as image:
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(planted, quality=60)
    labels = np.append(test.labels, train.labels[700])
    test = SplitFiles([*test.paths, planted], labels, [], [])
    logits = torch.randn(len(labels), len(names), generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(labels)), torch.from_numpy(labels)] += 5
    logits[torch.from_numpy(labels == 0), 1] += 20
    epochs = [row["epoch"] for row in HISTORY]
    losses = ([row[name] for row in HISTORY] for name in ("train_loss", "val_loss"))
    return ReportInputs(
        names,
        "squeezenet1_1",
        Preprocessing(),
        root,
        {"train": train, "test": test},
        Predictions("test", logits, torch.from_numpy(labels), test.paths, 1.3),
        METRICS,
        HISTORY,
        skipped=[Skipped(root / "train" / "broken.jpg", "the file is truncated")],
        command="python -m dogbreed.train data.root=dogs120",
        network=backbones.create("squeezenet1_1", len(names), weights="none"),
        findings=[overfit([int(epoch) for epoch in epochs], *losses)],
    )


def test_a_run_over_120_breeds(dogs120, browser: Browser, tmp_path):
    run = of_120_breeds(dogs120, tmp_path / "planted.jpg")
    page = tmp_path / "report.html"
    training_report.write(page, run)
    check(browser, page, WINDOWS)
    readable_on_a_phone(browser)
    sections = browser.run("return [...document.querySelectorAll('h2')].map(title => title.id)")
    assert sections == ["curves", "rules", *SECTIONS[1:]]
    assert browser.run("return [...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    one, other = (run.name(label) for label in (0, 1))
    top = browser.run("return document.querySelector('section:has(#confused) .card').innerText")
    assert top.startswith(f"{one} and {other}")
    assert f"3 of 3 images of {one} classified as {other}" in top
    assert browser.run("return document.querySelectorAll('section:has(#confused) .card:first-child img').length") == 2
    photographs = browser.run("return document.querySelector('section:has(#images)').innerText")
    assert "1 image found in two splits: 0 as the very same file, 1 as the same picture saved again" in photographs
    assert "planted.jpg" in photographs
    assert "broken.jpg" in photographs
    assert "1 image of the test split also lies in another split" in browser.run(
        "return document.querySelector('header').innerText"
    )


SMALLEST_LABELS = """
return [...document.querySelectorAll('.matrix svg')].map(svg => Math.min(
  ...[...svg.querySelectorAll('text')].map(text => parseFloat(text.getAttribute('font-size')) * svg.getScreenCTM().a)))
"""
CUT_WITHOUT_A_HINT = """
return [...document.querySelectorAll('.scroll')].filter(part => part.scrollWidth > part.clientWidth + 1 &&
  !(part.nextElementSibling?.matches('.sideways') && part.nextElementSibling.checkVisibility()))
  .map(part => part.getAttribute('aria-label'))
"""
LOOKS = """
return ['.alarm', '.diagnosis'].map(kind => getComputedStyle(document.querySelector(kind)))
  .map(style => [style.backgroundColor, style.borderTopWidth, style.borderLeftColor])
"""


def readable_on_a_phone(browser: Browser) -> None:
    """A report over many classes that is open there: labels, what scrolls, alarms, and the width of the text."""
    assert browser.run("return document.documentElement.clientWidth") == 390
    part, whole = browser.run("return [...document.querySelectorAll('.matrix svg')].map(s => s.textContent.length)")
    assert part < whole / 3, "the most confused classes come first"
    assert min(browser.run(SMALLEST_LABELS)) >= 8.5, "pixels"
    assert browser.run(CUT_WITHOUT_A_HINT) == []
    alarm, tip = browser.run(LOOKS)
    assert all(one != other for one, other in zip(alarm, tip, strict=True))
    assert browser.run("return document.querySelector('h2 + p, h2 ~ p').getBoundingClientRect().width") > 350


NASTY = ["<script>window.hacked = 1</script>", '"><img src=x onerror="window.hacked=1">', "a&amp;b", "</style><h1>x"]


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (NAMES, PAIRS),
        (["Only_breed"], [(0, 0), (0, 0)]),
        (NAMES, [(0, 1)]),
        (NAMES, [(0, 0), (1, 0), (2, 0), (3, 0)]),
        (NASTY, PAIRS),
        ([f"A_breed_with_a_long_name_of_number_{i}" for i in range(160)], [(i, (i * 7) % 160) for i in range(160)]),
    ],
    ids=["four breeds", "one breed", "one image", "breeds never said", "markup", "as many names as are written"],
)
def test_every_shape_of_run(names, pairs, browser: Browser, tmp_path):
    network = backbones.create("squeezenet1_1", len(names), weights="none")
    page = tmp_path / "report.html"
    training_report.write(page, make_run(tmp_path, pairs, names, network=network))
    check(browser, page)
    assert browser.run("return window.hacked === undefined && document.querySelectorAll('h1').length === 1")
    text = browser.run("return document.body.innerText")
    assert all(names[label].replace("_", " ") in text for label, _ in pairs[:4])


def test_a_thousand_breeds(browser: Browser, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"Breed_number_{i}_of_a_thousand" for i in range(1000)]
    pairs = [(label, label if rng.random() < 0.8 else int(rng.integers(1000))) for label in range(1000)]
    page = tmp_path / "report.html"
    training_report.write(page, make_run(tmp_path, pairs, names))
    check(browser, page)


def test_the_report_of_a_run(browser: Browser, tmp_path):
    runs.train_in(tmp_path / "run")
    check(browser, tmp_path / "run" / "report.html")
    assert "squeezenet1_1 trained on dogs" in browser.driver.title
