"""The group search as a tuning job's ranges, objective and limits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.config.compose import default_config
from dogbreed.config.overrides import to_wire
from dogbreed.config.search_space import check_search, ranges
from dogbreed.core.errors import DogbreedError

STRATEGIES = {"bayesian": "Bayesian", "random": "Random", "hyperband": "Hyperband", "grid": "Grid"}
SCALINGS = ("Auto", "Linear", "Logarithmic", "ReverseLogarithmic")
ONCE = "average test loss"  # has one value per job, at its end
OBJECTIVES = ("val_loss", "val_acc", ONCE)
BAYESIAN_PARALLEL = 4
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
        scaling = config["sagemaker"]["scaling"] or ("Logarithmic" if bounds["log"] else "Linear")
        kinds["IntegerParameterRanges" if whole else "ContinuousParameterRanges"].append(
            {"Name": name, "MinValue": str(low), "MaxValue": str(high), "ScalingType": scaling}
        )
    return {kind: parameters for kind, parameters in kinds.items() if parameters}


def job_count(config: Mapping[str, Any], parameters: Mapping[str, Sequence[Mapping[str, Any]]]) -> int:
    """Return how many training jobs a tuning job starts: `search.trials`, but of a grid every combination.

    SageMaker refuses a grid with another number, smaller or larger.
    """
    if config["sagemaker"]["strategy"] != "grid":
        return int(config["search"]["trials"])
    return math.prod(len(parameter["Values"]) for parameter in parameters.get("CategoricalParameterRanges", ()))


def parallel_jobs(config: Mapping[str, Any]) -> int:
    """Return how many training jobs run at a time.

    A Bayesian search learns between its rounds only: 20 trials by 10 at a time would be two.
    """
    search, cloud = config["search"], config["sagemaker"]
    if cloud["parallel"] is not None:
        return int(cloud["parallel"])
    usual = search["parallel"] == default_config()["search"]["parallel"]
    return BAYESIAN_PARALLEL if usual and cloud["strategy"] == "bayesian" else int(search["parallel"])


def completion_criteria(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return TuningJobCompletionCriteria; empty where there are none.

    Raises:
        DogbreedError: The strategy knows no such criterion.
    """
    end, strategy = config["sagemaker"]["stop_search"], config["sagemaker"]["strategy"]
    criteria: dict[str, Any] = {}
    if end["at"] is not None:
        criteria["TargetObjectiveMetricValue"] = float(end["at"])
    if end["not_improving"] is not None:
        count = {"MaxNumberOfTrainingJobsNotImproving": end["not_improving"]}
        criteria["BestObjectiveNotImproving"] = count
    if end["converged"]:
        criteria["ConvergenceDetected"] = {"CompleteOnConvergence": "Enabled"}
    if criteria.keys() - {"TargetObjectiveMetricValue"} and strategy != "bayesian":
        raise DogbreedError(
            "sagemaker.stop_search.not_improving and .converged are for a Bayesian search, not for "
            f"sagemaker.strategy={strategy}."
        )
    return criteria


def stops_early(config: Mapping[str, Any]) -> bool:
    """Return whether SageMaker may stop a trial by its epochs, of which an objective with one value says nothing."""
    search = config["search"]
    return bool(search["prune"] and search["objective"] != ONCE and config["sagemaker"]["strategy"] != "hyperband")


def tuning_config(config: Mapping[str, Any], parameters: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return HyperParameterTuningJobConfig.

    Args:
        config: A composed configuration.
        parameters: The ranges, by their kind.

    Raises:
        DogbreedError: The strategy is unknown, or does not fit the ranges.
    """
    check_search(config["search"], OBJECTIVES)
    search, cloud = config["search"], config["sagemaker"]
    strategy = cloud["strategy"]
    if strategy not in STRATEGIES:
        raise DogbreedError(f"sagemaker.strategy={strategy} is unknown; it is one of {', '.join(STRATEGIES)}.")
    if strategy == "grid" and set(parameters) != {"CategoricalParameterRanges"}:
        raise DogbreedError(
            "sagemaker.strategy=grid tries every combination, so it takes choices only; give "
            "'search.space={model: {lr: {choices: [0.001,0.01,0.1]}}}', or another strategy."
        )
    if cloud["warm_start"] and strategy not in ("bayesian", "random"):
        raise DogbreedError(
            f"sagemaker.warm_start cannot go with sagemaker.strategy={strategy}: SageMaker learns from an earlier "
            "search with bayesian and random alone."
        )
    if cloud["scaling"] not in (None, *SCALINGS):
        raise DogbreedError(f"sagemaker.scaling={cloud['scaling']} is unknown; it is one of {', '.join(SCALINGS)}.")
    count = job_count(config, parameters)
    fields: dict[str, Any] = {
        "Strategy": STRATEGIES[strategy],
        "HyperParameterTuningJobObjective": {
            "Type": search["direction"].capitalize(),
            "MetricName": search["objective"],
        },
        "ResourceLimits": {
            "MaxNumberOfTrainingJobs": count,
            "MaxParallelTrainingJobs": min(parallel_jobs(config), count),
            **({"MaxRuntimeInSeconds": cloud["max_search"]} if cloud["max_search"] else {}),
        },
        "ParameterRanges": parameters,
        "TrainingJobEarlyStoppingType": "Auto" if stops_early(config) else "Off",
        "RandomSeed": config["seed"] + 1,  # above 0, so that no client takes it for one that was not given
    }
    if criteria := completion_criteria(config):
        fields["TuningJobCompletionCriteria"] = criteria
    if strategy == "hyperband":
        # It decides itself when to stop a trial, from the value of each epoch.
        epochs = {"MinResource": 1, "MaxResource": config["trainer"]["max_epochs"]}
        fields["StrategyConfig"] = {"HyperbandStrategyConfig": epochs}
    return fields
