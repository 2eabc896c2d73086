"""The one way from an image's bytes to a network's input, shared by training, evaluation, commands and serving.

`load` is `decode` (bytes to upright 8-bit RGB, by `decoding`) followed by `to_input` (resize, mirror, normalise).
Everything here may run in many threads at once.
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from dogbreed.core.errors import DogbreedError
from dogbreed.data.decoding import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MAX_SIDE,
    BadImage,
    Truncated,
    check,
    dimensions,
    read,
)

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "MAX_SIDE",
    "REVISION",
    "WHOLE",
    "BadImage",
    "Box",
    "Preprocessing",
    "Truncated",
    "View",
    "check",
    "decode",
    "dimensions",
    "load",
    "load_levels",
    "normalised",
    "random_box",
    "to_input",
    "to_levels",
]

Box = tuple[float, float, float, float]

# Which numbers an image becomes. To be raised when they change: features of before are then computed again.
REVISION = 3


@dataclass(frozen=True)
class Preprocessing:
    """What turns an RGB image into a network's input; it travels with the weights.

    Attributes:
        size: Side of the square input, in pixels.
        resize_size: Shorter side before the central crop, in pixels; only `resize="crop"` uses it.
        mean: Mean of each channel, on the scale from 0 to 1.
        std: Standard deviation of each channel, on the scale from 0 to 1.
        interpolation: One of torchvision's: "bilinear", "bicubic", "nearest" or "nearest-exact".
        resize: "squash" brings both sides to `size`; "crop" keeps the aspect ratio, brings the shorter side to
            `resize_size` and cuts the centre out, as torchvision's presets do.

    Raises:
        DogbreedError: A value is out of its range.
    """

    size: int = 224
    resize_size: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bilinear"
    resize: str = "squash"

    def __post_init__(self) -> None:
        for name in ("size", "resize_size"):
            value = getattr(self, name)
            _demand(type(value) is int and 1 <= value <= MAX_SIDE, name, value, f"a whole number from 1 to {MAX_SIDE}")
        for name in ("mean", "std"):
            numbers = _numbers(name, getattr(self, name), 3)
            _demand(name == "mean" or min(numbers) > 0, name, numbers, "above 0")
            object.__setattr__(self, name, numbers)
        modes = ("bilinear", "bicubic", "nearest", "nearest-exact")
        _demand(self.interpolation in modes, "interpolation", self.interpolation, f"one of {', '.join(modes)}")
        _demand(self.resize in ("squash", "crop"), "resize", self.resize, "squash or crop")
        fits = self.resize == "squash" or self.size <= self.resize_size
        _demand(fits, "resize_size", self.resize_size, f"at least size ({self.size}) with resize=crop")

    @property
    def side(self) -> int:
        """Number of pixels to which the shorter side of the image, or of its part, is resized."""
        return self.size if self.resize == "squash" else self.resize_size

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Preprocessing":
        """Return the preprocessing of `to_dict`'s values; what is left out keeps its default.

        Raises:
            DogbreedError: There is a name that is no field, or a value out of its range.
        """
        known = {field.name for field in fields(cls)}
        _demand(isinstance(values, Mapping), "preprocessing", values, "a mapping")
        unknown = set(values) - known
        _demand(not unknown, "preprocessing", sorted(map(str, unknown)), f"made of {', '.join(sorted(known))}")
        return cls(**values)


@dataclass(frozen=True)
class View:
    """A fixed way of looking at an image: mirrored or not, whole or a part.

    Attributes:
        flip: Whether left and right change places.
        box: Left, top, width and height of the part, as fractions of the upright image; None for the whole.

    Raises:
        DogbreedError: The box is empty or reaches outside the image.
    """

    flip: bool = False
    box: Box | None = None

    def __post_init__(self) -> None:
        if self.box is None:
            return
        left, top, width, height = box = _numbers("box", self.box, 4)
        inside = min(left, top) >= 0 and min(width, height) > 0 and max(left + width, top + height) <= 1 + 1e-9
        _demand(inside, "box", box, "left, top, width and height within 0 and 1")
        object.__setattr__(self, "box", box)

    @property
    def key(self) -> str:
        """Text for keys of caches: the same for equal views, different for different ones."""
        part = "whole" if self.box is None else "box:" + ",".join(map(repr, self.box))
        return part + (":flip" if self.flip else "")


WHOLE = View()


def random_box(
    u: Sequence[float] | np.ndarray,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Return a random part of an image, drawn from four uniform numbers as torchvision's RandomResizedCrop does.

    The aspect ratio is relative to the image's own (1 keeps it), so the image's size need not be known. The part's
    share of the area is uniform; its aspect ratio is log-uniform over those within `ratio` that fit that area, which is
    what drawing again until it fits would give.

    Args:
        u: Four numbers in [0, 1): for the area, the aspect ratio, the left and the top.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest aspect ratio relative to the image's.

    Returns:
        Left, top, width and height as fractions of the image, always inside it.
    """
    area = scale[0] + float(u[0]) * (scale[1] - scale[0])
    # width = sqrt(area * aspect) and height = sqrt(area / aspect) stay within 1 for area <= aspect <= 1 / area.
    low, high = math.log(max(ratio[0], area)), math.log(min(ratio[1], 1 / area))
    aspect = math.exp(low + float(u[1]) * (high - low))
    width, height = min(1.0, math.sqrt(area * aspect)), min(1.0, math.sqrt(area / aspect))
    return float(u[2]) * (1 - width), float(u[3]) * (1 - height), width, height


