"""`model.json`, what is known of an exported model without reading its weights; needs no torch."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.version import __version__

FORMAT_VERSION = 1
WEIGHTS = "model.safetensors"
MANIFEST = "model.json"
NEIGHBOURS = "neighbours.safetensors"  # of `dogbreed.models.neighbours`, where the manifest names it
RUNTIME_FILES = {"onnx": "model.onnx", "int8": "model.int8.onnx"}  # for ONNX Runtime, where the manifest lists them


def find_model(path: str | Path) -> Path:
    """Return the folder of the exported model that a path stands for.

    Args:
        path: The folder itself or a file in it, the folder of its run, or the run's `checkpoints/` or a file in that.
            Where there is no model, the path is returned as it is, for `read_manifest` to name.
    """
    path = Path(os.path.expanduser(path))
    folder = path.parent if path.is_file() else path
    run = folder.parent if folder.name == "checkpoints" else folder
    return next((model for model in (folder, run / "model") if (model / MANIFEST).is_file()), path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the checked content of `model.json`.

    Raises:
        DogbreedError: Missing, damaged, of a newer format, or without class names.
    """
    file = folder / MANIFEST
    if not folder.exists():
        raise DogbreedError(f"{folder} does not exist; give the folder of a run, or its model/.")
    if not file.is_file():
        raise DogbreedError(
            f"{folder} is no exported model: it has no {MANIFEST} (a run exports to its model/ folder)."
        )
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DogbreedError(f"{file} is not readable as JSON: {error}.") from error
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise DogbreedError(
            f"{file} has format version {version}; this is dogbreed {__version__}, which reads version "
            f"{FORMAT_VERSION}."
        )
    names = manifest.get("class_names")
    if not isinstance(names, list) or len(names) < 1 or not all(isinstance(name, str) for name in names):
        raise DogbreedError(f"{file} has no list of class names.")
    temperature = manifest.get("temperature")
    if not _is_number(temperature) or not 0 < temperature < math.inf:
        raise DogbreedError(f"{file} has temperature {temperature}; it must be a number above 0.")
    if not isinstance(manifest.get("preprocessing"), dict):
        raise DogbreedError(f"{file} does not say its preprocessing.")
    if "conformal" in manifest and not _is_conformal(manifest["conformal"]):
        raise DogbreedError(
            f"{file} has a conformal that is not understood; it holds least_probability, for each level a number from "
            "0 to 1 or null, and abstain_above, a whole number from 1. Without it the model answers without sets."
        )
    if "neighbours" in manifest and not _is_neighbours(manifest["neighbours"]):
        raise DogbreedError(
            f"{file} has neighbours that are not understood; they hold threshold and images, numbers, and sha256, that "
            f"of {NEIGHBOURS}. Without them the model answers without in_domain."
        )
    runtimes = manifest.get("runtimes", {})
    if not isinstance(runtimes, dict) or not all(
        isinstance(entry, dict) and isinstance(entry.get("sha256"), str) for entry in runtimes.values()
    ):
        raise DogbreedError(
            f"{file} has runtimes that are not understood; each holds sha256, that of its file. Without them torch "
            "answers."
        )
    for name in ("config", "metrics"):
        if not isinstance(manifest.get(name, {}), dict):
            raise DogbreedError(f"{file} has no mapping of names to values as its {name}.")
    return manifest


def list_runtime(folder: Path, runtime: str, facts: Mapping[str, Any] | None) -> None:
    """Have the manifest list the file of a runtime, or no longer list it.

    Args:
        folder: Of the exported model.
        runtime: A key of `RUNTIME_FILES`.
        facts: `sha256` and what else is known of the file; None where there is none.

    Raises:
        DogbreedError: The manifest cannot be read or written.
    """
    manifest = read_manifest(folder)
    runtimes = {name: entry for name, entry in manifest.pop("runtimes", {}).items() if name != runtime}
    if facts is not None:
        runtimes[runtime] = dict(facts)
    content = manifest | ({"runtimes": runtimes} if runtimes else {})
    with atomic_write(folder / MANIFEST) as file:
        file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def files_of(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the files that make up an exported model; those of other runtimes are made from them."""
    return (MANIFEST, WEIGHTS, *([NEIGHBOURS] if "neighbours" in manifest else []))


def _is_neighbours(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(_is_number(value.get(name)) for name in ("threshold", "images"))
        and isinstance(value.get("sha256"), str)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_conformal(value: Any) -> bool:
    least, above = (value.get("least_probability"), value.get("abstain_above")) if isinstance(value, dict) else (0, 0)
    if not isinstance(least, dict) or not isinstance(above, int) or isinstance(above, bool) or above < 1:
        return False
    return all(number is None or (_is_number(number) and 0 <= number <= 1) for number in least.values())
