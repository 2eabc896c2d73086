"""What proposes the settings of a search and what stops poor trials: Optuna's samplers and pruners, by name."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import join

GRID = "grid"
# CMA-ES is missing on purpose: it keeps its state in the storage as a pickle.
SAMPLERS = {"tpe": "TPESampler", "random": "RandomSampler", "qmc": "QMCSampler", "gp": "GPSampler"}
PRUNERS = {
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
}


def named(key: str, value: Any, known: Mapping[str, str] | tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of a setting that is a name, or a list of a name and its arguments.

    Raises:
        DogbreedError: It is neither, or nobody knows the name.
    """
    name, arguments = value if isinstance(value, list) and len(value) == 2 else (value, {})
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        raise DogbreedError(f"{key} is a name, or [NAME,{{ARGUMENT: VALUE}}], not {value!r}.")
    if name not in known:
        raise DogbreedError(f"{key}={name} is unknown; it is {join(list(known), 'or')}.")
    return name, dict(arguments)


def sampler(optuna: Any, value: Any, seed: int, round_seed: int) -> Any | None:
    """Return Optuna's sampler; None for a grid, whose combinations are proposed one after the other.

    Args:
        optuna: The module.
        value: `search.sampler`.
        seed: Of the whole search, for what continues a sequence.
        round_seed: Of the round, for what begins anew with each.

    Raises:
        DogbreedError: It is unknown, or does not take its arguments.
    """
    name, arguments = named("search.sampler", value, (*SAMPLERS, GRID))
    if name == GRID:
        if arguments:
            raise DogbreedError("search.sampler=grid takes no arguments.")
        return None
    if "seed" in arguments:
        raise DogbreedError("search.sampler takes no seed; each round has one of its own, which follows from seed=.")
    own: dict[str, Any] = {"seed": seed if name == "qmc" else round_seed}
    if name == "tpe":
        own["constant_liar"] = True  # trials of one round should not all be the same
    elif name == "qmc":
        own |= {"warn_asynchronous_seeding": False, "warn_independent_sampling": False}
    return _made("search.sampler", getattr(optuna.samplers, SAMPLERS[name]), {**own, **arguments})


def pruner(optuna: Any, value: Any) -> Any | None:
    """Return Optuna's pruner; None where nothing is stopped or the median of all trials decides.

    Raises:
        DogbreedError: It is unknown, or does not take its arguments.
    """
    if value is None or isinstance(value, bool):
        return None
    name, arguments = named("search.prune", value, PRUNERS)
    return _made("search.prune", getattr(optuna.pruners, PRUNERS[name]), arguments)


def _made(key: str, kind: Any, arguments: Mapping[str, Any]) -> Any:
    try:
        return kind(**arguments)
    except ImportError as error:
        package = error.name or "more"
        raise DogbreedError(f"{key}: {kind.__name__} needs {package}: pip install {package}") from error
    except Exception as error:  # of whatever kind: all that can fail are the arguments
        raise DogbreedError(f"{key}: {kind.__name__} refuses its arguments: {' '.join(str(error).split())}") from error


def combinations(space: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return all combinations of a space of choices.

    Raises:
        DogbreedError: Something is a range.
    """
    for key, bounds in space.items():
        if "choices" not in bounds:
            raise DogbreedError(
                f"search.sampler=grid tries every combination, so it takes choices only; {key} ranges from "
                f"{bounds['low']} to {bounds['high']}."
            )
    choices = (bounds["choices"] for bounds in space.values())
    return [dict(zip(space, values, strict=True)) for values in product(*choices)]


def distribution(optuna: Any, bounds: Mapping[str, Any]) -> Any:
    """Return Optuna's distribution over a range or over choices."""
    if "choices" in bounds:
        return optuna.distributions.CategoricalDistribution(bounds["choices"])
    low, high, log = bounds["low"], bounds["high"], bool(bounds.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return optuna.distributions.IntDistribution(low, high, log=log)
    return optuna.distributions.FloatDistribution(low, high, log=log)
