"""What predictions on a split add up to: accuracy, classes, confusions, errors. Plain functions of logits and labels.

Nothing here has a row and a column for each class, so that ten thousand classes need no more than their logits.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dogbreed.metrics.calibration import binned, calibration_error, calibration_interval, wilson_interval
from dogbreed.metrics.predictions import PREFIX, Predictions

PREDICTIONS = ("path", "label", "predicted", "correct", "probability", "top5", "true_probability", "loss")


def measure(predictions: Predictions, name: str | None = None) -> dict[str, Any]:
    """Return the figures of `metrics.json`: loss in nats, shares from 0 to 1, over all images at once in float64.

    Args:
        predictions: Of one split.
        name: What the keys begin with; None: what `metrics.json` has for the split.
    """
    name = PREFIX[predictions.split] if name is None else name
    logits, labels, temperature = predictions.logits, predictions.labels, predictions.temperature
    correct = int((predictions.predicted == labels).sum())
    top5 = logits.topk(min(5, logits.shape[1])).indices
    classes = per_class(predictions)
    return {
        f"{name}_loss": float(predictions.losses.mean()),
        f"{name}_acc": correct / len(labels),
        f"{name}_top5": int((top5 == labels[:, None]).any(1).sum()) / len(labels),
        f"{name}_acc_ci95": list(wilson_interval(correct, len(labels))),
        f"{name}_balanced_acc": sum(one.recall for one in classes) / len(classes),
        f"{name}_macro_f1": sum(one.f1 for one in classes) / len(classes),
        f"{name}_never_predicted": sum(not one.predicted for one in classes),
        f"{name}_ece": calibration_error(logits, labels, temperature=temperature),
        f"{name}_ece_ci95": list(calibration_interval(logits, labels, temperature=temperature)),
        f"{name}_ece_uncalibrated": calibration_error(logits, labels),
    }


def prediction_rows(predictions: Predictions, names: Sequence[str], root: Path) -> list[tuple[Any, ...]]:
    """Return the rows of `predictions.csv`, with the columns of `PREDICTIONS`; paths are relative to `root`.

    The last two are the probability of the image's own class, and its loss in nats, without the temperature as that of
    `metrics.json`.
    """
    values, indices = predictions.top(5)
    true = predictions.probability(predictions.labels).tolist()
    columns = predictions.labels.tolist(), values.tolist(), indices.tolist(), true, predictions.losses.tolist()
    rows = []
    for path, label, probabilities, classes, probability, loss in zip(predictions.paths, *columns, strict=True):
        top = " ".join(f"{names[i]}={p:.4f}" for i, p in zip(classes, probabilities, strict=True))
        where = (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()
        row = where, names[label], names[classes[0]], int(classes[0] == label), f"{probabilities[0]:.6f}", top
        rows.append((*row, f"{probability:.6f}", f"{loss:.6f}"))
    return rows


class ClassMetrics(NamedTuple):
    """How well one class is recognised.

    Attributes:
        label: Its index.
        correct: Images classified correctly, of `total`.
        total: Images of the class.
        predicted: Images that were given this class, whatever they show.
        low: Lower end of the 95 % Wilson interval of the recall.
        high: Upper end of it.
        confused_with: The class most often predicted instead, None where there was no error.
    """

    label: int
    correct: int
    total: int
    predicted: int
    low: float
    high: float
    confused_with: int | None

    @property
    def recall(self) -> float:
        """Share of the class's images that are classified correctly."""
        return self.correct / self.total

    @property
    def precision(self) -> float | None:
        """Share of the images given this class that show it; None where it was never predicted."""
        return self.correct / self.predicted if self.predicted else None

    @property
    def f1(self) -> float:
        return 2 * self.correct / (self.total + self.predicted)


