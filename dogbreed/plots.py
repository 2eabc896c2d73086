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

from dogbreed.analysis import Bin
from dogbreed.page import Markup, joined, shown, tag, text

INK = "#010203"  # stands for the page's own colour of text until the drawing is in the page
BLUE, ORANGE = "#3d85e0", "#e0762d"  # both readable on white and on black
MOST_LABELS = 160  # classes whose names are written at a confusion matrix
_STYLE: dict[Any, Any] = {
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
        with matplotlib.rc_context(_STYLE):
            figure, axes = _figure()
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
            drawings.append(_svg(figure, f"{name} by epoch"))
    return tag("div", *drawings, class_="plots")


def reliability_diagrams(before: Sequence[Bin], after: Sequence[Bin], errors: tuple[float, float]) -> Markup:
    """The share that was right by the probability that was given, without and with the temperature."""
    drawings = []
    most = max((one.images for one in [*before, *after]), default=1)
    for name, bins, error, colour in (
        ("Before the temperature", before, errors[0], ORANGE),
        ("After it, as it is served", after, errors[1], BLUE),
    ):
        with matplotlib.rc_context(_STYLE):
            figure, axes = _figure()
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
            drawings.append(_svg(figure, f"{name}: reliability diagram"))
    return tag("div", *drawings, class_="plots")


def confusion_matrix(matrix: NDArray[np.int64], order: Sequence[int], names: Sequence[str]) -> Markup:
    """Mistakes by class and by what was said, on a logarithmic scale of colour; the right answers stay pale.

    Each coloured cell says its count when pointed at. Drawn for any number of classes; names are written up to
    `MOST_LABELS`.
    """
    count = len(order)
    labelled = count <= MOST_LABELS
    cell = 800 / count
    font = min(cell * 0.95, 12.0)
    longest = max((len(names[label]) for label in order), default=0)
    margin = min(longest * font * 0.56 + 6, 280.0) if labelled else 0.0
    place = {label: position for position, label in enumerate(order)}
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    most = max(int(wrong.max(initial=0)), 1)
    parts: list[Markup] = [
        _element("rect", x=margin, y=0, width=800, height=800, fill="currentColor", fill_opacity=0.035),
        _element("line", x1=margin, y1=0, x2=margin + 800, y2=800, stroke=BLUE, stroke_opacity=0.45, stroke_width=cell),
    ]
    for row, column in np.argwhere(wrong).tolist():
        mistakes = int(wrong[row, column])
        strength = 0.35 + 0.65 * math.log1p(mistakes) / math.log1p(most)
        told = f"{shown(names[row])}, taken for {shown(names[column])}: {mistakes} of {int(matrix[row].sum())}"
        box = {"x": margin + place[column] * cell, "y": place[row] * cell, "width": cell, "height": cell}
        parts.append(_element("rect", tag("title", told), **box, fill=ORANGE, fill_opacity=round(strength, 2)))
        if count <= 20:
            centre = {"x": box["x"] + cell / 2, "y": box["y"] + cell / 2, "text_anchor": "middle"}
            parts.append(_element("text", str(mistakes), **centre, **_lettering(font), pointer_events="none"))
    if labelled:
        for label in order:
            middle = place[label] * cell + cell / 2
            name, style = text(shown(names[label])), _lettering(font)
            parts.append(_element("text", name, x=margin - 4, y=middle, text_anchor="end", **style))
            turn = f"translate({margin + middle:.1f} 804) rotate(90)"
            parts.append(_element("text", name, transform=turn, **style))
    size = f"0 0 {margin + 800:.0f} {800 + margin:.0f}"
    drawing = tag("svg", joined(parts), viewBox=size, role="img", aria_label="Confusion matrix")
    return tag("div", drawing, class_="matrix scroll", tabindex="0", role="region", aria_label="Confusion matrix")


def _lettering(size: float) -> dict[str, object]:
    return {"font_size": size, "dominant_baseline": "central", "fill": "currentColor"}


def _element(name: str, *content: object, **attributes: object) -> Markup:
    """An SVG element; numbers are rounded to what can be seen, which halves the size of a large matrix."""
    rounded = {key: f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
               for key, value in attributes.items()}  # fmt: skip
    return tag(name, *content, **rounded)


def _figure() -> tuple[Figure, Axes]:
    # Not through pyplot, which keeps figures in a global list and may look for a display.
    figure = Figure(figsize=(4.8, 3.1), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.grid(color=INK, alpha=0.12, linewidth=0.6)
    return figure, axes


def _svg(figure: Figure, description: str) -> Markup:
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
