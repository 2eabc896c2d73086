"""What a folder of images holds, and what is wrong with it: the scan of a run, and a look at every picture."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from dogbreed.core.background import in_order
from dogbreed.core.errors import DogbreedError
from dogbreed.core.machine import cpu_count
from dogbreed.core.progress import track
from dogbreed.core.text import count
from dogbreed.data import images
from dogbreed.data.columns import Entries, Entry, Paths
from dogbreed.data.datasets import Indices
from dogbreed.data.duplicates import MOST_IMAGES, NO_PICTURE, group_same, to_picture
from dogbreed.data.layout import SPLITS
from dogbreed.data.listing import list_data
from dogbreed.data.locate import find_folder, find_root
from dogbreed.data.scan import scan

MOST_MEMBERS = 1000  # copies of one picture that are listed
SIDE = 256  # pixels: about what a network sees
DARK = 50  # of 255: 95 % of the pixels are darker. Of 720 photographs of dogs the darkest has 110
BLURRED = 0.008  # below this sharpness; of the same photographs the least sharp has 0.025
TINY = 64  # pixels, for the shorter side


class Look(NamedTuple):
    """What a look at one image shows.

    Attributes:
        width: Of the upright image, in pixels.
        height: Likewise.
        brightness: The level, of 255, below which 95 % of the pixels are.
        sharpness: Variance of the second differences over that of the levels.
    """

    width: int
    height: int
    brightness: float
    sharpness: float


class Group(NamedTuple):
    """Images that are the same file (`exact`) or the same picture, by their positions."""

    exact: bool
    members: list[int]


@dataclass(frozen=True)
class Inspection:
    """What was found in a folder of images.

    Attributes:
        root: The folder.
        labels: The table of labels, None where folders are the classes.
        classes: Class names by index.
        splits: Those that there are; none where nobody has split the images.
        entries: The images that can be used.
        looks: What each of them looks like, a `Look` per row.
        groups: Those that are there more than once.
        unusable: Files that are no usable image, with the reason.
        notes: What else is odd, a sentence each.
    """

    root: Path
    labels: Path | None
    classes: list[str]
    splits: list[str]
    entries: Entries
    looks: NDArray[np.float64]
    groups: list[Group]
    unusable: list[tuple[Entry, str]]
    notes: list[str] = field(default_factory=list)

    def counts(self, split: str | None = None) -> list[int]:
        """Return the number of images of each class, in one split or altogether."""
        own = self.entries.splits == SPLITS.index(split) if split else slice(None)
        return np.bincount(self.entries.labels[own], minlength=len(self.classes)).tolist()

    def look(self, index: int) -> Look:
        """Return what an image looks like."""
        width, height, brightness, sharpness = self.looks[index].tolist()
        return Look(int(width), int(height), brightness, sharpness)

    @cached_property
    def dark(self) -> list[int]:
        """Positions of images that are nearly black, the darkest first."""
        return self._below("brightness", DARK)

    @cached_property
    def blurred(self) -> list[int]:
        """Positions of images without fine detail, the most blurred first; dark ones are not named again."""
        dark = set(self.dark)
        return [index for index in self._below("sharpness", BLURRED) if index not in dark]

    @cached_property
    def tiny(self) -> list[int]:
        """Positions of images with a short side, the smallest first."""
        return _lowest(self.looks[:, :2].min(1, initial=np.inf), TINY)

    def _below(self, name: str, limit: float) -> list[int]:
        return _lowest(self.looks[:, Look._fields.index(name)], limit)

    @cached_property
    def two_labels(self) -> list[Group]:
        """Files and pictures that lie in several classes."""
        return [group for group in self.groups if self._labels(group) > 1]

    @cached_property
    def across_splits(self) -> list[Group]:
        """Files and pictures that lie in several splits."""
        return [group for group in self.groups if self._splits(group) > 1]

    @cached_property
    def within_splits(self) -> list[Group]:
        """Files and pictures that are there several times, in one split and class."""
        return [group for group in self.groups if self._labels(group) == self._splits(group) == 1]

    def _labels(self, group: Group) -> int:
        return len(set(self.entries.labels[group.members].tolist()))

    def _splits(self, group: Group) -> int:
        return len(set(self.entries.splits[group.members].tolist()))

    @property
    def imbalance(self) -> float | None:
        """How many times as many images the largest class has as the smallest that has any, of those to train on."""
        present = [number for number in self.counts("train" if self.splits else None) if number]
        return max(present) / min(present) if present else None

    def shown_path(self, path: Path) -> str:
        """Return a path from the folder where it lies in it."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; of more than `MOST_MEMBERS` copies the first."""
        width, height = self.looks[:, 0], self.looks[:, 1]
        sides = {"width": width.astype(int), "height": height.astype(int), "aspect_ratio": (width / height).round(3)}
        shown: dict[str, list[tuple[int, float]]] = {
            "dark": [(index, self.look(index).brightness) for index in self.dark],
            "blurred": [(index, self.look(index).sharpness) for index in self.blurred],
            "tiny": [(index, min(self.look(index)[:2])) for index in self.tiny],
        }
        counts = {split or "all": self.counts(split) for split in self.splits or ("",)}
        return {
            "root": str(self.root),
            "images": len(self.entries),
            "classes": {
                name: {split: numbers[label] for split, numbers in counts.items()}
                for label, name in enumerate(self.classes)
            },
            "imbalance": self.imbalance,
            "sizes": {
                name: {"min": values.min().item(), "median": _median(values), "max": values.max().item()}
                for name, values in sides.items()
                if len(values)
            },
            "notes": self.notes,
            "unusable": [{**self._item(entry), "reason": reason} for entry, reason in self.unusable],
            "duplicates": [
                {
                    "exact": group.exact,
                    "count": len(group.members),
                    "images": [self._item(self.entries[index]) for index in group.members[:MOST_MEMBERS]],
                }
                for group in self.groups
            ],
            **{
                kind: [{**self._item(self.entries[index]), "value": round(value, 5)} for index, value in values]
                for kind, values in shown.items()
            },
        }

    def _item(self, entry: Entry) -> dict[str, str | None]:
        return {"path": self.shown_path(entry.path), "class": self.classes[entry.label], "split": entry.split}


