"""The group search as a tuning job's ranges, objective and limits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.config.compose import ranges
from dogbreed.config.overrides import to_wire
from dogbreed.core.errors import DogbreedError

STRATEGIES = {"bayesian": "Bayesian", "random": "Random", "hyperband": "Hyperband", "grid": "Grid"}
OBJECTIVES = ("val_loss", "val_acc", "average test loss")
LOCAL_OBJECTIVES = ("val_loss", "val_acc")  # of a search in one job, which is the local one


def parameter_ranges(config: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the search's space as the tuner's ranges, by their kind.

    Raises:
        DogbreedError: A range is impossible, or a choice cannot travel as a hyperparameter.
    """
    kinds: dict[str, list[dict[str, Any]]] = {
        "ContinuousParameterRanges": [],
        "IntegerParameterRanges": [],
        "CategoricalParameterRanges": [],
    }
    for key, bounds in ranges(config["search"]["space"]).items():
        (name,) = to_wire({key: 0})
        if "choices" in bounds:
            values = [to_wire({key: choice})[name] for choice in bounds["choices"]]
            kinds["CategoricalParameterRanges"].append({"Name": name, "Values": values})
            continue
        low, high = bounds["low"], bounds["high"]
        whole = isinstance(low, int) and isinstance(high, int)
        scaling = "Logarithmic" if bounds["log"] else "Linear"
        kinds["IntegerParameterRanges" if whole else "ContinuousParameterRanges"].append(
            {"Name": name, "MinValue": str(low), "MaxValue": str(high), "ScalingType": scaling}
        )
    return {kind: parameters for kind, parameters in kinds.items() if parameters}


def check_search(config: Mapping[str, Any], objectives: Sequence[str] = OBJECTIVES) -> None:
    """Refuse a search that would fail once it runs.

    Args:
        config: A composed configuration.
        objectives: That this way of searching knows.

    Raises:
        DogbreedError: Says what is wrong with it.
    """
    search = config["search"]
    ranges(search["space"])
    for key in ("trials", "parallel"):
        if search[key] < 1:
            raise DogbreedError(f"search.{key}={search[key]} is out of range; it is a whole number from 1.")
    if search["objective"] not in objectives:
        raise DogbreedError(
            f"search.objective={search['objective']} is unknown; here it is one of {', '.join(objectives)}."
        )
    if search["direction"] not in ("minimize", "maximize"):
        raise DogbreedError(f"search.direction={search['direction']} is unknown; it is minimize or maximize.")
    if (search["objective"] == "val_acc") != (search["direction"] == "maximize"):
        raise DogbreedError(
            f"search.direction={search['direction']} does not fit search.objective={search['objective']}: a loss is "
            "minimized, an accuracy maximized."
        )


def job_count(config: Mapping[str, Any], parameters: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """Return how many training jobs a tuning job starts: `search.trials`, but of a grid every combination.

    SageMaker refuses a grid with another number, smaller or larger.
    """
    if config["sagemaker"]["strategy"] != "grid":
        return int(config["search"]["trials"])
    return math.prod(len(parameter["Values"]) for parameter in parameters.get("CategoricalParameterRanges", ()))


def tuning_config(config: Mapping[str, Any], parameters: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return HyperParameterTuningJobConfig.

    Args:
        config: A composed configuration.
        parameters: The ranges, by their kind.

    Raises:
        DogbreedError: The strategy is unknown, or does not fit the ranges.
    """
    check_search(config)
    search, strategy = config["search"], config["sagemaker"]["strategy"]
    if strategy not in STRATEGIES:
        raise DogbreedError(f"sagemaker.strategy={strategy} is unknown; it is one of {', '.join(STRATEGIES)}.")
    if strategy == "grid" and set(parameters) != {"CategoricalParameterRanges"}:
        raise DogbreedError(
            "sagemaker.strategy=grid tries every combination, so it takes choices only; give "
            "'search.space={model: {lr: {choices: [0.001,0.01,0.1]}}}', or another strategy."
        )
    if config["sagemaker"]["warm_start"] and strategy not in ("bayesian", "random"):
        raise DogbreedError(
            f"sagemaker.warm_start cannot go with sagemaker.strategy={strategy}: SageMaker learns from an earlier "
            "search with bayesian and random alone."
        )
    count = job_count(config, parameters)
    fields: dict[str, Any] = {
        "Strategy": STRATEGIES[strategy],
        "HyperParameterTuningJobObjective": {
            "Type": search["direction"].capitalize(),
            "MetricName": search["objective"],
        },
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": count,
            "MaxParallelTrainingJobs": min(search["parallel"], count),
        },
        "ParameterRanges": parameters,
        "TrainingJobEarlyStoppingType": "Auto" if search["prune"] and strategy != "hyperband" else "Off",
        "RandomSeed": config["seed"] + 1,  # above 0, so that no client takes it for one that was not given
    }
    if strategy == "hyperband":
        # It decides itself when to stop a trial, from the value of each epoch.
        epochs = {"MinResource": 1, "MaxResource": config["trainer"]["max_epochs"]}
        fields["StrategyConfig"] = {"HyperbandStrategyConfig": epochs}
    return fields
