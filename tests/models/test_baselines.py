"""Closed-form classifiers: the same scores and answers as scikit-learn's, and what is chosen on valid."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dogbreed.models.baselines import NEIGHBOURS, SHRINKAGES, Split, baselines, class_means, knn, lda

CLASSES = 5


def blobs(images: int, seed: int) -> Split:
    """Positive features, as behind a ReLU, of unlike numbers of images per class."""
    random = np.random.default_rng(seed)
    centres = 2 * np.random.default_rng(0).random((CLASSES, 12))
    labels = np.concatenate([np.arange(CLASSES), random.choice(CLASSES, images - CLASSES, p=[0.4, 0.3, 0.1, 0.1, 0.1])])
    return torch.from_numpy(np.abs(centres[labels] + random.normal(0, 0.7, (images, 12)))), torch.from_numpy(labels)


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split, Tensor]:
    return blobs(80, 1), blobs(40, 2), blobs(200, 3)[0]


def test_scores_are_those_of_scikit_learn(splits: tuple[Split, Split, Tensor]) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics.pairwise import cosine_similarity
    from sklearn.neighbors import KNeighborsClassifier

    train, _, images = splits
    features, labels = (part.numpy() for part in train)
    for shrinkage, classify in zip(SHRINKAGES, lda(train, CLASSES, SHRINKAGES), strict=True):
        theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(features, labels)
        np.testing.assert_allclose(classify(images), theirs.decision_function(images.numpy()), atol=1e-8)
    for count in NEIGHBOURS:
        near = KNeighborsClassifier(count, metric="cosine", weights=lambda distances: 1 - distances)
        theirs = near.fit(features, labels).predict_proba(images.numpy())
        ours = knn(train, CLASSES, count)(images)
        np.testing.assert_allclose(ours / ours.sum(1, keepdim=True), theirs, atol=1e-8)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = np.stack([unit[labels == label].mean(0) for label in range(CLASSES)])
    np.testing.assert_allclose(class_means(train, CLASSES)(images), cosine_similarity(images.numpy(), means))


def test_what_is_chosen_is_right_about_most_images_of_valid(splits: tuple[Split, Split, Tensor]) -> None:
    train, valid, images = splits

    def right(classify) -> int:
        return int((classify(valid[0]).argmax(1) == valid[1]).sum())

    chosen = baselines(train, valid, CLASSES)
    assert right(chosen["knn"]) == max(right(knn(train, CLASSES, count)) for count in NEIGHBOURS)
    assert right(chosen["lda"]) == max(map(right, lda(train, CLASSES, SHRINKAGES)))
    assert len({right(classify) for classify in lda(train, CLASSES, SHRINKAGES)} | {right(chosen["knn"])}) > 1
    assert torch.equal(chosen["class_means"](images), class_means(train, CLASSES)(images))
