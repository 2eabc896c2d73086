"""The configuration: where it lies, composing it to a plain dict, checking it, and saying what is wrong with it."""

import difflib
import math
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

from dogbreed.config.overrides import SHORT, literal, quote_path
from dogbreed.config.resumed import find_run
from dogbreed.config.settings import Config, accepts, hints_of, normalized, path_keys, refusal
from dogbreed.core.errors import DogbreedError

CONFIG_NAME = "config"
VERSION_BASE = "1.3"
NO_FOLDER = (FileNotFoundError, FileExistsError, NotADirectoryError)  # of Hydra, which wants one of its own

# Mappings whose keys a person chooses. What is given for one replaces it; a key below it is added.
OPEN_KEYS = ("loggers", "search.space", "debugger.collections", "sagemaker.tags", "sagemaker.environment")

# Text that may hold what Hydra has a meaning for, as paths may.
ADDRESSES = ("search.storage",)

# A value with commas is one list here, not one run for each of its parts.
LISTS = ("data.split",)

_PASSWORD = re.compile(r"://[^@]*:[^@]*@|[?&]\w*pass\w*=", re.IGNORECASE)  # in a URL

# What a person most likely means who gives a group a value that is not one of its files.
_MEANT = {"data": "data.root", "model": "model.backbone", "cache": "cache.mode"}

# What some keys are called elsewhere.
_OTHER_NAMES = {"learning_rate": "model.lr", "gpus": "trainer.devices", "dataset": "data.root"}


# Where a run writes and whether it was resumed: a repeat is a new run, in a folder of its own.
_OF_ONE_RUN = ("output_dir", "overwrite", "resume", "mode", "job")
# What is asked of the cloud changes nothing here, and names accounts and keys that a report should not spread.
OF_THE_CLOUD = "sagemaker"


class ConfigError(DogbreedError):
    """The configuration, or an override of it, is wrong."""


def conf_dir() -> Path:
    """Return the folder of the configuration: in the package in a wheel, beside it in a checkout.

    Raises:
        ConfigError: It is in neither place.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / f"{CONFIG_NAME}.yaml").is_file():
            return folder
    raise ConfigError(
        f"The folder conf/ with {CONFIG_NAME}.yaml is neither in {package} nor in {package.parent}; "
        "install the package again, or copy conf/ along with dogbreed/"
    )


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose the configuration as the command line would, and leave Hydra's global state as it was.

    Args:
        overrides: In Hydra's form, `key=value`; flags such as `--lr 0.1` are for `hyperparameters.to_overrides`.

    Returns:
        The configuration as plain dicts, lists and scalars, resolved and checked.

    Raises:
        ConfigError: An override is malformed, or names or sets something that does not exist.
    """
    config = _plain_of(prepare(overrides))
    check(config)
    return config


def _plain_of(prepared: Sequence[str]) -> dict[str, Any]:
    folder = str(conf_dir())
    state = GlobalHydra.instance()
    running, state.hydra = state.hydra, None
    try:
        with initialize_config_dir(folder, version_base=VERSION_BASE):
            return plain(hydra_compose(CONFIG_NAME, list(prepared)))
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError, *NO_FOLDER) as error:
        raise explain(error) from error
    finally:
        GlobalHydra.instance().hydra = running


