"""Figures, mix-ups and mistakes out of predictions."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from dogbreed.metrics import classification
from dogbreed.metrics.calibration import calibration_error
from dogbreed.metrics.classification import (
    chance,
    cluster_order,
    confusion,
    expected_extremes,
    measure,
    most_confident_errors,
    most_confused,
    per_class,
    prediction_rows,
    reliability,
)
from dogbreed.metrics.predictions import Predictions


def predictions(pairs: list[tuple[int, int]], classes: int, sure: float = 4.0, temperature: float = 1.0) -> Predictions:
    """For each (truth, said) an image; what is said gets `sure` as its logit."""
    labels = torch.tensor([truth for truth, _ in pairs])
    logits = torch.zeros(len(pairs), classes)
    logits[torch.arange(len(pairs)), torch.tensor([said for _, said in pairs])] = sure
    return Predictions("test", logits, labels, [Path(f"{i}.jpg") for i in range(len(pairs))], temperature)


def test_measure():
    metrics = measure(predictions([(0, 0), (1, 1), (2, 2), (3, 0)], 10))
    assert metrics["test_acc"] == 0.75
    assert metrics["test_loss"] == pytest.approx(torch.tensor(4.0).exp().add(9).log().item() - 3)
    low, high = metrics["test_acc_ci95"]
    assert low < 0.75 < high
    assert metrics["test_balanced_acc"] == 0.75  # classes without images do not count
    assert metrics["test_macro_f1"] == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)


def test_the_planted_pair_comes_first():
    rng = np.random.default_rng(0)
    pairs = [(label, label) for label in range(20) for _ in range(8)]
    pairs += [(int(a), int(b)) for a, b in rng.integers(0, 20, (10, 2))]
    pairs += [(7, 13)] * 4 + [(13, 7)] * 2
    first = most_confused(predictions(pairs, 20))[0]
    assert (first.first, first.second, first.forth, first.back) == (7, 13, 4, 2)


def test_of_equal_pairs_the_more_convinced_comes_first():
    mixed = predictions([(0, 1), (2, 3)], 4)
    mixed.logits[1] *= 3
    assert [(pair.first, pair.second) for pair in most_confused(mixed)] == [(2, 3), (0, 1)]


def test_classes():
    found = per_class(predictions([(0, 0), (0, 0), (1, 2), (1, 2), (1, 1), (3, 0)], 5))
    assert [(one.label, one.correct, one.total, one.confused_with) for one in found] == [
        (3, 0, 1, 0),
        (1, 1, 3, 2),
        (0, 2, 2, None),
    ]
    assert all(0 <= one.low <= one.correct / one.total <= one.high <= 1 for one in found)


def test_precision_and_the_classes_that_are_never_predicted():
    metrics = {one.label: one for one in per_class(predictions([(0, 0), (1, 0), (2, 0), (2, 2)], 4))}
    assert [metrics[label].precision for label in (0, 1, 2)] == [pytest.approx(1 / 3), None, 1.0]
    assert [metrics[label].f1 for label in (0, 1, 2)] == [0.5, 0.0, pytest.approx(2 / 3)]


def test_chance_is_that_of_the_training_frequencies():
    known, labels = torch.tensor([0] * 3 + [1]), torch.tensor([0, 0, 0, 0, 1])
    level = chance(labels, known, 2)
    assert level.accuracy == 0.8
    assert level.loss == pytest.approx(-(4 * math.log(0.75) + math.log(0.25)) / 5, rel=1e-3)
    equally = chance(torch.tensor([1, 1, 2, 2, 0]), torch.tensor([2, 2, 1, 1, 0]), 3)
    assert equally.accuracy == pytest.approx(0.4), "classes 1 and 2 are equally frequent"


def test_chance_is_never_below_drawing_lots():
    """As on three test images without the class that is the most frequent one in training."""
    level = chance(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 1, 2]), 3)
    assert level == (pytest.approx(1 / 3), pytest.approx(math.log(3)))


def test_extremes_of_equally_good_classes():
    """Against drawing: 30 classes of three images, each right with the same probability."""
    pairs = [(label, label if image < 2 else (label + 1) % 30) for label in range(30) for image in range(3)]
    always, never = expected_extremes(per_class(predictions(pairs, 30)))
    right = np.random.default_rng(0).random((20_000, 3)) < 2 / 3
    assert always == pytest.approx(30 * right.all(1).mean(), abs=0.2)
    assert never == pytest.approx(30 * (~right).all(1).mean(), abs=0.1)


def test_probabilities_of_single_classes_are_those_of_the_softmax():
    made = predictions([(0, 1), (2, 2), (1, 0)], 4, temperature=1.7)
    probabilities = (made.logits.double() / made.temperature).softmax(1)
    assert torch.allclose(made.confidence, probabilities.max(1).values)
    assert torch.allclose(made.probability(3), probabilities[:, 3])


def test_ten_thousand_classes():
    """Nothing holds a cell for each pair of classes, which would be 800 MB."""
    pairs = [(label, label + 1) for label in range(0, 9_998, 500)]
    made = predictions(pairs, 10_000)
    tracemalloc.start()
    assert len(per_class(made)) == len(pairs)
    assert len(most_confused(made, 5)) == 5
    assert confusion(made, [0, 1]).tolist() == [[0, 1], [0, 0]]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_confident_mistakes():
    mixed = predictions([(0, 0), (1, 0), (2, 0), (3, 0)], 4)
    mixed.logits[2] *= 2
    assert most_confident_errors(mixed) == [2, 1, 3]
    assert most_confident_errors(mixed, most=1) == [2]
    assert most_confident_errors(predictions([(0, 0)], 2)) == []


def test_confusion_counts_every_image():
    matrix = confusion(predictions([(0, 1), (0, 1), (2, 2), (2, 3)], 4), [0, 1, 2])
    assert matrix.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_reliability_adds_up_to_the_calibration_error():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(500, 7, generator=generator) * 2, torch.randint(7, (500,), generator=generator)
    bins = reliability(logits, labels, temperature=1.7)
    assert sum(one.images for one in bins) == 500
    gaps = sum(abs(one.confidence - one.accuracy) * one.images for one in bins) / 500
    assert gaps == pytest.approx(calibration_error(logits, labels, temperature=1.7))


def test_look_alikes_become_neighbours():
    pairs = [(label, label) for label in range(12)] + [(0, 9), (9, 0), (3, 7), (7, 3)]
    order = cluster_order(predictions(pairs, 12), range(12))
    assert sorted(order) == list(range(12))
    assert abs(order.index(0) - order.index(9)) == 1
    assert abs(order.index(3) - order.index(7)) == 1


def clustered_slowly(likeness):
    """Average linkage that looks at all pairs before each step."""
    likeness = likeness.copy()
    ends, groups = likeness.copy(), {index: [index] for index in range(len(likeness))}
    while len(groups) > 1:
        one, other = (int(index) for index in np.unravel_index(likeness.argmax(), likeness.shape))
        left, right = groups[one], groups.pop(other)
        options = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
        a, b = max(options, key=lambda option: ends[option[0][-1], option[1][0]])
        share = len(left) / (len(left) + len(right))
        likeness[one, :] = likeness[:, one] = share * likeness[one] + (1 - share) * likeness[other]
        likeness[one, one] = -1.0
        likeness[other, :] = likeness[:, other] = -2.0
        groups[one] = a + b
    return [index for group in groups.values() for index in group]


@pytest.mark.parametrize(("seed", "levels"), [(0, 1000), (1, 3), (2, 2), (3, 10)])
def test_order_is_that_of_comparing_all_pairs(monkeypatch, seed, levels):
    rng = np.random.default_rng(seed)
    soft = rng.integers(0, levels, (60, 60)) / levels  # of few levels: with many ties
    likeness = soft + soft.T
    np.fill_diagonal(likeness, -1.0)
    monkeypatch.setattr(classification, "_soft_confusion", lambda *given: soft)
    assert cluster_order(predictions([(0, 0)], 60), range(60)) == clustered_slowly(likeness)


def test_prediction_rows():
    given = Predictions("test", torch.tensor([[0.0, 2.0]]), torch.tensor([0]), [Path("/data/test/a/x.jpg")], 0.5)
    (row,) = prediction_rows(given, ["a", "b"], Path("/data"))
    loss = np.log(1 + np.exp(2))  # in nats, without the temperature
    assert row == ("test/a/x.jpg", "a", "b", 0, "0.982014", "b=0.9820 a=0.0180", "0.017986", f"{loss:.6f}")
