"""What can be said about a result: its interval, and whether probabilities mean what they say."""

import math

import torch
from torch import Tensor

SHRINK = 50  # images at which half of a fitted temperature's logarithm is believed


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Confidence interval of a proportion (Wilson, 1927, JASA 22:209), 95 % by default.

    Stays inside [0, 1] and is honest for few images and for proportions near 1, where the usual +- is not.

    Raises:
        ValueError: Nothing was counted.
    """
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"{correct} of {total} is not a proportion")
    share = correct / total
    centre = share + z * z / (2 * total)
    spread = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def calibration_error(logits: Tensor, labels: Tensor, *, temperature: float = 1.0, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al., 2015; 15 bins as in Guo et al., 2017).

    Args:
        logits: [N, classes].
        labels: [N].
        temperature: Logits are divided by it.
        bins: Of equal width in confidence.

    Returns:
        Mean distance between confidence and accuracy over the bins, weighted by their images; 0 is perfect.
    """
    confidence, predicted = (logits.double() / temperature).softmax(1).max(1)
    correct = (predicted == labels).double()
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    error = torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, confidence - correct)
    return float(error.abs().sum() / len(labels))


def choose_temperature(logits: Tensor, labels: Tensor, *, folds: int = 5) -> float:
    """Return the temperature to serve with: 1, unless another is better beyond doubt on images it was not fitted on.

    The fitted temperature is shrunk towards 1, the more the fewer images there are, and kept where its cross-validated
    loss is lower than without by more than its standard error. On a split of a few dozen images that is seldom so.

    Args:
        logits: [N, classes] of the valid split; neighbours may be of one class, since folds are interleaved.
        labels: [N].
        folds: Of the cross-validation; fewer than two images per fold are too few.
    """
    images = len(labels)
    if images < 2 * folds:
        return 1.0
    shrink = images / (images + SHRINK)
    fold = torch.arange(images) % folds
    gains = torch.zeros(images, dtype=torch.float64)
    for number in range(folds):
        out = fold == number
        temperature = fit_temperature(logits[~out], labels[~out]) ** shrink
        before, after = (
            torch.nn.functional.cross_entropy(logits[out].double() / divisor, labels[out], reduction="none")
            for divisor in (1.0, temperature)
        )
        gains[out] = before - after
    if float(gains.mean()) <= float(gains.std()) / math.sqrt(images):
        return 1.0
    return fit_temperature(logits, labels) ** shrink


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature that minimises cross-entropy (Guo et al., 2017, "On Calibration of Modern Neural Networks").

    The loss is convex in 1/temperature, so bisection on its slope finds the minimum; kept within 1/20 to 20, since on a
    split without a single mistake the loss has none.

    Args:
        logits: [N, classes] of the valid split.
        labels: [N].
    """
    logits = logits.double()
    chosen = logits.gather(1, labels[:, None]).mean()

    def slope(inverse: float) -> float:
        """Derivative of the mean loss by the inverse temperature."""
        return float((logits * (logits * inverse).softmax(1)).sum(1).mean() - chosen)

    low, high = 1 / 20, 20.0
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)
