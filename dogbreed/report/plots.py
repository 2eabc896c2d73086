"""Drawings of a report, as SVG within its page. They take their ink from the page, which may be light or dark."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from dogbreed.metrics.classification import Bin
from dogbreed.report.page import Markup, joined, shown, tag, text

INK = "#010203"  # stands for the page's own colour of text until the drawing is in the page
BLUE, ORANGE = "#3d85e0", "#e0762d"  # both readable on white and on black
MOST_LABELS = 160  # classes whose names are written at a confusion matrix
SMALLEST = 4.0  # thousandths of the width that a mistake takes up
MOST_COUNTS = 30  # classes whose counts are written into it
# For `matplotlib.rc_context`: the ink is a placeholder that `as_svg` replaces.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "dogbreed",  # equal data give equal files
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
}


def learning_curves(history: Sequence[Mapping[str, float]], best_epoch: int | None) -> Markup:
    """Losses and accuracy by epoch, in two drawings; the epoch whose weights were kept is marked."""
    epochs = [row["epoch"] for row in history]
    drawings = []
    for name, columns, percent in (
        ("Loss (nats an image)", (("train_loss", "training", BLUE), ("val_loss", "validation", ORANGE)), False),
        ("Accuracy", (("val_acc", "validation", ORANGE),), True),
    ):
        with matplotlib.rc_context(STYLE):
            figure, axes = canvas()
            for key, label, colour in columns:
                values = [row[key] if math.isfinite(row[key]) else math.nan for row in history]
                marker = "o" if len(epochs) <= 30 else None
                axes.plot(epochs, values, color=colour, marker=marker, markersize=3.5, linewidth=1.8, label=label)
            if best_epoch is not None:
                label = f"best epoch, {best_epoch:g}"
                axes.axvline(best_epoch, color=INK, linewidth=0.8, linestyle=(0, (3, 3)), label=label)
            axes.set_xlabel("epoch")
            axes.set_title(name, loc="left", fontsize=10)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            if percent:
                axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
            else:
                axes.set_ylim(bottom=0)
            axes.legend(fontsize=9)
            drawings.append(as_svg(figure, f"{name} by epoch"))
    return tag("div", *drawings, class_="plots")


def reliability_diagrams(before: Sequence[Bin], after: Sequence[Bin], errors: tuple[float, float]) -> Markup:
    """The share that was right by the probability that was given, without and with the temperature."""
    drawings = []
    most = max((one.images for one in [*before, *after]), default=1)
    for name, bins, error, colour in (
        ("Before the temperature", before, errors[0], ORANGE),
        ("After it, as it is served", after, errors[1], BLUE),
    ):
        with matplotlib.rc_context(STYLE):
            figure, axes = canvas()
            axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=(0, (3, 3)))
            for one in bins:
                axes.plot([one.confidence] * 2, [one.confidence, one.accuracy], color=colour, linewidth=1, alpha=0.6)
            axes.scatter(
                [one.confidence for one in bins],
                [one.accuracy for one in bins],
                s=[12 + 180 * one.images / most for one in bins],  # its area grows with the images
                color=colour,
                linewidths=0,
                alpha=0.85,
            )
            axes.set(xlim=(0, 1.02), ylim=(-0.03, 1.05), xlabel="probability given", ylabel="share right")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
            axes.set_title(f"{name}: calibration error {error:.3f}", loc="left", fontsize=10)
            drawings.append(as_svg(figure, f"{name}: reliability diagram"))
    return tag("div", *drawings, class_="plots")


def confusion_matrix(matrix: NDArray[np.int64], order: Sequence[int], names: Sequence[str]) -> Markup:
    """Mistakes by class and by what was said, on a logarithmic scale of colour; correct predictions stay pale.

    Each coloured cell says its count when pointed at. Drawn for any number of classes; names are written up to
    `MOST_LABELS`, counts up to `MOST_COUNTS`.
    """
    count = len(order)
    cell = min(800 / count, 48.0)
    side = cell * count
    font = min(cell * 0.95, 13.0)
    longest = max((len(names[label]) for label in order), default=0)
    margin = min(longest * font * 0.56 + 6, 280.0) if count <= MOST_LABELS else 0.0
    place = {label: position for position, label in enumerate(order)}
    most = max(int(np.where(np.eye(len(matrix), dtype=bool), 0, matrix).max(initial=0)), 1)
    parts = [_element("rect", x=margin, y=0, width=side, height=side, fill="currentColor", fill_opacity=0.035)]
    cells = sorted(np.argwhere(matrix).tolist(), key=lambda place: place[0] != place[1])  # mistakes lie on top
    for row, column in cells:
        images = int(matrix[row, column])
        told = f"{shown(names[row])}, taken for {shown(names[column])}" if row != column else shown(names[row])
        told += f": {images} of {int(matrix[row].sum())}"
        strength = 0.35 + 0.65 * math.log1p(images) / math.log1p(most) if row != column else 0.35
        # Of a thousand classes a cell is less than a pixel: a mistake has to be seen all the same.
        extra = max(0.0, SMALLEST - cell) / 2 if row != column else 0.0
        x, y = margin + place[column] * cell - extra, place[row] * cell - extra
        size = cell + 2 * extra
        paint = {"fill": BLUE if row == column else ORANGE, "fill_opacity": round(strength, 2)}
        parts.append(_element("rect", tag("title", told), x=x, y=y, width=size, height=size, **paint))
        if count <= MOST_COUNTS:
            centre = {"x": x + cell / 2, "y": y + cell / 2, "text_anchor": "middle", "pointer_events": "none"}
            parts.append(_element("text", str(images), **centre, **_lettering(font)))
    for label in order if margin else ():
        middle = place[label] * cell + cell / 2
        name, style = text(shown(names[label])), _lettering(font)
        parts.append(_element("text", name, x=margin - 5, y=middle, text_anchor="end", **style))
        turn = f"translate({margin + middle:.1f} {side + 5:.1f}) rotate(90)"
        parts.append(_element("text", name, transform=turn, **style))
    # A small matrix keeps its size; a large one fills the page, and scrolls on a phone.
    width = f"max-width:{margin + side:.0f}px" if side < 800 else "min-width:46rem"
    box = f"0 0 {margin + side:.0f} {side + margin:.0f}"
    drawing = tag("svg", joined(parts), viewBox=box, style=width, role="img", aria_label="Confusion matrix")
    # Names of many classes are small: they get the width of the window, beyond that of the text.
    kind = "matrix scroll" if side < 800 else "matrix scroll large"
    return tag("div", drawing, class_=kind, tabindex="0", role="region", aria_label="Confusion matrix")


def _lettering(size: float) -> dict[str, object]:
    return {"font_size": size, "dominant_baseline": "central", "fill": "currentColor"}


def _element(name: str, *content: object, **attributes: object) -> Markup:
    """An SVG element; numbers are rounded to what can be seen, which halves the size of a large matrix."""
    rounded = {key: f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
               for key, value in attributes.items()}  # fmt: skip
    return tag(name, *content, **rounded)


def canvas(width: float = 4.8, height: float = 3.1) -> tuple[Figure, Axes]:
    """An empty drawing of so many inches; to be used within `matplotlib.rc_context(STYLE)`."""
    # Not through pyplot, which keeps figures in a global list and may look for a display.
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    return figure, axes


def as_svg(figure: Figure, description: str) -> Markup:
    """The drawing without what only a file of its own needs: header, metadata, size, unused names, style sheet."""
    content = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(content, format="svg", metadata=nothing)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    size = re.search(r'viewBox="[^"]+"', svg)
    assert size is not None
    opening = f'<svg {size[0]} role="img" aria-label="{text(description)}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    used = set(re.findall(r"#([\w-]+)[\")]", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in used else "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    return Markup(svg.replace(INK, "currentColor").replace("xlink:href", "href"))
