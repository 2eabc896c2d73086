"""One picture of a search: the objective in the order of the trials, and over each parameter."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dogbreed.core.files import atomic_write

BLUE, GREY = "#2563eb", "#9ca3af"


class Point(NamedTuple):
    """One trial: its parameters by dotted key, its objective, and whether it ran to its last epoch."""

    params: Mapping[str, Any]
    value: float
    complete: bool


def plot_trials(
    points: Sequence[Point],
    space: Mapping[str, Mapping[str, Any]],
    objective: str,
    importances: Mapping[str, float],
    file: Path,
) -> None:
    """Draw the trials into a PNG file.

    Args:
        points: At least one, in the order of the trials.
        space: Bounds or choices of each parameter, by dotted key.
        objective: Its name; one that ends in `loss` is minimized, any other is maximized.
        importances: Share of each parameter; empty where they are not known.
        file: Written whole or not at all.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    better: Callable[..., float] = min if objective.endswith("loss") else max
    values = [point.value for point in points]
    colours = [BLUE if point.complete else GREY for point in points]
    panels = 1 + len(space)
    figure, axes = pyplot.subplots(1, panels, figsize=(4.2 * panels, 3.6), sharey=True, squeeze=False)
    history, *others = axes[0]
    history.step(range(len(points)), _best_so_far(points, better), where="post", color=BLUE, label="best so far")
    history.scatter(range(len(points)), values, c=colours, s=18)
    history.set(xlabel="trial", ylabel=objective, title="history")
    history.legend(frameon=False)
    for axis, (key, bounds) in zip(others, space.items(), strict=True):
        positions = [point.params[key] for point in points]
        if "choices" in bounds:
            axis.set_xticks(range(len(bounds["choices"])), [str(choice) for choice in bounds["choices"]])
            positions = [bounds["choices"].index(position) for position in positions]
        elif bounds.get("log"):
            axis.set_xscale("log")
        axis.scatter(positions, values, c=colours, s=18)
        axis.set(xlabel=key, title=f"importance {100 * importances[key]:.0f} %" if importances else key)
    # A few trials may come out far worse than most.
    best, usual = better(values), statistics.median(values)
    reach = usual - best or 1e-9
    history.set_ylim(*sorted((best - 0.15 * reach, usual + 1.5 * reach)))
    figure.text(0.995, 0.01, "grey: stopped early", ha="right", fontsize=8, color="#6b7280")
    figure.tight_layout()
    with atomic_write(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


def _best_so_far(points: Sequence[Point], better: Callable[..., float]) -> list[float]:
    best, line = math.nan, []
    for point in points:
        if point.complete:
            best = point.value if math.isnan(best) else better(best, point.value)
        line.append(best)
    return line