def decode(
    source: bytes | str | os.PathLike[str],
    *,
    target: int | None = None,
    truncated: Truncated = "error",
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Decode an image (of an animation the first frame) as it is meant to be seen: upright, over white.

    Args:
        source: The file's bytes, or its path.
        target: Pixels the shorter side will be resized to; a JPEG much larger is decoded at 1/2, 1/4 or 1/8 of its
            size if that divides both sides and leaves them at least twice `target`. None decodes in full.
        truncated: What to do with a JPEG that ends too early: "error" refuses it, "fill" leaves the rest grey. Other
            formats are always refused.
        max_pixels: Larger images are refused before they are decoded. A baseline JPEG that is decoded at a reduced size
            may have four times as many.

    Returns:
        RGB values from 0 to 255, uint8 of shape [3, height, width] (in memory the channels come last).

    Raises:
        BadImage: The file cannot be read, or is no whole image of a permitted format and size.
    """
    rgb = read(source, target, truncated, max_pixels)
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1)


def to_input(image: Tensor, preprocessing: Preprocessing, view: View = WHOLE) -> Tensor:
    """Return a decoded image as a network's input. The part a view shows is treated as a whole image would be.

    Args:
        image: uint8 of shape [3, height, width], from `decode`.
        preprocessing: Size, way of resizing and normalisation.
        view: Which part, and whether mirrored.

    Returns:
        Normalised float32 of shape [3, size, size], contiguous.
    """
    levels = to_levels(image, preprocessing, view.box)
    return normalised((levels.flip(-1) if view.flip else levels).contiguous(), preprocessing)


def to_levels(image: Tensor, preprocessing: Preprocessing, box: Box | None = None) -> Tensor:
    """Return what `to_input` then mirrors and normalises: uint8 [3, size, size]."""
    height, width = image.shape[-2:]
    if box is not None:
        left, right = _span(box[0], box[2], width)
        top, bottom = _span(box[1], box[3], height)
        image = _part(image, top, bottom, left, right)
    size = preprocessing.size
    if preprocessing.resize == "squash":
        return _resized(image, size, size, preprocessing.interpolation)
    image = _not_too_long(image)
    height, width = image.shape[-2:]
    shorter, side = min(height, width), preprocessing.resize_size
    image = _resized(image, side * height // shorter, side * width // shorter, preprocessing.interpolation)
    return F.center_crop(image, [size, size])


def normalised(levels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Return uint8 levels [..., 3, height, width] as inputs, on any device to the same bits: one product, one sum."""
    scale, shift = _affine(preprocessing, levels.device)
    return levels.mul(scale).add_(shift)


def load(
    source: bytes | str | os.PathLike[str],
    preprocessing: Preprocessing,
    view: View = WHOLE,
    *,
    truncated: Truncated = "error",
    max_pixels: int = MAX_PIXELS,
    change: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Return a file, given by its bytes or path, as a network's input: `decode`, `change` if any, then `to_input`.

    Returns:
        Normalised float32 of shape [3, size, size], contiguous.

    Raises:
        BadImage: As `decode`.
    """
    image = decode(source, target=_target(preprocessing, view.box), truncated=truncated, max_pixels=max_pixels)
    return to_input(image if change is None else change(image), preprocessing, view)


def load_levels(
    source: bytes | str | os.PathLike[str], preprocessing: Preprocessing, box: Box | None, *, max_pixels: int
) -> Tensor:
    """Return of a file what `load` then mirrors and normalises: uint8 [3, size, size]."""
    image = decode(source, target=_target(preprocessing, box), max_pixels=max_pixels)
    return to_levels(image, preprocessing, box)


def _target(preprocessing: Preprocessing, box: Box | None) -> int:
    """Return how many pixels the shorter side of a file needs for one of its parts."""
    return math.ceil(preprocessing.side / (max(min(box[2:]), 1e-6) if box else 1.0))


def _span(start: float, length: float, pixels: int) -> tuple[int, int]:
    """Return the first and the past-the-last pixel of a part of one side, never empty."""
    first = min(round(start * pixels), pixels - 1)
    return first, max(first + 1, min(round((start + length) * pixels), pixels))


def _resized(image: Tensor, height: int, width: int, interpolation: str) -> Tensor:
    """Resize to the same levels on every processor and with every torch: a model may be served on other ones.

    torch's kernel for uint8 counts in whole numbers. torchvision goes around it in favour of float32 on some processors
    and in some versions, and logits then differ by up to 0.1. With the channels last it takes a fifth of the time of
    Pillow's resize and agrees with it within one level.
    """
    if interpolation in ("bilinear", "bicubic") and image.device.type == "cpu":
        resized: Tensor = interpolate(image[None], (height, width), mode=interpolation, antialias=True)[0]
        return resized
    return F.resize(image, [height, width], interpolation=InterpolationMode(interpolation), antialias=True)


def _part(image: Tensor, top: int, bottom: int, left: int, right: int) -> Tensor:
    """Cut a part out, keeping the channels last in memory, which the fast resize needs."""
    return image.permute(1, 2, 0)[top:bottom, left:right].contiguous().permute(2, 0, 1)


def _not_too_long(image: Tensor, most: int = 16) -> Tensor:
    """Cut the middle out of a strip, whose resized length would else exhaust the memory only to be cropped away."""
    height, width = image.shape[-2:]
    longest = most * min(height, width)
    if max(height, width) <= longest:
        return image
    top, left = max(0, (height - longest) // 2), max(0, (width - longest) // 2)
    return _part(image, top, top + min(height, longest), left, left + min(width, longest))


@lru_cache(maxsize=16)
def _affine(preprocessing: Preprocessing, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return a, b of shape [3, 1, 1] with a * level + b = (level / 255 - mean) / std."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (preprocessing.mean, preprocessing.std))
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def _numbers(name: str, value: Any, count: int) -> tuple[float, ...]:
    try:
        numbers = () if isinstance(value, str) else tuple(float(number) + 0.0 for number in value)  # -0.0 becomes 0.0
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    _demand(len(numbers) == count and all(map(math.isfinite, numbers)), name, value, f"{count} finite numbers")
    return numbers


def _demand(condition: bool, name: str, value: object, requirement: str) -> None:
    if not condition:
        raise DogbreedError(f"{name} is {value!r}; it must be {requirement}.")
