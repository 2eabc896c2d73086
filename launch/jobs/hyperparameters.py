"""The settings that travel to a job: what differs from what it composes by itself."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from dogbreed.config.compose import compose, conf_dir, diff, flatten
from dogbreed.core.errors import DogbreedError
from launch.aws import tracking

# Settings that concern this machine, or that the container decides.
STAYS_HERE = (
    *("sagemaker", "mode", "job", "output_dir", "resume", "progress", "cache.dir"),
    *("data.root", "data.download", "data.url", "data.source"),
    *("search.storage", "search.seeds"),  # a job has a study of its own, and trains with the winner at once
    tracking.KEY,  # a variable carries it: a hyperparameter could not
)
LOGGERS = (["tensorboard"], ["csv"], ["mlflow"])  # groups that a job has the packages for


def settings(config: Mapping[str, Any], experiment: str | None, *, with_search: bool = False) -> dict[str, Any]:
    """Return the settings that travel: what differs from what the job composes by itself, by dotted key.

    Args:
        config: A composed configuration.
        experiment: The experiment that it was composed with.
        with_search: Whether the search group travels too.

    Raises:
        DogbreedError: A key was taken out, which cannot travel.
    """
    travels: dict[str, Any] = {}
    if experiment and (conf_dir() / "experiment" / f"{experiment}.yaml").is_file():
        travels["experiment"] = experiment
    base = _base(**travels)
    source = "dogimages" if config["sagemaker"]["data"] else config["data"]["source"]
    if source != base["data"]["source"]:
        travels["data"] = source
        base = _base(**travels)
    loggers = list(config["loggers"] or {})
    if loggers in LOGGERS and loggers != list(base["loggers"]):
        travels["logger"] = loggers[0]
        base = _base(**travels)
    values = flatten(config)
    stays = (*STAYS_HERE, *(() if with_search else ("search",)))
    for key in diff(base, config):
        if any(key == name or key.startswith(f"{name}.") for name in stays):
            continue
        if key == "model.weights" and values[key] not in ("imagenet", "none"):
            continue  # a file: it has a channel
        if any(name.startswith(f"{key}.") for name in values):
            continue  # an empty mapping that has got members
        if key not in values:
            raise DogbreedError(f"{key} was taken out, which cannot travel as a hyperparameter; use an experiment file")
        travels[key] = values[key]
    return travels


@cache
def _base(**groups: str) -> dict[str, Any]:
    return compose([f"{key}={value}" for key, value in groups.items()])
