"""Pages from templates: a single self-contained HTML file, whose texts are escaped and whose images are in it."""

import base64
import io
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.text import count
from dogbreed.data.images import BadImage, decode

T = TypeVar("T")

TEMPLATES = Path(__file__).with_name("templates")
THUMBNAIL = 224  # pixels of the longer side: sharp at the size it is shown, about 9 kB
QUALITY = 75


class Section(NamedTuple):
    """A part of a page: its anchor, its heading, and what makes its content (None leaves the part out)."""

    anchor: str
    title: str
    build: Callable[[], Markup | None]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
    )
    environment.filters |= {"percent": percent, "counted": count, "data_uri": data_uri}
    return environment


def _finalize(value: Any) -> Any:
    """Keep a number and its % on one line; drop lone surrogates (of file names that are not UTF-8)."""
    if type(value) is not str:
        return value
    return re.sub(r"(?<=\d) %", "\u00a0%", value).encode("utf-8", "replace").decode()


def fragment(template: str, macro: str, *arguments: object) -> Markup:
    """Return what a macro of a template makes of its arguments."""
    markup: Markup = getattr(_environment().get_template(template).module, macro)(*arguments)
    return markup


def attempt(build: Callable[[], T], otherwise: T) -> tuple[T, Markup | None]:
    """Build a part of a page. Its failure costs this part, neither the page nor the run that it reports on."""
    try:
        return build(), None
    except Exception as error:
        traceback.print_exc()
        reason = " ".join(str(error).split()) or type(error).__name__
        return otherwise, fragment("macros.html.j2", "failed", reason)


def write_page(file: Path, title: str, header: Callable[[], Markup], sections: Sequence[Section]) -> None:
    """Write a page; a part that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    top, problem = attempt(header, Markup(""))
    built = []
    for section in sections:
        content, failure = attempt(section.build, None)
        if failure or content:
            built.append((section.anchor, section.title, failure or content))
    page = _environment().get_template("page.html.j2").render(title=title, header=problem or top, sections=built)
    with atomic_write(file) as temporary:
        temporary.write_text(page, encoding="utf-8")


def without_failing(write: Callable[[], None], what: str) -> None:
    """Write a page at the end of a run that has succeeded: a failure is printed on standard error, not raised."""
    try:
        write()
    except DogbreedError as error:
        print(f"The {what} could not be written: {error}", file=sys.stderr, flush=True)


def facts(values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return names and values for a list of facts; names begin with a capital, what is None is left out."""
    return [(name[:1].upper() + name[1:], value) for name, value in values.items() if value is not None]


def shown(name: str) -> str:
    """Return a class name as one reads it."""
    return name.replace("_", " ")


def percent(share: float, digits: int = 0) -> str:
    """Return a share from 0 to 1 in percent."""
    return f"{100 * share:.{digits}f} %"


def thumbnail(path: Path, side: int = THUMBNAIL) -> Image.Image | None:
    """Return a small copy of an image, its longer side of `side` pixels at most; None when it cannot be read."""
    try:
        image = decode(path, target=side)
    except BadImage:
        return None
    height, width = image.shape[-2:]
    scale = side / max(height, width)
    if scale < 1:
        image = F.resize(image, [max(1, round(height * scale)), max(1, round(width * scale))], antialias=True)
    return to_pillow(image)


def to_pillow(image: Tensor) -> Image.Image:
    """Return uint8 [3, H, W] as an RGB image."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def data_uri(image: Image.Image) -> str:
    """Return the image as JPEG within its own address."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")
