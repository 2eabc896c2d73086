"""A tuning job's trials: listed, shown, and kept as a table, a picture and the winner's settings."""

import io
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dogbreed.config.compose import default_config, diff, flatten, to_yaml
from dogbreed.config.overrides import dotted, literal, quote
from dogbreed.core.files import atomic_write, write_csv
from dogbreed.search.plot import Point, plot_trials
from launch.aws.errors import explained
from launch.aws.pricing import Prices

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


@dataclass(frozen=True)
class Trial:
    """One training job of a tuning job.

    Attributes:
        name: Of the training job.
        status: `Completed`, `Failed`, ...
        settings: Tuned values by dotted key.
        value: Of the objective; None if there is none.
        seconds: From start to end; None before.
    """

    name: str
    status: str
    settings: dict[str, Any]
    value: float | None
    seconds: float | None


def list_trials(client: Any, name: str) -> list[Trial]:
    """Return the trials of a tuning job, in the order in which they were made."""
    pages = client.get_paginator("list_training_jobs_for_hyper_parameter_tuning_job")
    options = {"SortBy": "CreationTime", "SortOrder": "Ascending", "PaginationConfig": {"PageSize": 100}}
    with explained(f"listing the trials of {name}"):
        return [
            _trial(summary)
            for page in pages.paginate(HyperParameterTuningJobName=name, **options)
            for summary in page["TrainingJobSummaries"]
        ]


def _trial(summary: Mapping[str, Any]) -> Trial:
    objective = summary.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
    start, end = summary.get("TrainingStartTime"), summary.get("TrainingEndTime")
    return Trial(
        summary["TrainingJobName"],
        summary["TrainingJobStatus"],
        {dotted(key): _value(text.strip('"')) for key, text in summary["TunedHyperParameters"].items()},
        objective.get("Value"),
        (end - start).total_seconds() if start and end else None,
    )


def _value(text: str) -> Any:
    """Return a hyperparameter's text as a number where it is one, such as 1e-3, which YAML takes for a text."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return yaml.safe_load(text)


def live_table() -> "Live":
    """Return a table that can be updated in place on a terminal."""
    from rich.console import Console
    from rich.live import Live

    return Live(console=Console(), auto_refresh=False, transient=False)


def progress(job: Mapping[str, Any]) -> str:
    """Return how far a tuning job is, in a line."""
    counters = job.get("TrainingJobStatusCounters", {})
    total = job["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    line = f"[{job['HyperParameterTuningJobName']}: {job['HyperParameterTuningJobStatus']}] "
    line += f"{counters.get('Completed', 0)} of {total} trials done"
    failed = counters.get("RetryableError", 0) + counters.get("NonRetryableError", 0)
    states = {"running": counters.get("InProgress", 0), "stopped early": counters.get("Stopped", 0), "failed": failed}
    line += "".join(f", {count} {state}" for state, count in states.items() if count)
    best = (job.get("BestTrainingJob") or {}).get("FinalHyperParameterTuningJobObjectiveMetric")
    return line + (f"; best {best['MetricName']}={best['Value']:.6f}" if best else "")


def minimizes(job: Mapping[str, Any]) -> bool:
    """Return whether a tuning job looks for the smallest value."""
    return bool(_objective(job)["Type"] == "Minimize")


def _objective(job: Mapping[str, Any]) -> Mapping[str, str]:
    objective: Mapping[str, str] = job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]
    return objective


def best_of(trials: Sequence[Trial], minimize: bool) -> Trial | None:
    """Return the best finished trial; the first of equals."""
    sign = 1 if minimize else -1
    return min(_finite(trials), key=lambda trial: sign * (trial.value or 0.0), default=None)


def _finite(trials: Sequence[Trial]) -> list[Trial]:
    return [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]


def _keys(trials: Sequence[Trial]) -> list[str]:
    return sorted({key for trial in trials for key in trial.settings})


def table(trials: Sequence[Trial], minimize: bool) -> "Table":
    """Return the trials as a table, the best one marked."""
    from rich.table import Table

    best, keys = best_of(trials, minimize), _keys(trials)
    drawn = Table(box=None, pad_edge=False)
    for title in ("", "trial", "state", *keys, "objective", "seconds"):
        drawn.add_column(title, justify="left" if title in ("", "trial", "state") else "right")
    for trial in trials:
        drawn.add_row(
            "*" if trial is best else "",
            trial.name,
            trial.status,
            *(_short(trial.settings.get(key, "")) for key in keys),
            "" if trial.value is None else f"{trial.value:.6f}",
            "" if trial.seconds is None else f"{trial.seconds:.0f}",
        )
    return drawn


def _short(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write(config: Mapping[str, Any], job: Mapping[str, Any], trials: Sequence[Trial], folder: Path) -> None:
    """Write `trials.csv` and, if there is a winner, `search.png` and `best.yaml`."""
    keys = _keys(trials)
    rows = [[t.name, t.status, *(t.settings.get(key, "") for key in keys), t.value, t.seconds] for t in trials]
    write_csv(folder / "trials.csv", ["trial", "state", *keys, "objective", "seconds"], rows)
    best = best_of(trials, minimizes(job))
    if best is None:
        return
    objective = _objective(job)["MetricName"]
    nested: dict[str, Any] = {}
    for key, value in best.settings.items():
        *groups, name = key.split(".")
        inner = nested
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[name] = value
    head = f"# {objective} {best.value:.6f}, {best.name}\n# {command(config, best)}\n"
    with atomic_write(folder / "best.yaml") as file:
        file.write_text(head + to_yaml(nested), encoding="utf-8")
    points = [Point(trial.settings, trial.value or 0.0, trial.status == "Completed") for trial in _finite(trials)]
    plot_trials(points, _space(job), objective, {}, folder / "search.png")


def _space(job: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tuning job's ranges as a search has them: choices, or whether the scale is logarithmic."""
    space: dict[str, dict[str, Any]] = {}
    for kind, parameters in job["HyperParameterTuningJobConfig"]["ParameterRanges"].items():
        for parameter in parameters:
            if kind == "CategoricalParameterRanges":
                bounds: dict[str, Any] = {"choices": [_value(text) for text in parameter["Values"]]}
            else:
                bounds = {"log": parameter["ScalingType"] == "Logarithmic"}
            space[dotted(parameter["Name"])] = bounds
    return space


