"""What the classes of a data set are called: breeds where they are dogs."""

import re
from collections.abc import Sequence
from functools import cache

from torchvision.models import VGG16_Weights

DOGS = slice(151, 269)  # of ImageNet's categories
ENOUGH = 0.25  # of the names: of DogImages' 133 a good half are ImageNet's too


def noun_of(class_names: Sequence[str]) -> str:
    """Return `breed` where the classes are dogs (enough of their names are dogs of ImageNet), else `class`."""
    dogs = sum(_letters(name) in _dogs() for name in class_names)
    return "breed" if dogs >= max(1, ENOUGH * len(class_names)) else "class"


@cache
def _dogs() -> frozenset[str]:
    names = VGG16_Weights.IMAGENET1K_V1.meta["categories"][DOGS]
    dogs = {_letters(name) for name in names}
    return frozenset(dogs | {f"{name}{kind}" for name in dogs for kind in ("terrier", "hound", "dog")})


def _letters(name: str) -> str:
    """Return a name's letters alone, without the number or WordNet id that stands before it."""
    return re.sub("[^a-z]", "", re.sub(r"^(\d+|n\d{8})[.\-_ ]", "", name.lower()))
