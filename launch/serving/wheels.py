"""What an endpoint without network installs: pinned wheels inside its archive, and nothing from anywhere else.

Their names and hashes are known here, so that a plan needs no network; they are fetched when the archive is written.
"""

from dataclasses import replace

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.archive import CODE, Archive
from launch.aws import wheels
from launch.aws.wheels import FOLDER, PYTHON, Wheel, cached

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


def fetch(archive: Archive) -> None:
    """Fetch the wheels of an archive that are not here yet.

    Raises:
        DogbreedError: The registry could not be reached, or has another file under this name.
    """
    wheels.fetch((wheel for wheel in WHEELS if f"{CODE}/{FOLDER}/{wheel.file}" in archive.files), "endpoint")
