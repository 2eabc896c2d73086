"""`DogImages`: folders of photographs, one folder a class, as Lightning data.

The order of the images and the way each is looked at (mirrored, cropped) are drawn for a whole epoch at once from
generators keyed by (seed, epoch). They depend on nothing else: not on workers, batch size, devices, or on whether
pixels or remembered features are delivered.
"""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from dogbreed.core.errors import DogbreedError
from dogbreed.data.download import DOG_IMAGES_URL, fetch_dog_images
from dogbreed.data.images import WHOLE, Preprocessing, View, load, random_box
from dogbreed.data.scan import list_images, scan
from dogbreed.data.synthetic import make_sample

SPLITS = ("train", "valid", "test")
AUGMENT = ("none", "flip", "crop")

Indices = NDArray[np.int64]
FeatureReader = Callable[[Indices, Indices], Tensor]  # (samples, views) of a split to features [N, ...]


class Batch(NamedTuple):
    """Images [N, 3, S, S], labels [N] and positions in the split [N]."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class FeatureBatch(NamedTuple):
    """The same with what the frozen prefix makes of the images, [N, ...], in place of the images."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class Samples:
    """The usable images of one split, in a fixed order.

    Attributes:
        paths: Where the images lie.
        labels: Class of each, an index into the class names.
        digests: Digest of each file's bytes.
        views: The ways an image is looked at: `views[v][i]` is view v of image i.
    """

    paths: list[Path]
    labels: Indices
    digests: list[str]
    views: list[list[View]]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


