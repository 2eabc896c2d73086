"""What a study of a run's features has found: labels that look wrong, and a learning curve by number of images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dogbreed.core.text import count
from dogbreed.metrics.paired import mcnemar
from dogbreed.metrics.power_law import PowerLaw, fit_power_law

FEW = 0.4  # of the images foretell the rest, to see how far the curve can be trusted
MOST_SUSPECTS = 48
CHANCE = 0.05  # p-value above which classes are said to differ by no more than chance


@dataclass(frozen=True)
class Label:
    """An image, and what heads that have not seen it say of its label.

    Attributes:
        path: As the run shows it.
        label: Class that it has.
        split: That it is in.
        suggested: Most probable class.
        probability: Of the class that it has, as the mean over seeds.
        suggested_probability: Of the most probable class.
    """

    path: str
    label: str
    split: str
    suggested: str
    probability: float
    suggested_probability: float


@dataclass(frozen=True)
class Point:
    """Heads that were trained on so many images.

    Attributes:
        images: On how many, as the mean of all folds.
        folds: Accuracy on the images of each fold, by heads that were trained on others: a list for each seed.
        seeds: Accuracy of all images by each seed.
        accuracy: Their mean.
        error: Standard error of that, over the images.
    """

    images: int
    folds: list[list[float]]
    seeds: list[float]
    accuracy: float
    error: float = 0.0


@dataclass(frozen=True)
class ClassGain:
    """What more images have brought a class.

    Attributes:
        name: Of the class.
        images: That it has.
        few: Share that is classified correctly by heads on `FEW` of the images.
        accuracy: The same by heads on all of them.
        error: Standard error of the difference.
    """

    name: str
    images: int
    few: float
    accuracy: float
    error: float

    @property
    def gain(self) -> float:
        """Return the difference."""
        return self.accuracy - self.few


@dataclass(frozen=True)
class Correction:
    """Heads that were trained without the suspects, or with other labels of them, on images held out from all of it.

    Attributes:
        kept, changed: Share of the images held out that is classified correctly, before and after, of all seeds.
        only_before, only_after: Images that heads of the first seed classify correctly in one case alone.
    """

    kept: float
    changed: float
    only_before: int
    only_after: int

    @property
    def p_value(self) -> float:
        """Return McNemar's exact p-value, of the first seed."""
        return mcnemar(self.only_before, self.only_after)


@dataclass(frozen=True)
class Spot:
    """Where an image lies on the map of all images, from 0 to 1 on both sides."""

    image: Label
    x: float
    y: float


@dataclass(frozen=True)
class Twins:
    """One picture with two labels."""

    path: str
    label: str
    other_path: str
    other_label: str


