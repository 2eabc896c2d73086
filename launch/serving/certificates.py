"""Finds a model's certificate, or has it made: nothing is deployed without one. Needs torch only to make it."""

import hashlib
import importlib.util
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.archive import Archive
from dogbreed.serving.certificate import CERTIFICATE, read, write


def load(file: Path, archive: Archive, images: Mapping[str, bytes] | None = None) -> dict[str, Any] | None:
    """Load a certificate; None if it is not of this model with this version of the package, or has not passed.

    Args:
        file: Where the certificate would be.
        archive: Of the model.
        images: By name; the certificate has to know them all.
    """
    try:
        certificate = read(file)
    except DogbreedError:
        return None
    same_model = certificate.get("model") == archive.model_digests
    same_code = certificate.get("package", {}).get("sha256") == archive.code_digest
    seen = {answer["sha256"] for answer in certificate.get("answers", ())}
    missing = {_digest(data) for data in (images or {}).values()} - seen
    return certificate if certificate["passed"] and same_model and same_code and not missing else None


def path_of(model: Path, archive: Archive) -> Path:
    """Return where a model's certificate is kept: in its folder, or beside the archive that it came from."""
    return model.with_name(f"{model.name}.{CERTIFICATE}") if model.is_file() else archive.folder / CERTIFICATE


def certify(
    model: Path, archive: Archive, images: Mapping[str, bytes], paths: Sequence[str], sent: Archive
) -> dict[str, Any]:
    """Return the model's certificate; it is made in a process of its own, which needs torch, if none fits.

    Args:
        model: As the person gave it.
        archive: Of the model.
        images: That the certificate has to know, by name.
        paths: Names of those that are files.
        sent: The archive that is deployed; the certificate names the wheels in it, and their hashes.

    Raises:
        DogbreedError: The inference paths do not agree, or the certificate cannot be made here.
    """
    file = path_of(model, archive)
    certificate = load(file, archive, images) or _made(file, model, archive, images, paths)
    wheels = {name.rpartition("/")[2]: sha256 for name, (sha256, _) in sent.known.items()}
    if wheels and certificate.get("wheels") != wheels:
        certificate["wheels"] = wheels
        write(file, certificate)
    return certificate


def _made(
    file: Path, model: Path, archive: Archive, images: Mapping[str, bytes], paths: Sequence[str]
) -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        raise DogbreedError(
            f"{file} is no certificate of this model with this version, and making one needs torch: run "
            f"python -m dogbreed.certify {shlex.quote(str(model))} where it is installed, and copy the file here."
        )
    command = [sys.executable, "-m", "dogbreed.certify", str(archive.folder), *paths, "--output", str(file)]
    if error := _run(command):
        raise DogbreedError(error)
    if (certificate := load(file, archive, images)) is None:
        raise DogbreedError(f"{file} does not fit the model that was certified; has it changed meanwhile?")
    return certificate


def _run(command: Sequence[str]) -> str:
    """Run a command of ours and pass its progress on; return its error, "" where there is none."""
    error = ""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:  # noqa: S603
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("error: "):
                error = line.strip().removeprefix("error: ")
            else:
                print(line, end="", file=sys.stderr, flush=True)
    return error or "The certificate could not be made." if process.returncode else ""


def expected(certificate: Mapping[str, Any], image: bytes) -> dict[str, Any] | None:
    """Return what the certificate says of an image; None where it does not know it."""
    digest = _digest(image)
    return next((answer for answer in certificate["answers"] if answer["sha256"] == digest), None)


def describe(file: Path, archive: Archive) -> str:
    """Describe a certificate for a plan."""
    certificate = load(file, archive)
    if certificate is None:
        return "none yet of this model with this version; it is made before anything is sent"
    return (
        f"{certificate['made']}, no logit differs by more than {certificate['largest_difference']:.1e} over "
        f"{certificate['files']} files and {len(certificate['ways'])} inference paths"
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
