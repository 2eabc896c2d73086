"""Which image comes when, and as which view: batches that depend on seed and epoch alone.

The order of the images and the view of each are drawn for a whole epoch at once from generators keyed by (seed, epoch).
They depend on nothing else: not on workers, batch size, devices, or on whether pixels or remembered features are
delivered.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datasets import Indices, Part, SplitFiles


class EpochOrder(Sampler[tuple[int, int]]):
    """(position, view) of every image in the epoch's order; of several devices each takes every world-th image.

    As in torch's DistributedSampler the first images fill up the last round, so that all devices take equal steps.
    Where images are seen `anew` in each epoch, view v is numbered v + views * epoch.
    """

    def __init__(self, files: SplitFiles, seed: int, rank: int, world: int, anew: bool = False) -> None:
        self.anew = anew
        self.count, self.views = len(files), len(files.views)
        self.seed, self.rank, self.world = seed, rank, world
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.count / self.world)

    def drawn(self) -> Part:
        """Return all of this device's part of the epoch."""
        order, views = order_of_epoch(self.seed, self.epoch, self.views, self.count)
        if self.anew:
            views = views + self.views * self.epoch
        mine = [np.resize(drawn, len(self) * self.world)[self.rank :: self.world] for drawn in (order, views)]
        return Part(np.stack(mine), 0, len(self))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.drawn())


def order_of_epoch(seed: int, epoch: int, views: int, count: int) -> tuple[Indices, Indices]:
    """Return the positions of `count` images in the order of an epoch, and the view of each that it shows."""
    order = keyed(seed, "order", epoch).permutation(count)
    return order, views_of_epoch(seed, epoch, views, count)[order]


def views_of_epoch(seed: int, epoch: int, views: int, count: int) -> Indices:
    """Return which of its views each of `count` images is seen in, [images]."""
    return keyed(seed, "view", epoch).integers(views, size=count)


def used_views(seed: int, epochs: int | None, views: int, count: int) -> NDArray[np.bool_]:
    """Return which views of each image the first epochs show, [views, images]; None is epochs without end."""
    used = np.full((views, count), epochs is None)
    for epoch in range(epochs or 0):
        used[views_of_epoch(seed, epoch, views, count), np.arange(count)] = True
        if used.all():
            break
    return used


def turns(seed: int, epoch: int, views: int, count: int, batch_size: int) -> Indices:
    """Return when an epoch on one device asks for each view of each image, [views, images]: the lowest come first.

    An image's views have one turn, so that they are made together. Of the first batch, for which the run waits, those
    that are not shown come after all images, from `count` on.
    """
    place = keyed(seed, "order", epoch).permutation(count).argsort()
    other = views_of_epoch(seed, epoch, views, count) != np.arange(views)[:, None]
    return np.where(other & (place < batch_size), place + count, place)


class TrainBatches(Sampler[Part]):
    """Batches of (position, view) in the epoch's order. Lightning calls `set_epoch` of the sampler within."""

    def __init__(
        self, files: SplitFiles, batch_size: int, seed: int, rank: int = 0, world: int = 1, anew: bool = False
    ) -> None:
        self.sampler = EpochOrder(files, seed, rank, world, anew)
        self.batch_size = batch_size

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self.sampler) / self.batch_size)

    def __iter__(self) -> Iterator[Part]:
        whole = self.sampler.drawn()
        for start in range(0, len(whole), self.batch_size):
            yield Part(whole.order, start, min(start + self.batch_size, len(whole)))


class EvaluationBatches(Sampler[Part]):
    """Every image exactly once over all devices, in the same number of batches on each.

    Equal numbers matter: a device that runs out early would leave the others waiting for it.
    """

    def __init__(self, count: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        if count < world:
            raise DogbreedError(f"{count} images cannot be evaluated on {world} devices; use trainer.devices={count}.")
        self.mine = np.arange(rank, count, world)
        # No more than the device with the fewest images can fill: with batch_size=1 one batch may hold two.
        self.batches = min(math.ceil(math.ceil(count / world) / batch_size), count // world)
        self.batch_size = batch_size
        self.world = world

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Part]:
        order = np.stack([self.mine, np.zeros_like(self.mine)])
        count = len(self.mine)
        if self.world == 1:
            starts = [*range(0, count, self.batch_size)]
        else:
            starts = [int(part[0]) for part in np.array_split(np.arange(count), self.batches)]
        for start, stop in pairwise([*starts, count]):
            yield Part(order, start, stop)


def keyed(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Return a generator that depends on nothing but its arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *purpose.encode(), number])))
