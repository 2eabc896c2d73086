"""The configuration: where it lies, composing it to a plain dict, checking it, and saying what is wrong with it."""

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException
from yaml import YAMLError

from dogbreed.config.overrides import SHORT, quote_path
from dogbreed.config.settings import Config, accepts, hints_of, normalized, path_keys, refusal
from dogbreed.core.errors import DogbreedError

CONFIG_NAME = "config"
VERSION_BASE = "1.3"

# Mappings whose keys a person chooses. What is given for one replaces it; a key below it is added.
OPEN_KEYS = ("loggers", "search.space", "debugger.collections", "sagemaker.tags", "sagemaker.environment")

# A value with commas is one list here, not one run for each of its parts.
LISTS = ("data.split",)

# What a person most likely means who gives a group a value that is not one of its files.
_MEANT = {"data": "data.root", "model": "model.backbone", "cache": "cache.mode"}

# What some keys are called elsewhere.
_OTHER_NAMES = {"learning_rate": "model.lr", "gpus": "trainer.devices", "dataset": "data.root"}


class ConfigError(DogbreedError):
    """The configuration, or an override of it, is wrong."""


def conf_dir() -> Path:
    """The folder of the configuration: in the package where a wheel is installed, beside the package in a checkout.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    places = (package / "conf", package.parent / "conf")
    for place in places:
        if (place / f"{CONFIG_NAME}.yaml").is_file():
            return place
    raise ConfigError(
        f"The folder conf/ with {CONFIG_NAME}.yaml is neither in {places[0].parent} nor in {places[1].parent}; "
        "install the package again, or copy conf/ along with dogbreed/"
    )


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Composes the configuration as the command line would, and leaves Hydra's global state as it was.

    Args:
        overrides: In Hydra's form, `key=value`; flags such as `--lr 0.1` are for `hyperparameters.to_overrides`.

    Returns:
        The configuration as plain dicts, lists and scalars, resolved and checked.

    Raises:
        ConfigError: An override is malformed, or names or sets something that does not exist.
    """
    config = _compose(overrides)
    check(config)
    return config


def _compose(overrides: Sequence[str]) -> dict[str, Any]:
    folder = str(conf_dir())
    prepared = prepare(overrides)
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(folder, version_base=VERSION_BASE):
            return plain(hydra_compose(CONFIG_NAME, prepared))
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
        raise explain(error) from error
    finally:
        GlobalHydra.instance().hydra = running


def prepare(overrides: Iterable[str], *, sweeps: bool = False) -> list[str]:
    """Check the form of overrides, quote paths, and open the mappings whose keys a person chooses, `OPEN_KEYS`.

    Hydra itself wants `++loggers.csv.name=a` for a new key, and merges a mapping into the one that is there. What
    this returns, it takes again unchanged.

    Args:
        overrides: In Hydra's form, `key=value`; paths need none of Hydra's quotes.
        sweeps: With `--multirun`, where `model.weights=none,imagenet` means one run with each.

    Raises:
        ConfigError: An override is malformed.
    """
    parser = OverridesParser.create()
    prepared: list[str] = []
    for text in overrides:
        name, _, value = text.partition("=")
        if value and name.lstrip("+") in path_keys() and not (sweeps and is_sweep(text)):
            text = f"{name}={quote_path(value)}"
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise ConfigError(_malformed(text)) from error
        key = override.key_or_group
        if not key:
            raise ConfigError(_malformed(text))
        if override.is_add() or override.is_force_add() or override.is_delete() or text == f"{key}=null":
            prepared.append(text)
        elif key in LISTS and override.is_sweep_override():
            prepared.append(f"{key}=[{text.partition('=')[2]}]")
        elif key in OPEN_KEYS:
            prepared += [f"{key}=null", f"++{text}"]  # null first: else Hydra merges the two mappings
        elif key.startswith(tuple(f"{name}." for name in OPEN_KEYS)):
            prepared.append(f"++{text}")
        else:
            prepared.append(text)
    return prepared