def command(config: Mapping[str, Any], best: Trial) -> str:
    """Return the command that trains with the winner on SageMaker."""
    values = flatten(config)
    not_repeated = ("job", "mode", "output_dir", "sagemaker.job_name", "sagemaker.warm_start")
    settings = {
        key: literal(values[key])
        for key in diff(default_config(), config)
        if key in values and not key.startswith("search.") and key not in not_repeated
    }
    settings |= {key: quote(str(value)) for key, value in best.settings.items()}
    return shlex.join(["python", "launch/sagemaker_train.py", *(f"{key}={value}" for key, value in settings.items())])


def summary(
    config: Mapping[str, Any], job: Mapping[str, Any], trials: Sequence[Trial], folder: Path, prices: Prices
) -> list[str]:
    """Return the results of a search, in lines."""
    from rich.console import Console

    best = best_of(trials, minimizes(job))
    assert best is not None
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(trials, minimizes(job)))
    machines = job["TrainingJobDefinition"]["ResourceConfig"]
    seconds = sum(trial.seconds or 0 for trial in trials)
    hour = prices.hour(machines["InstanceType"])
    cost = "" if hour is None else f", ${seconds / 3600 * machines['InstanceCount'] * hour:.2f} on demand"
    settings = " ".join(f"{key}={_short(value)}" for key, value in sorted(best.settings.items()))
    return [
        "",
        *(line.rstrip() for line in captured.get().rstrip().split("\n")),
        "",
        f"{len(trials)} trials, {seconds:,.0f} s of training{cost}.",
        f"Best: {_objective(job)['MetricName']}={best.value:.6f} with {settings} ({best.name})",
        "",
        f"{folder}/",
        "  trials.csv   every trial",
        "  search.png   the objective over each parameter, and the history",
        "  best.yaml    the winner",
        "",
        f"Train with it: {command(config, best)}",
    ]
