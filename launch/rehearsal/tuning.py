"""The training jobs that a tuning job starts: settings drawn from its ranges, and the best of them."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.rehearsal.container import Outcome, Request

# Fields of a tuning job's training definition that CreateTrainingJob has under the same name.
SHARED = (
    "RoleArn",
    "InputDataConfig",
    "VpcConfig",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
    "EnableNetworkIsolation",
    "EnableInterContainerTrafficEncryption",
    "EnableManagedSpotTraining",
    "Environment",
)


def training_requests(request: Request, count: int) -> list[dict[str, Any]]:
    """Return the first jobs that a tuning job would start, as CreateTrainingJob requests.

    Settings are drawn at random with the scale of their range (a grid is gone through in order). The service's
    Bayesian strategy draws its first ones at random, too; it then learns, which a handful cannot show.

    Args:
        request: Of CreateHyperParameterTuningJob.
        count: At most so many; a grid may have fewer points.
    """
    config, definition = request["HyperParameterTuningJobConfig"], request["TrainingJobDefinition"]
    ranges = config.get("ParameterRanges") or definition["HyperParameterRanges"]
    generator = random.Random(config.get("RandomSeed", 0))  # noqa: S311
    drawn = _grid(ranges) if config["Strategy"] == "Grid" else _random(ranges, generator)
    return [
        _training_request(request, number, values)
        for number, values in enumerate(itertools.islice(drawn, count), start=1)
    ]


def objective(request: Request) -> tuple[str, bool]:
    """Return the metric that a tuning job compares, and whether less of it is better."""
    config = request["HyperParameterTuningJobConfig"]
    goal = config.get("HyperParameterTuningJobObjective") or request["TrainingJobDefinition"]["TuningObjective"]
    return goal["MetricName"], goal["Type"] == "Minimize"


def best(values: Sequence[float | None], *, minimize: bool) -> int | None:
    """Return the index of the best value, None where there is none. As at the service, only finite values can win."""
    finite = [
        (value if minimize else -value, i)
        for i, value in enumerate(values)
        if value is not None and math.isfinite(value)
    ]
    return min(finite)[1] if finite else None


def tuned(request: Request, training: Request) -> dict[str, str]:
    """Return those of a training job's hyperparameters that the tuning job has chosen."""
    fixed = request["TrainingJobDefinition"].get("StaticHyperParameters", {})
    return {
        name: value
        for name, value in training["HyperParameters"].items()
        if name not in fixed and not name.startswith("_")
    }


def table(
    outcomes: Sequence[Outcome],
    chosen: Sequence[Mapping[str, str]],
    values: Sequence[float | None],
    metric: str,
    best: int,
) -> str:
    """Return the trials of a tuning job as a table, and the best of them.

    Args:
        outcomes: Of the trials.
        chosen: Their tuned hyperparameters.
        values: The objective's last value of each.
        metric: The objective's name.
        best: Index of the best trial.
    """
    names = list(chosen[0])
    rows = [["", "trial", *names, metric, "cache", "status", "seconds"]]
    for index, (outcome, settings, value) in enumerate(zip(outcomes, chosen, values, strict=True)):
        shown = "" if value is None else f"{value:g}"
        mark = "*" if index == best else ""
        last = (outcome.cache, outcome.status, f"{outcome.seconds:.0f}")
        rows.append([mark, str(index + 1), *settings.values(), shown, *last])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    winner = ", ".join(f"{name} {value}" for name, value in chosen[best].items())
    return "\n".join(["", *lines, "", f"Best by {metric}, as the service chooses: trial {best + 1}, {winner}."])


def _training_request(request: Request, number: int, values: Mapping[str, str]) -> dict[str, Any]:
    definition = request["TrainingJobDefinition"]
    name = f"{request['HyperParameterTuningJobName']}-{number:03d}"
    algorithm = {key: value for key, value in definition["AlgorithmSpecification"].items() if key != "AlgorithmName"}
    training: dict[str, Any] = {
        "TrainingJobName": name,
        "AlgorithmSpecification": algorithm,
        "HyperParameters": {
            **definition.get("StaticHyperParameters", {}),
            **values,
            "_tuning_objective_metric": objective(request)[0],
        },
        **{key: definition[key] for key in SHARED if key in definition},
    }
    if "CheckpointConfig" in definition:  # a folder of its own, else a trial would resume from another one's weights
        shared = definition["CheckpointConfig"]
        training["CheckpointConfig"] = {**shared, "S3Uri": f"{shared['S3Uri'].rstrip('/')}/{name}"}
    return training


def _random(ranges: Mapping[str, Any], generator: random.Random) -> Iterator[dict[str, str]]:
    while True:
        values: dict[str, str] = {}
        for each in ranges.get("ContinuousParameterRanges", ()):
            values[each["Name"]] = repr(_draw(each, generator))
        for each in ranges.get("IntegerParameterRanges", ()):
            low, high = int(each["MinValue"]), int(each["MaxValue"])
            values[each["Name"]] = str(min(max(round(_draw(each, generator)), low), high))
        for each in ranges.get("CategoricalParameterRanges", ()):
            values[each["Name"]] = generator.choice(each["Values"])
        yield values


def _draw(bounds: Mapping[str, str], generator: random.Random) -> float:
    low, high, scale = float(bounds["MinValue"]), float(bounds["MaxValue"]), bounds.get("ScalingType", "Auto")
    if scale == "Logarithmic":
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    elif scale == "ReverseLogarithmic":
        value = 1 - math.exp(generator.uniform(math.log(1 - high), math.log(1 - low)))
    elif scale in ("Auto", "Linear"):
        value = generator.uniform(low, high)
    else:
        raise DogbreedError(f"The range of {bounds['Name']} has the unknown scale {scale}.")
    return min(max(value, low), high)


def _grid(ranges: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    choices = ranges.get("CategoricalParameterRanges", ())
    names = [each["Name"] for each in choices]
    for values in itertools.product(*(each["Values"] for each in choices)):
        yield dict(zip(names, values, strict=True))
