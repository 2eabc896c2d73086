"""What can be said about a result: its interval, and whether probabilities mean what they say."""

import math

import torch
from torch import Tensor

PART = 2**19  # logits that are worked on at once
HOTTEST = 20.0  # no temperature is higher, nor lower than its inverse
SHRINK = 50  # images at which half of a fitted temperature's logarithm is believed


def wilson_interval(correct: int, total: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Return the confidence interval of a proportion (Wilson, 1927, JASA 22:209), 95 % by default.

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
    # At 0 and 1 an end is the proportion itself, which rounding would put outside.
    return max(0.0, min((centre - spread) / scale, share)), min(1.0, max((centre + spread) / scale, share))


def calibration_error(logits: Tensor, labels: Tensor, *, temperature: float = 1.0, bins: int = 15) -> float:
    """Return the expected calibration error (Naeini et al., 2015; 15 bins as in Guo et al., 2017).

    Args:
        logits: [N, classes].
        labels: [N].
        temperature: Logits are divided by it.
        bins: Of equal width in confidence.

    Returns:
        Mean distance between confidence and accuracy over the bins, weighted by their images; 0 is perfect.
    """
    confidence, correct, bin_of = binned(logits, labels, temperature, bins)
    return float(_errors((confidence - correct)[None], bin_of[None], bins))


def calibration_interval(
    logits: Tensor, labels: Tensor, *, temperature: float = 1.0, bins: int = 15, resamples: int = 500
) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the calibration error; the same for the same predictions.

    The error is biased upwards, the more the fewer images there are, and that of a resample again as much; so the
    interval is the reflected one (Davison and Hinkley, 1997, 5.2). It begins at 0 where a perfectly calibrated model
    with these confidences shows as large an error on one of 20 splits, which is no proof that it is not calibrated.

    Args:
        logits: [N, classes].
        labels: [N].
        temperature: Logits are divided by it.
        bins: As in `calibration_error`.
        resamples: How many splits are drawn.
    """
    confidence, correct, bin_of = binned(logits, labels, temperature, bins)
    error = float(_errors((confidence - correct)[None], bin_of[None], bins))
    images, generator = len(labels), torch.Generator().manual_seed(0)
    drawn, perfect = [], []
    for rows in torch.arange(resamples).split(max(1, 2**20 // images)):
        shape = (len(rows), images)
        index = torch.randint(images, shape, generator=generator)
        drawn.append(_errors((confidence - correct)[index], bin_of[index], bins))
        chance = torch.rand(shape, generator=generator, dtype=torch.float64)
        perfect.append(_errors(confidence - (chance < confidence).double(), bin_of.expand(shape), bins))
    low, high = torch.cat(drawn).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    low, high = max(0.0, min(2 * error - high, error)), max(2 * error - low, error)
    return (0.0 if error <= float(torch.cat(perfect).quantile(0.95)) else low), high


def binned(logits: Tensor, labels: Tensor, temperature: float, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each image's confidence, whether it is classified correctly (1 or 0), and its bin; [N] each."""
    parts = [(rows.double() / temperature).softmax(1).max(1) for rows in _parts(logits)]
    confidence, predicted = (torch.cat(column) for column in zip(*parts, strict=True))
    return confidence, (predicted == labels).double(), (confidence * bins).ceil().long().clamp(1, bins) - 1


def _errors(gaps: Tensor, bin_of: Tensor, bins: int) -> Tensor:
    """Return the calibration error of each of R splits from [R, N] gaps and bins."""
    sums = torch.zeros(len(gaps), bins, dtype=torch.float64).scatter_add_(1, bin_of, gaps)
    return sums.abs().sum(1) / gaps.shape[1]


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
    fitted = fit_temperature(logits, labels)
    fold = torch.arange(images) % folds
    gains = torch.zeros(images, dtype=torch.float64)
    for number in range(folds):
        out = fold == number
        temperature = fit_temperature(logits[~out], labels[~out], start=fitted) ** shrink
        before, after = (
            torch.nn.functional.cross_entropy(logits[out].double() / divisor, labels[out], reduction="none")
            for divisor in (1.0, temperature)
        )
        gains[out] = before - after
    if float(gains.mean()) <= float(gains.std()) / math.sqrt(images):
        return 1.0
    return fitted**shrink


def fit_temperature(logits: Tensor, labels: Tensor, *, start: float = 1.0) -> float:
    """Return the temperature that minimises cross-entropy (Guo et al., 2017, On Calibration of Modern Neural Networks).

    The loss is convex in 1/temperature: Newton's steps on its logarithm, halving the interval where a step leaves it,
    find the minimum; kept within 1/20 to 20, since on a split without a single mistake the loss has none.

    Args:
        logits: [N, classes] of the valid split.
        labels: [N].
        start: About where it is.
    """
    if bool((logits.gather(1, labels[:, None])[:, 0] >= logits.amax(1)).all()):
        return 1 / HOTTEST  # of no mistake the slope only nears zero
    low, high = 1 / HOTTEST, HOTTEST  # of the inverse temperature
    inverse, looked_at = 1 / start, set[float]()
    for _ in range(100):
        slope, curvature = _derivatives(logits, labels, inverse)
        if inverse == HOTTEST and slope <= 0:
            return 1 / HOTTEST
        if inverse == 1 / HOTTEST and slope >= 0:
            return HOTTEST
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        looked_at.add(inverse)
        step = -slope / (inverse * curvature) if curvature > 0 else math.copysign(math.inf, -slope)
        if abs(step) < 1e-9 or high / low < 1 + 1e-12:
            break
        following = inverse * math.exp(max(-9.0, min(step, 9.0)))
        following = max(1 / HOTTEST, min(following, HOTTEST))
        inverse = following if low <= following <= high and following not in looked_at else math.sqrt(low * high)
    return 1 / inverse


def _derivatives(logits: Tensor, labels: Tensor, inverse: float) -> tuple[float, float]:
    """Return the first and second derivative of the mean loss by the inverse temperature."""
    slope = curvature = 0.0
    for rows, own in zip(_parts(logits), _parts(labels, logits.shape[1]), strict=True):
        centred = rows.double()
        centred -= centred.max(1, keepdim=True).values
        share = (centred * inverse).softmax(1).mul_(centred)
        mean = share.sum(1)
        slope += float((mean - centred.gather(1, own[:, None])[:, 0]).sum())
        curvature += float((share.mul_(centred).sum(1) - mean * mean).sum())
    return slope / len(labels), curvature / len(labels)


def _parts(rows: Tensor, classes: int | None = None) -> tuple[Tensor, ...]:
    """Return rows of logits, or what belongs to them, in parts that stay within a processor's caches."""
    return rows.split(max(1, PART // (classes or rows.shape[1])))