def per_class(predictions: Predictions) -> list[ClassMetrics]:
    """Return the metrics of every class that has images, the worst first; of equals those first with more images."""
    labels, predicted = predictions.labels.numpy(), predictions.predicted.numpy()
    classes = predictions.num_classes
    totals, predictions_of = (np.bincount(values, minlength=classes) for values in (labels, predicted))
    correct = np.bincount(labels[labels == predicted], minlength=classes)
    confused: dict[int, int] = {}
    for label, other, _ in errors(predictions):  # the most frequent first
        confused.setdefault(label, other)
    metrics = []
    for label in np.flatnonzero(totals).tolist():
        counts = int(correct[label]), int(totals[label])
        interval = wilson_interval(*counts)
        metrics.append(ClassMetrics(label, *counts, int(predictions_of[label]), *interval, confused.get(label)))
    return sorted(metrics, key=lambda one: (one.recall, -one.total, one.label))


def errors(predictions: Predictions) -> list[tuple[int, int, int]]:
    """Return (class, class predicted instead, images), the most frequent first."""
    wrong = predictions.predicted != predictions.labels
    pairs = torch.stack([predictions.labels[wrong], predictions.predicted[wrong]], 1)
    cells, counts = pairs.unique(dim=0, return_counts=True)
    rows = zip(*cells.T.tolist(), counts.tolist(), strict=True) if len(cells) else ()
    return sorted(rows, key=lambda row: (-row[2], row))


def confusion(predictions: Predictions, classes: Sequence[int]) -> NDArray[np.int64]:
    """Count images by class (rows) and predicted class (columns), both in the order of `classes`, others left out."""
    position = np.full(predictions.num_classes, -1)
    position[list(classes)] = np.arange(len(classes))
    rows, columns = position[predictions.labels.numpy()], position[predictions.predicted.numpy()]
    inside = (rows >= 0) & (columns >= 0)
    size = len(classes)
    flat = rows[inside] * size + columns[inside]
    return np.bincount(flat, minlength=size * size).reshape(size, size)


class ConfusedPair(NamedTuple):
    """Two classes that are confused with one another.

    Attributes:
        first: The class whose images are misclassified more often, `forth` of `first_total` times.
        second: The other, misclassified as the first `back` of `second_total` times.
    """

    first: int
    second: int
    forth: int
    back: int
    first_total: int
    second_total: int


def most_confused(predictions: Predictions, most: int = 10) -> list[ConfusedPair]:
    """Return the pairs of classes with the most errors between them.

    Of pairs with equally many, that one comes first whose wrong classes were given the higher probability: with few
    images per class there are many pairs with one error, and most of those say little.
    """
    totals = predictions.labels.bincount(minlength=predictions.num_classes).tolist()
    counts = {(label, other): images for label, other, images in errors(predictions)}
    confidence: dict[tuple[int, int], float] = {}
    for label, other, confident in zip(
        predictions.labels.tolist(), predictions.predicted.tolist(), predictions.confidence.tolist(), strict=True
    ):
        pair = min(label, other), max(label, other)
        confidence[pair] = confidence.get(pair, 0.0) + confident
    both = {(a, b): counts.get((a, b), 0) + counts.get((b, a), 0) for a, b in confidence if a != b}
    pairs = []
    for a, b in sorted(both, key=lambda pair: (-both[pair], -confidence[pair], pair))[:most]:
        first, second = (a, b) if counts.get((a, b), 0) >= counts.get((b, a), 0) else (b, a)
        forth, back = counts.get((first, second), 0), counts.get((second, first), 0)
        pairs.append(ConfusedPair(first, second, forth, back, totals[first], totals[second]))
    return pairs


def most_confident_errors(predictions: Predictions, most: int = 12) -> list[int]:
    """Return the positions of the misclassified images, those first that were given the highest probability."""
    wrong = torch.nonzero(predictions.predicted != predictions.labels).flatten()
    order = predictions.confidence[wrong].argsort(descending=True, stable=True)
    return wrong[order][:most].tolist()


class Chance(NamedTuple):
    """What can be had without looking at the images.

    Attributes:
        accuracy: Of predicting the most frequent class every time; of several the mean. Of drawing lots where that is
            more, as in a small split that happens to lack that class.
        loss: Of predicting the classes' frequencies every time, in nats; equal ones where that is less.
    """

    accuracy: float
    loss: float


