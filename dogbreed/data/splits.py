"""A split of images that nobody has split, by the content of each: it stays where it is when others are added.

Folds of a cross-validation follow the same rule.
"""

import math
from collections import Counter
from collections.abc import Sequence

from dogbreed.core.errors import DogbreedError
from dogbreed.data.layout import SPLITS


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
    digests: Sequence[str], labels: Sequence[int], groups: Sequence[int], shares: Sequence[float]
) -> list[str]:
    """Return the split of each image, which its digest decides.

    The shares hold for each class on average. An image changes sides for two reasons alone: so that its class has an
    image to train, or that there is one at all to validate or to test.

    Args:
        digests: Of each image's bytes, in hexadecimal.
        labels: Class of each image.
        groups: Images of equal number are the same picture and stay together, where the first of train, valid and test
            is that one of them belongs to.
        shares: Of train, valid and test.

    Raises:
        DogbreedError: There are too few images.
    """
    numbers = [int(digest[:13], 16) / 16**13 for digest in digests]  # uniform from 0 to 1
    ends = (shares[0], shares[0] + shares[1])
    split_of: dict[int, int] = {}
    first: dict[int, float] = {}
    for group, number in zip(groups, numbers, strict=True):
        own = sum(number >= end for end in ends) if shares[2] else int(number >= ends[0])
        split_of[group] = min(own, split_of.get(group, own))
        first[group] = min(number, first.get(group, number))
    for label in set(labels):
        members = {group for group, other in zip(groups, labels, strict=True) if other == label}
        if all(split_of[group] for group in members):
            split_of[min(members, key=first.__getitem__)] = 0
    for split, share in enumerate(shares):
        if share and split not in split_of.values():
            split_of[_spare(groups, labels, split_of, first)] = split
    return [SPLITS[split_of[group]] for group in groups]


def _spare(groups: Sequence[int], labels: Sequence[int], split_of: dict[int, int], first: dict[int, float]) -> int:
    """Return a group of the training images without which each class still has one."""
    images = {(group, label) for group, label in zip(groups, labels, strict=True) if not split_of[group]}
    training = Counter(label for _, label in images)
    needed = {group for group, label in images if training[label] == 1}
    spare = {group for group, _ in images} - needed
    if not spare:
        raise DogbreedError(
            f"{len(groups)} images are too few to be split: some class needs at least three that are not the same "
            "picture; or give the splits yourself, as folders train/, valid/ and test/ or in data.labels=FILE.csv."
        )
    return max(spare, key=first.__getitem__)


def folds_by_content(digests: Sequence[str], labels: Sequence[int], groups: Sequence[int], folds: int) -> list[int]:
    """Return the fold of each image, from 0, which its digest decides.

    Each fold has an equal share of every class on average. An image changes folds for two reasons alone: so that a
    class does not lie in one fold as a whole, or that no fold is empty.

    Args:
        digests: Of each image's bytes, in hexadecimal.
        labels: Class of each image.
        groups: Images of equal number are the same picture and stay together.
        folds: How many.
    """
    first: dict[int, float] = {}  # from 0 to 1, of other digits than those that decide on train, valid and test
    for group, digest in zip(groups, digests, strict=True):
        first[group] = min(int(digest[13:26], 16) / 16**13, first.get(group, 1.0))
    fold_of = {group: int(number * folds) for group, number in first.items()}
    for label in sorted(set(labels)):
        members = {group for group, other in zip(groups, labels, strict=True) if other == label}
        if len(members) > 1 and len({fold_of[group] for group in members}) == 1:
            moved = min(members, key=first.__getitem__)
            fold_of[moved] = (fold_of[moved] + 1) % folds
    for fold in set(range(folds)) - set(fold_of.values()):
        largest = Counter(fold_of.values()).most_common(1)[0][0]
        fold_of[min((group for group in fold_of if fold_of[group] == largest), key=first.__getitem__)] = fold
    return [fold_of[group] for group in groups]
