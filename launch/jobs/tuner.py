"""A tuning job's trials: watched, listed, and left as a table, a picture and the winner's settings."""

import csv
import io
import math
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from dogbreed.config.compose import compose, diff, flatten, to_yaml
from dogbreed.config.overrides import dotted, literal, quote
from dogbreed.core.files import atomic_write
from launch.aws.errors import explained
from launch.aws.pricing import Prices
from launch.jobs import follow

ENDED = ("Completed", "Failed", "Stopped", "DeleteFailed")


@dataclass(frozen=True)
class Trial:
    """One training job of a tuning job.

    Attributes:
        name: Of the training job.
        status: `Completed`, `Failed`, ...
        settings: Tuned values by dotted key, as text.
        value: Of the objective; None if there is none.
        seconds: From start to end; None before.
    """

    name: str
    status: str
    settings: dict[str, str]
    value: float | None
    seconds: float | None


def listed(client: Any, name: str) -> list[Trial]:
    """The trials of a tuning job, in the order in which they were made."""
    found, token = [], None
    with explained(f"listing the trials of {name}"):
        while True:
            page = client.list_training_jobs_for_hyper_parameter_tuning_job(
                HyperParameterTuningJobName=name,
                SortBy="CreationTime",
                SortOrder="Ascending",
                MaxResults=100,
                **({"NextToken": token} if token else {}),
            )
            found += [_trial(summary) for summary in page["TrainingJobSummaries"]]
            token = page.get("NextToken")
            if not token:
                return found


def _trial(summary: Mapping[str, Any]) -> Trial:
    objective = summary.get("FinalHyperParameterTuningJobObjectiveMetric") or {}
    start, end = summary.get("TrainingStartTime"), summary.get("TrainingEndTime")
    return Trial(
        summary["TrainingJobName"],
        summary["TrainingJobStatus"],
        {dotted(key): value.strip('"') for key, value in summary["TunedHyperParameters"].items()},
        objective.get("Value"),
        (end - start).total_seconds() if start and end else None,
    )


def watch(client: Any, name: str) -> dict[str, Any]:
    """Shows the trials as a table until the tuning job ends: in place on a terminal, else a line a change."""
    terminal = sys.stdout.isatty()
    told = ""
    with Live(console=Console(), auto_refresh=False, transient=False) if terminal else _Nothing() as live:
        while True:
            with explained(f"looking at {name}"):
                job: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
            ended = job["HyperParameterTuningJobStatus"] in ENDED
            if live is not None:
                live.update(table(listed(client, name), _minimizes(job)), refresh=True)
            line = progress(job)
            if line != told and live is None:
                follow.print_line(line)
                told = line
            if ended:
                return job
            time.sleep(follow.POLL_SECONDS)


class _Nothing:
    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


