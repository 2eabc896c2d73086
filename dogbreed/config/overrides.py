"""Names and values as they travel: command-line flags and SageMaker's hyperparameters, to Hydra overrides and back.

SageMaker passes hyperparameters to a job as `--name value`, through a shell that does not quote them. Names
therefore consist of letters, digits, dashes and underscores, and values are plain scalars. A key of the
configuration travels under its short name where it has one (`lr`), else with two underscores for each dot
(`data__num_workers`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.core.errors import DogbreedError

Scalar = str | int | float | bool | None

SHORT = {
    "epochs": "trainer.max_epochs",
    "batch-size": "data.batch_size",
    "lr": "model.lr",
    "weight-decay": "model.weight_decay",
    "label-smoothing": "model.label_smoothing",
    "optimizer": "model.optimizer",
    "schedule": "model.schedule",
    "backbone": "model.backbone",
    "weights": "model.weights",
    "trainable": "model.trainable",
    "seed": "seed",
    "experiment": "experiment",
}
_SHORT_OF = {key: name for name, key in SHORT.items()}

# Hydra's own flags. The values are those that may follow: none, anything, or one of a list.
_BARE = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
_BARE |= {"--shell-completion", "-sc"}
_VALUED = {"--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"}
_VALUED |= {"--experimental-rerun"}
_CHOICES = {
    **dict.fromkeys(("--cfg", "-c"), ("job", "hydra", "all")),
    **dict.fromkeys(("--info", "-i"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
_HYDRA = _BARE | _VALUED | set(_CHOICES)

_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|inf|nan)", re.IGNORECASE)
_OVERRIDE = re.compile(r"[~+]*[A-Za-z_][\w./@$-]*=", re.ASCII)
_UNQUOTED = re.compile(r"[A-Za-z0-9_.+/-]+")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
_WIRE_NAME = re.compile(r"[A-Za-z0-9_-]+")
_WIRE_VALUE = re.compile(r"[A-Za-z0-9_.+-]+")


def to_overrides(argv: Sequence[str]) -> list[str]:
    """Translate a command line into the one that Hydra reads.

    `--batch-size 64`, `--batch-size=64` and `--data__batch_size 64` become `data.batch_size=64`; `key=value` stays
    as it is, and so do Hydra's own flags, which come first in the result (Hydra's parser wants them together). A
    flag of an unknown name becomes the override of an unknown key, for the configuration to refuse.

    Args:
        argv: The arguments after the name of the command.

    Raises:
        DogbreedError: A flag lacks its value, or Hydra's flag has one that it does not know.
    """
    flags, overrides = split_argv(argv)
    return flags + overrides


def split_argv(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Do as `to_overrides` does, with Hydra's flags (and their values) apart from the overrides."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name in _HYDRA:
            flags += _hydra_flag(name, value if equals else None, rest)
        elif _NUMBER.fullmatch(word) or not word.startswith("-"):
            overrides.append(word)
        elif not word.startswith("--") or word == "--":
            raise DogbreedError(f"{word} is not a flag; names take two dashes, as in --lr 0.001")
        else:
            value = value if equals else _next_value(name, rest)
            overrides.append(f"{dotted(name[2:])}={quote(value)}")
    return flags, overrides


def to_wire(overrides: Mapping[str, Scalar]) -> dict[str, str]:
    """Write settings as hyperparameters that SageMaker can carry.

    Args:
        overrides: Values by dotted key, as in the configuration.

    Returns:
        Text by wire name; `to_overrides` reads it back to the same keys and values.

    Raises:
        DogbreedError: A key or a value cannot travel; the sentence says which, and why.
    """
    return {_wire_name(key): _wire_value(key, value) for key, value in overrides.items()}


def dotted(name: str) -> str:
    """Return the key of the configuration that a wire name or a flag (without its dashes) stands for."""
    return SHORT.get(name.replace("_", "-"), name.replace("__", ".").replace("-", "_"))


def quote(text: str) -> str:
    """Write a scalar so that Hydra's grammar reads it as one value: numbers, booleans and null as such, else text.

    An interpolation, `${...}`, stays one.
    """
    if text in ("True", "False"):
        return text.lower()
    looks_like_number = "_" in text and _NUMBER.fullmatch(text.replace("_", ""))  # Hydra reads 1_0 as 10
    if _UNQUOTED.fullmatch(text) and not looks_like_number:
        return text
    return _in_quotes(text)


def quote_path(text: str) -> str:
    """Write the value of a key that takes a path: a path is a path, whatever its characters, and never a number.

    `null`, an interpolation and what is quoted already stay as they are.
    """
    if text in ("", "null") or "${" in text or _QUOTED.fullmatch(text):
        return text
    return _in_quotes(text)


def _in_quotes(text: str) -> str:
    # Within quotes, Hydra's grammar escapes a quote, and the backslashes that stand right before one.
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    escaped = re.sub(r"(\\+)\Z", r"\1\1", escaped)
    return f"'{escaped}'"


def literal(value: Any) -> str:
    """Return a value of the configuration in Hydra's grammar, whatever its kind."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    if not isinstance(value, str):
        return repr(value)
    # Text that would be read as something else stays text only within quotes.
    other = re.fullmatch(r"(?i)true|false|null|[+-]?(\d[\d_]*\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan|[+-]inf", value)
    return f"'{value}'" if other else quote(value)


