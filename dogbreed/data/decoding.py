"""From an image file's bytes to upright 8-bit RGB, by Pillow alone: files are looked at before torch is there.

Hostile bytes end as `BadImage` and as nothing else. Everything here may run in many threads at once.
"""

import io
import os
import warnings
from contextlib import suppress
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from dogbreed.core.errors import DogbreedError
from dogbreed.data import file_formats

Truncated = Literal["error", "fill"]

MAX_PIXELS = 100_000_000
REDUCED = 4  # so many times as many pixels may a JPEG have that is decoded at a reduced size
MAX_SIDE = 65_535  # pixels, the longest side a JPEG can have; filter tables grow with it

# Loading every plugin now leaves no lazy import for threads to race for. A JPEG that turns out to be an MPO is
# recognised by the JPEG plugin, so MPO is no entry of its own; AVIF depends on the version of Pillow.
Image.init()
Image.MAX_IMAGE_PIXELS = None  # `max_pixels` is held against the size before anything is decoded
_FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF") if name in Image.OPEN)
IMAGE_SUFFIXES = frozenset(
    suffix for suffix, name in Image.registered_extensions().items() if name in {*_FORMATS, "MPO"}
) | {".heic", ".heif", ".hif", ".avif", ".jxl"}  # these are said to be no use where they cannot be read


def _quiet_pillow() -> None:
    """Hide warnings about odd metadata and large images, once: `warnings.catch_warnings` is not thread-safe."""
    for category in (UserWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category, module=r"PIL\.")


_quiet_pillow()


class BadImage(DogbreedError, ValueError):
    """An image that cannot be used.

    Attributes:
        reason: The cause in a few words, such as "empty file", "not an image", "truncated" or "missing".
        path: The file it came from, or None where only bytes were given.
    """

    def __init__(self, reason: str, path: str | None = None) -> None:
        super().__init__(reason, path)  # both, so that the error survives pickling on its way out of a worker
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return f"{self.path or 'The image'} cannot be used: {self.reason}."


def check(data: bytes, *, max_pixels: int = MAX_PIXELS) -> None:
    """Read a file's bytes to their end, as cheaply as possible: a JPEG at 1/8 of its size.

    Raises:
        BadImage: Where `decode` with `truncated="error"` would.
    """
    read(data, 0, "error", max_pixels)


def dimensions(source: bytes | str | os.PathLike[str]) -> tuple[int, int]:
    """Return width and height of the upright image, from what stands before its pixels.

    Raises:
        BadImage: It is no image of a permitted format.
    """
    path = None if isinstance(source, bytes) else os.fspath(source)
    try:
        image = _open(source if isinstance(source, bytes) else Path(source).read_bytes())
        stored = (image.tag_v2[256], image.tag_v2[257]) if image.format == "TIFF" else image.size  # type: ignore[attr-defined]
        turned = image.getexif().get(0x0112) in (5, 6, 7, 8)  # Exif 2.3, Orientation
    except Exception as error:
        raise BadImage(_reason(error), path) from error
    return stored[::-1] if turned else stored


def read(
    source: bytes | str | os.PathLike[str], target: int | None, truncated: Truncated, max_pixels: int
) -> Image.Image:
    """Return the upright RGB image; whatever goes wrong is a BadImage with the file's path."""
    if truncated not in ("error", "fill"):
        raise DogbreedError(f"truncated is {truncated!r}; it must be error or fill.")
    path = None if isinstance(source, bytes) else os.fspath(source)
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        if not data:
            raise BadImage("empty file")
        if data.startswith(file_formats.PNG):
            data = file_formats.without_large_metadata(data)
        try:
            return _rgb(data, target, max_pixels)
        except OSError:
            if not data.startswith(b"\xff\xd8"):
                raise
            return _unfinished(data, target, truncated == "fill", max_pixels)
    except Exception as error:  # Pillow raises nearly every built-in error for some broken file
        raise BadImage(_reason(error), path) from error


def _rgb(data: bytes, target: int | None, max_pixels: int) -> Image.Image:
    image = _open(data)
    _reduce(image, target, max_pixels)
    image.load()
    white, inverted = _tiff_levels(image) if image.format == "TIFF" else (None, False)
    profile = image.info.get("icc_profile")
    with suppress(Exception):  # broken metadata does not spoil the picture
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F" or image.mode.startswith("I"):
        image, profile = _to_8_bits(image, white, inverted), None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        over_white = Image.new("RGB", image.size, "white")
        over_white.paste(_to_srgb(image.convert("RGB"), profile), mask=image.getchannel("A"))
        return over_white
    return _to_srgb(image, profile)


