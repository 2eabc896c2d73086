"""Photographs that are there twice: the very same file, or the same picture saved again, resized or mirrored.

A picture counts as the same when two measures agree. The difference hash (64 bits: is each of 8 x 8 patches darker
than its right neighbour?) finds candidates among all pairs; the correlation of the two pictures in grey, 32 x 36,
throws out those that only have a like layout.
"""

import filecmp
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dogbreed.core.background import in_order
from dogbreed.core.progress import track
from dogbreed.data.columns import Digests, comparable
from dogbreed.data.datasets import Indices, SplitFiles
from dogbreed.data.images import BadImage, decode
from dogbreed.data.layout import SPLITS

MOST_IMAGES = 50_000  # beyond, only copies of files are looked for: reading all pictures would take minutes
HASH_BITS = 10  # of 64 may differ; random pairs of photographs differ in 32 +- 6
CORRELATION = 0.97  # of two pictures in grey, after their brightness and contrast were made equal
_HEIGHT, _WIDTH, _PATCH = 32, 36, 4
NO_PICTURE = np.full((_HEIGHT, _WIDTH), np.nan, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Pair:
    """A photograph of one split that is also in another.

    Attributes:
        split: Where the first lies; of two splits the one that is measured on.
        index: Its position in the split.
        other_split: Where the second lies.
        other_index: Its position there.
        exact: Whether both files have the same bytes.
    """

    split: str
    index: int
    other_split: str
    other_index: int
    exact: bool


def find_duplicates(photos: Mapping[str, SplitFiles], *, quiet: bool = False) -> list[Pair]:
    """Return pairs across splits, each image at most once for each other split; copies of files come first.

    Args:
        photos: By split. Without digests (an empty list) only pictures are compared.
        quiet: Show no progress.
    """
    order = [split for split in reversed(SPLITS) if split in photos]  # test before valid before train
    compare = sum(len(samples) for samples in photos.values()) <= MOST_IMAGES
    pictures = _pictures({split: photos[split].paths for split in order}, quiet) if compare and len(order) > 1 else {}
    pairs: list[Pair] = []
    for position, split in enumerate(order):
        for other in order[position + 1 :]:
            exact = _same_files(photos[split].digests, photos[other].digests)
            pairs += [Pair(split, index, other, twin, True) for index, twin in exact.items()]
            if compare:
                rows = [index for index in range(len(photos[split])) if index not in exact]
                columns = _distinct(photos[other])  # of copies, every two would be a pair
                near = same_pictures(pictures[split][rows], pictures[other][columns])
                known = photos[split].digests and photos[other].digests
                for index, twin in ((rows[row], columns[column]) for row, column in near.items()):
                    same = not known and _same_bytes(photos[split].paths[index], photos[other].paths[twin])
                    pairs.append(Pair(split, index, other, twin, same))
    return sorted(pairs, key=lambda pair: not pair.exact)


def _same_files(one: Sequence[str], other: Sequence[str]) -> dict[int, int]:
    if not isinstance(one, Digests) or not isinstance(other, Digests):
        one, other = list(one), list(other)
    keys = comparable(one)
    known, first = np.unique(comparable(other), return_index=True)
    if not len(known):
        return {}
    at = np.searchsorted(known, keys).clip(max=len(known) - 1)
    found = np.flatnonzero(known[at] == keys)
    return dict(zip(found.tolist(), first[at[found]].tolist(), strict=True))


def _distinct(samples: SplitFiles) -> list[int]:
    """Return the positions of the first file of each content; all positions where there are no digests."""
    if not samples.digests:
        return list(range(len(samples)))
    first: list[int] = np.unique(comparable(samples.digests), return_index=True)[1].tolist()
    return sorted(first)


def _same_bytes(one: Path, other: Path) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def same_pictures(one: Tensor, other: Tensor, *, chunk: int = 1024) -> dict[int, int]:
    """Find which pictures of the first are in the second, and where.

    Args:
        one: Grey pictures [N, 32, 36] from `picture`; NaN where there is none.
        other: [M, 32, 36].
        chunk: Rows of the first that are compared at once.

    Returns:
        Position in the second by position in the first, the first where there are several.
    """
    twins: dict[int, int] = {}
    for row, columns in _matches(one, other, chunk):
        twins.setdefault(row, int(columns[0]))
    return twins


def _matches(one: Tensor, other: Tensor, chunk: int) -> Iterator[tuple[int, Indices]]:
    """Yield the position of a picture with those of the same pictures, as it is and then mirrored.

    Where both are the same tensor, every two are compared once.
    """
    if not len(one) or not len(other):
        return
    hashes, flat = difference_hash(other), _standardised(other)
    for start in range(0, len(one), chunk):
        first = start if one is other else 0
        for mirrored in (False, True):
            part = one[start : start + chunk]
            part = part.flip(-1) if mirrored else part
            # Hashes of +1 and -1: their product counts equal bits less different ones.
            close = difference_hash(part) @ hashes[first:].T >= 64 - 2 * HASH_BITS
            rows, columns = (close.any(axis).nonzero()[:, 0] for axis in (1, 0))
            # All of these with each other, in one product: of a camera's pictures nearly every two may be close.
            alike = close[rows][:, columns] & (_standardised(part[rows]) @ flat[first + columns].T >= CORRELATION)
            where = (first + columns).numpy()
            for row, same in zip((start + rows).tolist(), alike.numpy(), strict=True):
                if same.any():  # never for NaN, a picture of one colour
                    yield row, where[same]


def group_same(digests: Sequence[str], pictures: Tensor | None) -> Indices:
    """Return for each image the position of the first one that is the same file or the same picture.

    Args:
        digests: Of the files' bytes.
        pictures: From `read_pictures`, [N, 32, 36]; None compares files alone.
    """
    _, first, of = np.unique(comparable(digests), return_index=True, return_inverse=True)
    same_files: Indices = first[of]
    if pictures is None:
        return same_files
    alone = np.sort(first)  # of copies of a file the first stands for all
    leader, distinct = alone.copy(), pictures[alone]
    for row, columns in _matches(distinct, distinct, 1024):
        others = leader[columns]
        if (others != leader[row]).any():
            joined = np.append(others, leader[row])
            leader[np.isin(leader, joined)] = joined.min()
    return leader[np.searchsorted(alone, same_files)]


def difference_hash(pictures: Tensor) -> Tensor:
    """Return the 64 bits of each picture [N, 32, 36] as +1 and -1 in float32, [N, 64]."""
    patches = torch.nn.functional.avg_pool2d(pictures[:, None], _PATCH)[:, 0]  # [N, 8, 9]
    return (patches[..., 1:] > patches[..., :-1]).flatten(1).float() * 2 - 1


def _standardised(pictures: Tensor) -> Tensor:
    """Give each picture mean 0 and length 1, so that a product of two is their correlation; [N, 1152]."""
    flat = pictures.flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    return flat / flat.norm(dim=1, keepdim=True)


def picture(path: Path) -> NDArray[np.float32] | None:
    """Return a photograph in grey, 32 x 36, whatever its size and shape; None when it cannot be read."""
    try:
        image = decode(path, target=_WIDTH)
    except BadImage:
        return None
    return to_picture(image)


def to_picture(image: Tensor) -> NDArray[np.float32]:
    """Return an image [3, H, W] in grey, 32 x 36."""
    small = F.resize(image, [_HEIGHT, _WIDTH], antialias=True).float()
    grey: NDArray[np.float32] = small.mean(0).numpy()
    return grey


def read_pictures(paths: Sequence[Path], *, quiet: bool = False) -> Tensor | None:
    """Return the pictures of photographs in grey [N, 32, 36], NaN where there is none; None if there are too many."""
    return _pictures({"": paths}, quiet)[""] if len(paths) <= MOST_IMAGES else None


def _pictures(paths: Mapping[str, Sequence[Path]], quiet: bool) -> dict[str, Tensor]:
    total = sum(len(of_split) for of_split in paths.values())
    pictures: dict[str, Tensor] = {}
    workers = min(torch.get_num_threads() * 2, 32)  # Pillow lets go of the interpreter lock while it decodes
    with track(total, "Comparing photographs", quiet=quiet or total < 5000) as progress:
        for split, of_split in paths.items():
            rows = np.repeat(NO_PICTURE[None], len(of_split), 0)
            for index, grey in enumerate(in_order(picture, of_split, workers)):
                if grey is not None:
                    rows[index] = grey
                progress.advance()
            pictures[split] = torch.from_numpy(rows)
    return pictures
