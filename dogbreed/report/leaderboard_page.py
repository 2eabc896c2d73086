"""`leaderboard.html`: backbones compared on the same images; a single self-contained HTML file."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, PercentFormatter
from matplotlib.transforms import Bbox, BboxBase

from dogbreed.report.leaderboard import HEAD, Leaderboard, Row
from dogbreed.report.plots import BLUE, INK, drawing
from dogbreed.report.rendering import Section, fragment, write_page

TEMPLATE = "leaderboard.html.j2"
NEAR = 12  # points
PIECES = 50  # of each part of the line
OFFSETS = sorted((6 * step for step in range(-10, 11)), key=abs)  # of a label above its point, in points


def write(file: Path, board: Leaderboard) -> None:
    """Write the page; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    sections = [
        Section("backbones", "Backbones", lambda: _table(board)),
        Section("front", "Accuracy against time", lambda: _front(board)),
    ]
    title = f"Backbones on {Path(board.root).name}"
    write_page(file, title, lambda: fragment(TEMPLATE, "header", title, board.winner(), board.verdict()), sections)


def _table(board: Leaderboard) -> Markup:
    return fragment(TEMPLATE, "backbones", HEAD, [row.cells() for row in board.all], board.failed, board.device)


def _front(board: Leaderboard) -> Markup:
    front = board.front
    with drawing("Validation accuracy by time per image", "Validation accuracy by milliseconds per image") as made:
        for row in board.all:
            accuracy = row.figures["val_acc"]
            low, high = row.figures["val_acc_ci95"]
            spread = [[accuracy - low], [high - accuracy]]
            colour = BLUE if row in front else INK
            made.axes.errorbar(row.milliseconds, accuracy, spread, fmt="o", color=colour, markersize=5, linewidth=0.8)
        times, slowest = [row.milliseconds for row in front], max(row.milliseconds for row in board.all)
        made.axes.plot(times, [row.figures["val_acc"] for row in front], color=BLUE, linewidth=1.2)
        made.axes.set(xlabel="milliseconds per image", ylabel="accuracy", xscale="log")
        made.axes.margins(x=0.25, y=0.1)
        made.axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        made.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if slowest < 10 * times[0] else (1, 2, 5)))
        made.axes.xaxis.set_major_formatter("{x:g}")
        made.axes.minorticks_off()
        _label(made.axes, board.all, front)
    return fragment(TEMPLATE, "front", [made.markup], [row.name for row in front])


def _label(axes: Axes, rows: Sequence[Row], front: Sequence[Row]) -> None:
    """Write the names beside their points, each where it covers the least of points, lines and other names."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # from here on, the places are those on the page
    points = axes.transData.transform([(row.milliseconds, row.figures["val_acc"]) for row in rows])
    ends = [axes.transData.transform([(row.milliseconds, end) for end in row.figures["val_acc_ci95"]]) for row in rows]
    taken = [Bbox([point - 4, point + 4]) for point in points] + [Bbox([low - 1, high + 1]) for low, high in ends]
    turns = axes.transData.transform([(row.milliseconds, row.figures["val_acc"]) for row in front])
    line: Any = np.concatenate([np.linspace(*pair, PIECES) for pair in pairwise(turns)]) if len(front) > 1 else []
    taken += [Bbox([point - 1, point + 1]) for point in line]
    for row, point in zip(rows, points, strict=True):
        label = axes.annotate(
            row.name, (row.milliseconds, row.figures["val_acc"]), (0, 0),
            textcoords="offset points", va="center", fontsize=8, in_layout=False,
        )  # fmt: skip
        whole = label.get_window_extent().padded(1.5)
        boxes = {
            (x, y): whole.translated(x * scale - whole.width * (x < 0), y * scale)
            for y in OFFSETS for x in (6, -6) for scale in [figure.dpi / 72]
        }  # fmt: skip
        best = min(boxes, key=lambda at: _covered(boxes[at], taken, axes.bbox) + 0.01 * abs(at[1]))
        label.set(position=best, horizontalalignment="right" if best[0] < 0 else "left")
        taken.append(boxes[best])
        if abs(best[1]) > NEAR:  # so far away that a line has to say of which point it is
            end = (boxes[best].x1 if best[0] < 0 else boxes[best].x0, (boxes[best].y0 + boxes[best].y1) / 2)
            axes.plot(*zip(*axes.transData.inverted().transform([point, end]), strict=True), color=INK, linewidth=0.5)


def _covered(box: Bbox, taken: Sequence[Bbox], inside: BboxBase) -> float:
    """Return the area that a box has in common with others, and five times that outside of the axes."""
    common = (Bbox.intersection(box, other) for other in taken)
    within = Bbox.intersection(box, inside)
    outside = box.width * box.height - (within.width * within.height if within else 0)
    return 5 * outside + sum(each.width * each.height for each in common if each)
