"""What a rehearsal says about its jobs when they have ended."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launch.rehearsal.container import Outcome
from launch.rehearsal.opt_ml import Request


def record(outcome: Outcome, request: Request) -> dict[str, Any]:
    """A job for `rehearsal.json`, with the request that was carried out."""
    kept = asdict(outcome)
    del kept["last_lines"]
    return {**kept, "metrics": outcome.metrics, "request": request}


def failed(outcome: Outcome, log: Path) -> str:
    """Why a job failed: what the service would show as its reason, and the end of its log."""
    lines = "\n".join(f"  | {line}" for line in outcome.last_lines)
    reason = "\n".join(f"  {line}" for line in (outcome.reason or "no reason was given").splitlines())
    return f"{outcome.name} ended as {outcome.status}. Its reason:\n{reason}\nThe end of its log, {log}:\n{lines}"


def job(outcome: Outcome, folder: Path, interrupt_after: int | None) -> str:
    """A training job that completed."""
    lines = ["", f"Completed in {outcome.seconds:.0f} s. The service would show these metrics:"]
    width = max((len(name) for name in outcome.metrics), default=0)
    lines += [f"  {name:<{width}}  {value:g}" for name, value in outcome.metrics.items()]
    if interrupt_after and outcome.interruptions:
        lines.append(f"Its machine was taken away after {interrupt_after} epochs; another one went on.")
    elif interrupt_after:
        lines.append(f"It was over before {interrupt_after} epochs had passed, so its machine was not taken away.")
    return "\n".join([*lines, "", artefacts(folder)])


def search(
    outcomes: Sequence[Outcome],
    chosen: Sequence[Mapping[str, str]],
    values: Sequence[float | None],
    metric: str,
    best: int,
) -> str:
    """The trials of a tuning job as a table, and the best of them.

    Args:
        outcomes: Of the trials.
        chosen: Their tuned hyperparameters.
        values: The objective's last value of each.
        metric: The objective's name.
        best: Place of the best trial.
    """
    names = list(chosen[0])
    rows = [["", "trial", *names, metric, "status", "seconds"]]
    for place, (outcome, settings, value) in enumerate(zip(outcomes, chosen, values, strict=True)):
        shown = "" if value is None else f"{value:g}"
        mark = "*" if place == best else ""
        rows.append([mark, str(place + 1), *settings.values(), shown, outcome.status, f"{outcome.seconds:.0f}"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    found = ", ".join(f"{name} {value}" for name, value in chosen[best].items())
    return "\n".join(["", *lines, "", f"Best by {metric}, as the service chooses: trial {best + 1}, {found}."])


def artefacts(folder: Path) -> str:
    """Where things lie, and what to do with the model."""
    inside = {
        "model.tar.gz": "the model",
        "output.tar.gz": "the rest of the run: metrics, report",
        "rehearsal.json": "the requests that were carried out, and their metrics",
    }
    there = [f"  {name:<16} {what}" for name, what in inside.items() if (folder / name).is_file()]
    model = shlex.quote(str(folder / "model"))
    archive = shlex.quote(str(folder / "model.tar.gz"))
    use = f"mkdir {model} && tar -xzf {archive} -C {model} && python -m dogbreed.predict {model} PHOTO"
    return "\n".join([f"{folder}/", *there, "", f"Try the model: {use}"])
