"""Odd files made from an ordinary photograph, the kinds on which endpoints break or answer other than in training."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from dogbreed.data.synthetic import BREEDS, draw

Write = Callable[[Image.Image], bytes]


def drawn() -> bytes:
    """Return a JPEG of a dog that does not exist, for where no photograph is at hand; always the same."""
    return _saved(draw(BREEDS[0], np.random.default_rng(0)), "JPEG", quality=90)


def edge_case_files(photograph: bytes) -> dict[str, bytes]:
    """Return odd files by a name that says what is odd about each; `truncated.jpg` alone is damaged.

    Args:
        photograph: A file that Pillow can read.
    """
    with Image.open(io.BytesIO(photograph)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((640, 640))
    return {name: write(image) for name, write in _KINDS.items()}


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _alpha(image: Image.Image) -> Image.Image:
    """Make the image transparent towards the left, so that what lies under it shows."""
    ramp = Image.linear_gradient("L").rotate(90).resize(image.size)
    return Image.merge("RGBA", (*image.split(), ramp))


def _turned(image: Image.Image) -> bytes:
    """Save the image on its side, with the note that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the row that comes first is the right side (Exif 2.3, Orientation)
    return _saved(image.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=exif)


def _deep(image: Image.Image) -> bytes:
    grey = image.convert("L").convert("I").point(lambda level: level * 257)
    return _saved(grey.convert("I;16"), "PNG")


def _truncated(image: Image.Image) -> bytes:
    whole = _saved(image, "JPEG", quality=95)
    return whole[: len(whole) * 3 // 5]


def _large(image: Image.Image) -> bytes:
    """Save twelve megapixels with sides that 8 divides: a decoder may take a short cut."""
    return _saved(image.resize((4000, 3000)), "JPEG", quality=80)


_KINDS: dict[str, Write] = {
    "grey.jpg": lambda image: _saved(image.convert("L"), "JPEG"),
    "cmyk.jpg": lambda image: _saved(image.convert("CMYK"), "JPEG"),
    "progressive.jpg": lambda image: _saved(image, "JPEG", progressive=True),
    "rotated-by-exif.jpg": _turned,
    "large.jpg": _large,
    "truncated.jpg": _truncated,
    "transparent.png": lambda image: _saved(_alpha(image), "PNG"),
    "palette.png": lambda image: _saved(image.quantize(64), "PNG", transparency=0),
    "16-bit.png": _deep,
    "animated.gif": lambda image: _saved(image, "GIF", save_all=True, append_images=[image.rotate(90)], duration=99),
    "alpha.webp": lambda image: _saved(_alpha(image), "WEBP", quality=80),
}
