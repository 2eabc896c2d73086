"""The group `search`: its ranges by dotted key, and whether its settings make sense."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dogbreed.config.compose import OPEN_KEYS, ConfigError, known_keys, unknown_key


def check_search(search: Mapping[str, Any], objectives: Sequence[str]) -> None:
    """Check the settings of a search other than its ranges.

    Args:
        search: The group.
        objectives: What this search can look for.

    Raises:
        ConfigError: A setting is unknown or out of range.
    """
    for key, least in (("trials", 1), ("parallel", 1), ("seeds", 0)):
        if search[key] < least:
            raise ConfigError(f"search.{key}={search[key]} is out of range; it is a whole number from {least}.")
    objective, direction = search["objective"], search["direction"]
    if objective not in objectives:
        hint = "" if any("test" in name for name in objectives) else " The test split is not for choosing."
        raise ConfigError(f"search.objective={objective} is unknown; here it is one of {', '.join(objectives)}.{hint}")
    if direction not in ("minimize", "maximize"):
        raise ConfigError(f"search.direction={direction} is unknown; it is minimize or maximize.")
    if (objective == "val_acc") != (direction == "maximize"):
        raise ConfigError(
            f"search.direction={direction} does not fit search.objective={objective}: a loss is minimized, an accuracy "
            "maximized."
        )


def ranges(space: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return the ranges of `search.space` by dotted key.

    Args:
        space: Nested as the configuration is; a range is a mapping of `low`, `high` and, if wanted, `log`, or of
            `choices`.

    Returns:
        `{"model.lr": {"low": 0.001, "high": 0.1, "log": True}, "data.batch_size": {"choices": [32, 64]}}`

    Raises:
        ConfigError: There is no range, a range is impossible, or a key is not one of the configuration's.
    """
    bounds_of = dict(_ranges(space or {}, ""))
    if not bounds_of:
        raise ConfigError("search.space is empty; give a range, such as search.space.model.lr.low=0.001 with .high=0.1")
    known = set(known_keys()) - set(OPEN_KEYS)
    for key, bounds in bounds_of.items():
        if key not in known:
            raise unknown_key(key, "search.space.")
        _check_range(f"search.space.{key}", bounds)
    return bounds_of


def _ranges(space: Mapping[str, Any], above: str) -> Iterable[tuple[str, dict[str, Any]]]:
    for name, value in space.items():
        key = f"{above}{name}"
        if not isinstance(value, Mapping):
            raise ConfigError(f"search.space.{key} must be a range, low and high or choices, not {value!r}")
        if {"low", "high", "choices"} & set(value):
            yield key, {"log": False, **value} if "choices" not in value else dict(value)
        else:
            yield from _ranges(value, f"{key}.")


def _check_range(key: str, bounds: Mapping[str, Any]) -> None:
    if "choices" in bounds:
        if set(bounds) != {"choices"}:
            raise ConfigError(f"{key} has both choices and low, high or log; keep one of the two")
        if not isinstance(bounds["choices"], list) or not bounds["choices"]:
            raise ConfigError(f"{key}.choices must be a list of values, such as [32,64]")
        return
    if set(bounds) != {"low", "high", "log"}:
        raise ConfigError(f"{key} must have low and high, and may have log, but has {', '.join(bounds)}")
    low, high = bounds["low"], bounds["high"]
    for end in (low, high):
        if isinstance(end, bool) or not isinstance(end, int | float):
            raise ConfigError(f"{key} must range between two numbers, not {end!r}")
    if not low < high:
        raise ConfigError(f"{key} ranges from {low} to {high}; low must be less than high")
    if bounds["log"] and low <= 0:
        raise ConfigError(f"{key} starts at {low}; a logarithmic range must start above 0")
