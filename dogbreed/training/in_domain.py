"""The index of training images that a run exports, so that its model can say which photographs are unlike them."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dogbreed.cache.on_demand import Rows
from dogbreed.cache.store import Table
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import FeatureBatch
from dogbreed.models import backbones, neighbours
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.neighbours import MOST, REFUSED_PERCENT, DogClasses, HeadInput, InDomain

_ROWS = 256
TOO_LONG = (
    "Answers do not name similar training images (export.similar): with their paths the index would take over 2 MB per "
    "10,000 images."
)


def check_export(config: Config) -> None:
    """Refuse `export.published_head` where there is no head that knows dogs, and `export.similar` without an index.

    Raises:
        DogbreedError: Says what to set.
    """
    model = config.model
    if config.export.similar and (config.export.published_head or not config.export.neighbours):
        raise DogbreedError(
            "export.similar=true names images of the index; set export.neighbours=true and export.published_head=false."
        )
    if not config.export.published_head:
        return
    if model.trainable != "head":
        raise DogbreedError(
            "export.published_head=true takes the features that the published head knows, and "
            f"model.trainable={model.trainable} changes them; set export.published_head=false, and the training images "
            "are compared."
        )
    if not backbones.has_published_head(model.backbone, model.weights):
        raise DogbreedError(
            "export.published_head=true takes the published head of ImageNet's 1,000 classes, which "
            f"model.weights={model.weights} of {model.backbone} has not; set export.published_head=false, and the "
            "training images are compared."
        )


def _published(config: Config) -> DogClasses:
    """Return the head that the weights of a run were published with."""
    model = config.model
    network = backbones.create(model.backbone, 1000, weights=model.weights, size=config.data.size)
    head = network.get_submodule(backbones.head_name(network))
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise LookupError
    return DogClasses(head.weight.detach().half(), head.bias.detach().half())


def index_images(config: Config, model: DogBreedClassifier, data: DogImages) -> tuple[InDomain | None, str]:
    """Return the index, or the published head, with a threshold from valid; else a sentence on why there is none.

    Args:
        config: Of the run.
        model: As it is exported.
        data: Of the run. Its features are read; what is behind them in the network is computed once.
    """
    if not (config.export.neighbours or config.export.published_head):
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
                index, caveat = (
                    (_published(config), "") if config.export.published_head else _index(config, model, data)
                )
                return index.calibrated(torch.cat([*_features(model, data, "valid")])), caveat
        except DogbreedError as error:  # the run has gone on from a checkpoint, without the published weights
            why = str(error).rstrip(".")
        except LookupError:
            why = "what the network hands to its last layer cannot be seen from outside"
        finally:
            model.train(was_training)
    unsaid = " nor which of them it is like (export.similar)" if config.export.similar else " (in_domain)"
    return None, f"Answers do not say whether a photograph is unlike the training images{unsaid}: {why}."


def _index(config: Config, model: DogBreedClassifier, data: DogImages) -> tuple[InDomain, str]:
    """Return the index, with the names of its images where they are meant to be kept, or why it has none."""
    index = neighbours.build(_features(model, data, "train"))
    if not config.export.similar:
        return index, ""
    files, (positions, _) = data.samples["train"], _drawn(data, "train")
    paths = [data.shown_path(files.paths[position]) for position in positions]
    named = index.with_names(paths, torch.from_numpy(files.labels[positions]))
    return (index, TOO_LONG) if named is None else (named, "")


def _drawn(data: DogImages, split: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of the images that the index takes, and of each the first view that was used."""
    reader = data.reader(split)
    assert isinstance(reader, Table | Rows)
    images, views = reader.first_views()
    drawn = np.linspace(0, len(images) - 1, min(len(images), MOST)).astype(np.int64)
    return images[drawn], views[drawn]


def _features(model: DogBreedClassifier, data: DogImages, split: str) -> Iterator[Tensor]:
    """Yield what the last layer takes, [N, D], of the images of a split, each in the first view that was used."""
    reader, labels = data.reader(split), torch.from_numpy(data.samples[split].labels)
    images, views = _drawn(data, split)
    head = HeadInput(model.network.get_submodule(backbones.head_name(model.network)))
    try:
        for rows in np.array_split(np.arange(len(images)), -(-len(images) // _ROWS)):
            positions = torch.from_numpy(images[rows])
            features = reader(images[rows], views[rows]).to(model.device)
            model.logits(FeatureBatch(features, labels[positions], positions))
            taken = head.take().cpu()
            if len(taken) != len(rows):  # such as a row for each part of an image
                raise LookupError
            yield taken
    finally:
        head.close()