def inspect(
    root: str | Path, labels: str | Path | None = None, *, memory: Path | None = None, quiet: bool = False
) -> Inspection:
    """Look at every image of a data set.

    Args:
        root: As `data.root`.
        labels: As `data.labels`.
        memory: As for `scan`.
        quiet: Show no progress.

    Raises:
        DogbreedError: There is no such folder or table, or no file in it.
    """
    folder = find_folder(root, quiet=quiet) if labels else find_root(root, quiet=quiet)
    table = Path(labels) if labels else None
    listing = list_data(folder, table, "keep")
    if not listing.entries:
        raise DogbreedError(f"{folder} holds no files; it should hold one folder per class.")
    scanned = scan(listing.entries.paths, memory=memory, quiet=quiet)
    unusable = [(listing.entries[index], scanned.reasons[index]) for index in sorted(scanned.reasons)]
    usable = scanned.usable()
    looks, pictures = _look_at_all(listing.entries.paths.take(usable), quiet)
    readable = np.flatnonzero(looks[:, 0] > 0)  # not if it was changed meanwhile
    digests = scanned.digests.take(usable[readable])
    same_files = group_same(digests, None)
    same_pictures = same_files if pictures is None else group_same(digests, torch.from_numpy(pictures[readable]))
    notes = listing.notes
    if pictures is None:
        notes = [*notes, f"Over {MOST_IMAGES:,} images: only copies of files were looked for."]
    return Inspection(
        folder,
        table,
        listing.classes,
        listing.splits,
        listing.entries.take(usable[readable]),
        looks[readable],
        _groups(same_files, same_pictures),
        unusable,
        notes,
    )


def _groups(files: Indices, pictures: Indices) -> list[Group]:
    """Return the same files, and then the same pictures, of each file one; by the first of each."""
    first = np.unique(files)
    groups = [Group(True, members) for members in _several(np.arange(len(files)), files)]
    return groups + [Group(False, members) for members in _several(first, pictures[first])]


def _several(indices: Indices, leaders: Indices) -> list[list[int]]:
    """Return the indices by their leader, where it has several."""
    order = leaders.argsort(kind="stable")
    _, starts = np.unique(leaders[order], return_index=True)
    return [members.tolist() for members in np.split(indices[order], starts[1:]) if len(members) > 1]


def _lowest(values: NDArray[np.float64], limit: float) -> list[int]:
    """Return the positions of the values below a limit, the lowest first."""
    below = np.flatnonzero(values < limit)
    return below[values[below].argsort(kind="stable")].tolist()


def _median(values: NDArray[Any]) -> float:
    middle: float = np.median(values).item()
    return int(middle) if values.dtype.kind == "i" and middle.is_integer() else middle


def _look_at_all(paths: Paths, quiet: bool) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """Return what the images look like, a row of zeros where one cannot be read, and their pictures if not too many."""
    looks = np.zeros((len(paths), len(Look._fields)))
    pictures = np.repeat(NO_PICTURE[None], len(paths), 0) if len(paths) <= MOST_IMAGES else None
    with track(len(paths), "Looking at images", quiet=quiet) as progress:
        for index, seen in enumerate(in_order(_look, paths, cpu_count(), name="inspect")):
            if seen:
                looks[index] = seen[0]
                if pictures is not None:
                    pictures[index] = seen[1]
            progress.advance()
    return looks, pictures


def _look(path: Path) -> tuple[Look, np.ndarray] | None:
    try:
        width, height = images.dimensions(path)
        image = images.decode(path, target=min(SIDE, width, height))
    except images.BadImage:
        return None
    scale = min(1, SIDE / max(image.shape[-2:]))
    size = [max(1, round(side * scale)) for side in image.shape[-2:]]
    grey = F.resize(image, size, antialias=True).float().mean(0).numpy()
    padded = np.pad(grey, 1, mode="edge")
    second = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * grey
    sharpness = float(second.var() / max(grey.var(), 1.0))
    return Look(width, height, float(np.percentile(grey, 95)), sharpness), to_picture(image)


def summary(inspection: Inspection) -> Iterable[str]:
    """Yield what a person should know, a line each."""
    entries, splits = inspection.entries, inspection.splits
    numbers = " / ".join(f"{sum(inspection.counts(split)):,} {split}" for split in splits) or f"{len(entries):,}"
    yield f"{inspection.root}: {count(len(inspection.classes), 'class')}, {numbers} images"
    yield from inspection.notes
    if inspection.imbalance and inspection.imbalance >= 2:
        yield f"The largest class has {inspection.imbalance:.1f} times as many images as the smallest."
    for kind, noun, where in (
        (inspection.unusable, "file", "not usable as images"),
        (inspection.two_labels, "picture", "in several classes"),
        (inspection.across_splits, "picture", "in several splits"),
        (inspection.within_splits, "picture", "several times in one class and split"),
        (inspection.dark, "image", "nearly black"),
        (inspection.blurred, "image", "blurred"),
        (inspection.tiny, "image", f"with a side below {TINY} pixels"),
    ):
        if kind:
            yield f"  {count(len(kind), noun)} {where}"
