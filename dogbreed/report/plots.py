"""Drawings of a report, as SVG within its page. They take their ink from the page, which may be light or dark."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from numpy.typing import NDArray

from dogbreed.metrics.calibration import wilson_interval
from dogbreed.metrics.classification import Bin
from dogbreed.report.rendering import fragment, shown

INK = "#010203"  # stands for the page's own colour of text until the drawing is in the page
BLUE, ORANGE = "#3d85e0", "#e0762d"  # both readable on white and on black
DASHED: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": (0, (3, 3))}
MOST_COUNTS = 30  # classes whose counts are written into a confusion matrix
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, sharp, selectable
    "svg.hashsalt": "dogbreed",  # equal data give equal files
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, for the measures; report.css sets the page's own
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "figure.figsize": (4.8, 3.1),
    "figure.constrained_layout.use": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "savefig.facecolor": "none",
}


class Drawing:
    """A drawing that is being made; `markup` is there when its `with` has ended."""

    axes: Axes
    markup: Markup


@contextmanager
def drawing(title: str, description: str) -> Iterator[Drawing]:
    """Draw within it on the `axes` of what it hands out.

    Args:
        title: Written above.
        description: What screen readers say.
    """
    made = Drawing()
    with matplotlib.rc_context(STYLE):
        figure = Figure()  # not through pyplot, which keeps figures in a global list and may look for a display
        made.axes = figure.add_subplot()
        made.axes.set_title(title)
        yield made
        made.markup = as_svg(figure, description)


def learning_curves(
    history: Sequence[Mapping[str, float]], best_epoch: int | None, before: Sequence[Mapping[str, float]] = ()
) -> list[Markup]:
    """Draw losses and accuracy by epoch; the epoch whose weights were kept is marked.

    Args:
        history: Of the training.
        best_epoch: Of it.
        before: Of a stage before, whose epochs come first.
    """
    epochs = [row["epoch"] for row in before] + [len(before) + row["epoch"] for row in history]
    history = [*before, *history]
    drawings = []
    for name, columns in (
        ("Loss (nats per image)", (("train_loss", "training", BLUE), ("val_loss", "validation", ORANGE))),
        ("Accuracy", (("train_acc", "training", BLUE), ("val_acc", "validation", ORANGE))),
    ):
        with drawing(name, f"{name} by epoch") as made:
            axes = made.axes
            for key, label, colour in columns:
                values = [row[key] if math.isfinite(row.get(key, math.nan)) else math.nan for row in history]
                if all(map(math.isnan, values)):  # an older run has no training accuracy
                    continue
                marker = "o" if len(epochs) <= 30 else None
                axes.plot(epochs, values, color=colour, marker=marker, markersize=3.5, linewidth=1.8, label=label)
            if before:
                axes.axvline(len(before) + 0.5, label="second stage from here", color=INK, linewidth=1.2)
            if best_epoch is not None:
                axes.axvline(len(before) + best_epoch, label=f"best epoch, {best_epoch:g}", **DASHED)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
            if name == "Accuracy":
                axes.yaxis.set_major_formatter(PercentFormatter(1))
            else:
                axes.set_ylim(bottom=0)
            axes.legend()
        drawings.append(made.markup)
    return drawings


def reliability_diagram(name: str, bins: Sequence[Bin], colour: str) -> Markup:
    """Draw accuracy by confidence, each bin with its 95 % interval and its number of images."""
    with drawing(name, f"{name}: reliability diagram") as made:
        axes = made.axes
        axes.plot([0, 1], [0, 1], **DASHED)
        most = max((one.images for one in bins), default=1)
        for one in bins:
            ends = wilson_interval(round(one.accuracy * one.images), one.images)
            axes.plot([one.confidence] * 2, ends, color=colour, linewidth=1, alpha=0.6)
            area = 12 + 90 * one.images / most
            axes.scatter(one.confidence, one.accuracy, s=area, color=colour, linewidths=0)
            axes.annotate(
                f"{one.images:,}",
                (one.confidence, ends[1]),
                (0, 1 + math.sqrt(area) / 2),  # above the dot, which may lie on the upper end
                textcoords="offset points",
                ha="center",
                fontsize=7,
            )
        axes.set(xlim=(0, 1.03), ylim=(-0.03, 1.1), xlabel="confidence", ylabel="accuracy")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1))
    return made.markup


class Cell(NamedTuple):
    """A square of a confusion matrix: where its corner is, what it says, how strong its colour is."""

    x: float
    y: float
    text: str
    images: int
    right: bool
    strength: float


def confusion_matrix(matrix: NDArray[np.int64], totals: Sequence[int], names: Sequence[str]) -> Markup:
    """Draw errors by class and predicted class on a logarithmic scale of colour; correct predictions stay pale.

    Args:
        matrix: [classes, classes], as from `confusion`.
        totals: Images of each class, also those that were given a class that is not in the matrix.
        names: Of the classes.
    """
    count = len(names)
    size = min(800 / max(count, 1), 48.0)
    font = min(size * 0.95, 13.0)
    margin = min(max(map(len, names), default=0) * font * 0.56 + 6, 280.0)
    most = max(int(np.where(np.eye(count, dtype=bool), 0, matrix).max(initial=0)), 1)
    cells = []
    for row, column in np.argwhere(matrix).tolist():
        images, right = int(matrix[row, column]), row == column
        text = f"{shown(names[row])}, classified as {shown(names[column])}" if not right else shown(names[row])
        strength = 0.35 if right else 0.35 + 0.65 * math.log1p(images) / math.log1p(most)
        text += f": {images} of {totals[row]}"
        cells.append(Cell(margin + column * size, row * size, text, images, right, strength))
    labels = [(index * size + size / 2, shown(name)) for index, name in enumerate(names)]
    style = {"size": size, "side": size * count, "font": font, "margin": margin, "counts": count <= MOST_COUNTS}
    return fragment("matrix.html.j2", "matrix", cells, labels, style)


def as_svg(figure: Figure, description: str) -> Markup:
    """Return a drawing as part of a page: without a file's namespaces, size and metadata, and ids that no one uses."""
    content = io.BytesIO()
    figure.savefig(content, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    root = ET.fromstring(content.getvalue())  # noqa: S314  matplotlib's own
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:  # xlink:href
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for parent in root.iter():
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
    values = " ".join(value for element in root.iter() for name, value in element.attrib.items() if name != "id")
    for element in root.iter():
        if f"#{element.get('id')}" not in values:
            element.attrib.pop("id", None)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    return Markup(ET.tostring(root, encoding="unicode", method="html").replace(INK, "currentColor"))  # noqa: S704
