"""What an endpoint without network installs: pinned wheels inside its archive, and nothing from anywhere else.

Their names and hashes are known here, so that a plan needs no network; they are fetched when the archive is written.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.archive import CODE, Archive

FOLDER = "wheels"
PYTHON = "3.12"  # of AWS's inference image
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


# As of 2026-11-27.
WHEELS = (
    Wheel(
        "pillow==13.0.0",
        "pillow-13.0.0-cp312-cp312-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "42d63be3af4f9b951b199b0a9d23365d37ab14687e6d77b74940432c8515c4ca",
        7_144_542,
    ),
    Wheel(
        "safetensors==0.8.0",
        "safetensors-0.8.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "fd6f3f93c9a0a7cc2788ee63fb763353d4bd2e89b0751bc78fcf7dda00bea774",
        516_040,
    ),
)


def carried(archive: Archive, image: str) -> Archive:
    """Return the archive with wheels in place of what the container would fetch.

    Args:
        archive: Of the model.
        image: Address of the inference image.

    Raises:
        DogbreedError: There are no wheels for it.
    """
    lines = archive.texts[f"{CODE}/requirements.txt"].split()
    if len(lines) != len(WHEELS):
        raise DogbreedError(
            f"sagemaker.isolate: the model needs {lines[-1]}, for which there are no wheels here; give "
            "image=ADDRESS of one that has it."
        )
    if "py312" not in image or "arm64" in image or "graviton" in image:
        raise DogbreedError(
            f"sagemaker.isolate: the wheels are for Python {PYTHON} on x86-64, and {image.rpartition(':')[2]} is "
            "another image; give image=ADDRESS of one that has pillow and safetensors."
        )
    pins = "".join(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n" for wheel in WHEELS)
    texts = {**archive.texts, f"{CODE}/requirements.txt": f"--no-index\n--find-links {FOLDER}\n{pins}"}
    inside = {f"{CODE}/{FOLDER}/{wheel.file}": wheel for wheel in WHEELS}
    files = {name: cached(wheel) for name, wheel in inside.items()}
    known = {name: (wheel.sha256, wheel.size) for name, wheel in inside.items()}
    return replace(archive, files={**archive.files, **files}, texts=texts, known=known)


def cached(wheel: Wheel) -> Path:
    """Return where a wheel is kept, or will be."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dogbreed" / FOLDER / wheel.file


def fetch(archive: Archive) -> None:
    """Fetch the wheels of an archive that are not here yet.

    Raises:
        DogbreedError: The registry could not be reached, or has another file under this name.
    """
    for wheel in _missing(archive):
        file = cached(wheel)
        file.parent.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        kind = ["--python-version", PYTHON, "--implementation", "cp", "--dest", str(file.parent)]
        platforms = [word for name in PLATFORMS for word in ("--platform", name)]
        done = subprocess.run(  # noqa: S603
            [*pip, *kind, *platforms, wheel.requirement], capture_output=True, text=True, check=False
        )
        if not _is_here(wheel):
            words = " ".join(done.stderr.split()[-30:]) or "another file than the one that is pinned came"
            raise DogbreedError(f"{wheel.requirement} could not be fetched for the endpoint: {words}")


def _missing(archive: Archive) -> Iterator[Wheel]:
    return (wheel for wheel in WHEELS if f"{CODE}/{FOLDER}/{wheel.file}" in archive.files and not _is_here(wheel))


def _is_here(wheel: Wheel) -> bool:
    file = cached(wheel)
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == wheel.sha256
