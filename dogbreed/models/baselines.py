"""Classifiers in closed form on the features of a backbone: what a trained head has to beat."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

Classifier = Callable[[Tensor], Tensor]  # features [N, D] to scores [N, classes], the highest of the answer
Split = tuple[Tensor, Tensor]  # features [N, D] and labels [N]

NEIGHBOURS = (1, 5, 10, 20)
SHRINKAGES = (0.03, 0.1, 0.3, 0.6)
ROWS = 1024  # compared with all training images at once


def baselines(train: Split, valid: Split, classes: int) -> dict[str, Classifier]:
    """Return classifiers by name: `knn`, `class_means` and `lda`, fitted to train.

    The number of neighbours and the shrinkage are those with the highest accuracy on valid.

    Args:
        train: Has images of each class.
        valid: What is chosen on.
        classes: Their number.
    """
    neighbours = (knn(train, classes, count) for count in NEIGHBOURS)
    return {
        "knn": _best(neighbours, valid),
        "class_means": class_means(train, classes),
        "lda": _best(lda(train, classes, SHRINKAGES), valid),
    }


def _best(candidates: Iterable[Classifier], valid: Split) -> Classifier:
    features, labels = valid
    return max(candidates, key=lambda classify: int((classify(features).argmax(1) == labels).sum()))


def knn(train: Split, classes: int, count: int) -> Classifier:
    """Return the vote of the nearest images by cosine, each weighed by it."""
    points, votes = normalize(train[0], dim=1), one_hot(train[1], classes).to(train[0].dtype)

    def classify(features: Tensor) -> Tensor:
        scores = []
        for rows in normalize(features, dim=1).split(ROWS):
            near = (rows @ points.T).topk(min(count, len(points)), dim=1)
            scores.append((near.values[:, :, None] * votes[near.indices]).sum(1))
        return torch.cat(scores)

    return classify


def class_means(train: Split, classes: int) -> Classifier:
    """Return the cosine to the mean of each class, of features of length 1."""
    sums = one_hot(train[1], classes).to(train[0].dtype).T @ normalize(train[0], dim=1)
    means = normalize(sums, dim=1)
    return lambda features: normalize(features, dim=1) @ means.T


def lda(train: Split, classes: int, shrinkages: Iterable[float]) -> Iterable[Classifier]:
    """Yield linear discriminant analysis for each shrinkage of the covariance towards a multiple of the identity."""
    features, labels = train[0].double(), train[1]
    counts = labels.bincount(minlength=classes).double()
    means = torch.zeros(classes, features.shape[1], dtype=torch.float64).index_add_(0, labels, features)
    means /= counts[:, None]
    centred = features - means[labels]
    covariance = centred.T @ centred / len(features)
    identity = torch.eye(len(covariance), dtype=torch.float64) * covariance.trace() / len(covariance)
    for shrinkage in shrinkages:
        shrunk = (1 - shrinkage) * covariance + shrinkage * identity
        weight = torch.cholesky_solve(means.T, torch.linalg.cholesky(shrunk))
        bias = (counts / len(features)).log() - (means.T * weight).sum(0) / 2
        yield _linear(weight, bias)


def _linear(weight: Tensor, bias: Tensor) -> Classifier:
    return lambda features: features.double() @ weight + bias