def is_sweep(text: str) -> bool:
    """Tell whether an override has several values, of which `--multirun` takes one after the other."""
    try:
        return bool(OverridesParser.create().parse_override(text).is_sweep_override())
    except HydraException:
        return False


def plain(config: DictConfig) -> dict[str, Any]:
    """The configuration as plain dicts, lists and scalars, with its interpolations resolved.

    Raises:
        ConfigError: An interpolation leads nowhere, for example to an environment variable that is not set.
    """
    try:
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(container, dict)
    return normalized({str(key): value for key, value in container.items()})


def check(config: Mapping[str, Any]) -> None:
    """Check that a configuration has the keys of conf/, no more and no fewer, and values that they take.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of another kind or not one of the choices.
    """
    _check(_defaults(), config, "", Config)
    values = flatten(config)
    for key in path_keys() - {"data.root"}:  # of which the data say how they are fetched
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(values.get(key))) and not key.startswith("sagemaker."):
            raise ConfigError(f"{key}={values[key]} is no path of this machine; copy what is there to one, or from one")


@cache
def _defaults() -> dict[str, Any]:
    return _compose(())


def _check(defaults: Mapping[str, Any], config: Mapping[str, Any], above: str, group: Any = None) -> None:
    """Check one level: by the types of a group, or by the kinds of the defaults where it is a plain mapping."""
    for name in config:
        if name not in defaults:
            raise _unknown(f"{above}{name}")
    hints = dict(hints_of(group)) if group else {}
    for name, default in defaults.items():
        key = f"{above}{name}"
        if name not in config:
            raise ConfigError(f"{key} is missing; a key of the configuration can be changed, but not removed")
        value = config[name]
        if key in OPEN_KEYS:
            if not isinstance(value, Mapping | None):
                raise ConfigError(f"{key} must be a mapping, such as {{name: {{}}}}, not {value!r}")
        elif isinstance(default, Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} has keys of its own, such as {key}.{next(iter(default))}; set one of those")
            _check(default, value, f"{key}.", hints.get(name) if is_dataclass(hints.get(name)) else None)
        elif name in hints:
            if not accepts(hints[name], value):
                raise ConfigError(refusal(key, hints[name], value))
        else:
            _check_kind(key, default, value)


def _check_kind(key: str, default: Any, value: Any) -> None:
    trainer = key.startswith("trainer.")  # Lightning takes null, and a count for a switch, in most places
    if default is None or (value is None and trainer):
        return
    switch = trainer and isinstance(default, bool) and accepts(int, value)
    if not (accepts(type(default), value) or switch or (trainer and isinstance(default, str))):
        raise ConfigError(refusal(key, type(default), value))


def known_keys() -> list[str]:
    """Every key that can be set, dotted, without those that a person adds below `OPEN_KEYS`."""
    below = tuple(f"{name}." for name in OPEN_KEYS)
    return [key for key in flatten(_defaults()) if not key.startswith(below)] + list(OPEN_KEYS) + ["experiment"]


