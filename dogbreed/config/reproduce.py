"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from typing import Any

from dogbreed.config.compose import OF_THE_CLOUD, overrides_of


def command(config: Mapping[str, Any]) -> str:
    """Return the line for a shell that trains with this configuration again, whatever the defaults of this version."""
    return shlex.join(["python", "-m", "dogbreed.train", *overrides_of(config)])


def shown(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a configuration a page may show."""
    return {name: value for name, value in config.items() if name != OF_THE_CLOUD}
