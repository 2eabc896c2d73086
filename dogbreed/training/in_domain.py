"""The index of training images that a run exports, so that its model can say which photographs are unlike them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from dogbreed.cache.store import Table
from dogbreed.config.settings import Config
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import FeatureBatch
from dogbreed.models import backbones, neighbours
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.neighbours import MOST, REFUSED_PERCENT, HeadInput, Neighbours

_ROWS = 256


def index_images(config: Config, model: DogBreedClassifier, data: DogImages) -> tuple[Neighbours | None, str]:
    """Return the index with its threshold, chosen on valid; in its place a sentence where there can be none.

    Args:
        config: Of the run.
        model: As it is exported.
        data: Of the run. Its features are read; what is behind them in the network is computed once.
    """
    if not config.export.neighbours:
        return None, ""
    least = -(-100 // REFUSED_PERCENT) - 1
    images = len(data.samples["valid"])
    if images < least:
        why = f"that takes {least} validation images, and there are {images}"
    elif model.parts is None or not data.has_features("valid"):
        why = "the cache is off, and the training images are not read again for it"
    else:
        was_training = model.training
        model.eval()
        try:
            with torch.inference_mode(), float32_as(config.cache.precision, model.device):
                index = neighbours.build(_features(model, data, "train"))
                return index.calibrated(torch.cat([*_features(model, data, "valid")])), ""
        except LookupError:
            why = "what the network hands to its last layer cannot be seen from outside"
        finally:
            model.train(was_training)
    return None, f"Answers do not say whether a photograph is unlike the training images (in_domain): {why}."


def _features(model: DogBreedClassifier, data: DogImages, split: str) -> Iterator[Tensor]:
    """Yield what the last layer takes, [N, D], of the images of a split, each in the first view that was used."""
    reader, labels = data.reader(split), torch.from_numpy(data.samples[split].labels)
    assert isinstance(reader, Table)
    images, views = reader.first_views()
    drawn = np.linspace(0, len(images) - 1, min(len(images), MOST)).astype(np.int64)
    head = HeadInput(model.network.get_submodule(backbones.head_name(model.network)))
    try:
        for rows in np.array_split(drawn, -(-len(drawn) // _ROWS)):
            positions = torch.from_numpy(images[rows])
            features = reader(images[rows], views[rows]).to(model.device)
            model.logits(FeatureBatch(features, labels[positions], positions))
            taken = head.take().cpu()
            if len(taken) != len(rows):  # such as a row for each part of an image
                raise LookupError
            yield taken
    finally:
        head.close()
