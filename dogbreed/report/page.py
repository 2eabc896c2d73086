"""Pieces of a self-contained HTML page: escaping, tables, photographs as data, and the style sheet.

What goes into a page is `Markup`; any other text is escaped on its way in.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dogbreed.data.images import BadImage, decode

THUMBNAIL = 224  # pixels of the longer side: sharp at the size it is shown, about 9 kB
QUALITY = 75
VOID = ("br", "img", "meta")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # a browser may fetch nothing


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: object) -> Markup:
    """Escapes whatever is not markup, also for use within quotes."""
    if isinstance(value, Markup):
        return value
    # Lone surrogates (from names of files that are not UTF-8) could not be written.
    return Markup(html.escape(str(value).encode("utf-8", "replace").decode(), quote=True))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """An element; `class_` and `aria_label` become `class` and `aria-label`."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = "".join(text(part) for part in content)
    return Markup(f"<{name}{given}>" if name in VOID else f"<{name}{given}>{inside}</{name}>")


def joined(parts: Iterable[object], between: str = "") -> Markup:
    """One piece of markup out of several."""
    return Markup(between.join(text(part) for part in parts))


def shown(name: str) -> str:
    """A class name as one reads it."""
    return name.replace("_", " ")


def count(number: int, noun: str) -> str:
    """A number with its noun: 1 breed, 1,000 breeds."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def table(head: Sequence[object], rows: Iterable[Sequence[object]], label: str, numeric: Sequence[int] = ()) -> Markup:
    """A table that scrolls by itself where it is wider than the page.

    Args:
        head: Column names.
        rows: Cells; the first of a row is its heading.
        label: What screen readers say.
        numeric: Columns that are set flush right.
    """

    def kind(column: int) -> str | None:
        return "number" if column in numeric else None

    heads = joined(tag("th", cell, scope="col", class_=kind(i)) for i, cell in enumerate(head))
    body = joined(
        tag(
            "tr",
            *(
                tag("th", cell, scope="row") if i == 0 else tag("td", cell, class_=kind(i))
                for i, cell in enumerate(row)
            ),
        )
        for row in rows
    )
    inside = tag("table", tag("thead", tag("tr", heads)), tag("tbody", body))
    return tag("div", inside, class_="scroll", role="region", aria_label=label, tabindex="0")


def facts(pairs: Iterable[tuple[object, object]]) -> Markup:
    """A list of names and values."""
    return tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs))


def bar(low: float, value: float, high: float) -> Markup:
    """A share from 0 to 1 with its interval, on a line from 0 to 100 %."""
    interval = tag("span", style=f"left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%")
    mark = tag("i", style=f"left:calc((100% - 4px)*{value:.3f})")
    return tag("div", interval, mark, class_="bar", aria_hidden="true")


def photo(image: Image.Image | None, description: str, note: object = "") -> Markup:
    """A figure with a photograph, or with a sentence in its place."""
    if image is None:
        inside = tag("span", "The photograph cannot be read any more.", class_="gone")
    else:
        inside = tag("img", src=data_uri(image), alt=description, width=image.width, height=image.height)
    return tag("figure", inside, tag("figcaption", note) if note else "")


def thumbnail(path: Path, side: int = THUMBNAIL) -> Image.Image | None:
    """A small copy of a photograph, its longer side of `side` pixels at most; None when it cannot be read."""
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
    """uint8 [3, H, W] as an RGB image."""
    return Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def data_uri(image: Image.Image) -> str:
    """The image as JPEG within its own address."""
    content = io.BytesIO()
    image.save(content, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def document(title: str, body: object) -> str:
    """The whole page."""
    head = joined(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="color-scheme", content="light dark"),
            tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
            tag("title", title),
            tag("style", Markup(STYLE)),
        ],
        "\n",
    )
    return f'<!doctype html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{text(body)}\n</body>\n</html>\n'


STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --raised: #f5f6f8; --line: #dfe3e8; --ink: #1b2026;
  --muted: #5c6670; --blue: #2f6fd0; --band: #b9d0f3; --orange: #c2571a; }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --raised: #1d2226; --line: #343b42; --ink: #e8eaed;
  --muted: #9aa5b0; --blue: #7ab0ff; --band: #2d4a78; --orange: #f0935a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.55;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  -webkit-text-size-adjust: 100%; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.35rem; margin: 3.5rem 0 .5rem; padding-top: .9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; margin: .5rem 0 1rem; overflow-wrap: anywhere; }
a { color: var(--blue); }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .88em; }
.muted, figcaption, dt, thead th { color: var(--muted); }
nav { margin: 1.75rem 0 0; display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; font-size: .9rem; }
.result { display: flex; flex-wrap: wrap; gap: 1.25rem 3rem; align-items: end; margin: 2rem 0 1.5rem; }
.result > div { flex: 1 1 19rem; min-width: 0; }
.big { font-size: clamp(3.2rem, 11vw, 5rem); font-weight: 700; line-height: 1; letter-spacing: -.03em;
  font-variant-numeric: tabular-nums; }
.big small { font-size: .45em; font-weight: 600; letter-spacing: 0; }
.result p { margin: .6rem 0 .7rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .9rem 1.5rem; margin: 0; }
dl > div { min-width: 0; }
dt { font-size: .82rem; }
dd { margin: 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.lesson, .warning { background: var(--raised); border-left: 4px solid var(--blue); border-radius: 4px;
  padding: .9rem 1.1rem; max-width: none; }
.warning { border-color: var(--orange); }
.bar { position: relative; height: .6rem; min-width: 7rem; border-radius: .3rem; background: var(--line);
  overflow: hidden; }
.bar span { position: absolute; top: 0; bottom: 0; background: var(--band); }
.bar i { position: absolute; top: 0; bottom: 0; width: 4px; background: var(--blue);
  border-radius: 2px; }
.result .bar { height: 1rem; border-radius: .5rem; }
.ends { display: flex; justify-content: space-between; font-size: .78rem; color: var(--muted); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem; }
.plots svg { display: block; width: 100%; height: auto; max-width: 34rem; }
.scroll { overflow-x: auto; margin: .75rem 0 1rem; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .75rem .32rem 0; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: middle; }
thead th { font-size: .82rem; font-weight: 500; white-space: nowrap; }
tbody th { font-weight: 500; min-width: 8rem; }
.number { text-align: right; white-space: nowrap; }
.number + :not(.number) { padding-left: 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.1rem;
  margin: 1rem 0; }
.card { background: var(--raised); border-radius: 8px; padding: .9rem; min-width: 0; }
.card p { margin: 0 0 .7rem; font-size: .9rem; }
@supports (grid-template-rows: subgrid) { .card { display: grid; grid-template-rows: subgrid; grid-row: span 3;
  row-gap: .6rem; align-content: start; } .card h3, .card p { margin: 0; } }
.two { align-self: start; display: grid; grid-template-columns: 1fr 1fr; gap: .6rem; }
figure { margin: 0; min-width: 0; }
figure img { display: block; width: 100%; height: auto; aspect-ratio: 1; object-fit: cover; border-radius: 5px; }
figure img.whole { object-fit: contain; }
figcaption { font-size: .82rem; line-height: 1.35; margin-top: .35rem; overflow-wrap: anywhere; }
.gone { display: grid; place-items: center; aspect-ratio: 1; padding: .5rem; border: 1px dashed var(--line);
  border-radius: 5px; text-align: center; font-size: .8rem; color: var(--muted); }
.matrix svg { display: block; width: 100%; height: auto; }
.matrix.large { width: min(100vw - 4rem, 96rem); margin-left: calc(50% - min(50vw - 2rem, 48rem)); }
pre { background: var(--raised); border-radius: 6px; padding: .9rem 1rem; overflow-x: auto; font-size: .85rem;
  line-height: 1.5; margin: .5rem 0 1rem; }
pre.command { white-space: pre-wrap; overflow-wrap: anywhere; user-select: all; }
summary { cursor: pointer; color: var(--blue); margin: .5rem 0; }
@media (max-width: 68rem) { .matrix.large { width: auto; margin-left: 0; } }
@media (max-width: 30rem) { td { white-space: nowrap; } }
@media print { nav { display: none; } .card, figure, svg { break-inside: avoid; } }
""".strip()