def _open(data: bytes) -> Image.Image:
    """Begin to read a file of a permitted format; HEIC needs a package of its own."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if not file_formats.is_heic(data):
            raise BadImage(file_formats.why_not(data)) from None
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        raise BadImage("HEIC, which needs the package pillow-heif or a conversion to JPEG") from None
    try:
        return Image.open(io.BytesIO(data), formats=("HEIF",))
    except UnidentifiedImageError:
        raise BadImage("a damaged HEIC") from None


def _reduce(image: Image.Image, target: int | None, max_pixels: int) -> None:
    # Checks the size, and prepares a JPEG to be decoded at 1/2, 1/4 or 1/8 of it where `target` allows.
    width, height = image.size
    baseline = image.format in ("JPEG", "MPO") and not image.info.get("progressive")  # others are unpacked in full
    large = width * height > max_pixels
    if large and not (baseline and target is not None and width * height <= REDUCED * max_pixels):
        raise BadImage(f"too many pixels ({width} x {height}), more than data.max_pixels={max_pixels}")
    if not 1 <= min(width, height) <= max(width, height) <= MAX_SIDE:
        raise BadImage(f"a side of no length or over {MAX_SIDE} pixels ({width} x {height})")
    if target is None:
        return
    # A scale that does not divide both sides changes the aspect ratio by up to a pixel, and with it the crop.
    fits = [s for s in (8, 4, 2) if 2 * s * target <= min(width, height)]
    scale = next((s for s in fits if not (width % s or height % s)), 1) if target else 8
    if large and scale == 1:
        scale = fits[0] if fits else 2
    image.draft(None, (max(1, width // scale), max(1, height // scale)))


def _unfinished(data: bytes, target: int | None, fill: bool, max_pixels: int) -> Image.Image:
    # A JPEG without an end: with one in sight libjpeg fills what is missing. (Pillow's own switch is global.)
    end = b"\xff\xd9"
    body = data.rstrip(b"\xff")
    if fill:
        with suppress(OSError):
            return _rgb(data + end, target, max_pixels)
        # It stops within the header of a later scan, which would swallow the end. Coded pixels hold no such marker.
        header = max(data.rfind(b"\xff\xc4"), data.rfind(b"\xff\xda"))
        return _rgb(data[:header] + end, target, max_pixels)
    # Where all pixels are there, whatever follows them is skipped; otherwise it becomes some of them.
    if file_formats.has_all_scans(body):
        whole, other = (_rgb(body + more + end, None, max_pixels) for more in (b"", file_formats.more_pixels(body)))
        if whole.tobytes() == other.tobytes():
            return _rgb(body + end, target, max_pixels)
    raise BadImage("truncated")


@lru_cache(maxsize=64)
def _profile_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    # From an embedded colour profile to sRGB; None where it is sRGB, belongs to another mode, or is broken.
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}[mode]
        if source.profile.xcolor_space.strip() != space or "sRGB" in ImageCms.getProfileDescription(source):
            return None
        relative = ImageCms.Intent.RELATIVE_COLORIMETRIC
        return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB", relative)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    # By the embedded profile where there is one, as browsers do.
    if image.mode not in ("RGB", "L", "CMYK"):
        image = image.convert("RGB")
    transform = _profile_transform(profile, image.mode) if profile else None
    if transform is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _tiff_levels(image: Image.Image) -> tuple[int | None, bool]:
    # The white of deep grey, None where nothing says it, and whether black and white change places.
    tags = image.tag_v2  # type: ignore[attr-defined]
    if 50706 in tags or tags.get(254, 0) & 1:  # DNGVersion; NewSubfileType: reduced
        raise BadImage("raw is not supported; convert it to JPEG")
    photometric, signed, bits = tags.get(262), tags.get(339, (1,))[0] == 2, tags.get(258, (1,))[0]
    if photometric == 6 and tags.get(259, 1) == 1 and tuple(tags.get(530, (2, 2))) != (1, 1):
        raise BadImage("colour of less resolution than the brightness, and not compressed, is not supported in TIFF")
    if signed and image.mode == "L":
        raise BadImage("negative levels are not supported")
    inverted = photometric == 0
    if image.mode == "F" or not image.mode.startswith("I"):
        if inverted and image.mode == "F":
            raise BadImage("fractions of which the smallest is white are not supported")
        return None, False
    return (65_535 if bits == 32 else (1 << (bits - signed)) - 1), inverted


def _to_8_bits(image: Image.Image, white: int | None = None, inverted: bool = False) -> Image.Image:
    # Deep grey, which Pillow would clip: whole numbers have 16 bits, fractions the smallest usual white.
    levels = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    if white is not None and not 0 <= levels.min() <= levels.max() <= white:
        raise BadImage(f"grey levels from {levels.min():.0f} to {levels.max():.0f}, of which none is known to be white")
    if white is None:
        top = levels.max() if image.mode == "F" else 65_535
        white = next((usual for usual in (1, 255) if top <= usual), 65_535)
    grey = np.rint(levels.clip(0, white) * (255 / white)).astype(np.uint8)
    return Image.fromarray(255 - grey if inverted else grey)


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    match error:
        case BadImage():
            return error.reason
        case UnidentifiedImageError():
            return "not an image"
        case Image.DecompressionBombError() | Image.DecompressionBombWarning():
            return "too many pixels"
        case FileNotFoundError():
            return "missing"
        case IsADirectoryError():
            return "a folder"
        case PermissionError():
            return "no permission to read it"
        case _:
            return "truncated" if "truncated" in message.lower() else f"unreadable: {message or type(error).__name__}"
