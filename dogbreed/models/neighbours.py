"""Whether an image is of the kind that a model was trained on: the cosine to the nearest of its training images.

What the last layer takes is compared, projected to the dimensions in which the training images differ most. What the
projection loses of an image counts against it, since the cosine is taken with the length before it.

With `export.similar` the names and classes of those images lie beside them, so that the nearest can be named.

For dogs, the head that the weights were published with can tell instead: it knows ImageNet's 118 breeds.
"""

import hashlib
import lzma
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.functional import normalize

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write, is_special
from dogbreed.models.manifest import NEIGHBOURS

NEAREST = 5
DIMENSIONS = 96  # a byte each: 10,000 images of VGG16 take 1 MB, their projection 0.8 MB
BASIS_VALUES = 400_000  # 0.8 MB: of more than 4,166 features there are fewer dimensions
MOST = 50_000  # images in an index; of more, some
BASIS_IMAGES = 4096  # from which the projection is computed
REFUSED_PERCENT = 1  # of the images like those of valid, at most
MOST_BYTES = 200  # per image of an index with names, or 2 MB where there are fewer than 10,000
LONGEST_NAME = 4096  # bytes


# ImageNet's classes of dogs: the breeds, and dingo, dhole and African hunting dog.
DOGS = (*range(151, 269), *range(273, 276))


class Match(NamedTuple):
    """A training image that is like another image."""

    path: str  # from the folder of the data
    label: int  # an index into the class names
    cosine: float


@dataclass(frozen=True, kw_only=True)
class InDomain(ABC):
    """What tells images of a model's kind from others.

    Attributes:
        threshold: The least similarity of an image of the kind.
        images: Number of validation images by which the threshold was chosen.
    """

    threshold: float = 0.0
    images: int = 0

    @abstractmethod
    def similarity(self, features: Tensor) -> list[float]:
        """Return how much each row of features [N, D] is of the kind."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `model.json` says of it besides its threshold."""

    @property
    def names_images(self) -> bool:
        """Whether it knows what the training images are called."""
        return False

    def matches(self, features: Tensor, most: int) -> list[list[Match]]:
        """Return the training images that are most like each row of features [N, D], the nearest first.

        None are named where it does not know what they are called.
        """
        return [[] for _ in features]

    def calibrated(self, valid: Tensor) -> Self | None:
        """Return it with the threshold that refuses 1 % of images like these; None if they are too few to tell.

        Args:
            valid: Features [N, D] of images that it was not made of.
        """
        rank = REFUSED_PERCENT * (len(valid) + 1) // 100
        if not rank:
            return None
        return replace(self, threshold=sorted(self.similarity(valid))[rank - 1], images=len(valid))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the tensors into the folder of a model; return what `model.json` says of it."""
        content = save({name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)})
        with atomic_write(folder / NEIGHBOURS) as file:
            file.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        return {"threshold": self.threshold, **self.describe(), "images": self.images, "sha256": digest}


@dataclass(frozen=True)
class DogClasses(InDomain):
    """The head that the weights were published with: the sum of its probabilities of ImageNet's dogs.

    Attributes:
        weight: [1000, features], float16.
        bias: [1000], float16.
    """

    weight: Tensor
    bias: Tensor

    @cached_property
    def _matrix(self) -> tuple[Tensor, Tensor]:
        return self.bias.float(), self.weight.float().T.contiguous()

    def similarity(self, features: Tensor) -> list[float]:
        """Return the probability that each row of features [N, D] is of a dog."""
        bias, weight = self._matrix
        probabilities: list[float] = (
            torch.addmm(bias, features.float().cpu(), weight).softmax(1)[:, DOGS].sum(1).tolist()
        )
        return probabilities

    def describe(self) -> dict[str, Any]:
        return {"kind": "dogs"}


@dataclass(frozen=True)
class Neighbours(InDomain):
    """The index of a model's training images.

    Attributes:
        points: [images, dimensions], int8: features of length 1, projected, in steps of `steps`.
        steps: [dimensions].
        basis: [features, dimensions], float16.
        labels: [images], int32: their classes; None where it does not know what they are called.
        names: [bytes], uint8: their paths from the folder of the data, between zeros, as LZMA.
    """

    points: Tensor
    steps: Tensor
    basis: Tensor
    labels: Tensor | None = None
    names: Tensor | None = None

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Return the basis [features, dimensions] and the points [dimensions, images] in float32."""
        return self.basis.float(), (self.points.float() * self.steps).T.contiguous()

    @cached_property
    def _paths(self) -> list[str]:
        assert self.names is not None
        content = lzma.LZMADecompressor().decompress(self.names.numpy().tobytes(), LONGEST_NAME * len(self.points))
        return content.decode("utf-8", "surrogateescape").split("\0")

    @property
    def names_images(self) -> bool:
        return self.names is not None

    def with_names(self, paths: Sequence[str], labels: Tensor) -> Self | None:
        """Return it with the paths and the classes of its images; None where they take more room than they may."""
        text = "\0".join(paths).encode("utf-8", "surrogateescape")
        names = torch.frombuffer(bytearray(lzma.compress(text)), dtype=torch.uint8)
        named = replace(self, labels=labels.to(torch.int32), names=names)
        size = sum(value.nbytes for value in vars(named).values() if isinstance(value, Tensor))
        return named if size <= MOST_BYTES * max(len(self.points), 10_000) else None

    def similarity(self, features: Tensor) -> list[float]:
        """Return the mean cosine of each row of features [N, D] to the nearest points."""
        cosines = self._cosines(features)
        nearest: list[float] = cosines.topk(min(NEAREST, len(self.points)), dim=1).values.mean(1).tolist()
        return nearest

    def matches(self, features: Tensor, most: int) -> list[list[Match]]:
        if self.labels is None or self.names is None:
            return super().matches(features, most)
        labels, paths = self.labels, self._paths
        # Four places are as many as 8 bits have; of equal cosines the first image comes first, whatever the batch was.
        places = (10_000 * self._cosines(features)).round().long()
        order = (places * MOST - torch.arange(len(paths))).topk(min(most, len(paths)), dim=1).indices
        return [
            [
                Match(paths[index], int(labels[index]), min(place / 10_000, 1.0))
                for index, place in zip(indices, places[row, indices].tolist(), strict=True)
            ]
            for row, indices in enumerate(order.tolist())
        ]

    def _cosines(self, features: Tensor) -> Tensor:
        """Return the cosine of each row of features [N, D] to each point, [N, images]."""
        basis, points = self._weights
        return normalize(features.float().cpu(), dim=1) @ basis @ points

    def describe(self) -> dict[str, Any]:
        return {"nearest": NEAREST}