def prepare(overrides: Iterable[str], *, sweeps: bool = False) -> list[str]:
    """Take over the settings of a resumed run, check the form of overrides, quote paths, and open `OPEN_KEYS`.

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
    own = list(overrides)
    given = with_resumed(own)
    if _asks_for_the_default_batch(own):
        given.append("data.min_steps=0")
    for text in given:
        name, _, value = text.partition("=")
        if value and name.lstrip("+") in {*path_keys(), *ADDRESSES} and not (sweeps and is_sweep(text)):
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


def _asks_for_the_default_batch(words: Sequence[str]) -> bool:
    """Tell whether the default batch size is given in words, so that small data do not make it a smaller one."""
    values = {key.lstrip("+"): value for key, _, value in (word.partition("=") for word in words)}
    asked = values.get("data.batch_size", "")
    # Among others, too: a sweep over 256,512 asks for both.
    return "data.min_steps" not in values and asked != "" and str(default_config()["data"]["batch_size"]) in asked


def is_sweep(text: str) -> bool:
    """Tell whether an override has several values, of which `--multirun` takes one after the other."""
    try:
        return bool(OverridesParser.create().parse_override(text).is_sweep_override())
    except HydraException:
        return False


def with_resumed(overrides: Iterable[str]) -> list[str]:
    """Return overrides behind those that make the configuration of the run that they resume, if they resume one."""
    own = list(overrides)
    values = _values(own)
    file = _settings_of_resumed(values)
    if file is None:
        return own
    kept = _kept_by(file)
    kept["data"].setdefault("min_steps", 0)  # older runs took batches as they were
    groups = tuple(f"{'loggers' if key == 'logger' else f'{key}.'}" for key in values if "." not in key)
    taken_over = overrides_of({str(key): value for key, value in kept.items()})
    # What the words add or take out may be so in the run already.
    own = [f"+{text}" if re.match(r"\+[^+]", text) else text for text in own]
    own = [text for text in own if not text.startswith("~") or _has(kept, text[1:].partition("=")[0])]
    return [*(text for text in taken_over if not text.startswith(groups)), *own]


def outweighed(overrides: Iterable[str]) -> str:
    """Return the sentence that says what counts where an experiment stands beside a run that is resumed; else ""."""
    values = _values(overrides)
    file, name = _settings_of_resumed(values), values.get("experiment")
    experiment = conf_dir() / "experiment" / f"{name}.yaml"
    if file is None or not experiment.is_file():
        return ""
    kept, chosen = flatten(_kept_by(file)), flatten(_plain_file(experiment))
    keys = [key for key in chosen if key not in values and key in kept and kept[key] != chosen[key]]
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return (
        f"{file.parent} goes on with its own settings, not with those of experiment={name} (they differ in "
        f"{', '.join(keys[:3])}{more}); give as key=value what is to differ."
    )


def _values(overrides: Iterable[str]) -> dict[str, str]:
    return {key: value.strip("'\"") for key, equals, value in (text.partition("=") for text in overrides) if equals}


def _settings_of_resumed(values: Mapping[str, str]) -> Path | None:
    """Return the file with the settings that a resumed run goes on with; what may start from scratch has its own."""
    run = find_run(values.get("resume"), values.get("output_dir"))
    file = run / "config.yaml" if run is not None and values["resume"] != "auto" else None
    return file if file is not None and file.is_file() else None


def _plain_file(file: Path) -> Any:
    return OmegaConf.to_container(OmegaConf.load(file))


def _kept_by(file: Path) -> dict[Any, Any]:
    try:
        kept = _plain_file(file)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"{file} cannot be read: {_first_line(str(error))}") from error
    if not (isinstance(kept, dict) and all(isinstance(kept.get(group), dict) for group in ("data", "model"))):
        raise ConfigError(f"{file} does not hold a run's settings; remove it, and give those of the run as key=value")
    return kept


def _has(config: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(config, Mapping) or part not in config:
            return False
        config = config[part]
    return True


def overrides_of(config: Mapping[str, Any]) -> list[str]:
    """Return what turns the defaults into this configuration, in Hydra's form."""
    defaults = default_config()
    values, whole = flatten(config), {}
    for key in OPEN_KEYS:  # keys below these may also be absent, which only the whole mapping can say
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        whole[key] = value
    settings: dict[str, str] = {"data.root": literal(values.get("data.root"))}
    for key in diff(defaults, config):
        opened = next((name for name in OPEN_KEYS if key == name or key.startswith(f"{name}.")), None)
        if opened is not None:
            settings[opened] = literal(whole[opened])
        elif key in values and key not in _OF_ONE_RUN and not key.startswith(f"{OF_THE_CLOUD}."):
            settings[key] = literal(values[key])
    return [f"{key}={value}" for key, value in settings.items()]


def completed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with the keys that it lacks, such as one of an older version, and check it.

    Raises:
        ConfigError: A key is unknown, or a value is of another kind or not one of the choices.
    """
    whole = _merged(default_config(), config, "")
    check(whole)
    return whole


def _merged(defaults: Mapping[str, Any], config: Mapping[str, Any], above: str) -> dict[str, Any]:
    merged = dict(defaults) | dict(config)
    for name, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(merged[name], Mapping) and f"{above}{name}" not in OPEN_KEYS:
            merged[name] = _merged(default, merged[name], f"{above}{name}.")
    return merged


def plain(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as plain dicts, lists and scalars, with its interpolations resolved.

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
    _check(default_config(), config, "", Config)
    values = flatten(config)
    for key in path_keys() - {"data.root"}:  # of which the data say how they are fetched
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(values.get(key))) and not key.startswith("sagemaker."):
            raise ConfigError(f"{key}={values[key]} is no path of this machine; copy what is there to one, or from one")
    if _PASSWORD.search(str(values.get("search.storage"))):
        raise ConfigError(
            "search.storage holds a password, which files and logs would show; leave it out, and set "
            "DOGBREED_STORAGE_PASSWORD"
        )


@cache
def default_config() -> dict[str, Any]:
    """Return the configuration as it stands in conf/: composed once per process, and not to be changed."""
    return _plain_of(())


def has_default_batch(data: Mapping[str, Any]) -> bool:
    """Return whether the batch size in the group data is nobody's choice, and may be a smaller one."""
    return data["min_steps"] > 0 and bool(data["batch_size"] == default_config()["data"]["batch_size"])


def fitting_batch_size(data: Mapping[str, Any], images: int) -> int:
    """Return the images per step: the default is a smaller power of two where an epoch has too few steps with it.

    Args:
        data: The group data; `min_steps` says how many steps are enough.
        images: Of the train split.
    """
    size, steps = int(data["batch_size"]), data["min_steps"]
    if not has_default_batch(data) or images >= size * steps:
        return size
    return 2 ** max(1, int(math.log2(max(images, 1) / steps)))


