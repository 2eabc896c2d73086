"""What a report is made of: what a model predicted for a split, and everything else that is known of a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from dogbreed.core.text import count
from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.duplicates import Pair, find_duplicates
from dogbreed.data.images import Preprocessing
from dogbreed.data.vocabulary import noun_of
from dogbreed.metrics.classification import measure, per_class
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.monitor.rules import Finding
from dogbreed.report.rendering import percent, shown

MOST_NAMES = 5  # of classes, in a sentence
SPLIT_NAMES = {"test": "test", "valid": "validation", "train": "training"}


class Leak(NamedTuple):
    """Images that were measured on and lie in another split as well.

    Attributes:
        images: How many there are.
        accuracy: That of the other images; None where none is left.
        sentence: What it means for the result.
    """

    images: int
    accuracy: float | None
    sentence: str


class Caveats(NamedTuple):
    """What to know of a result.

    Attributes:
        sentences: All of it.
        leak: The sentence on a leak, if there is one.
        metrics: What `metrics.json` has of a leak.
    """

    sentences: list[str]
    leak: list[str]
    metrics: dict[str, Any]


def head_sentence(metrics: Mapping[str, Any]) -> str:
    """Return what the second of two stages gained over the head alone, from `metrics.json`."""
    split = "test" if "head_test_acc" in metrics else "val"
    low, high = (100 * end for end in metrics["gain_acc_ci95"])
    before, gain = metrics[f"head_{split}_acc"], 100 * metrics["gain_acc"]
    doubt = "" if low > 0 or high < 0 else ", which may be chance"
    return (
        f"The head alone: {percent(before, 1)}; the second stage changed that by {gain:+.1f} points "
        f"(95 % CI {low:+.1f} to {high:+.1f} on the same images){doubt}."
    )


@dataclass(frozen=True)
class ReportInputs:
    """What a report is made of. Sections for which something is missing are left out, or say so.

    Attributes:
        class_names: By index.
        backbone: Name of the network.
        preprocessing: From an image to its input.
        root: The data folder; paths are shown relative to it.
        photos: The images by split, for examples of classes and for copies across splits.
        predictions: What the model predicted for one of them.
        metrics: As in `metrics.json`.
        history: As in `metrics.csv`; empty where nothing was trained.
        head_history: The same of the stage before, in which the head alone was trained.
        skipped: Files that were left out.
        config: The training configuration.
        command: What repeats it; empty for a training run, whose command follows from the configuration.
        network: For the heat maps.
        findings: What the rules found while it trained.
        doubts: What is odd about the images and remains so, a sentence each, such as a file under two labels.
    """

    class_names: Sequence[str]
    backbone: str
    preprocessing: Preprocessing
    root: Path
    photos: Mapping[str, SplitFiles]
    predictions: Predictions | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, float]] = ()
    head_history: Sequence[Mapping[str, float]] = ()
    skipped: Sequence[Skipped] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    network: nn.Module | None = None
    findings: Sequence[Finding] = ()
    doubts: Sequence[str] = ()

    @cached_property
    def noun(self) -> str:
        """What a class is called: a breed, where the data are dogs."""
        return noun_of(self.class_names)

    @cached_property
    def measured(self) -> dict[str, Any]:
        """The figures of the predictions, as in `metrics.json`, by their names without the split."""
        assert self.predictions is not None
        return {key.removeprefix("_"): value for key, value in measure(self.predictions, "").items()}

    @cached_property
    def duplicates(self) -> list[Pair]:
        """Images that lie in two splits; looked for once."""
        return find_duplicates(self.photos)

    @cached_property
    def leak(self) -> Leak | None:
        """Which of the measured images lie in another split as well; None where none does."""
        predictions = self.predictions
        if predictions is None:
            return None
        ends = [end for p in self.duplicates for end in ((p.split, p.index), (p.other_split, p.other_index))]
        paths = {self.photos[split].paths[index] for split, index in ends if split == predictions.split}
        kept = torch.tensor([path not in paths for path in predictions.paths])
        leaked, others = int((~kept).sum()), int(kept.sum())
        if not leaked:
            return None
        text = f"{count(leaked, 'image')} of the {SPLIT_NAMES[predictions.split]} split also "
        text += f"{'lies' if leaked == 1 else 'lie'} in another split, so the result "
        if not others:
            return Leak(leaked, None, f"{text}may look better than it is: no other image is left.")
        right = (predictions.predicted == predictions.labels).double()
        accuracy = float(right[kept].mean())
        # It is more where images lie in the other split under another label.
        text += f"may look {'better' if accuracy <= right.mean() else 'worse'} than it is"
        text += f"; without {'it' if leaked == 1 else 'them'} the accuracy is {percent(accuracy, 1)} of {others:,}."
        return Leak(leaked, accuracy, text)

    @cached_property
    def caveats(self) -> Caveats:
        """What to know before believing the accuracy."""
        if self.predictions is None:
            return Caveats([], [], {})
        leak, metrics = [], {}
        if self.leak:
            prefix = PREFIX[self.predictions.split]
            leak = [f"Data leak: {self.leak.sentence}"]
            metrics = {f"{prefix}_leaked": self.leak.images, f"{prefix}_acc_without_leaked": self.leak.accuracy}
        said = list(leak)
        if absent := sorted(set(range(len(self.class_names))) - set(self.predictions.labels.tolist())):
            split = SPLIT_NAMES[self.predictions.split]
            said.append(f"No {split} image, so no figure: {self._some(absent)}.")
        if unpredicted := [one.label for one in per_class(self.predictions) if not one.predicted]:
            balanced, macro_f1 = (percent(self.measured[key], 1) for key in ("balanced_acc", "macro_f1"))
            never = f"Never predicted: {self._some(unpredicted)}"
            said.append(f"{never}; balanced accuracy {balanced}, macro F1 {macro_f1}.")
        return Caveats([*said, *self.doubts], leak, metrics)

    def _some(self, labels: Sequence[int]) -> str:
        """Return the names of the first of some classes, and how many more there are."""
        more = f" and {len(labels) - MOST_NAMES} more" if len(labels) > MOST_NAMES else ""
        return ", ".join(map(self.name, labels[:MOST_NAMES])) + more

    @property
    def title(self) -> str:
        data = self.root.resolve().name or str(self.root)
        return f"{self.backbone} {'trained' if self.history else 'evaluated'} on {data}"

    def shown_path(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)

    def name(self, label: int) -> str:
        return shown(self.class_names[label])
