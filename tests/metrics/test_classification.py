"""Figures, mix-ups and mistakes out of predictions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dogbreed.metrics.calibration import calibration_error
from dogbreed.metrics.classification import (
    confusion,
    measure,
    most_confident_errors,
    most_confused,
    per_class,
    prediction_rows,
    reliability,
    similarity_order,
)
from dogbreed.metrics.predictions import Predictions


def predictions(pairs: list[tuple[int, int]], classes: int, sure: float = 4.0, temperature: float = 1.0) -> Predictions:
    """For each (truth, said) an image; what is said gets `sure` as its logit."""
    labels = torch.tensor([truth for truth, _ in pairs])
    logits = torch.zeros(len(pairs), classes)
    logits[torch.arange(len(pairs)), torch.tensor([said for _, said in pairs])] = sure
    return Predictions("test", logits, labels, [Path(f"{i}.jpg") for i in range(len(pairs))], temperature)


def test_measure():
    found = measure(predictions([(0, 0), (1, 1), (2, 2), (3, 0)], 10))
    assert found["test_acc"] == 0.75
    assert found["test_loss"] == pytest.approx(torch.tensor(4.0).exp().add(9).log().item() - 3)
    low, high = found["test_acc_ci95"]
    assert low < 0.75 < high


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


def test_breeds():
    found = per_class(predictions([(0, 0), (0, 0), (1, 2), (1, 2), (1, 1), (3, 0)], 5))
    assert [(breed.label, breed.correct, breed.total, breed.mistaken_for) for breed in found] == [
        (3, 0, 1, 0),
        (1, 1, 3, 2),
        (0, 2, 2, None),
    ]
    assert all(0 <= breed.low <= breed.correct / breed.total <= breed.high <= 1 for breed in found)


def test_confident_mistakes():
    mixed = predictions([(0, 0), (1, 0), (2, 0), (3, 0)], 4)
    mixed.logits[2] *= 2
    assert most_confident_errors(mixed) == [2, 1, 3]
    assert most_confident_errors(mixed, most=1) == [2]
    assert most_confident_errors(predictions([(0, 0)], 2)) == []


def test_confusion_counts_every_image():
    matrix = confusion(predictions([(0, 1), (0, 1), (2, 2)], 3))
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
    order = similarity_order(predictions(pairs, 12))
    assert sorted(order) == list(range(12))
    assert abs(order.index(0) - order.index(9)) == 1
    assert abs(order.index(3) - order.index(7)) == 1


def test_prediction_rows():
    given = Predictions("test", torch.tensor([[0.0, 2.0]]), torch.tensor([0]), [Path("/data/test/a/x.jpg")], 0.5)
    (row,) = prediction_rows(given, ["a", "b"], Path("/data"))
    assert row == ("test/a/x.jpg", "a", "b", 0, "0.982014", "b=0.9820 a=0.0180")
