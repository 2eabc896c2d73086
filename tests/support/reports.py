"""Runs to report on, made of a few small images, and what every page has to hold."""

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dogbreed.config.compose import compose
from dogbreed.config.overrides import quote
from dogbreed.data.datasets import SplitFiles
from dogbreed.data.images import Preprocessing
from dogbreed.metrics.predictions import Predictions
from dogbreed.report.inputs import ReportInputs

HISTORY = [
    {"epoch": 1, "train_loss": 2.0, "val_loss": 1.5, "val_acc": 0.5, "lr": 0.01},
    {"epoch": 2, "train_loss": 1.0, "val_loss": 1.1, "val_acc": 0.7, "lr": 0.01},
    {"epoch": 3, "train_loss": 0.5, "val_loss": 1.4, "val_acc": 0.6, "lr": 0.01},
]
METRICS = {"best_epoch": 2, "epochs": 3, "seconds": 12.3, "images_seen": 120, "cache": "hit", "device": "cpu"}
NAMES = ["Amber_hound", "Blue_spitz", "Green-eyed_setter", "Red_terrier"]
PAIRS = [(0, 0), (0, 0), (1, 1), (1, 2), (1, 2), (2, 2), (3, 3), (3, 0)]
SECTIONS = ["curves", "classes", "confused", "matrix", "errors", "calibration", "images", "reproduce"]


def make_run(
    root: Path,
    pairs: Sequence[tuple[int, int]],
    names: Sequence[str],
    *,
    files: bool = True,
    temperature: float = 1.5,
    split: str = "test",
    **given: object,
) -> ReportInputs:
    """A run whose model said `said` of an image of `truth`, for each pair; with a training image a class."""
    rng = np.random.default_rng(0)

    def samples(where: str, labels: Sequence[int]) -> SplitFiles:
        paths = [root / where / f"{i}.jpg" for i in range(len(labels))]
        for path in paths if files else ():
            path.parent.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray(rng.integers(0, 255, (5, 7, 3), dtype=np.uint8))
            small.resize((70, 50), Image.Resampling.BICUBIC).save(path)
        return SplitFiles(paths, np.array(labels, dtype=np.int64), [], [])

    measured = samples(split, [truth for truth, _ in pairs])
    logits = torch.randn(len(pairs), len(names), generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(pairs)), torch.tensor([said for _, said in pairs])] = 9.0
    values = {
        "photos": {"train": samples("train", range(len(names) if files else 0)), split: measured},
        "predictions": Predictions(split, logits, torch.from_numpy(measured.labels), measured.paths, temperature),
        "history": HISTORY,
        "metrics": METRICS,
        "config": compose([f"data.root={quote(str(root))}", "model.backbone=squeezenet1_1", "model.lr=0.01"]),
        **given,
    }
    return ReportInputs(list(names), "squeezenet1_1", Preprocessing(size=64), root, **values)  # type: ignore[arg-type]


class Checker(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((name, dict(attributes)))
        if name not in ("meta", "img", "br"):
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name


def read_page(file: Path) -> str:
    """A page that is well formed, and in which no number is none."""
    page = file.read_text(encoding="utf-8").replace("\u00a0", " ")
    check_well_formed(page)
    assert not re.search(r"\b(nan|inf)\b", re.sub(r"base64,[^\"]+", "", page), re.IGNORECASE)
    return page


def check_well_formed(page: str) -> list[tuple[str, dict[str, str | None]]]:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    for name, attributes in checker.seen:
        assert name not in ("script", "link", "iframe", "object"), name
        for attribute in ("src", "href", "data", "action", "xlink:href"):
            assert (attributes.get(attribute) or "#").startswith(("#", "data:image/jpeg;base64,"))
        assert name != "img" or attributes["alt"]
    assert "url(http" not in page
    assert not re.search(r"https?://", page)
    return checker.seen