class DogImages(LightningDataModule):
    """Reads `root/{train,valid,test}/<class>/`, for dogImages and any folder laid out like it.

    Args:
        root: Folder with the three splits. A missing folder of the name `dogImages` is downloaded.
        batch_size: Images a step on each device.
        num_workers: Processes that decode images; `auto` takes one a core, 8 at most.
        augment: `none`, `flip` (mirrored half of the time) or `crop` (one of `views` fixed random crops).
        resize: `squash` (as published) or `crop`; only used where `preprocessing` is not given.
        on_bad_image: `skip` leaves unreadable files out and lists them, `error` stops.
        download: Whether a missing dogImages may be downloaded.
        source: `dogimages`, or `sample` for photographs that are drawn by `dogbreed.data.synthetic`.
        url: Where dogImages is downloaded from.
        sample: Arguments for `dogbreed.data.synthetic.make_sample`.
        preprocessing: From image to input; None takes ImageNet's at 224 pixels.
        views: Crops an image for `augment=crop`.
        max_pixels: Larger images are refused before they are decoded.
        scan_memory: File that remembers which images are readable; None scans each time.
        seed: Of order and views.
        quiet: No progress.

    Attributes:
        classes: Class names without their `001.` prefix, by index.
        samples: The usable images by split.
        skipped: Files left out.

    Raises:
        DogbreedError: An argument is out of range; in `setup`, the folder does not hold what it should.
    """

    def __init__(
        self,
        root: str | Path = "data/dogImages",
        *,
        batch_size: int = 512,
        num_workers: int | Literal["auto"] = "auto",
        augment: str = "flip",
        resize: str = "squash",
        on_bad_image: str = "skip",
        download: bool = True,
        source: str = "dogimages",
        url: str | None = None,
        sample: Mapping[str, int] | None = None,
        preprocessing: Preprocessing | None = None,
        views: int = 4,
        max_pixels: int = 100_000_000,
        scan_memory: Path | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        _one_of("data.augment", augment, AUGMENT)
        _one_of("data.on_bad_image", on_bad_image, ("skip", "error"))
        _one_of("data.source", source, ("dogimages", "sample"))
        _at_least_one("data.batch_size", batch_size)
        _at_least_one("cache.views", views)
        _at_least_one("data.max_pixels", max_pixels)
        if not 0 <= seed < 1 << 63:
            raise DogbreedError(f"seed={seed} is out of range; it is a whole number from 0.")
        if num_workers != "auto" and not (isinstance(num_workers, int) and num_workers >= 0):
            raise DogbreedError(f"data.num_workers={num_workers} is out of range; it is auto or 0 and more.")
        self.root = Path(root)
        self.batch_size = batch_size
        self.num_workers = min(os.cpu_count() or 1, 8) if num_workers == "auto" else num_workers
        self.augment = augment
        self.on_bad_image = on_bad_image
        self.download = download
        self.source = source
        self.url = url or DOG_IMAGES_URL
        self.sample = dict(sample or {})
        self.preprocessing = preprocessing or Preprocessing(resize=resize)
        self.num_views = views
        self.max_pixels = max_pixels
        self.scan_memory = scan_memory
        self.seed = seed
        self.quiet = quiet
        self.classes: list[str] = []
        self.samples: dict[str, Samples] = {}
        self.skipped: list[Skipped] = []
        self._readers: dict[str, FeatureReader] = {}

    # Lightning calls prepare_data in one process a machine, setup in every process.

    def prepare_data(self) -> None:
        """Draws the sample, or downloads dogImages when it is missing and may be.

        Raises:
            DogbreedError: The download failed.
        """
        if self.source == "sample":
            make_sample(self.root, **self.sample)
        elif not self.root.exists() and self.download and self.root.name == "dogImages":
            fetch_dog_images(self.root, self.url)

    def setup(self, stage: str | None = None) -> None:
        """Lists and checks the images of all splits, once.

        Raises:
            DogbreedError: A folder is missing or empty, the splits have different classes, or a split has no
                readable image; with `on_bad_image=error`, any file that cannot be used.
        """
        if self.samples:
            return
        folders = _checked_folders(self.root)
        names = sorted(folders[SPLITS[0]])
        self.classes = [plain_name(name) for name in names]
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise DogbreedError(f"{self.root} has two class folders that are both named {twice} but for their number.")
        found = [
            (split, label, path)
            for split in SPLITS
            for label, name in enumerate(names)
            for path in list_images(folders[split][name])
        ]
        scanned = scan(
            [path for _, _, path in found], memory=self.scan_memory, max_pixels=self.max_pixels, quiet=self.quiet
        )
        usable = [
            (split, label, file) for (split, label, _), file in zip(found, scanned, strict=True) if not file.reason
        ]
        self.skipped = [Skipped(file.path, file.reason) for file in scanned if file.reason]
        if self.skipped and self.on_bad_image == "error":
            first = self.skipped[0]
            raise DogbreedError(
                f"{len(self.skipped)} of {len(scanned)} files in {self.root} cannot be used, the first {first.path} "
                f"({first.reason}); data.on_bad_image=skip leaves them out."
            )
        for split in SPLITS:
            mine = [(label, file) for where, label, file in usable if where == split]
            if not mine:
                raise DogbreedError(f"{self.root / split} holds no readable image.")
            paths = [file.path for _, file in mine]
            views = self._views(len(paths)) if split == "train" else [[WHOLE] * len(paths)]
            labels = np.array([label for label, _ in mine], dtype=np.int64)
            self.samples[split] = Samples(paths, labels, [file.digest for _, file in mine], views)

    def _views(self, count: int) -> list[list[View]]:
        if self.augment == "none":
            return [[WHOLE] * count]
        if self.augment == "flip":
            return [[WHOLE] * count, [View(flip=True)] * count]
        crops = []
        for view in range(self.num_views):
            numbers = keyed(self.seed, "crop", view).random((count, 5))
            crops.append([View(flip=bool(row[4] < 0.5), box=random_box(row[:4])) for row in numbers])
        return crops

    def use_features(self, readers: Mapping[str, FeatureReader]) -> None:
        """Delivers features in place of images for the splits that have a reader."""
        self._readers = dict(readers)

    def reader(self, split: str) -> FeatureReader:
        """Features of a split by (positions, views)."""
        return self._readers[split]

    def train_dataloader(self) -> DataLoader[Any]:
        rank, world = self._place()
        samples = self.samples["train"]
        return self._loader("train", TrainBatches(samples, self.batch_size, self.seed, rank, world))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("test")

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        return self._loader(split, EvaluationBatches(len(self.samples[split]), self.batch_size, *self._place()))

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: str, batches: Sampler[Any]) -> DataLoader[Any]:
        samples, reader = self.samples[split], self._readers.get(split)
        # A generator of its own: the default one is drawn from when an iterator starts, and would shift dropout.
        generator = torch.Generator().manual_seed(self.seed)
        if reader is not None:
            features = FeatureDataset(samples, reader)
            return DataLoader(features, batch_sampler=batches, collate_fn=_first, generator=generator)
        images = ImageDataset(samples, self.preprocessing, self.max_pixels)
        return DataLoader(
            images,
            batch_sampler=batches,
            collate_fn=_stack,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0 and split != "test",
            pin_memory=torch.cuda.is_available(),
            generator=generator,
        )


