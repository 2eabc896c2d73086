"""Intervals and calibration against published values and independent computations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import multiclass_calibration_error

from dogbreed.metrics import calibration
from dogbreed.metrics.calibration import (
    calibration_error,
    calibration_interval,
    choose_temperature,
    fit_temperature,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_as_published(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_contains_the_proportion_to_the_last_bit():
    for total in range(1, 1000):  # of 48 of 48, rounding left the upper end below 1
        assert wilson_interval(total, total)[1] == 1
        assert wilson_interval(0, total)[0] == 0


@given(st.integers(1, 2000).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_solves_its_equation(counts):
    """The ends are where a normal test of that proportion would just reject: |p - share| = z sqrt(p (1 - p) / n)."""
    correct, total = counts
    low, high = wilson_interval(correct, total, z=1.96)
    assert 0 <= low < correct / total + 1e-12
    assert correct / total - 1e-12 < high <= 1
    assert (low, high) == pytest.approx(
        tuple(1 - end for end in reversed(wilson_interval(total - correct, total, 1.96)))
    )
    for end in (low, high):
        if 1e-12 < end < 1 - 1e-12:
            assert abs(end - correct / total) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / total), abs=1e-9)


@pytest.mark.parametrize(("correct", "total"), [(0, 0), (3, 2), (-1, 5)])
def test_no_proportion(correct, total):
    with pytest.raises(ValueError, match="is not a proportion"):
        wilson_interval(correct, total)


def predictions(count: int = 3000, classes: int = 7, temperature: float = 1.0, seed: int = 0):
    """Logits, and labels drawn from the probabilities that the logits over `temperature` say."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=generator) * 3
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator).squeeze(1)
    return logits, labels


@pytest.mark.parametrize("bins", [1, 5, 15, 40])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibration_error_is_torchmetrics(bins, temperature):
    logits, labels = predictions(seed=bins)
    theirs = multiclass_calibration_error(
        (logits.double() / temperature).softmax(1), labels, num_classes=7, n_bins=bins, norm="l1"
    )
    assert calibration_error(logits, labels, temperature=temperature, bins=bins) == pytest.approx(
        float(theirs), abs=1e-6
    )


def test_calibration_error_by_hand():
    logits = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.42, 0.58], [0.35, 0.65]]).log()
    labels = torch.tensor([0, 1, 1, 0])
    # Bins of a tenth: two at 0.9 with half right, one at 0.58 that is right, one at 0.65 that is wrong.
    assert calibration_error(logits, labels, bins=10) == pytest.approx((0.8 + 0.42 + 0.65) / 4, abs=1e-6)
    assert calibration_error(torch.tensor([[60.0, 0.0]]), torch.tensor([0])) == pytest.approx(0, abs=1e-9)
    assert calibration_error(torch.tensor([[60.0, 0.0]]), torch.tensor([1])) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("images", "temperature", "covered"), [(48, 1.0, 0.9), (48, 2.0, 0.85), (1000, 2.0, 0.85)])
def test_an_interval_of_the_calibration_error_covers_the_true_one(images, temperature, covered):
    """That of 40 splits, of an error measured on many images; few images of a calibrated model tell nothing."""
    logits, labels = predictions(100_000, temperature=temperature)
    truth = calibration_error(logits, labels)
    truth = truth if temperature != 1 else 0.0
    intervals = [
        calibration_interval(logits[start : start + images], labels[start : start + images], resamples=200)
        for start in range(0, 40 * images, images)
    ]
    assert sum(low <= truth <= high for low, high in intervals) >= 40 * covered
    said = sum(low > 0 for low, _ in intervals)
    assert said <= 5 if temperature == 1 else said == 40 if images == 1000 else said >= 10


def test_an_interval_holds_the_error_and_repeats():
    for images in (1, 2, 30, 500):
        logits, labels = predictions(images, temperature=1.5)
        low, high = calibration_interval(logits, labels)
        assert 0 <= low <= calibration_error(logits, labels) <= high
        assert calibration_interval(logits, labels) == (low, high)


def by_lbfgs(logits: torch.Tensor, labels: torch.Tensor) -> float:
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits.double() * inverse, labels)
        value.backward()
        return value

    optimizer.step(loss)
    return 1 / inverse.item()


@pytest.mark.parametrize("planted", [0.4, 1.0, 1.7, 6.0])
def test_temperature_is_the_planted_one(planted):
    logits, labels = predictions(20_000, temperature=planted)
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(planted, rel=0.05)
    assert found == pytest.approx(by_lbfgs(logits, labels), rel=1e-4)


