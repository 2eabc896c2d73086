"""What smdebug saved of a run: its losses as a picture, and what the rules find in it."""

import os
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.text import count
from dogbreed.monitor import rules
from dogbreed.monitor.rules import Finding
from dogbreed.monitor.smdebug_reader import Recorded, read

PICTURES = (".png", ".svg", ".pdf")
TOGETHER = 10  # saved losses whose mean is compared with that of the next: single batches are noisy
BLUE, ORANGE = "#2f6fd0", "#e0762d"


class Means(NamedTuple):
    """Means of training losses that were saved one after the other.

    Attributes:
        steps: Mean of the steps at which they were saved.
        losses: NaN where none was saved.
    """

    steps: list[float]
    losses: list[float]


def by_evaluation(recorded: Recorded) -> Means:
    """Return one mean per evaluation, of what was saved since the one before."""
    before, parts = 0, []
    for evaluation in recorded.evaluations:
        parts.append([step for step in sorted(recorded.train) if before <= step < evaluation.step])
        before = evaluation.step
    return _means(recorded, parts)


def by_ten(recorded: Recorded) -> Means:
    """Return one mean per `TOGETHER` that were saved; fewer at the end are left out, unless there are no more."""
    saved = sorted(recorded.train)
    parts = [saved[start : start + TOGETHER] for start in range(0, len(saved), TOGETHER)]
    return _means(recorded, [part for part in parts if len(part) == TOGETHER] or parts)


def _means(recorded: Recorded, parts: Sequence[Sequence[int]]) -> Means:
    nothing = float("nan")
    steps = [float(np.mean(part)) if part else nothing for part in parts]
    return Means(
        steps, [float(np.mean([recorded.train[step] for step in part])) if part else nothing for part in parts]
    )


def apply_rules(recorded: Recorded) -> list[Finding]:
    """Apply the rules, with their default parameters, to the losses and gradients that were saved."""
    steps, means = by_ten(recorded)
    findings = [rules.loss_not_decreasing([round(step) for step in steps], means)]
    if recorded.evaluations:
        train, val = by_evaluation(recorded).losses, [evaluation.mean for evaluation in recorded.evaluations]
        numbers = list(range(1, len(val) + 1))
        findings.append(rules.overfit(numbers, train, val))
        findings.append(rules.overtraining(numbers, train, val, unit="evaluation"))
    else:
        findings += [rules.not_applicable(name, "No evaluation was saved.") for name in ("overfit", "overtraining")]
    losses = [recorded.train[step] for step in sorted(recorded.train)]
    findings.append(rules.exploding_tensor(sorted(recorded.train), {"the training loss": losses}))
    if recorded.gradients:
        findings.append(rules.vanishing_gradient(recorded.gradient_steps, recorded.gradients))
    else:
        findings.append(rules.not_applicable("vanishing_gradient", "No gradients were saved."))
    return findings


def draw(recorded: Recorded) -> Figure:
    """Draw training and evaluation loss over the training steps.

    Each evaluation stands at the number of training steps that had been taken; its band reaches from the batch with
    the lowest loss to that with the highest.
    """
    style: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        steps = sorted(recorded.train)
        losses = [recorded.train[step] for step in steps]
        # Single batches are noisy: they are points, and what is read is their mean between evaluations.
        axes.plot(steps, losses, ".", color=BLUE, alpha=0.45, markersize=5, label="training, single batches")
        train = by_evaluation(recorded) if recorded.evaluations else by_ten(recorded)
        marker = "o" if len(train.steps) <= 40 else None
        axes.plot(*train, color=BLUE, linewidth=1.8, marker=marker, markersize=4, label="training, their mean")
        if recorded.evaluations:
            at = [evaluation.step for evaluation in recorded.evaluations]
            means = [evaluation.mean for evaluation in recorded.evaluations]
            lows = [min(evaluation.losses) for evaluation in recorded.evaluations]
            highs = [max(evaluation.losses) for evaluation in recorded.evaluations]
            axes.fill_between(at, lows, highs, color=ORANGE, alpha=0.15, linewidth=0)
            axes.plot(at, means, color=ORANGE, linewidth=1.8, marker=marker, markersize=4, label="evaluation, mean")
        axes.set(xlabel="training steps", ylabel="cross-entropy loss (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
        axes.set_xlim(left=-0.015 * steps[-1])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.2, linewidth=0.6)
        axes.legend()
    return figure


def summary(folder: Path, recorded: Recorded, findings: Sequence[Finding]) -> str:
    """Return what was saved, how the losses went, what the rules found."""
    steps = sorted(recorded.train)
    losses = [recorded.train[step] for step in steps]
    end = "" if recorded.ended else " of a run that has not ended"
    lines = [
        f"{folder}: {count(len(recorded.names), 'tensor')}{end}",
        f"training    {count(len(steps), 'step')} saved, the last is {steps[-1]}: "
        f"loss {losses[0]:.4f} to {losses[-1]:.4f}, lowest {min(losses):.4f} at step {steps[int(np.argmin(losses))]}",
    ]
    if recorded.evaluations:
        means = [evaluation.mean for evaluation in recorded.evaluations]
        best = recorded.evaluations[int(np.argmin(means))]
        batches = sum(len(evaluation.losses) for evaluation in recorded.evaluations)
        lines.append(
            f"evaluation  {count(len(means), 'time')}, {count(batches, 'batch')} saved: "
            f"mean loss {means[0]:.4f} to {means[-1]:.4f}, lowest {best.mean:.4f} after {count(best.step, 'step')}"
        )
    else:
        lines.append("evaluation  none was saved")
    width = max(len(finding.rule) for finding in findings)
    lines.append("")
    for finding in findings:
        state = "FOUND" if finding.triggered else "no" if finding.applies else "-"
        head = f"{finding.rule:<{width}}  {state:<5}  "
        lines.append(fill(finding.message, 110, initial_indent=head, subsequent_indent=" " * len(head)))
    return "\n".join(lines)


def run(folder: Path, output: Path | None = None) -> None:
    """Print what was saved in `folder` and what the rules find, and write the picture of the losses."""
    # Beside the tensors, which belong to smdebug; a folder given as . or with a slash at its end has a name too.
    output = output or Path(os.path.abspath(folder)).parent / "losses.png"
    if output.suffix.lower() not in PICTURES:
        raise DogbreedError(f"--output {output}: a picture ends in {', '.join(PICTURES[:-1])} or {PICTURES[-1]}.")
    recorded = read(folder)
    print(summary(folder, recorded, apply_rules(recorded)), flush=True)
    with atomic_write(output) as file:
        draw(recorded).savefig(file, format=output.suffix[1:].lower(), dpi=110)
    print(f"\nWrote {os.path.relpath(output) if output.is_relative_to(Path.cwd()) else output}")
