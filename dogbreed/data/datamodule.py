"""`DogImages`: folders of photographs, one folder per class, as Lightning data."""

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Sampler

from dogbreed.core.errors import DogbreedError
from dogbreed.core.machine import cpu_count
from dogbreed.core.text import count
from dogbreed.data.columns import Digests, Entries, Paths, comparable
from dogbreed.data.datasets import (
    FeatureReader,
    ImageDataset,
    ImageLoader,
    Indices,
    Skipped,
    SplitFiles,
    Transform,
    stack_images,
)
from dogbreed.data.download import DOG_IMAGES_URL, fetch_dog_images
from dogbreed.data.duplicates import MOST_IMAGES, group_same, read_pictures
from dogbreed.data.features import FeatureDataset, only_batch
from dogbreed.data.images import WHOLE, Preprocessing, View, random_box
from dogbreed.data.layout import SPLITS
from dogbreed.data.listing import Listing, list_data
from dogbreed.data.locate import find_folder, find_root, may_fetch
from dogbreed.data.samplers import EvaluationBatches, TrainBatches, keyed, used_views
from dogbreed.data.scan import scan
from dogbreed.data.splits import folds_by_content, parse_shares, split_by_content
from dogbreed.data.synthetic import make_sample

CHOICES = {
    "augment": ("none", "flip", "crop"),
    "class_mismatch": ("error", "drop"),
    "on_bad_image": ("skip", "error"),
    "source": ("dogimages", "sample"),
}
MOST_NAMED, TWO_LABELS = 100, "One file under two labels"
MOST_WORKERS = 1024  # processes; a million would take the machine down
_USES = {"train": "train", "valid": "validate", "test": "test"}


