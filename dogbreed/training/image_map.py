"""Where images lie by their features: a map in two dimensions, on which similar images are neighbours."""

import numpy as np
from torch import Tensor

from dogbreed.data.datasets import Indices

MOST = 2000  # images on a map; of more, some
COMPONENTS = 50  # that a PCA leaves, as t-SNE's authors advise
PERPLEXITY = 30.0
ITERATIONS = 500  # of 1,000, for half the time: trustworthiness 0.990 either way, on 2,000 images of dogs120


def image_map(inputs: Tensor, seed: int) -> tuple[Indices, np.ndarray] | None:
    """Return which images are on the map, ascending, and where, [images, 2] from 0 to 1; None without scikit-learn.

    By t-SNE (van der Maaten and Hinton, 2008), which starts from the two main directions.

    Args:
        inputs: Features [N, D] of length one.
        seed: Draws the images, and decides ties.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ModuleNotFoundError:
        return None
    count = len(inputs)
    rows = np.arange(count)
    if count > MOST:
        rows = np.sort(np.random.default_rng(seed).choice(count, MOST, replace=False))
    features = inputs.numpy()[rows]
    components = min(COMPONENTS, *features.shape)
    reduced = PCA(components, random_state=seed).fit_transform(features)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", max_iter=ITERATIONS, random_state=seed).fit_transform(reduced)
    low, high = places.min(0), places.max(0)
    return rows, (places - low) / np.maximum(high - low, 1e-12)