def progress(job: Mapping[str, Any]) -> str:
    """How far a tuning job is, in a line."""
    counters = job.get("TrainingJobStatusCounters", {})
    total = job["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    told = f"[{job['HyperParameterTuningJobName']}: {job['HyperParameterTuningJobStatus']}] "
    told += f"{counters.get('Completed', 0)} of {total} trials done"
    failed = counters.get("RetryableError", 0) + counters.get("NonRetryableError", 0)
    for count, what in ((counters.get("InProgress", 0), "running"), (counters.get("Stopped", 0), "stopped early")):
        told += f", {count} {what}" if count else ""
    told += f", {failed} failed" if failed else ""
    best = (job.get("BestTrainingJob") or {}).get("FinalHyperParameterTuningJobObjectiveMetric")
    return told + (f"; best {best['MetricName']}={best['Value']:.6f}" if best else "")


def _minimizes(job: Mapping[str, Any]) -> bool:
    return bool(job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["Type"] == "Minimize")


def best_of(trials: Sequence[Trial], minimize: bool) -> Trial | None:
    """The best finished trial; the first of equals."""
    done = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    sign = 1 if minimize else -1
    return min(done, key=lambda trial: sign * (trial.value or 0.0), default=None)


def table(trials: Sequence[Trial], minimize: bool) -> Table:
    """The trials, the best one marked."""
    best = best_of(trials, minimize)
    keys = sorted({key for trial in trials for key in trial.settings})
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


def _short(text: str) -> str:
    try:
        return f"{float(text):.6g}"
    except ValueError:
        return text


def leave(config: Mapping[str, Any], job: Mapping[str, Any], trials: Sequence[Trial], folder: Path) -> None:
    """Writes `trials.csv`, `search.png` and, if there is a winner, `best.yaml`."""
    keys = sorted({key for trial in trials for key in trial.settings})
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", "state", *keys, "objective", "seconds"])
    for trial in trials:
        row = [trial.settings.get(key, "") for key in keys]
        writer.writerow([trial.name, trial.status, *row, trial.value, trial.seconds])
    with atomic_write(folder / "trials.csv") as file:
        file.write_text(text.getvalue(), encoding="utf-8")
    best = best_of(trials, _minimizes(job))
    if best is None:
        return
    objective = job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
    head = f"# {objective} {best.value:.6f}, {best.name}\n# {command(config, best)}\n"
    with atomic_write(folder / "best.yaml") as file:
        file.write_text(head + to_yaml(_nested(best.settings)), encoding="utf-8")
    _plot(trials, keys, objective, _minimizes(job), folder / "search.png")


def command(config: Mapping[str, Any], best: Trial) -> str:
    """The line that trains with the winner on SageMaker."""
    values = flatten(config)
    given = {
        key: literal(values[key])
        for key in diff(compose(()), config)
        if key in values
        and not key.startswith("search.")
        and key not in ("job", "mode", "output_dir", "sagemaker.job_name", "sagemaker.warm_start")
    }
    given |= {key: quote(value) for key, value in best.settings.items()}
    return shlex.join(["python", "launch/sagemaker_train.py", *(f"{key}={value}" for key, value in given.items())])


def _nested(settings: Mapping[str, str]) -> dict[str, Any]:
    import yaml

    nested: dict[str, Any] = {}
    for key, value in settings.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = _number(value) if _number(value) is not None else yaml.safe_load(value)
    return nested


def _number(text: str) -> int | float | None:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return None


def summary(
    config: Mapping[str, Any], job: Mapping[str, Any], trials: Sequence[Trial], folder: Path, prices: Prices
) -> list[str]:
    """What came out, in lines."""
    best = best_of(trials, _minimizes(job))
    assert best is not None
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(trials, _minimizes(job)))
    machines = job["TrainingJobDefinition"]["ResourceConfig"]
    seconds = sum(trial.seconds or 0 for trial in trials)
    hour = prices.hour(machines["InstanceType"])
    cost = "" if hour is None else f", ${seconds / 3600 * machines['InstanceCount'] * hour:.2f} on demand"
    objective = job["HyperParameterTuningJobConfig"]["HyperParameterTuningJobObjective"]["MetricName"]
    found = " ".join(f"{key}={_short(value)}" for key, value in sorted(best.settings.items()))
    return [
        "",
        *(line.rstrip() for line in captured.get().rstrip().split("\n")),
        "",
        f"{len(trials)} trials, {seconds:,.0f} s of training{cost}.",
        f"Best: {objective}={best.value:.6f} with {found} ({best.name})",
        "",
        f"{folder}/",
        "  trials.csv   every trial",
        "  search.png   the objective over each parameter, and the history",
        "  best.yaml    the winner",
        "",
        f"Train with it: {command(config, best)}",
    ]


def _plot(trials: Sequence[Trial], keys: Sequence[str], objective: str, minimize: bool, file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    done = [trial for trial in trials if trial.value is not None and math.isfinite(trial.value)]
    values = [float(trial.value or 0) for trial in done]
    figure, axes = pyplot.subplots(1, 1 + len(keys), figsize=(4.2 * (1 + len(keys)), 3.6), sharey=True, squeeze=False)
    history, *others = axes[0]
    so_far = [(min if minimize else max)(values[: n + 1]) for n in range(len(values))]
    history.step(range(len(values)), so_far, where="post", color="#2563eb", label="best so far")
    history.scatter(range(len(values)), values, color="#2563eb", s=18)
    history.set(xlabel="trial", ylabel=objective, title="history")
    history.legend(frameon=False)
    for axis, key in zip(others, keys, strict=True):
        texts = [trial.settings.get(key, "") for trial in done]
        numbers = [_number(text) for text in texts]
        if len(set(texts)) > 6 and all(number is not None and number > 0 for number in numbers):
            axis.set_xscale("log")
            positions: list[Any] = numbers
        else:
            known = sorted(set(texts), key=lambda text: (_number(text) is None, _number(text) or 0, text))
            axis.set_xticks(range(len(known)), known)
            positions = [known.index(text) for text in texts]
        axis.scatter(positions, values, color="#2563eb", s=18)
        axis.set(xlabel=key, title=key)
    figure.tight_layout()
    with atomic_write(file) as beside:
        figure.savefig(beside, format="png", dpi=110)
    pyplot.close(figure)