def build(features: Iterable[Tensor]) -> Neighbours:
    """Return the index of training images, without a threshold.

    Args:
        features: In batches [N, D] of at least one image; the first ones decide on the projection.
    """
    batches, first = iter(features), list[Tensor]()
    while sum(len(batch) for batch in first) < BASIS_IMAGES and (batch := next(batches, None)) is not None:
        first.append(normalize(batch.float().cpu(), dim=1))
    rows = torch.cat(first)
    basis = _basis(rows).half()
    points = torch.cat(
        [rows @ basis.float(), *(normalize(batch.float().cpu(), dim=1) @ basis.float() for batch in batches)]
    )
    steps = points.abs().amax(0).clamp(min=1e-12) / 127
    return Neighbours((points / steps).round().to(torch.int8), steps, basis)


def _basis(rows: Tensor) -> Tensor:
    """Return the directions [D, dimensions] that hold most of the rows' squares."""
    dimensions = min(DIMENSIONS, BASIS_VALUES // rows.shape[1], *rows.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.svd_lowrank(rows, min(dimensions + 32, *rows.shape), niter=4)[2][:, :dimensions]


def read(folder: Path, about: Mapping[str, Any]) -> InDomain:
    """Return what tells images of the kind, from the folder of a model.

    Args:
        folder: Of the model.
        about: What its `model.json` says of it.

    Raises:
        DogbreedError: It is missing, or another one.
    """
    file = folder / NEIGHBOURS
    if is_special(file):
        raise DogbreedError(f"{file} is no regular file; copy the folder again.")
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise DogbreedError(f"{folder} has no {NEIGHBOURS}; copy the whole folder.") from error
    except OSError as error:
        raise DogbreedError(f"{file} cannot be read ({error.strerror}); copy the folder again.") from error
    if hashlib.sha256(content).hexdigest() != about["sha256"]:
        raise DogbreedError(f"{file} is not the index that model.json was written with; copy the folder again.")
    kind = DogClasses if about.get("kind") == "dogs" else Neighbours
    return kind(**load(content), threshold=float(about["threshold"]), images=int(about["images"]))


class HeadInput:
    """What the last layer of a network was given in the latest pass of the same thread.

    Args:
        heads: Last layers, one for each copy of the network.
    """

    def __init__(self, *heads: nn.Module) -> None:
        self._latest = threading.local()
        self._handles = [head.register_forward_pre_hook(self._keep) for head in dict.fromkeys(heads)]

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._latest.value = inputs[0].detach()

    def take(self) -> Tensor:
        """Return features [N, D], of a feature map the mean over its pixels.

        Raises:
            LookupError: The pass did not call the layer with them.
        """
        features: Tensor | None = self._latest.__dict__.pop("value", None)
        if features is None:
            raise LookupError("the last layer was not called")
        return features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)

    def close(self) -> None:
        """Look no longer."""
        for handle in self._handles:
            handle.remove()
