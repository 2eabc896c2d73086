"""What backbones have come to on the same images: a row for each, as JSON and as text."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dogbreed.core.text import count

BASELINES = {"knn": "kNN", "class_means": "means", "lda": "LDA", "lbfgs": "L-BFGS"}
# Heading of each column of the printed table.
HEAD = ("backbone", "valid", "test", "95 % CI", "loss", *BASELINES.values(), "img/s", "MB", "GMAC", "ms")


@dataclass(frozen=True)
class Row:
    """A backbone with the best of its heads, or an ensemble.

    Attributes:
        name: Of the backbone; of an ensemble its members'.
        figures: Of the head on valid and, where there is one, test: `val_acc`, `val_acc_ci95`, `val_loss`, `test_acc`
            and so on, as in `metrics.json`.
        megabytes: Size of the network's values, in 10^6 bytes.
        multiply_adds: Of one image through the whole network.
        milliseconds: From an image's pixels to its logits.
        images_per_second: Whose features were computed; None where they were there, and nobody knows how fast.
        rate_remembered: Whether that is of an earlier time, since all features were there.
        weights: As `model.weights` takes them.
        size: Side of the input in pixels.
        lr: Learning rate of the head.
        baselines: Figures of other classifiers on the same features.
    """

    name: str
    figures: dict[str, Any]
    megabytes: float
    multiply_adds: int
    milliseconds: float
    images_per_second: float | None = None
    rate_remembered: bool = False
    weights: str | None = None
    size: int | None = None
    lr: float | None = None
    baselines: dict[str, dict[str, Any]] | None = None

    @property
    def split(self) -> str:
        """Return what the figures of `metrics.json` begin with: those of test where there is one."""
        return "test" if "test_acc" in self.figures else "val"

    @property
    def interval(self) -> str:
        """Return the 95 % interval of the accuracy on test, in percent."""
        low, high = self.figures[f"{self.split}_acc_ci95"]
        return f"{100 * low:.1f} to {100 * high:.1f}"

    def cells(self) -> list[str]:
        """Return the row of the table whose heading is `HEAD`."""
        own = self.figures
        others = [(self.baselines or {}).get(name, {}).get(f"{self.split}_acc") for name in BASELINES]
        rate = self.images_per_second
        return [
            self.name,
            _percent(own["val_acc"]),
            _percent(own.get("test_acc")),
            self.interval,
            f"{own[f'{self.split}_loss']:.3f}",
            *map(_percent, others),
            "-" if rate is None else f"{rate:.0f}{'*' * self.rate_remembered}",
            f"{self.megabytes:.1f}",
            f"{self.multiply_adds / 1e9:.2f}",
            f"{self.milliseconds:.1f}",
        ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


@dataclass(frozen=True)
class Leaderboard:
    """All of them.

    Attributes:
        root: Folder of the images.
        images: Of each split.
        device: Where it was measured.
        rows: The best first, by accuracy on valid: test is not for choosing.
        ensemble: Of the heads of the two backbones with the lowest loss on valid; None where there is one alone.
        gain: Of the ensemble over the better of its members: `only_ensemble` and `only_member`, images of test (or
            valid) that one alone classifies correctly, and `p`, by McNemar's test.
        failed: Backbones that could not take part, and why.
        seconds: That it took.
    """

    root: str
    images: dict[str, int]
    device: str
    rows: list[Row]
    ensemble: Row | None
    gain: dict[str, Any] | None
    failed: dict[str, str]
    seconds: float

    @property
    def front(self) -> list[Row]:
        """Return those than which none is both faster and better on valid, the fastest first."""
        front: list[Row] = []
        for row in sorted(self.all, key=lambda row: (row.milliseconds, -row.figures["val_acc"])):
            if not front or row.figures["val_acc"] > front[-1].figures["val_acc"]:
                front.append(row)
        return front

    @property
    def all(self) -> list[Row]:
        """Return the backbones and the ensemble."""
        return self.rows + ([self.ensemble] if self.ensemble else [])

    def to_json(self) -> dict[str, Any]:
        """Return the content of `leaderboard.json`."""
        return {**asdict(self), "front": [row.name for row in self.front]}

    def table(self) -> list[str]:
        """Return the rows as aligned lines."""
        cells: Sequence[Sequence[str]] = [HEAD, *(row.cells() for row in self.all)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in cells]
        remembered = any(row.rate_remembered for row in self.rows)
        return lines + ["* remembered: measured on this machine when the features were computed"] * remembered

    def winner(self) -> str:
        """Return which backbone is the best on valid, in a sentence."""
        best = self.rows[0]
        said = f"The best on valid is {best.name}, with {_percent(best.figures['val_acc'])} %"
        if best.split == "test":
            said += f"; on test it has {_percent(best.figures['test_acc'])} % (95 % CI {best.interval} %)"
        return f"{said}."

    def verdict(self) -> str:
        """Return whether the ensemble is better than its better member, in a sentence."""
        if self.gain is None:
            return "An ensemble needs two backbones."
        ours, theirs = self.gain["only_ensemble"], self.gain["only_member"]
        return (
            f"The ensemble classifies {count(ours, 'image')} correctly that {self.gain['member']} does not, and the "
            f"other way round {theirs:,} (p = {self.gain['p']:.2g}, McNemar)."
        )