def ranges(space: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The ranges of `search.space` by dotted key.

    Args:
        space: Nested as the configuration is; a range is a mapping of `low`, `high` and, if wanted, `log`, or of
            `choices`.

    Returns:
        `{"model.lr": {"low": 0.001, "high": 0.1, "log": True}, "data.batch_size": {"choices": [32, 64]}}`

    Raises:
        ConfigError: There is no range, a range is impossible, or a key is not one of the configuration's.
    """
    found = dict(_ranges(space or {}, ""))
    if not found:
        raise ConfigError("search.space is empty; give a range, such as search.space.model.lr.low=0.001 with .high=0.1")
    known = set(known_keys()) - set(OPEN_KEYS)
    for key, bounds in found.items():
        if key not in known:
            raise _unknown(key, "search.space.")
        _check_range(f"search.space.{key}", bounds)
    return found


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


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """A nested configuration by dotted key; lists and empty mappings count as values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{below}": leaf for below, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys whose values differ, or that only one of the two has, in alphabetical order."""
    before, after = flatten(old), flatten(new)
    absent = object()
    return sorted(key for key in before.keys() | after.keys() if before.get(key, absent) != after.get(key, absent))


def to_yaml(config: Mapping[str, Any]) -> str:
    """A configuration as YAML that Hydra reads back to the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def explain(error: Exception) -> ConfigError:
    """Says in one sentence what Hydra's or OmegaConf's error means, with the nearest name that exists."""
    if isinstance(error, ConfigError):
        return error
    message = str(error)
    if found := re.match(r"Could not (?:override|delete from config\.) '([^'@]+)'", message):
        return _unknown(found[1].partition("=")[0])
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\n\t[^\n]+)*)", message):
        return _unknown_option(found[1], found[2], found[3].split())
    if found := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", message):
        return ConfigError(
            f"{found[1]} is given several values, {found[2]}; add --multirun to run once with each, "
            f"or write {found[1]}=[{found[2]}] for a list"
        )
    if found := re.match(r"Multiple values for (\S+)\. ", message):
        return ConfigError(f"{found[1]} is given twice; write {found[1]}=NAME, without a plus")
    if found := re.match(r"Config group override must be", message):
        return ConfigError("A group takes the name of one of its files; set a key of it with group.key=value")
    if isinstance(error, InterpolationResolutionError) and (found := re.search(r"variable '(.+?)' not found", message)):
        return ConfigError(f"{_key_of(error)} refers to the environment variable {found[1]}, which is not set")
    if isinstance(error, OmegaConfBaseException) and _key_of(error):
        return ConfigError(f"{_key_of(error)}: {_first_line(message)}")
    if isinstance(error, YAMLError):
        return ConfigError("A file of the configuration is not valid YAML: " + " ".join(message.split()))
    return ConfigError(_first_line(message))


def _unknown(key: str, prefix: str = "") -> ConfigError:
    near = _nearest(key)
    way_out = f"did you mean {prefix}{near}?" if near else "--cfg job shows all keys"
    return ConfigError(f"Unknown key {prefix}{key}; {way_out}")


def _unknown_option(found: str, group: str, options: list[str]) -> ConfigError:
    option = found.removeprefix(f"{group}/")
    near = difflib.get_close_matches(option, options, 1)
    if near:
        way_out = f"; did you mean {group}={near[0]}?"
    elif group in _MEANT:
        way_out = f"; did you mean {_MEANT[group]}={option}?"
    else:
        way_out = ""
    return ConfigError(f"There is no {group} called {option}, only {_listed(options)}{way_out}")


def _malformed(text: str) -> str:
    key, equals, value = text.partition("=")
    if equals and re.fullmatch(r"[~+]*[A-Za-z_][\w./@-]*", key):
        flag = shlex.quote(f"--{key.lstrip('~+').replace('.', '__')}={value}")  # whose value is quoted for Hydra
        return f"The value of {key} cannot be read: {value}; for this very text write {flag}"
    if (conf_dir() / "experiment" / f"{text}.yaml").is_file():
        return f"{text} is not an override; did you mean experiment={text}?"
    return f"{text} is not an override; write key=value, as in data.batch_size=64, or --batch-size 64"


def _nearest(key: str) -> str | None:
    """The key that was most likely meant: the one below which this one lies, or with the most similar last part."""
    wanted = key.lower().replace("-", "_")
    group, _, last = wanted.rpartition(".")
    names = {known: known.rpartition(".")[2] for known in [*known_keys(), *_defaults()]}
    likeness = {
        known: _likeness(last, name) + 0.01 * (known.rpartition(".")[0] == group) for known, name in names.items()
    }
    for other, known in {**SHORT, **_OTHER_NAMES}.items():
        likeness[known] = max(likeness[known], _likeness(last, other.replace("-", "_")))
    if group in likeness and group not in _defaults():
        return group
    best = max(likeness, key=lambda known: likeness[known])
    return best if likeness[best] > 0.7 else None


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _key_of(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or "")


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0].rstrip(".")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