class ImageDataset(Dataset[tuple[Tensor, int, int]]):
    """Images as network inputs, addressed by (position, view)."""

    def __init__(self, samples: Samples, preprocessing: Preprocessing, max_pixels: int) -> None:
        self.samples = samples
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, int, int]:
        index, view = place
        samples = self.samples
        image = load(samples.paths[index], self.preprocessing, samples.views[view][index], max_pixels=self.max_pixels)
        return image, int(samples.labels[index]), index


class FeatureDataset(Dataset[FeatureBatch]):
    """Remembered features, a whole batch at once."""

    def __init__(self, samples: Samples, reader: FeatureReader) -> None:
        self.labels = torch.from_numpy(samples.labels)
        self.reader = reader

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[FeatureBatch]:
        indices, views = np.asarray(places, dtype=np.int64).T
        positions = torch.from_numpy(indices.copy())
        return [FeatureBatch(self.reader(indices, views), self.labels[positions], positions)]


class TrainBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (position, view) in the epoch's order; with several devices each takes every world-th image.

    As in torch's DistributedSampler the first images fill up the last round, so that all devices take equal steps.
    """

    def __init__(self, samples: Samples, batch_size: int, seed: int, rank: int = 0, world: int = 1) -> None:
        self.count, self.views = len(samples), len(samples.views)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        self.epoch = 0
        self.sampler = self  # where Lightning looks for set_epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(math.ceil(self.count / self.world) / self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = keyed(self.seed, "order", self.epoch).permutation(self.count)
        views = keyed(self.seed, "view", self.epoch).integers(self.views, size=self.count)
        mine = np.resize(order, math.ceil(self.count / self.world) * self.world)[self.rank :: self.world]
        places = np.stack([mine, views[mine]], axis=1).tolist()
        for start in range(0, len(places), self.batch_size):
            yield [(index, view) for index, view in places[start : start + self.batch_size]]


class EvaluationBatches(Sampler[list[tuple[int, int]]]):
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

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.world == 1:
            parts = [self.mine[start : start + self.batch_size] for start in range(0, len(self.mine), self.batch_size)]
        else:
            parts = np.array_split(self.mine, self.batches)
        for part in parts:
            yield [(index, 0) for index in part.tolist()]


def keyed(seed: int, purpose: str, number: int) -> np.random.Generator:
    """A generator that depends on nothing but its arguments."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *purpose.encode(), number])))


def _checked_folders(root: Path) -> dict[str, dict[str, Path]]:
    """Class folders by split and name, after checking that the splits agree."""
    if not root.is_dir():
        raise DogbreedError(
            f"The data folder {root} does not exist; give data.root=FOLDER with train/, valid/ and test/, "
            "or try data=sample."
        )
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing:
        raise DogbreedError(f"{root} has no folder {missing[0]}/; it should hold train/, valid/ and test/.")
    folders = {split: class_folders(root / split) for split in SPLITS}
    if not any(folders.values()):
        raise DogbreedError(f"{root} is empty: train/, valid/ and test/ should hold one folder a class.")
    everywhere = set().union(*folders.values())
    for name in everywhere:  # it becomes a class name, which travels in JSON
        if name.encode("utf-8", "replace").decode() != name:
            told = name.encode("utf-8", "backslashreplace").decode()
            raise DogbreedError(f"{root} has a class folder whose name is not UTF-8, {told}; rename it.")
    for split in SPLITS:
        lacking = sorted(everywhere - folders[split].keys())
        if lacking:
            other = next(where for where in SPLITS if lacking[0] in folders[where])
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise DogbreedError(
                f"The splits have different classes: {lacking[0]}{more} is in {root / other} but not in "
                f"{root / split}; every class needs a folder in train/, valid/ and test/."
            )
    return folders


def class_folders(folder: Path) -> dict[str, Path]:
    """The folders of one split by name."""
    return {p.name: p for p in folder.iterdir() if p.is_dir() and not p.name.startswith((".", "__MACOSX"))}


def plain_name(name: str) -> str:
    """Class name without the number in front: `001.Affenpinscher` is Affenpinscher."""
    return re.sub(r"^\d+\.(?=.)", "", name)


def _stack(rows: Sequence[tuple[Tensor, int, int]]) -> Batch:
    images, labels, indices = zip(*rows, strict=True)
    inputs = torch.stack(images).contiguous(memory_format=torch.channels_last)
    return Batch(inputs, torch.tensor(labels), torch.tensor(indices))


def _first(batches: Sequence[FeatureBatch]) -> FeatureBatch:
    return batches[0]


def _one_of(key: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise DogbreedError(f"{key}={value} is unknown; it is one of {', '.join(allowed)}.")


def _at_least_one(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DogbreedError(f"{key}={value} is out of range; it is a whole number from 1.")
