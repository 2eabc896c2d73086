"""`leaderboard.html`: backbones compared on the same images; a single self-contained HTML file."""

from pathlib import Path

from markupsafe import Markup
from matplotlib.ticker import LogLocator, PercentFormatter

from dogbreed.report.leaderboard import HEAD, Leaderboard
from dogbreed.report.plots import BLUE, INK, drawing
from dogbreed.report.rendering import Section, fragment, write_page

TEMPLATE = "leaderboard.html.j2"


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
            left = row.milliseconds**2 > front[0].milliseconds * max(other.milliseconds for other in board.all)
            made.axes.annotate(
                row.name,
                (row.milliseconds, accuracy),
                (-5 if left else 5, 4 if row in front else -10),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=8,
                in_layout=False,
            )
        times = [row.milliseconds for row in front]
        made.axes.plot(times, [row.figures["val_acc"] for row in front], color=BLUE, linewidth=1.2)
        made.axes.set(xlabel="milliseconds per image", ylabel="accuracy", xscale="log")
        made.axes.margins(x=0.15)
        made.axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        made.axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        made.axes.xaxis.set_major_formatter("{x:g}")
        made.axes.minorticks_off()
    return fragment(TEMPLATE, "front", [made.markup], [row.name for row in front])
