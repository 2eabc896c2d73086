"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from typing import Any

from dogbreed.config.compose import OPEN_KEYS, compose, diff, flatten
from dogbreed.config.overrides import literal

# Where a run writes and whether it was resumed: a repeat is a new run, in a folder of its own.
_OF_ONE_RUN = ("output_dir", "resume", "mode", "job")
# What is asked of the cloud changes nothing here, and names accounts and keys that a report should not spread.
_OF_THE_CLOUD = "sagemaker"


def command(config: Mapping[str, Any]) -> str:
    """The line for a shell that trains with this configuration again, from whatever defaults this version has."""
    return shlex.join(["python", "-m", "dogbreed.train", *overrides(config)])


def shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration a page may show."""
    return {name: value for name, value in config.items() if name != _OF_THE_CLOUD}


def overrides(config: Mapping[str, Any]) -> list[str]:
    """What turns the defaults into this configuration, in Hydra's form."""
    defaults = compose(())
    values, whole = flatten(config), {}
    for key in OPEN_KEYS:  # keys below these may also be absent, which only the whole mapping can say
        value: Any = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        whole[key] = value
    found: dict[str, str] = {"data.root": literal(values.get("data.root"))}
    for key in diff(defaults, config):
        opened = next((name for name in OPEN_KEYS if key == name or key.startswith(f"{name}.")), None)
        if opened is not None:
            found[opened] = literal(whole[opened])
        elif key in values and key not in _OF_ONE_RUN and not key.startswith(f"{_OF_THE_CLOUD}."):
            found[key] = literal(values[key])
    return [f"{key}={value}" for key, value in found.items()]
