"""Conformal sets: thresholds against numpy, coverage over many random splits, and what too few images say."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dogbreed.metrics import conformal
from dogbreed.metrics.predictions import Predictions


def drawn(images: int, classes: int, seed: int, split: str = "valid") -> Predictions:
    """Logits, and labels drawn from probabilities other than theirs: sets hold for a model that is not calibrated."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, classes, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(1), 1, generator=generator).squeeze(1)
    return Predictions(split, logits, labels, [Path(f"{i}.jpg") for i in range(images)], 0.7)


def softmax(predictions: Predictions) -> np.ndarray:
    powers = np.exp(predictions.logits.numpy().astype(float) / predictions.temperature)
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("images", [19, 20, 99, 360])
@pytest.mark.parametrize("level", [90, 95])
def test_thresholds_are_the_quantiles_of_numpy(images, level):
    valid = drawn(images, 12, images)
    scores = 1 - softmax(valid)[np.arange(images), valid.labels.numpy()]
    share = math.ceil((images + 1) * level / 100) / images
    expected = 1 - np.quantile(scores, share, method="inverted_cdf")
    sets = conformal.calibrate(valid, 3)
    assert sets["least_probability"][str(level)] == pytest.approx(expected, abs=1e-12)
    assert (sets["images"], sets["abstain_above"]) == (images, 3)


@pytest.mark.parametrize(("level", "fewest"), [(90, 9), (95, 19)])
def test_too_few_images_have_no_threshold(level, fewest):
    own = torch.linspace(0.1, 0.9, fewest, dtype=torch.float64)
    assert conformal.least_probability(own, level) == pytest.approx(0.1), "the worst of them"
    assert conformal.least_probability(own[1:], level) is None
    assert conformal.least_probability(own[:0], level) is None
    assert conformal.least_probability(torch.full((fewest,), math.nan), level) == 0


@pytest.mark.parametrize("level", [90, 95])
@pytest.mark.slow
def test_the_promised_share_is_covered_over_random_splits(level):
    """Over splits the mean coverage is ceil((n + 1) level) / (n + 1), here the level itself, whatever the model."""
    images, splits = 99, 400
    pool = drawn(images * 2 * splits, 8, 5)
    own = pool.probability(pool.labels).view(splits, 2, images)
    least = [conformal.least_probability(valid, level) for valid in own[:, 0]]
    covered = sum(int((test >= threshold).sum()) for test, threshold in zip(own[:, 1], least, strict=True))
    share, total = level / 100, images * splits
    # The threshold's own chance adds as much variance as the test images'.
    assert abs(covered / total - share) < 3.3 * math.sqrt(2 * share * (1 - share) / total)


def test_coverage_and_sizes_are_those_of_a_computation_by_hand():
    test = drawn(300, 12, 1, "test")
    probabilities, labels = softmax(test), test.labels.numpy()
    figures = conformal.coverage(test, {"90": 0.2, "95": None})
    inside = probabilities >= 0.2
    inside[np.arange(300), probabilities.argmax(1)] = True
    share = inside[np.arange(300), labels].mean()
    assert figures["test_set90_coverage"] == pytest.approx(share)
    assert figures["test_set90_size"] == pytest.approx(inside.sum(1).mean())
    low, high = figures["test_set90_coverage_ci95"]
    assert low < share < high
    assert figures["test_set95_coverage"] is None
    assert "test_set95_size" not in figures
    assert conformal.coverage(test, {}) == {}


def test_a_set_is_never_empty():
    probabilities = torch.tensor([[0.3, 0.4, 0.3], [0.9, 0.05, 0.05]])
    assert conformal.set_sizes(probabilities, 0.5).tolist() == [1, 1]
    assert conformal.set_sizes(probabilities, 0.3).tolist() == [3, 1]


@pytest.mark.parametrize(
    ("size", "classes", "above", "abstained"),
    [(3, 120, 3, False), (4, 120, 3, True), (2, 2, 3, True), (1, 2, 3, False), (1, 1, 3, False), (2, 120, 1, True)],
)
def test_who_abstains(size, classes, above, abstained):
    assert conformal.abstains(size, classes, above) is abstained
