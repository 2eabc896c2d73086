"""What a study of a run's features has found: labels that look wrong, and a learning curve by number of images."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dogbreed.core.text import count
from dogbreed.metrics.power_law import fit_power_law

FEW = 0.4  # of the images foretell the rest, to see how far the curve can be trusted
MOST_SUSPECTS = 48


@dataclass(frozen=True)
class Label:
    """An image, and what a head that has not seen it says of its label.

    Attributes:
        path: As the run shows it.
        label: Class that it has.
        split: That it is in.
        suggested: Most probable class.
        probability: Of the class that it has.
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
        folds: Accuracy on the images of each fold, by the head that was trained on others.
        accuracy: Of all images.
    """

    images: int
    folds: list[float]
    accuracy: float


@dataclass(frozen=True)
class Study:
    """What came out.

    Attributes:
        run: Folder of the run.
        root: Folder of its images.
        labels: Of all images, the least probable first.
        curve: By number of images.
    """

    run: Path
    root: Path
    labels: list[Label]
    curve: list[Point]

    @property
    def suspects(self) -> list[Label]:
        """Return the images whose own class is the least probable, where another is more probable.

        They are ranked, not judged: confident learning's rule (Northcutt et al. 2021, arXiv:1911.00068) calls 290 of
        2,160 labels of 120 breeds wrong.
        """
        return [label for label in self.labels if label.label != label.suggested][:MOST_SUSPECTS]

    @property
    def twice(self) -> float | None:
        """Return the accuracy to expect of twice the images, no less than now; None where the curve does not tell."""
        expected = self._expected(self.curve, 2 * self.curve[-1].images)
        return None if expected is None else max(expected, self.curve[-1].accuracy)

    @property
    def foretold(self) -> float | None:
        """Return the accuracy of the last point as the points up to `FEW` of its images foretell it."""
        most = 1.05 * FEW * self.curve[-1].images + 1  # of a few images per class, a share is rounded
        return self._expected([point for point in self.curve if point.images <= most], self.curve[-1].images)

    def _expected(self, points: list[Point], images: int) -> float | None:
        law = fit_power_law([(point.images, point.accuracy) for point in points])
        return law and law.accuracy(images)

    def to_json(self) -> dict[str, Any]:
        """Return the content of `study.json`."""
        return {
            "run": str(self.run),
            "images": len(self.labels),
            "accuracy": self.curve[-1].accuracy,
            "suspects": [asdict(suspect) for suspect in self.suspects],
            "curve": [asdict(point) for point in self.curve],
            "twice": self.twice,
            "foretold": self.foretold,
        }

    def judgement(self) -> str:
        """Return how many labels heads that have not seen the images agree with, in a sentence."""
        now = self.curve[-1]
        spread = ", ".join(f"{100 * accuracy:.1f}" for accuracy in now.folds)
        return (
            f"{100 * now.accuracy:.1f} % of {count(len(self.labels), 'image')} are classified as labelled by a head "
            f"that has not seen them (folds: {spread})."
        )

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
        if self.foretold is not None:
            off = 100 * (self.foretold - now.accuracy)
            said += f" Fitted to at most {100 * FEW:.0f} % of them, the curve is {off:+.1f} points off for all."
        return said
