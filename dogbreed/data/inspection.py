"""What a folder of images holds, and what is wrong with it: the scan of a run, and a look at every picture."""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from dogbreed.core.errors import DogbreedError
from dogbreed.core.machine import cpu_count
from dogbreed.core.progress import track
from dogbreed.core.text import count
from dogbreed.data import images
from dogbreed.data.duplicates import MOST_IMAGES, NO_PICTURE, group_same, to_picture
from dogbreed.data.listing import Entry, list_data
from dogbreed.data.locate import find_folder, find_root
from dogbreed.data.scan import scan

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
        looks: What each of them looks like.
        groups: Those that are there more than once.
        unusable: Files that are no usable image, with the reason.
        notes: What else is odd, a sentence each.
    """

    root: Path
    labels: Path | None
    classes: list[str]
    splits: list[str]
    entries: list[Entry]
    looks: list[Look]
    groups: list[Group]
    unusable: list[tuple[Entry, str]]
    notes: list[str] = field(default_factory=list)

    def counts(self, split: str | None = None) -> list[int]:
        """Return the number of images of each class, in one split or altogether."""
        counted = Counter(entry.label for entry in self.entries if not split or entry.split == split)
        return [counted[label] for label in range(len(self.classes))]

    @cached_property
    def dark(self) -> list[int]:
        """Positions of images that are nearly black, the darkest first."""
        return self._below("brightness", DARK)

    @cached_property
    def blurred(self) -> list[int]:
        """Positions of images without fine detail, the most blurred first; dark ones are not named again."""
        return [index for index in self._below("sharpness", BLURRED) if index not in set(self.dark)]

    @cached_property
    def tiny(self) -> list[int]:
        """Positions of images with a short side, the smallest first."""
        small = [index for index, look in enumerate(self.looks) if min(look.width, look.height) < TINY]
        return sorted(small, key=lambda index: min(self.looks[index][:2]))

    def _below(self, name: str, limit: float) -> list[int]:
        values = [getattr(look, name) for look in self.looks]
        return sorted((index for index, value in enumerate(values) if value < limit), key=values.__getitem__)

    @property
    def two_labels(self) -> list[Group]:
        """Files and pictures that lie in several classes."""
        return [group for group in self.groups if self._labels(group) > 1]

    @property
    def across_splits(self) -> list[Group]:
        """Files and pictures that lie in several splits."""
        return [group for group in self.groups if self._splits(group) > 1]

    @property
    def within_splits(self) -> list[Group]:
        """Files and pictures that are there several times, in one split and class."""
        return [group for group in self.groups if self._labels(group) == self._splits(group) == 1]

    def _labels(self, group: Group) -> int:
        return len({self.entries[index].label for index in group.members})

    def _splits(self, group: Group) -> int:
        return len({self.entries[index].split for index in group.members})

    @property
    def imbalance(self) -> float | None:
        """How many times as many images the largest class has as the smallest that has any, of those to train on."""
        present = [number for number in self.counts("train" if self.splits else None) if number]
        return max(present) / min(present) if present else None

    def shown_path(self, path: Path) -> str:
        """Return a path from the folder where it lies in it."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        sides = {name: [getattr(look, name) for look in self.looks] for name in ("width", "height")}
        sides["aspect_ratio"] = [round(look.width / look.height, 3) for look in self.looks]
        shown: dict[str, list[tuple[int, float]]] = {
            "dark": [(index, self.looks[index].brightness) for index in self.dark],
            "blurred": [(index, self.looks[index].sharpness) for index in self.blurred],
            "tiny": [(index, min(self.looks[index][:2])) for index in self.tiny],
        }
        return {
            "root": str(self.root),
            "images": len(self.entries),
            "classes": {
                name: {split or "all": self.counts(split)[label] for split in self.splits or ("",)}
                for label, name in enumerate(self.classes)
            },
            "imbalance": self.imbalance,
            "sizes": {
                name: {"min": min(values), "median": median(values), "max": max(values)}
                for name, values in sides.items()
                if values
            },
            "notes": self.notes,
            "unusable": [{**self._item(entry), "reason": reason} for entry, reason in self.unusable],
            "duplicates": [
                {"exact": group.exact, "images": [self._item(self.entries[index]) for index in group.members]}
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
    scanned = scan([entry.path for entry in listing.entries], memory=memory, quiet=quiet)
    both = list(zip(listing.entries, scanned, strict=True))
    usable = [(entry, file.digest) for entry, file in both if not file.reason]
    unusable = [(entry, file.reason) for entry, file in both if file.reason]
    looks, pictures = _look_at_all([entry.path for entry, _ in usable], quiet)
    readable = [index for index, look in enumerate(looks) if look is not None]  # not if it was changed meanwhile
    digests = [usable[index][1] for index in readable]
    groups = group_same(digests, torch.from_numpy(pictures[readable]) if len(readable) <= MOST_IMAGES else None)
    return Inspection(
        folder,
        table,
        listing.classes,
        listing.splits,
        [usable[index][0] for index in readable],
        [look for look in looks if look is not None],
        _groups(digests, groups),
        unusable,
        listing.notes,
    )


def _groups(digests: Sequence[str], leaders: Sequence[int]) -> list[Group]:
    """Return the same files, and then the same pictures, of each file one."""
    files: dict[str, list[int]] = {}
    pictures: dict[int, dict[str, int]] = {}
    for index, (digest, leader) in enumerate(zip(digests, leaders, strict=True)):
        files.setdefault(digest, []).append(index)
        pictures.setdefault(leader, {}).setdefault(digest, index)
    groups = [Group(True, members) for members in files.values() if len(members) > 1]
    return groups + [Group(False, list(alike.values())) for alike in pictures.values() if len(alike) > 1]


def _look_at_all(paths: Sequence[Path], quiet: bool) -> tuple[list[Look | None], np.ndarray]:
    looks: list[Look | None] = []
    pictures = np.repeat(NO_PICTURE[None], len(paths), 0)
    with (
        ThreadPoolExecutor(cpu_count(), thread_name_prefix="inspect") as pool,
        track(len(paths), "Looking at images", quiet=quiet) as progress,
    ):
        for index, seen in enumerate(pool.map(_look, paths)):
            looks.append(seen and seen[0])
            if seen:
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