def chance(labels: Tensor, known: Tensor, classes: int) -> Chance:
    """Return the chance level on a split.

    Args:
        labels: [N] of the split.
        known: Labels from which the frequencies are taken, those of the training split.
        classes: How many there are.
    """
    counts = known.bincount(minlength=classes).double() + 1e-3  # a class that was not known costs 7 nats or so
    shares = counts / counts.sum()
    most = (shares == shares.max()).double()
    accuracy, loss = float(most[labels].mean() / most.sum()), float(-shares[labels].log().mean())
    return Chance(max(accuracy, 1 / classes), min(loss, math.log(classes)))


def expected_extremes(classes: Sequence[ClassMetrics]) -> tuple[float, float]:
    """Return how many classes would be always and never right by chance alone, if all had the same accuracy."""
    accuracy = sum(one.correct for one in classes) / sum(one.total for one in classes)
    return sum(accuracy**one.total for one in classes), sum((1 - accuracy) ** one.total for one in classes)


class Bin(NamedTuple):
    """Images that were predicted with about the same probability.

    Attributes:
        confidence: The mean of it.
        accuracy: Share of them that is classified correctly.
        images: How many there are.
    """

    confidence: float
    accuracy: float
    images: int


def reliability(logits: Tensor, labels: Tensor, *, temperature: float = 1.0, bins: int = 15) -> list[Bin]:
    """Return the bins, of equal width, whose gaps `calibration_error` adds up; empty ones are left out."""
    confidence, correct, bin_of = binned(logits, labels, temperature, bins)
    filled = []
    for number in range(bins):
        inside = bin_of == number
        if images := int(inside.sum()):
            filled.append(Bin(float(confidence[inside].mean()), float(correct[inside].mean()), images))
    return filled


def cluster_order(predictions: Predictions, classes: Sequence[int]) -> list[int]:
    """Return the classes in an order in which those that the model confuses are neighbours.

    Average-linkage clustering of the mean probabilities; two clusters are joined at their most similar ends. Time and
    memory grow with the square of the classes: a second and 24 MB for a thousand, so a few thousand at most.
    """
    soft = _soft_confusion(predictions, classes)
    likeness = soft + soft.T
    np.fill_diagonal(likeness, -1.0)
    ends = likeness.copy()
    groups: dict[int, list[int]] = {index: [index] for index in range(len(likeness))}
    nearest = likeness.argmax(1) if len(classes) else np.zeros(0, dtype=np.int64)  # to each; kept up to date
    closest = likeness.max(1, initial=-2.0)
    while len(groups) > 1:
        one = int(closest.argmax())
        other = int(nearest[one])
        left, right = groups[one], groups.pop(other)
        options = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
        a, b = max(options, key=lambda option: ends[option[0][-1], option[1][0]])
        share = len(left) / (len(left) + len(right))
        merged = share * likeness[one] + (1 - share) * likeness[other]
        likeness[one, :] = likeness[:, one] = merged
        likeness[one, one] = -1.0
        likeness[other, :] = likeness[:, other] = -2.0  # below every other: never chosen again
        stale = np.flatnonzero((nearest == one) | (nearest == other) | (likeness[:, one] >= closest))
        stale = np.union1d(stale, [one, other])
        nearest[stale], closest[stale] = likeness[stale].argmax(1), likeness[stale].max(1)
        groups[one] = a + b
    return [classes[index] for group in groups.values() for index in group]


def _soft_confusion(predictions: Predictions, classes: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean probability of each class over the images of each; without images a row is zero."""
    means = np.zeros((len(classes), len(classes)))
    for row, label in enumerate(classes):
        mine = torch.nonzero(predictions.labels == label).flatten()
        if len(mine):
            logits = predictions.logits[mine].double() / predictions.temperature
            means[row] = logits.softmax(1)[:, list(classes)].mean(0).numpy()
    return means