@dataclass(frozen=True)
class Study:
    """What came out.

    Attributes:
        run: Folder of the run.
        root: Folder of its images.
        labels: Of all images, the least probable first.
        curve: By number of images.
        classes: What more images have brought each, the largest gain first.
        chance: p-value of classes that all gain alike; None where there are too few images to tell.
        alike: Labels of the images whose features are the nearest to a suspect's, by its path.
        twins: Pictures with two labels.
        corrections: By `dropped` and `relabelled`; empty where nothing is suspect.
        corrected: Number of images that were.
        held: The split on which that was measured.
        tested: Accuracy of the run on its test images, and the 95 % interval; None where it has none.
        refit: Numbers of images of train, and of train and valid.
        spots: The map of the images; None without scikit-learn.
    """

    run: Path
    root: Path
    labels: list[Label]
    curve: list[Point]
    classes: list[ClassGain] = field(default_factory=list)
    chance: float | None = None
    alike: dict[str, list[str]] = field(default_factory=dict)
    twins: list[Twins] = field(default_factory=list)
    corrections: dict[str, Correction] = field(default_factory=dict)
    corrected: int = 0
    held: str = ""
    tested: tuple[float, float, float] | None = None
    refit: tuple[int, int] | None = None
    spots: list[Spot] | None = None

    @property
    def suspects(self) -> list[Label]:
        """Return the images whose own class is the least probable, where another is more probable.

        They are ranked, not judged: confident learning's rule (Northcutt et al. 2021, arXiv:1911.00068) calls 290 of
        2,160 labels of 120 breeds wrong.
        """
        return suspects_of(self.labels)

    @cached_property
    def law(self) -> PowerLaw | None:
        """Return the power law of the whole curve; None where it does not tell."""
        return fit_power_law([(point.images, point.accuracy) for point in self.curve])

    @property
    def twice(self) -> float | None:
        """Return the accuracy to expect of twice the images, no less than now; None where the curve does not tell."""
        return self.law and max(self.law.accuracy(2 * self.curve[-1].images), self.curve[-1].accuracy)

    @property
    def refit_gain(self) -> float | None:
        """Return what `refit` is expected to bring: train and valid in place of train alone, by the law."""
        if self.law is None or self.refit is None:
            return None
        fewer, more = map(self.law.accuracy, self.refit)
        return more - fewer

    @property
    def foretold(self) -> float | None:
        """Return the accuracy of the last point as the points up to `FEW` of its images foretell it."""
        most = 1.05 * FEW * self.curve[-1].images + 1  # of a few images per class, a share is rounded
        law = fit_power_law([(point.images, point.accuracy) for point in self.curve if point.images <= most])
        return law and law.accuracy(self.curve[-1].images)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `study.json`."""
        return {
            "run": str(self.run),
            "images": len(self.labels),
            "accuracy": self.curve[-1].accuracy,
            "accuracy_error": self.curve[-1].error,
            "suspects": [{**asdict(one), "alike": self.alike.get(one.path, [])} for one in self.suspects],
            "corrections": {name: {**asdict(one), "p_value": one.p_value} for name, one in self.corrections.items()},
            "twins": [asdict(pair) for pair in self.twins],
            "curve": [asdict(point) for point in self.curve],
            "classes": [asdict(one) for one in self.classes],
            "classes_p_value": self.chance,
            "twice": self.twice,
            "foretold": self.foretold,
            "refit_gain": self.refit_gain,
        }

    def judgement(self) -> str:
        """Return how many labels heads that have not seen the images agree with, in a sentence or two."""
        now = self.curve[-1]
        error = f" ± {100 * now.error:.1f} % (standard error)" if now.error else " %"  # all alike would seem certain
        said = (
            f"{100 * now.accuracy:.1f}{error} of "
            f"{count(len(self.labels), 'image')} are classified as labelled by heads that have not seen them: "
            f"{len(now.folds[0])} folds, {count(len(now.folds), 'seed')}"
        )
        seeds = [f"{100 * accuracy:.1f}" for accuracy in now.seeds]
        said += f" ({', '.join(seeds)}), each" if len(seeds) > 1 else ","
        said += f" on {now.images:,} images."
        if self.tested:
            accuracy, low, high = (100 * value for value in self.tested)
            said += f" The run's own test accuracy is {accuracy:.1f} % (95 % CI {low:.1f}-{high:.1f})."
            apart, chance = abs(100 * now.accuracy - accuracy), math.hypot(196 * now.error, (high - low) / 2)
            if apart > chance:
                said += (
                    f" They are {apart:.1f} points apart, of which chance explains {chance:.1f}: the images of test "
                )
                said += "are unlike the others, or duplicates of some."
        return said

    def outlook(self) -> str:
        """Return what more images would bring, in a sentence or two."""
        now, before = self.curve[-1], self.curve[-2] if len(self.curve) > 1 else None
        if before is None or self.twice is None:
            return "The learning curve does not tell what more images would bring."
        gain = 100 * (now.accuracy - before.accuracy)
        said = (
            f"From {before.images:,} to {now.images:,} images to train, accuracy changed by {gain:+.1f} points; the "
            f"curve expects {100 * self.twice:.1f} % accuracy with twice as many."
        )
        if self.refit and self.refit_gain is not None:
            train, both = self.refit
            said += f" It expects {100 * self.refit_gain:+.1f} points of refit=true ({both:,} images in place of "
            said += f"{train:,})."
        if self.foretold is not None:
            off = 100 * (self.foretold - now.accuracy)
            said += f" Fitted to at most {100 * FEW:.0f} % of them, the curve is {off:+.1f} points off for all."
        return said

    def effects(self) -> list[str]:
        """Return what other labels of the suspects change, a sentence each."""
        number = f"the {count(self.corrected, 'most suspicious image')} of the other splits"
        ways = {"dropped": f"Without {number}", "relabelled": "With the suggested labels for them"}
        return [
            f"{ways[name]}, heads classify {100 * one.changed:.1f} % of {self.held} correctly, instead of "
            f"{100 * one.kept:.1f} % (p = {one.p_value:.2g})."
            for name, one in self.corrections.items()
        ]

    def next_classes(self) -> str:
        """Return how far the gains of classes can be trusted, in a sentence."""
        if self.chance is None:
            return ""
        if self.chance > CHANCE:
            return f"The gains of the classes differ by no more than chance would make them (p = {self.chance:.2g})."
        return f"The gains of the classes differ by more than chance would make them (p = {self.chance:.2g})."


def correction(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Correction:
    """Compare which images heads classify correctly, [seeds, images], before a correction and after it."""
    only = [int((one[0] & ~other[0]).sum()) for one, other in ((before, after), (after, before))]
    return Correction(float(before.mean()), float(after.mean()), *only)


def suspects_of(labels: Sequence[Label]) -> list[Label]:
    """Return the first of the labels, ordered by their probability, that are not the suggested ones."""
    return [label for label in labels if label.label != label.suggested][:MOST_SUSPECTS]


def gains(
    classes: Sequence[str], labels: NDArray[np.int64], few: NDArray[np.float64], now: NDArray[np.float64]
) -> tuple[list[ClassGain], float | None]:
    """Return what more images have brought each class, the largest gain first, and whether that is chance.

    Args:
        classes: Names.
        labels: Of all images, [N].
        few: Share of the heads on few images that classify an image correctly, [N].
        now: The same of the heads on all.

    Returns:
        The gains, and the p-value of classes that all gain alike, by the one-way analysis of variance with as many
        images as there are taken as many; None where no class has two.
    """
    change = now - few
    numbers = np.bincount(labels, minlength=len(classes))
    present: list[int] = np.flatnonzero(numbers).tolist()
    means = np.bincount(labels, change, len(classes))[present] / numbers[present]
    within = change - means[np.searchsorted(present, labels)]
    freedom = len(labels) - len(present)
    variance = float((within**2).sum() / freedom) if freedom else 0.0
    made = [
        ClassGain(
            classes[label],
            int(numbers[label]),
            float(few[labels == label].mean()),
            float(now[labels == label].mean()),
            math.sqrt(variance / numbers[label]),
        )
        for label in present
    ]
    made.sort(key=lambda one: -one.gain)
    if not variance or len(present) < 2:
        return made, None
    between = float((numbers[present] * (means - change.mean()) ** 2).sum()) / variance
    freedom_between = torch.tensor((len(present) - 1) / 2, dtype=torch.float64)
    return made, float(torch.special.gammaincc(freedom_between, torch.tensor(between / 2, dtype=torch.float64)))