class DogImages(LightningDataModule):
    """Reads `root/{train,valid,test}/<class>/` as in dogImages, `root/<class>/`, or the images that a table names.

    Args:
        root: Folder of the images. A missing folder of the name `dogImages` is downloaded.
        labels: CSV file with the columns path, label and perhaps split; None takes the classes from the folders.
        split: Shares of train, valid and test where the images are not split yet, as numbers or as text.
        class_mismatch: What becomes of classes that are not in every split: `error` or `drop`.
        batch_size: Images per step on each device.
        num_workers: Processes that decode images; `auto` takes one per core, shared among the Trainer's devices here.
        augment: `none`, `flip` (mirrored half of the time) or `crop` (one of `views` fixed random crops).
        resize: `squash` (as published) or `crop`; only used where `preprocessing` is not given.
        on_bad_image: `skip` leaves unreadable files out and lists them, `error` stops.
        download: Whether a missing dogImages may be downloaded.
        source: `dogimages`, or `sample` for photographs that are drawn by `dogbreed.data.synthetic`.
        url: Where dogImages is downloaded from.
        sample: Arguments for `dogbreed.data.synthetic.make_sample`.
        preprocessing: From image to input; None takes ImageNet's at 224 pixels.
        views: Crops per image for `augment=crop`.
        transforms: Change the training images anew in each epoch, as torchvision's v2.RandAugment does: callables from
            uint8 [3, H, W] to the same, which draw from torch. There are no features of such images to keep.
        max_pixels: Larger images are refused before they are decoded.
        scan_memory: File that remembers which images are readable; None scans each time.
        seed: Of order and views.
        quiet: No progress.

    Attributes:
        classes: Class names without their `001.` prefix, by index.
        samples: The usable images by split.
        skipped: Files left out.
        warnings: What is odd about the images, a sentence each.
        features_seconds: That were spent on computing features while batches were asked for.

    Raises:
        DogbreedError: An argument is out of range; in `setup`, the folder does not hold what it should.
    """

    def __init__(
        self,
        root: str | Path = "data/dogImages",
        *,
        labels: str | Path | None = None,
        split: str | Sequence[float] = (0.8, 0.1, 0.1),
        class_mismatch: str = "error",
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
        transforms: Sequence[Transform] = (),
        max_pixels: int = 100_000_000,
        scan_memory: Path | None = None,
        seed: int = 0,
        quiet: bool = False,
    ) -> None:
        super().__init__()
        if "://" in str(root):  # a Path would lose a slash of it
            find_root(root)
        self.root = Path(os.path.expanduser(root))
        self.labels = Path(os.path.expanduser(labels)) if labels else None
        self.shares = parse_shares(split)
        self.class_mismatch = class_mismatch
        self.batch_size = batch_size
        self._num_workers = num_workers
        self.augment = augment
        self.on_bad_image = on_bad_image
        self.download = download
        self.source = source
        self.url = url or DOG_IMAGES_URL
        self.sample = dict(sample or {})
        self.preprocessing = preprocessing or Preprocessing(resize=resize)
        self.num_views = views
        self.transforms = list(transforms)
        self.max_pixels = max_pixels
        self.scan_memory = scan_memory
        self.seed, self.quiet = seed, quiet
        self.features_seconds = 0.0
        self._check_arguments()
        self._reset()

    def _reset(self) -> None:
        """Hold nothing yet; `setup` lists the images."""
        self.classes: list[str] = []
        self.samples: dict[str, SplitFiles] = {}
        self.skipped: list[Skipped] = []
        self._unsplit: tuple[Entries, list[str]] | None = None
        self.warnings: list[str] = []
        self._readers: dict[str, FeatureReader] = {}

    def _check_arguments(self) -> None:
        for name, choices in CHOICES.items():
            _one_of(f"data.{name}", getattr(self, name), choices)
        _at_least_one("data.batch_size", self.batch_size)
        _at_least_one("cache.views", self.num_views)
        _at_least_one("data.max_pixels", self.max_pixels)
        if not 0 <= self.seed < 1 << 63:
            raise DogbreedError(f"seed={self.seed} is out of range; it is a whole number from 0 to 2^63 - 1.")
        if not (isinstance(self.num_workers, int) and 0 <= self.num_workers <= MOST_WORKERS):
            raise DogbreedError(
                f"data.num_workers={self.num_workers} is out of range; it is auto or 0 to {MOST_WORKERS}."
            )

    @classmethod
    def for_model(cls, model: Any, root: str | Path, **arguments: Any) -> Self:
        """Return data of a folder in the form that a model takes, with its seed.

        Args:
            model: A `DogBreedClassifier`.
            root: As for `DogImages`.
            arguments: The others of `DogImages`.
        """
        return cls(root, **{"preprocessing": model.preprocessing, "seed": model.hparams["seed"], **arguments})

    # Lightning calls prepare_data in one process per machine, setup in every process.

    def prepare_data(self) -> None:
        """Draw the sample, or download dogImages when it is missing and may be.

        Raises:
            DogbreedError: The download failed.
        """
        if self.source == "sample":
            make_sample(self.root, **self.sample)
        elif may_fetch(self.root, self.source, self.download) and not self.root.exists():
            fetch_dog_images(self.root, self.url)

    def setup(self, stage: str | None = None) -> None:
        """List and check the images of all splits, once.

        Raises:
            DogbreedError: A folder is missing or empty, the table does not fit, the splits have different classes, or
                a split has no readable image; with `on_bad_image=error`, any file that cannot be used.
        """
        if self.samples:
            return
        find = find_folder if self.labels else find_root
        self.root = find(self.root, quiet=self.quiet)
        listing = list_data(self.root, self.labels, self.class_mismatch)
        self.classes = listing.classes
        (images, digests), notes = self._readable(listing.entries), listing.notes
        if not listing.splits:
            images = self._split(images, digests, listing)
            notes = [self._split_note(images), *notes]
        for split in listing.splits or [split for split, share in zip(SPLITS, self.shares, strict=True) if share]:
            own = np.flatnonzero(images.splits == SPLITS.index(split))
            if not len(own):
                raise DogbreedError(f"{self.root / split} holds no readable image.")
            views = self._views(len(own)) if split == "train" else [[WHOLE] * len(own)]
            self.samples[split] = SplitFiles(images.paths.take(own), images.labels[own], digests.take(own), views)
        self.warnings = [*notes, *self._classes_without_images(), *self._files_with_two_labels()]
        if "test" not in self.samples:
            self.warnings.append(
                "No test images: the figures are of the validation images, on which the epoch is chosen."
            )

    def _readable(self, entries: Entries) -> tuple[Entries, Digests]:
        """Return the files that are images, with the digests of their content."""
        scanned = scan(entries.paths, memory=self.scan_memory, max_pixels=self.max_pixels, quiet=self.quiet)
        self.skipped = [Skipped(entries.paths[index], scanned.reasons[index]) for index in sorted(scanned.reasons)]
        if self.skipped and self.on_bad_image == "error":
            first = self.skipped[0]
            raise DogbreedError(
                f"{len(self.skipped)} of {len(scanned)} files in {self.root} cannot be used, the first {first.path} "
                f"({first.reason}); data.on_bad_image=skip leaves them out."
            )
        usable = scanned.usable()
        return entries.take(usable), scanned.digests.take(usable)

    def _split(self, images: Entries, digests: Digests, listing: Listing) -> Entries:
        """Split what nobody has split."""
        if not images:
            raise DogbreedError(f"{self.root} holds no readable image.")
        splits = split_by_content(digests, images.labels, self._groups(digests, images.paths), self.shares)
        images = Entries(images.paths, images.labels, splits)
        self._unsplit = images, listing.names
        return images

    def _groups(self, digests: Sequence[str], paths: Sequence[Path]) -> Indices:
        """Return equal numbers for the same pictures."""
        return group_same(digests, read_pictures(paths, quiet=self.quiet))

    @property
    def own_split(self) -> list[tuple[str, str, str]]:
        """Path, class and split of every image where nobody had split them: the rows of `split.csv`."""
        entries, names = self._unsplit or ((), [])
        return [(self.shown_path(path), names[label], str(split)) for path, label, split in entries]

    def _split_note(self, images: Entries) -> str:
        numbers = np.bincount(images.splits, minlength=len(SPLITS)).tolist()
        counts = ", ".join(f"{number:,} to {_USES[split]}" for split, number in zip(SPLITS, numbers, strict=True))
        shares = ",".join(f"{share:g}" for share in self.shares)
        limit = f" Over {MOST_IMAGES:,} images: only copies of files were kept together." * (len(images) > MOST_IMAGES)
        return (
            f"{self.root} has no splits: {count(len(images), 'image')} split by content (data.split={shares}) into "
            f"{counts}. The run keeps it in its split.csv, which data.labels repeats.{limit}"
        )

    def shown_path(self, path: Path) -> str:
        """Return a path as it stands in tables: from the data's folder where it lies in it."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def _classes_without_images(self) -> Iterator[str]:
        for split, files in self.samples.items():
            absent = sorted(set(range(len(self.classes))) - set(files.labels.tolist()))
            if absent:
                some = ", ".join(self.classes[label] for label in absent[:5])
                more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
                them = "it" if len(absent) == 1 else "them"
                which = "" if split == "train" else f": {split} figures say nothing of {them}"
                yield f"No photograph to {_USES[split]} {some}{more}{which}."

    def _files_with_two_labels(self) -> Iterator[str]:
        samples = list(self.samples.values())
        labels = np.concatenate([files.labels for files in samples])
        keys = np.concatenate([comparable(files.digests) for files in samples])
        _, first, of = np.unique(keys, return_index=True, return_inverse=True)
        paths = [text for files in samples for text in Paths.of(files.paths).texts]
        for index in np.flatnonzero(labels != labels[first[of]])[:MOST_NAMED].tolist():
            other = first[of[index]]
            names = (self.classes[labels[position]] for position in (other, index))
            yield f"{TWO_LABELS}: {{}} ({{}}), {{}} ({{}}); delete the one that is wrong.".format(
                *(part for pair in zip((paths[other], paths[index]), names, strict=True) for part in pair)
            )

    def _views(self, count: int) -> Sequence[Sequence[View]]:
        if self.augment == "none":
            return [[WHOLE] * count]
        if self.augment == "flip":
            return [[WHOLE] * count, [View(flip=True)] * count]
        return [_Crops(keyed(self.seed, "crop", view).random((count, 5))) for view in range(self.num_views)]

    def with_valid_in_train(self) -> Self:
        """Return a copy that trains on the images of train and of valid, in this order, and has no other split."""
        return self._pooled(("train", "valid"))

    def _pooled(self, splits: Sequence[str]) -> Self:
        pooled, parts = copy(self), [self.samples[split] for split in splits]
        labels = np.concatenate([files.labels for files in parts])
        pooled.samples = {
            "train": SplitFiles(
                Paths([text for files in parts for text in Paths.of(files.paths).texts]),
                labels,
                Digests(np.concatenate([Digests.of(files.digests).values for files in parts])),
                self._views(len(labels)),
            )
        }
        pooled._readers = {}
        return pooled

    def with_folds(self, folds: int, splits: Sequence[str] = ("train", "valid")) -> tuple[Self, Indices]:
        """Return a copy that trains on the images of these splits and validates on the same, and the fold of each.

        Folds follow from the images' content: `folds_by_content`.
        """
        pooled = self._pooled(splits)
        files = pooled.samples["train"]
        pooled.samples["valid"] = replace(files, views=[[WHOLE] * len(files)])
        groups = self._groups(files.digests, files.paths)
        return pooled, np.array(folds_by_content(files.digests, files.labels.tolist(), groups, folds))

    def used_views(self, epochs: int | None) -> dict[str, NDArray[np.bool_]]:
        """Return for each split which views of its images are looked at, [views, images].

        Args:
            epochs: Number of epochs; None is without end.
        """
        return {
            split: used_views(self.seed, epochs if split == "train" else None, len(files.views), len(files))
            for split, files in self.samples.items()
        }

    def use_features(self, readers: Mapping[str, FeatureReader]) -> None:
        """Deliver features in place of images for the splits that have a reader."""
        self._readers = dict(readers)

    def has_features(self, split: str) -> bool:
        """Return whether a split delivers features in place of images."""
        return split in self._readers

    def reader(self, split: str) -> FeatureReader:
        """Return what reads the features of a split by (positions, views)."""
        return self._readers[split]

    def train_dataloader(self) -> DataLoader[Any]:
        files, anew = self.samples["train"], bool(self.transforms)
        return self._loader("train", TrainBatches(files, self.batch_size, self.seed, *self._rank(), anew))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("valid")

    def test_dataloader(self) -> DataLoader[Any]:
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the images of test, or of valid where there is no test, in their order."""
        return self._evaluation_loader("test" if "test" in self.samples else "valid")

    def _evaluation_loader(self, split: str) -> DataLoader[Any]:
        return self._loader(split, EvaluationBatches(len(self.samples[split]), self.batch_size, *self._rank()))

    @property
    def num_workers(self) -> int:
        """Processes that decode images for this one."""
        if self._num_workers != "auto":
            return self._num_workers
        return max(1, cpu_count() // (self.trainer.num_devices if self.trainer else 1))

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(self, split: str, batches: Sampler[Any]) -> DataLoader[Any]:
        files, reader = self.samples[split], self._readers.get(split)
        transforms = self.transforms if split == "train" else []
        # A generator of its own: the default one is drawn from when an iterator starts, and would shift dropout.
        generator = torch.Generator().manual_seed(self.seed)
        if reader is not None:
            epochs = self.trainer.max_epochs if self.trainer else None
            used = self.used_views(None if epochs in (None, -1) else epochs)[split]
            features = FeatureDataset(files, reader, used, self._device)
            return DataLoader(features, batch_sampler=batches, collate_fn=only_batch, generator=generator)
        return ImageLoader(
            ImageDataset(files, self.preprocessing, self.max_pixels, transforms, self.seed),
            batch_sampler=batches,
            collate_fn=stack_images,
            num_workers=self.num_workers,
            batch_bytes=min(self.batch_size, len(files)) * 12 * self.preprocessing.size**2,  # float32, three channels
            persistent_workers=split != "test",
            pin_memory=self._device.type == "cuda",
            generator=generator,
        )


class _Crops(Sequence[View]):
    """A crop of each image, from five random numbers of its own [N, 5]."""

    def __init__(self, numbers: NDArray[np.float64]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Crops(self.numbers[index])
        row = self.numbers[index]
        return View(flip=bool(row[4] < 0.5), box=random_box(row[:4]))


def _one_of(key: str, value: Any, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise DogbreedError(f"{key}={value} is unknown; it is one of {', '.join(allowed)}.")


def _at_least_one(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise DogbreedError(f"{key}={value} is out of range; it is a whole number from 1.")
