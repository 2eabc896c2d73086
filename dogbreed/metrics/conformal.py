"""Sets of classes that hold the right one for a chosen share of images: conformal prediction with the LAC score.

A class belongs to the set where its probability reaches a threshold, chosen on the valid split so that at least that
share of its images, with a correction for their number, reach it with their own class (Sadinle, Lei and Wasserman,
2019, JASA 114:223). The promise holds on average over images that come from where those of valid come from.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dogbreed.metrics.calibration import wilson_interval
from dogbreed.metrics.predictions import PREFIX, Predictions

LEVELS = ("90", "95")  # per cent of the images whose class is in the set
SERVED = "90"
_ROWS = 1024


def calibrate(valid: Predictions, abstain_above: int) -> dict[str, Any]:
    """Return what `model.json` keeps under `conformal`.

    Args:
        valid: Predictions for images that the model was not trained on.
        abstain_above: Classes in a set above which the model abstains.
    """
    own = valid.probability(valid.labels)
    least = {level: least_probability(own, int(level)) for level in LEVELS}
    return {"least_probability": least, "images": len(valid), "abstain_above": abstain_above}


def least_probability(own: Tensor, percent: int) -> float | None:
    """Return the probability from which on a class belongs to the set; None where the images are too few to tell.

    One minus it is the ceil((N + 1) percent / 100)-th smallest of one minus the probabilities.

    Args:
        own: [N], the probability of each image's own class.
        percent: Of the images whose class is to be in the set.
    """
    rank = -(-(len(own) + 1) * percent // 100)
    ordered = own.nan_to_num(0.0).sort(descending=True).values
    return float(ordered[rank - 1]) if rank <= len(own) else None


def set_sizes(probabilities: Tensor, least: float) -> Tensor:
    """Return how many of each row's most probable classes are its set, [N], at least one; of [N, classes]."""
    return (probabilities >= least).sum(1).clamp(min=1)


def abstains(size: int, classes: int, above: int) -> bool:
    """Return whether a set says too little: more classes than `above`, or all that there are."""
    return size > min(above, max(1, classes - 1))


def coverage(predictions: Predictions, least: Mapping[str, float | None]) -> dict[str, Any]:
    """Return, by level, the share of images whose class is in the set, its interval, and the mean size of the sets.

    Args:
        predictions: For images that had no part in the thresholds.
        least: Thresholds by level; where one is None, so is the share.
    """
    figures: dict[str, Any] = {}
    own = predictions.probability(predictions.labels)
    for level, threshold in least.items():
        name = f"{PREFIX[predictions.split]}_set{level}"
        if threshold is None:
            figures[f"{name}_coverage"] = None
            continue
        covered = int(((own >= threshold) | (predictions.predicted == predictions.labels)).sum())
        rows = predictions.logits.split(_ROWS)
        sizes = [set_sizes((part.double() / predictions.temperature).softmax(1), threshold) for part in rows]
        figures[f"{name}_coverage"] = covered / len(predictions)
        figures[f"{name}_coverage_ci95"] = list(wilson_interval(covered, len(predictions)))
        figures[f"{name}_size"] = float(torch.cat(sizes).double().mean())
    return figures
