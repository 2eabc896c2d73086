"""Drawings of the profile: step times, and the machine over time."""

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from dogbreed.monitor.profiler import Profile, Step
from dogbreed.report.plots import BLUE, DASHED, ORANGE, drawing


def step_histogram(seconds: NDArray[np.float64]) -> Markup:
    """Draw how many steps took how long."""
    scale, unit = _unit(float(np.median(seconds)))
    values = seconds / scale
    # Outliers are in the drawing beside it; here they would squeeze all others into one bar.
    near = values[values <= np.quantile(values, 0.99)] if len(values) >= 100 else values
    with drawing("Steps by their time", "Histogram of step times") as made:
        made.axes.hist(near, bins=min(40, max(8, int(math.sqrt(len(near))))), color=BLUE, alpha=0.85)
        made.axes.axvline(float(np.median(values)), label="median", **DASHED)
        made.axes.set_xlabel(f"time per step ({unit})")
        made.axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        made.axes.legend()
    return made.markup


def steps_in_order(steps: Sequence[Step], far: NDArray[np.intp]) -> Markup:
    """Draw the time of each step; those at the positions `far` stand out."""
    seconds = np.array([step.seconds for step in steps])
    numbers = np.array([step.number for step in steps])
    scale, unit = _unit(float(np.median(seconds)))
    normal = np.setdiff1d(_thinned(seconds, 600), far)
    with drawing("Steps in their order", "Step times in their order") as made:
        axes = made.axes
        axes.scatter(numbers[normal], seconds[normal] / scale, s=7, color=BLUE, linewidths=0, alpha=0.7)
        if len(far):
            worst = far[np.argsort(-seconds[far])[:100]]
            axes.scatter(numbers[worst], seconds[worst] / scale, s=16, color=ORANGE, linewidths=0, label="stands out")
            axes.legend()
        axes.set(xlabel="step", ylabel=f"time per step ({unit})")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))
    return made.markup


def over_time(
    profile: Profile,
    times: NDArray[np.float64],
    lines: Sequence[tuple[str, NDArray[np.float64], str]],
    title: str,
    percent: bool = False,
) -> Markup:
    """Draw lines over the run, each a name, its values and a colour; the stages are set apart."""
    scale, unit = (60.0, "min") if times[-1] > 300 else (1.0, "s")
    with drawing(title, f"{title} over time") as made:
        for name, values, colour in lines:
            keep = _thinned(values, 400)
            made.axes.plot(times[keep] / scale, values[keep], color=colour, linewidth=1.3, label=name)
        made.axes.set_ylim(bottom=0, top=105 if percent else None)
        _mark_stages(made.axes, profile, scale)
        made.axes.set_xlabel(f"time ({unit})")
        if len(lines) > 1:
            made.axes.legend()
    return made.markup


def _mark_stages(axes: Axes, profile: Profile, scale: float) -> None:
    for begin, name in profile.stages[1:]:
        axes.axvline(begin / scale, **DASHED)
        if begin < 0.93 * profile.seconds:
            axes.annotate(
                name, (begin / scale, 1), (3, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                fontsize=8, va="top", rotation=90, alpha=0.8,
            )  # fmt: skip


def _thinned(values: NDArray[np.float64], most: int) -> NDArray[np.intp]:
    """Return the positions of at most `most` values or so, the largest of each stretch, so that no peak is lost."""
    width = -(-len(values) // most)
    return np.array(
        [
            start + int(np.nanargmax(np.nan_to_num(values[start : start + width])))
            for start in range(0, len(values), width)
        ],
        dtype=np.intp,
    )


def _unit(seconds: float) -> tuple[float, str]:
    return (1.0, "s") if seconds >= 1 else (1e-3, "ms")
