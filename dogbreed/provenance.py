"""What a result came from: the command that repeats it, the versions, the machine."""

import os
import platform
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
import torch
import torchvision

import dogbreed
from dogbreed.config import OPEN_KEYS, compose, diff, flatten
from dogbreed.hyperparameters import literal

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


def versions() -> dict[str, str]:
    """Of what a result depends on."""
    commit = _commit()
    return {
        "dogbreed": f"{dogbreed.__version__}, commit {commit}" if commit else dogbreed.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "lightning": str(lightning.__version__),
    }


def _commit() -> str:
    """Of the checkout that this code lies in, and whether it has been changed since; empty for an installed package."""
    house = Path(dogbreed.__file__).parent
    if not (house.parent / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(house), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(house), str(house.parent / "conf"))
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit} with changes" if changed else commit


def machine() -> dict[str, str]:
    """Processor, cores, memory, graphics card and operating system; what cannot be found out is left out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = {"processor": _processor(), "cores": str(cores), "memory": _memory()}
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found["GPU"] = f"{len(cards)} x {cards[0].name}, {cards[0].total_memory / 2**30:.0f} GiB"
    else:
        found["GPU"] = "Apple (MPS)" if torch.backends.mps.is_available() else "none"
    found["system"] = f"{platform.system()} {platform.machine()}"
    return {name: value for name, value in found.items() if value}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^(?:model name|Hardware|Processor)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return ""
