"""A split of images that nobody has split, by the content of each: it stays where it is when others are added.

Folds of a cross-validation follow the same rule.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dogbreed.core.errors import DogbreedError
from dogbreed.data.columns import Digests
from dogbreed.data.layout import SPLITS

Indices = NDArray[np.int64]


def parse_shares(split: str | Sequence[float]) -> tuple[float, ...]:
    """Return the shares of train, valid and test.

    Args:
        split: Three numbers that add up to 1, or text with commas between them; the last, test, may be 0.

    Raises:
        DogbreedError: They are not such numbers.
    """
    try:
        shares = tuple(float(part) for part in (split.split(",") if isinstance(split, str) else split))
        valid = len(shares) == 3 and min(shares[:2]) > 0 and shares[2] >= 0 and math.isclose(sum(shares), 1)
    except (TypeError, ValueError):
        valid = False
    if not valid:
        shown = split if isinstance(split, str) else ",".join(map(str, split)) if isinstance(split, Sequence) else split
        raise DogbreedError(
            f"data.split={shown}: give the shares of train, valid and test, which add up to 1, as in 0.8,0.1,0.1."
        )
    return shares


def split_by_content(
    digests: Sequence[str], labels: Sequence[int] | Indices, groups: Sequence[int] | Indices, shares: Sequence[float]
) -> NDArray[np.int8]:
    """Return the split of each image, its position in `SPLITS`, which its digest decides.

    The shares hold for each class on average. An image changes sides for two reasons alone: so that its class has an
    image to train, or that there is one at all to validate or to test.

    Args:
        digests: Of each image's bytes, in hexadecimal.
        labels: Class of each image.
        groups: Images of equal number, from 0, are the same picture and stay together, where the first of train, valid
            and test is that one of them belongs to.
        shares: Of train, valid and test.

    Raises:
        DogbreedError: There are too few images.
    """
    labels, groups = np.asarray(labels, dtype=np.int64), np.asarray(groups, dtype=np.int64)
    words = np.ascontiguousarray(Digests.of(digests).values[:, :8]).view(">u8")[:, 0]
    numbers = (words >> np.uint64(12)).astype(np.float64) / 2**52  # the first 13 digits: uniform from 0 to 1
    ends = (shares[0], shares[0] + shares[1]) if shares[2] else shares[:1]
    split_of = np.full(groups.max(initial=-1) + 1, len(SPLITS), dtype=np.int8)
    np.minimum.at(split_of, groups, np.searchsorted(ends, numbers, side="right").astype(np.int8))
    first = np.ones(len(split_of))
    np.minimum.at(first, groups, numbers)
    trained = np.zeros(labels.max(initial=-1) + 1, dtype=bool)
    trained[labels[split_of[groups] == 0]] = True
    for label in np.setdiff1d(labels, np.flatnonzero(trained)):
        members = groups[labels == label]
        if split_of[members].all():  # still: one that it shares with another class may have changed sides
            split_of[members[first[members].argmin()]] = 0
    for split, share in enumerate(shares):
        if share and not (split_of == split).any():
            split_of[_spare(groups, labels, split_of, first)] = split
    return split_of[groups]


def _spare(groups: Indices, labels: Indices, split_of: NDArray[np.int8], first: NDArray[np.float64]) -> int:
    """Return a group of the training images without which each class still has one."""
    images = np.unique(np.stack([groups, labels], 1)[split_of[groups] == 0], axis=0)
    training = np.bincount(images[:, 1])
    needed = images[training[images[:, 1]] == 1, 0]
    spare = np.setdiff1d(images[:, 0], needed)
    if not len(spare):
        raise DogbreedError(
            f"{len(groups)} images are too few to be split: some class needs at least three that are not the same "
            "picture; or give the splits yourself, as folders train/, valid/ and test/ or in data.labels=FILE.csv."
        )
    return int(spare[first[spare].argmax()])


def folds_by_content(
    digests: Sequence[str], labels: Sequence[int], groups: Sequence[int] | Indices, folds: int
) -> list[int]:
    """Return the fold of each image, from 0, which its digest decides.

    Each fold has an equal share of every class on average. An image changes folds for two reasons alone: so that a
    class does not lie in one fold as a whole, or that no fold is empty.

    Args:
        digests: Of each image's bytes, in hexadecimal.
        labels: Class of each image.
        groups: Images of equal number are the same picture and stay together.
        folds: How many.
    """
    groups = np.asarray(groups).tolist()
    first: dict[int, float] = {}  # from 0 to 1, of other digits than those that decide on train, valid and test
    classes: dict[int, set[int]] = {}
    for group, digest, label in zip(groups, digests, labels, strict=True):
        first[group] = min(int(digest[13:26], 16) / 16**13, first.get(group, 1.0))
        classes.setdefault(label, set()).add(group)
    fold_of = {group: int(number * folds) for group, number in first.items()}
    for _, members in sorted(classes.items()):
        if len(members) > 1 and len({fold_of[group] for group in members}) == 1:
            moved = min(members, key=first.__getitem__)
            fold_of[moved] = (fold_of[moved] + 1) % folds
    for fold in set(range(folds)) - set(fold_of.values()):
        largest = Counter(fold_of.values()).most_common(1)[0][0]
        fold_of[min((group for group in fold_of if fold_of[group] == largest), key=first.__getitem__)] = fold
    return [fold_of[group] for group in groups]
