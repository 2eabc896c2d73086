"""What predictions on a split add up to: figures, breeds, mix-ups, mistakes. Plain functions of logits and labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogbreed.metrics.calibration import calibration_error, wilson_interval
from dogbreed.metrics.predictions import Predictions

PREDICTIONS = ("path", "label", "predicted", "correct", "probability", "top5")


def measure(predictions: Predictions, name: str = "test") -> dict[str, Any]:
    """Figures as in `metrics.json`: loss in nats, shares from 0 to 1, over all images at once in float64."""
    logits, labels = predictions.logits.double(), predictions.labels
    correct = int((predictions.predicted == labels).sum())
    top5 = logits.topk(min(5, logits.shape[1])).indices
    return {
        f"{name}_loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        f"{name}_acc": correct / len(labels),
        f"{name}_top5": int((top5 == labels[:, None]).any(1).sum()) / len(labels),
        f"{name}_acc_ci95": list(wilson_interval(correct, len(labels))),
        f"{name}_ece": calibration_error(logits, labels, temperature=predictions.temperature),
        f"{name}_ece_uncalibrated": calibration_error(logits, labels),
    }


def prediction_rows(predictions: Predictions, names: Sequence[str], root: Path) -> list[tuple[Any, ...]]:
    """Rows of `predictions.csv`, with the columns of `PREDICTIONS`; paths are relative to `root`."""
    probabilities = predictions.probabilities
    values, places = probabilities.topk(min(5, probabilities.shape[1]))
    rows = []
    for path, label, row, found in zip(
        predictions.paths, predictions.labels.tolist(), values.tolist(), places.tolist(), strict=True
    ):
        top = " ".join(f"{names[i]}={p:.4f}" for i, p in zip(found, row, strict=True))
        correct = int(found[0] == label)
        rows.append((path.relative_to(root).as_posix(), names[label], names[found[0]], correct, f"{row[0]:.6f}", top))
    return rows


class ClassMetrics(NamedTuple):
    """How one class fared.

    Attributes:
        label: Its index.
        correct: Images answered rightly, of `total`.
        low: Of the Wilson interval of the share.
        high: Of the same.
        mistaken_for: The class most often said instead, None where there was no mistake.
    """

    label: int
    correct: int
    total: int
    low: float
    high: float
    mistaken_for: int | None


def per_class(predictions: Predictions) -> list[ClassMetrics]:
    """Every class that has images, the worst first; of equals those first of which more images are known."""
    matrix = confusion(predictions)
    found = []
    for label in np.flatnonzero(matrix.sum(1)).tolist():
        row = matrix[label].copy()
        correct, total = int(row[label]), int(row.sum())
        row[label] = 0
        other = int(row.argmax()) if row.any() else None
        found.append(ClassMetrics(label, correct, total, *wilson_interval(correct, total), other))
    return sorted(found, key=lambda breed: (breed.correct / breed.total, -breed.total, breed.label))


def confusion(predictions: Predictions) -> NDArray[np.int64]:
    """Images by class and by what was said, [classes, classes]."""
    classes = predictions.logits.shape[1]
    flat = (predictions.labels * classes + predictions.predicted).numpy()
    return np.bincount(flat, minlength=classes * classes).reshape(classes, classes)


class ConfusedPair(NamedTuple):
    """Two classes that are taken for one another.

    Attributes:
        first: The class whose images are mistaken more often, `forth` of `first_total` times.
        second: The other, mistaken for the first `back` of `second_total` times.
    """

    first: int
    second: int
    forth: int
    back: int
    first_total: int
    second_total: int


def most_confused(predictions: Predictions, most: int = 10) -> list[ConfusedPair]:
    """The pairs of classes with the most mistakes between them.

    Of pairs with equally many, that one comes first whose wrong class was given the higher probability: with few
    images a class there are many pairs with one mistake, and most of those say little.
    """
    matrix = confusion(predictions)
    totals = matrix.sum(1)
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    both = np.triu(wrong + wrong.T)
    pairs = np.argwhere(both)
    if not len(pairs):
        return []
    soft = _soft_confusion(predictions)
    soft = soft + soft.T
    order = sorted(pairs.tolist(), key=lambda pair: (-both[tuple(pair)], -soft[tuple(pair)], pair))
    found = []
    for one, other in order[:most]:
        first, second = (one, other) if wrong[one, other] >= wrong[other, one] else (other, one)
        counts = (wrong[first, second], wrong[second, first], totals[first], totals[second])
        found.append(ConfusedPair(first, second, *map(int, counts)))
    return found


def most_confident_errors(predictions: Predictions, most: int = 12) -> list[int]:
    """Positions of the wrongly answered images, those first that were answered with the highest probability."""
    sure = predictions.probabilities.max(1).values
    wrong = torch.nonzero(predictions.predicted != predictions.labels).flatten()
    order = sure[wrong].argsort(descending=True, stable=True)
    return wrong[order][:most].tolist()


class Bin(NamedTuple):
    """Images whose answer was given with about the same probability: its mean, the share that was right, how many."""

    confidence: float
    accuracy: float
    images: int


def reliability(logits: Tensor, labels: Tensor, *, temperature: float = 1.0, bins: int = 15) -> list[Bin]:
    """The bins, of equal width, whose gaps `calibration_error` adds up; empty ones are left out."""
    confidence, predicted = (logits.double() / temperature).softmax(1).max(1)
    correct = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    found = []
    for number in range(bins):
        inside = bin_of == number
        if count := int(inside.sum()):
            found.append(Bin(float(confidence[inside].mean()), float(correct[inside].mean()), count))
    return found


def similarity_order(predictions: Predictions) -> list[int]:
    """An order of the classes in which those that the model takes for one another are neighbours.

    Average-linkage clustering of the mean probabilities; two clusters are joined at their most similar ends.
    """
    soft = _soft_confusion(predictions)
    likeness = soft + soft.T
    np.fill_diagonal(likeness, -1.0)
    ends = likeness.copy()
    groups: dict[int, list[int]] = {label: [label] for label in range(len(likeness))}
    while len(groups) > 1:
        one, other = (int(place) for place in np.unravel_index(likeness.argmax(), likeness.shape))
        left, right = groups[one], groups.pop(other)
        options = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
        a, b = max(options, key=lambda option: ends[option[0][-1], option[1][0]])
        share = len(left) / (len(left) + len(right))
        merged = share * likeness[one] + (1 - share) * likeness[other]
        likeness[one, :] = likeness[:, one] = merged
        likeness[one, one] = -1.0
        likeness[other, :] = likeness[:, other] = -2.0  # below every other: never chosen again
        groups[one] = a + b
    return next(iter(groups.values()))


def _soft_confusion(predictions: Predictions) -> NDArray[np.float64]:
    """Mean probability of each class over the images of each, [classes, classes]; without images a row is zero."""
    classes = predictions.logits.shape[1]
    sums = torch.zeros(classes, classes, dtype=torch.float64).index_add_(
        0, predictions.labels, predictions.probabilities
    )
    totals = torch.bincount(predictions.labels, minlength=classes).clamp(min=1)
    mean: NDArray[np.float64] = (sums / totals[:, None]).numpy()
    return mean
