"""Wheels for containers without network: pinned by their hash, fetched once, and kept on this machine."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from dogbreed.core.errors import DogbreedError

FOLDER = "wheels"
PYTHON = "3.12"  # of AWS's images
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64", "manylinux_2_17_x86_64")


class Wheel(NamedTuple):
    """A wheel of the registry.

    Attributes:
        requirement: As pip pins it.
        file: Its name.
        sha256: In hexadecimal.
        size: In bytes.
    """

    requirement: str
    file: str
    sha256: str
    size: int


def cached(wheel: Wheel) -> Path:
    """Return where a wheel is kept, or will be."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dogbreed" / FOLDER / wheel.file


def fetch(wheels: Iterable[Wheel], receiver: str) -> None:
    """Fetch wheels that are not here yet.

    Args:
        wheels: All that are needed.
        receiver: What they are for, for the sentence of an error.

    Raises:
        DogbreedError: The registry could not be reached, or has another file under this name.
    """
    for wheel in (wheel for wheel in wheels if not _is_here(wheel)):
        folder = cached(wheel).parent
        folder.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        kind = ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(folder)]
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        done = subprocess.run(  # noqa: S603
            [*pip, *kind, *platforms, wheel.requirement], capture_output=True, text=True, check=False
        )
        if not _is_here(wheel):
            words = " ".join(done.stderr.split()[-30:]) or "another file than the one that is pinned came"
            raise DogbreedError(f"{wheel.requirement} could not be fetched for the {receiver}: {words}")


def _is_here(wheel: Wheel) -> bool:
    file = cached(wheel)
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == wheel.sha256
