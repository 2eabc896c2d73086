"""`model.tar.gz`, what an endpoint is made of: an exported model, the handlers that SageMaker calls, and this package.

    model.safetensors  model.json  neighbours.safetensors  code/inference.py  code/requirements.txt  code/dogbreed/*.py

Equal content gives equal bytes. Needs no torch.
"""

import gzip
import hashlib
import io
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.models.manifest import MANIFEST, files_of, find_model, read_manifest

HANDLERS = "inference.py"  # what the container looks for
CODE = "code"
# What the inference image lacks. torch, torchvision and numpy are its own and must stay as they are.
REQUIREMENTS = ("pillow>=11", "safetensors>=0.5")
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Archive:
    """What goes into an archive, by name; the weights stay where they are until it is written.

    Attributes:
        files: Files of this machine.
        texts: Contents that are not a file here.
        known: SHA-256 and bytes of files that need not be here before the archive is written.
    """

    files: dict[str, Path]
    texts: dict[str, str]
    known: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.files[MANIFEST].parent

    @property
    def names(self) -> list[str]:
        return sorted([*self.files, *self.texts])

    def size(self, name: str) -> int:
        """Return the bytes before packing."""
        if name in self.known:
            return self.known[name][1]
        return self.files[name].stat().st_size if name in self.files else len(self.texts[name].encode())

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of each file, in hexadecimal."""
        return {name: self._digest(name) for name in self.names}

    @property
    def digest(self) -> str:
        """SHA-256 over all names and contents."""
        return _joined(self.digests)

    @property
    def model_digests(self) -> dict[str, str]:
        """SHA-256 of each file of the model, in hexadecimal."""
        return {name: value for name, value in self.digests.items() if not name.startswith(f"{CODE}/")}

    @property
    def code_digest(self) -> str:
        """SHA-256 over the code alone, that is all but the model."""
        return _joined({name: value for name, value in self.digests.items() if name.startswith(f"{CODE}/")})

    def write(self, file: Path) -> Path:
        """Write the archive, whole or not at all.

        Raises:
            DogbreedError: The disk is full or not writable.
        """
        # Weights hardly compress, and slowly: they are stored as they are.
        with (
            atomic_write(file) as beside,
            beside.open("wb") as raw,
            gzip.GzipFile("", "wb", compresslevel=0, fileobj=raw, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in self.names:
                entry = tarfile.TarInfo(name)  # without owner and date: the same on every machine
                entry.mode, entry.size = 0o644, self.size(name)
                with self._open(name) as content:
                    tar.addfile(entry, content)
        return file

    def _open(self, name: str) -> BinaryIO:
        return self.files[name].open("rb") if name in self.files else io.BytesIO(self.texts[name].encode())

    def _digest(self, name: str) -> str:
        if name in self.known:
            return self.known[name][0]
        with self._open(name) as content:
            return hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]


@contextmanager
def assemble(model: Path) -> Iterator[Archive]:
    """Yield the archive of a model, ready to be written.

    Args:
        model: An exported model, the folder of its run, or a `model.tar.gz`: a training job's, or such an archive, of
            which the model is taken and not the code.

    Raises:
        DogbreedError: There is no model in it.
    """
    if model.is_file():
        with TemporaryDirectory(prefix="dogbreed-archive-") as folder:
            unpack(model, Path(folder))
            yield _from_folder(find_model(Path(folder)), str(model))
    else:
        yield _from_folder(find_model(model), str(model))


def _from_folder(folder: Path, source: str) -> Archive:
    if not folder.is_dir():
        raise DogbreedError(f"{source} does not exist; give an exported model, the folder of a run, or a model.tar.gz.")
    if not (folder / MANIFEST).is_file():
        raise DogbreedError(f"{source} holds no exported model: there is no {MANIFEST} in it.")
    manifest = read_manifest(folder)
    files = {name: folder / name for name in files_of(manifest)}
    for name, file in files.items():
        if not file.is_file():
            raise DogbreedError(f"{source} has no {name}; copy the whole folder.")
    files[f"{CODE}/{HANDLERS}"] = PACKAGE / "inference" / "handler.py"
    code = [file for kind in ("*.py", "*.c") for file in PACKAGE.rglob(kind)]
    files |= {f"{CODE}/{PACKAGE.name}/{file.relative_to(PACKAGE).as_posix()}": file for file in code}
    extra = [f"timm=={version('timm')}"] if str(manifest.get("backbone")).startswith("timm/") else []
    return Archive(files, {f"{CODE}/requirements.txt": "".join(f"{line}\n" for line in (*REQUIREMENTS, *extra))})


def write_code(folder: Path) -> None:
    """Write the code of an endpoint beside the model in a folder: packed, the folder is such an archive."""
    packed = _from_folder(folder, str(folder))
    for name in packed.names:
        if name.startswith(f"{CODE}/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with packed._open(name) as content, (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a model.tar.gz, of which only files and folders, and nothing outside the folder.

    Raises:
        DogbreedError: It is damaged, or no such archive.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            tar.extractall(folder, filter="data")
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DogbreedError(f"{archive} is no readable model.tar.gz ({' '.join(str(error).split())}).") from error


def _joined(digests: dict[str, str]) -> str:
    joined = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(joined.encode()).hexdigest()
