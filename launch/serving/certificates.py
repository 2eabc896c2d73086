"""Finds a model's certificate, or has it made: nothing is deployed without one. Needs no torch where there is one."""

import hashlib
import importlib.util
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.archive import Archive
from dogbreed.inference.manifest import MANIFEST, WEIGHTS
from dogbreed.serving.certificate import CERTIFICATE, read


def known(archive: Archive, file: Path, photographs: Mapping[str, bytes] | None = None) -> dict[str, Any] | None:
    """The certificate in a file if it is one of this model with this version of the package, and has passed.

    Args:
        archive: Of the model.
        file: Where the certificate would be.
        photographs: By name; the certificate has to know them all.
    """
    try:
        found = read(file)
    except DogbreedError:
        return None
    same_model = found.get("model") == {name: archive.digests[name] for name in (WEIGHTS, MANIFEST)}
    same_code = found.get("package", {}).get("sha256") == archive.code_digest
    seen = {answer["sha256"] for answer in found.get("answers", ())}
    missing = {_digest(data) for data in (photographs or {}).values()} - seen
    return found if found["passed"] and same_model and same_code and not missing else None


def place(model: Path, archive: Archive) -> Path:
    """Where a model's certificate is kept: in its folder, or beside the archive that it came from."""
    return model.with_name(f"{model.name}.{CERTIFICATE}") if model.is_file() else archive.folder / CERTIFICATE


def certify(model: Path, archive: Archive, photographs: Mapping[str, bytes], paths: Sequence[str]) -> dict[str, Any]:
    """The model's certificate; made in a process of its own, which needs torch, if there is none that fits.

    Args:
        model: As the person gave it.
        archive: Of it.
        photographs: That it has to know.
        paths: Of them, as far as they are files.

    Raises:
        DogbreedError: The ways from bytes to logits do not agree, or the certificate cannot be made here.
    """
    file = place(model, archive)
    if found := known(archive, file, photographs):
        return found
    if importlib.util.find_spec("torch") is None:
        raise DogbreedError(
            f"{file} is no certificate of this model with this version, and making one needs torch: run "
            f"python -m dogbreed.certify {model} where it is installed, and copy the file here."
        )
    command = [sys.executable, "-m", "dogbreed.certify", str(archive.folder), *paths, "--output", str(file)]
    if failed := _run(command):
        raise DogbreedError(failed)
    if (found := known(archive, file, photographs)) is None:
        raise DogbreedError(f"{file} does not fit the model that was certified; has it changed meanwhile?")
    return found


def _run(command: Sequence[str]) -> str:
    """Runs a command of ours, whose progress is passed on; returns its error, "" where there is none."""
    error = ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("error: "):
                error = line.strip().removeprefix("error: ")
            else:
                print(line, end="", file=sys.stderr, flush=True)
    return error or "The certificate could not be made." if process.returncode else ""


def expected(certificate: Mapping[str, Any], photograph: bytes) -> dict[str, Any] | None:
    """What the certificate says of a photograph; None where it does not know it."""
    digest = _digest(photograph)
    return next((answer for answer in certificate["answers"] if answer["sha256"] == digest), None)


def told(archive: Archive, file: Path) -> str:
    """What is known of a certificate, for a plan."""
    found = known(archive, file)
    if found is None:
        return "none yet of this model with this version; it is made before anything is sent"
    return (
        f"{found['made']}, no logit differs by more than {found['largest_difference']:.1e} over {found['files']} files "
        f"and {len(found['ways'])} ways"
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
