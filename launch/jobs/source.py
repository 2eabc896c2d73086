"""What is sent along with a job: the package, its configuration, the entry point and what to install, in one archive.

Equal content gives an equal archive, byte for byte, and its name carries its hash: a job names exactly what it ran.
"""

import gzip
import hashlib
import io
import re
import tarfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogbreed.config.compose import conf_dir
from dogbreed.core.errors import DogbreedError
from launch.aws import tracking

ROOT = Path(__file__).resolve().parents[2]
ENTRY_POINT = "entry.py"
MAX_BYTES = 1_000_000
# Kinds of files that the package and the configuration consist of; other files are not sent.
KINDS = {".py", ".typed", ".yaml", ".html", ".j2", ".css", ".js", ".svg"}

# The image has these in the builds that fit each other and its GPU.
IN_THE_IMAGE = ("torch", "torchvision")
# What decides how a run goes is pinned to what the tests ran with, patches aside; of the rest the image may have any
# version that pyproject.toml allows. As of 2026-11-25.
PINS = {
    "lightning": "~=2.6.0",
    "torchmetrics": "~=1.9.0",
    "hydra-core": "~=1.3.2",
    "safetensors": ">=0.5,<1",
    "tensorboard": ">=2.16,<3",
    "optuna": ">=4,<6",
}


# smdebug and what of its needs the image lacks: each job installs them into a folder of its own, without what they ask
# for (protobuf 3.20; the image has 6, which TensorBoard needs and smdebug runs with). Nothing of the image moves.
APART_FILE = "apart.txt"
APART = ("smdebug==1.0.34", "pyinstrument==3.4.2", "pyinstrument-cext==0.2.4")
_NOT_BESIDE = ("smdebug", "setuptools")  # of the extra: the first is apart, the image's own of the second will do


@dataclass(frozen=True)
class Source:
    """The staged archive.

    Attributes:
        name: `dogbreed-<hash>.tar.gz`.
        archive: Its bytes.
        files: Content by name in the archive.
    """

    name: str
    archive: bytes
    files: Mapping[str, bytes]


def stage(config: Mapping[str, Any], *, search: bool = False) -> Source:
    """Make the archive.

    Args:
        config: A composed configuration.
        search: Whether the job itself searches, which takes Optuna.

    Raises:
        DogbreedError: The archive is larger than source code should be.
    """
    conf = conf_dir()
    files = {
        **_folder(ROOT / "dogbreed", "dogbreed", leave_out="conf"),
        **_folder(conf, "conf"),
        ENTRY_POINT: (ROOT / "launch" / "jobs" / ENTRY_POINT).read_bytes(),
        "requirements.txt": requirements(config, search=search).encode(),
    }
    if config["sagemaker"]["debugger"]["enabled"]:
        files[APART_FILE] = "".join(f"{line}\n" for line in APART).encode()
    files = dict(sorted(files.items()))
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    archive = _pack(files)
    if len(archive) > MAX_BYTES:
        name = max(files, key=lambda name: len(files[name]))
        raise DogbreedError(
            f"The source archive has {len(archive):,} bytes, more than {MAX_BYTES:,}; the largest file in it is "
            f"{name}. Move what is no source code out of dogbreed/ and conf/."
        )
    return Source(f"dogbreed-{digest.hexdigest()[:12]}.tar.gz", archive, files)


def _folder(folder: Path, name: str, leave_out: str = "") -> dict[str, bytes]:
    files = {}
    for file in folder.rglob("*"):
        inside = file.relative_to(folder)
        hidden = any(part.startswith((".", "__pycache__")) for part in inside.parts)
        if not hidden and inside.parts[0] != leave_out and file.suffix in KINDS and file.is_file():
            files[f"{name}/{inside.as_posix()}"] = file.read_bytes()
    return files


def _pack(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def requirements(config: Mapping[str, Any], *, search: bool = False) -> str:
    """Return requirements.txt of the job: what pyproject.toml names, without what must come from the image."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    dependencies = list(project["dependencies"])
    backbone, weights = config["model"]["backbone"], config["model"]["weights"]
    extras = {
        "search": search,
        "debugger": config["sagemaker"]["debugger"]["enabled"],
        "lite0": backbone == "efficientnet_lite0" and weights == "imagenet",
        "timm": backbone.startswith("timm/"),
        "mlflow": tracking.logs_to_mlflow(config),
        "sagemaker-mlflow": tracking.managed(config),
    }
    for extra in (name for name, used in extras.items() if used):
        dependencies += project["optional-dependencies"][extra]
    lines = []
    for requirement in dependencies:
        match = re.match(r"[A-Za-z0-9_.-]+", requirement)
        assert match, requirement
        name = match[0].lower().replace("_", "-")
        if name not in (*IN_THE_IMAGE, *_NOT_BESIDE):
            lines.append(f"{name}{PINS[name]}" if name in PINS else requirement)
    return "\n".join(sorted(lines)) + "\n"