def _check(defaults: Mapping[str, Any], config: Mapping[str, Any], above: str, group: Any = None) -> None:
    """Check one level: by the types of a group, or by the kinds of the defaults where it is a plain mapping."""
    for name in config:
        if name not in defaults:
            raise unknown_key(f"{above}{name}")
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
    """Return every key that can be set, dotted, without those that a person adds below `OPEN_KEYS`."""
    below = tuple(f"{name}." for name in OPEN_KEYS)
    own = [key for key in flatten(default_config()) if not key.startswith(below)]
    return [*own, *OPEN_KEYS, "experiment", "logger", "schedule"]


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested configuration by dotted key; lists and empty mappings count as values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{below}": leaf for below, leaf in flatten(value).items()}
        else:
            flat[str(key)] = value
    return flat


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ, or that only one of the two has, in alphabetical order."""
    before, after = flatten(old), flatten(new)
    absent = object()
    return sorted(key for key in before.keys() | after.keys() if before.get(key, absent) != after.get(key, absent))


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `diff` without the keys that an older version did not have, where they have their defaults."""
    known, values, defaults = flatten(old), flatten(new), flatten(default_config())
    return [key for key in diff(old, new) if key in known or values.get(key) != defaults.get(key)]


def to_yaml(config: Mapping[str, Any]) -> str:
    """Return a configuration as YAML that Hydra reads back to the same values."""
    return OmegaConf.to_yaml(OmegaConf.create(dict(config)))


def explain(error: Exception) -> ConfigError:
    """Say in one sentence what Hydra's or OmegaConf's error means, with the nearest name that exists."""
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, NO_FOLDER):
        return ConfigError(
            f"Hydra cannot use the folder {error.filename or 'that this was started in, which is gone'} "
            f"({error.strerror}); change to another, or leave hydra.run.dir out: output_dir= names a run's folder"
        )
    message = str(error)
    if match := re.match(r"Could not (?:override|delete from config\.) '([^'@]+)'", message):
        return unknown_key(match[1].partition("=")[0])
    if match := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':((?:\n\t[^\n]+)*)", message):
        return _unknown_option(match[1], match[2], match[3].split())
    if match := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", message):
        return ConfigError(
            f"{match[1]} is given several values, {match[2]}; add --multirun to run once with each, "
            f"or write {match[1]}=[{match[2]}] for a list"
        )
    if match := re.match(r"Multiple values for (\S+)\. ", message):
        return ConfigError(f"{match[1]} is given twice; write {match[1]}=NAME, without a plus")
    if match := re.match(r"Config group override must be", message):
        return ConfigError("A group takes the name of one of its files; set a key of it with group.key=value")
    if isinstance(error, InterpolationResolutionError) and (match := re.search(r"variable '(.+?)' not found", message)):
        return ConfigError(f"{_key_of(error)} refers to the environment variable {match[1]}, which is not set")
    if isinstance(error, OmegaConfBaseException) and _key_of(error):
        return ConfigError(f"{_key_of(error)}: {_first_line(message)}")
    if isinstance(error, YAMLError):
        return ConfigError("A file of the configuration is not valid YAML: " + " ".join(message.split()))
    return ConfigError(_first_line(message))


def unknown_key(key: str, prefix: str = "") -> ConfigError:
    """Return the error for a key that does not exist, with the most similar one that does."""
    near = _nearest(key)
    if near == key:
        return ConfigError(f"{prefix}{key} is missing; a key of the configuration can be changed, but not removed")
    way_out = f"did you mean {prefix}{near}?" if near else "--cfg job shows all keys"
    return ConfigError(f"Unknown key {prefix}{key}; {way_out}")


def _unknown_option(name: str, group: str, options: list[str]) -> ConfigError:
    option = name.removeprefix(f"{group}/")
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
    """Return the key that was most likely meant: the one above it, or that of the most similar last part."""
    group, _, last = key.lower().replace("-", "_").rpartition(".")
    names = {known: known.rpartition(".")[2] for known in [*known_keys(), *default_config()]}
    # A key of another group than the one that is named is meant only where it is nearly the same word.
    elsewhere = -0.15 if group in default_config() else 0.0
    likeness = {
        known: _likeness(last, name) + (0.01 if known.rpartition(".")[0] == group else elsewhere)
        for known, name in names.items()
    }
    for other, known in {**SHORT, **_OTHER_NAMES}.items():
        likeness[known] = max(likeness[known], _likeness(last, other.replace("-", "_")))
    if group in likeness and group not in default_config():
        return group
    best = max(likeness, key=lambda known: likeness[known])
    return best if likeness[best] > 0.73 else None  # augmentation is data.augment; dropout is not data.root


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def _key_of(error: OmegaConfBaseException) -> str:
    return str(getattr(error, "full_key", None) or "")


def _first_line(message: str) -> str:
    return message.strip().partition("\n")[0].rstrip(".")


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