def _hydra_flag(name: str, value: str | None, rest: list[str]) -> list[str]:
    if name in _BARE:
        if value is not None:
            raise DogbreedError(f"{name} takes no value")
        return [name]
    if value is None and name in ("--info", "-i") and (not rest or rest[0].startswith("-") or "=" in rest[0]):
        value = "all"
    if value is None:
        value = _next_value(name, rest)
    if value not in _CHOICES.get(name, (value,)):
        raise DogbreedError(f"{name} {value} is not known; it takes one of: {', '.join(_CHOICES[name])}")
    return [name, value]


def _next_value(name: str, rest: list[str]) -> str:
    missing = not rest or (rest[0].startswith("-") and not _NUMBER.fullmatch(rest[0])) or _OVERRIDE.match(rest[0])
    if missing:
        raise DogbreedError(f"{name} needs a value: {name} VALUE or {name}=VALUE")
    return rest.pop(0)


def _wire_name(key: str) -> str:
    name = _SHORT_OF.get(key, key.replace(".", "__"))
    if key.startswith("sagemaker"):
        raise DogbreedError(
            f"{key} cannot travel as a hyperparameter: settings of sagemaker are for the launcher alone"
        )
    if not _WIRE_NAME.fullmatch(name) or name.startswith("-") or dotted(name) != key or f"--{name}" in _HYDRA:
        raise DogbreedError(
            f"{key} cannot travel as a hyperparameter: a key consists of letters, digits, dots and single underscores"
        )
    return name


def _wire_value(key: str, value: Scalar) -> str:
    reason = None
    if value is None:
        text = "NULL"  # Hydra's null too; the containers read values as JSON first, and pass on null as nothing at all
    elif isinstance(value, bool | int | float):
        text = repr(value)
    elif not isinstance(value, str):
        text, reason = repr(value), "it is not a plain number, text, true, false or null"
    else:
        text = value
        if not _WIRE_VALUE.fullmatch(text):
            reason = "SageMaker passes letters, digits and _ . + - only"
        elif text.startswith("-"):
            reason = "text that begins with a dash would arrive as a flag"
        elif _NUMBER.fullmatch(text) or text.lower() in ("true", "false", "null", "infinity"):
            reason = "this text would arrive as a number, true, false or null; give it as that"
    if reason:
        raise DogbreedError(f"{key}={value!r} cannot travel as a hyperparameter: {reason}")
    return text