def test_temperature_lowers_loss_and_calibration_error():
    logits, labels = predictions(5000, temperature=3.0)
    temperature = fit_temperature(logits, labels)
    assert calibration_error(logits, labels, temperature=temperature) < 0.3 * calibration_error(logits, labels)
    losses = [
        float(torch.nn.functional.cross_entropy(logits.double() / (temperature * factor), labels))
        for factor in (0.98, 1, 1.02)
    ]
    assert losses[1] < min(losses[0], losses[2])


def test_temperature_stays_finite():
    right = torch.eye(4) * 9
    assert fit_temperature(right, torch.arange(4)) == pytest.approx(1 / 20), "no mistake: as sure as can be"
    assert fit_temperature(right, (torch.arange(4) + 1) % 4) == pytest.approx(20), "all wrong: as unsure as can be"
    assert math.isfinite(fit_temperature(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])))


def test_large_logits_do_not_overflow():
    logits, labels = predictions(500)
    assert fit_temperature(logits * 1e4, labels) == pytest.approx(20)
    assert math.isfinite(calibration_error(logits * 1e4, labels))


def split(images: int, scale: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of eight classes that are right in their probabilities when divided by `scale`, and labels."""
    logits = torch.randn(images, 8, generator=generator) * 2
    return logits * scale, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_too_few_images_choose_no_temperature():
    generator = torch.Generator().manual_seed(0)
    assert choose_temperature(*split(8, 3.0, generator)) == 1
    assert choose_temperature(torch.eye(4).repeat(10, 1) * 9, torch.arange(4).repeat(10)) < 1, "ever right: surer"


def test_many_images_choose_about_the_one_that_fits():
    generator = torch.Generator().manual_seed(0)
    logits, labels = split(2000, 1.8, generator)
    assert choose_temperature(logits, labels) == pytest.approx(fit_temperature(logits, labels), rel=0.03)
    assert choose_temperature(logits, labels) < fit_temperature(logits, labels)


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1.5, 0.7])
@pytest.mark.parametrize("images", [8, 24, 48, 120, 360])
def test_the_temperature_is_never_worse_than_none_by_more_than_noise(images, scale):
    """On 2,000 held-out images, over 40 validation splits of each size."""
    generator = torch.Generator().manual_seed(images)
    losses = []
    for _ in range(40):
        logits, labels = split(images + 2000, scale, generator)
        temperature = choose_temperature(logits[:images], labels[:images])
        served, without = (
            float(torch.nn.functional.cross_entropy(logits[images:] / divisor, labels[images:]))
            for divisor in (temperature, 1.0)
        )
        losses.append(served - without)
    assert max(losses) < 0.03
    assert sum(losses) / 40 < 0.002
    if images >= 120 and scale != 1:
        assert sum(losses) / 40 < -0.03, "and it helps where there are images enough"


def bisected(logits, labels):
    """The temperature by bisection on the slope of the loss, sixty times: slow and sure."""
    logits = logits.double()
    chosen = logits.gather(1, labels[:, None]).mean()

    def slope(inverse):
        return float((logits * (logits * inverse).softmax(1)).sum(1).mean() - chosen)

    low, high = 1 / 20, 20.0
    if slope(low) >= 0:
        return 20.0
    if slope(high) <= 0:
        return 1 / 20
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


@given(
    st.integers(2, 40),
    st.sampled_from([2, 3, 120]),
    st.floats(-3, 3),
    st.floats(-1.5, 1.5),
    st.floats(-1, 1),
    st.integers(0, 10**6),
)
def test_fitted_temperature_is_that_of_bisection(images, classes, scale, truth, start, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=generator) * 3
    labels = torch.multinomial((logits / 10**truth).softmax(1), 1, generator=generator).squeeze(1)
    logits = logits * 10**scale + 7
    right = bool((logits.gather(1, labels[:, None])[:, 0] >= logits.amax(1)).all())
    expected = 1 / 20 if right else bisected(logits, labels)
    assert fit_temperature(logits, labels, start=10**start) == pytest.approx(expected, rel=1e-6)


def test_fitted_temperature_is_that_of_another_minimiser():
    logits, labels = predictions(800, 50, 1.8)
    inverse = torch.ones((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([inverse], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits.double() * inverse, labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert fit_temperature(logits, labels) == pytest.approx(1 / inverse.item(), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_fitted_temperature_of_logits_that_say_nothing_comes_to_an_end(value):
    labels = torch.arange(8) % 4
    assert 1 / 20 <= fit_temperature(torch.full((8, 4), value), labels) <= 20


def test_fitting_looks_at_the_logits_a_dozen_times(monkeypatch):
    """A look at 5,000 images of 10,000 classes takes half a second: the number of looks is the time."""
    looks = []
    derivatives = calibration._derivatives
    monkeypatch.setattr(calibration, "_derivatives", lambda *given: looks.append(1) or derivatives(*given))
    assert choose_temperature(*predictions(3000, 30, 2.0)) != 1
    assert 6 <= len(looks) <= 24  # of the whole, and of five folds that start from it
