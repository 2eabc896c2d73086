"""Unpack a zip or tar file: checked before it is put in place, never outside its folder, nothing half unpacked."""

import contextlib
import errno
import lzma
import os
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import track
from dogbreed.data.layout import SPLITS, is_noise

T = TypeVar("T")

# What damaged bytes raise, as found by damaging some; RuntimeError stands for an encrypted member.
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(IndexError, NotImplementedError, OverflowError, RuntimeError, ValueError),
)
_NAMES = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EILSEQ)
MAX_RATIO = 100  # photographs hardly shrink in an archive; a bomb does a thousandfold


def is_archive(path: Path) -> bool:
    """Tell by its content whether a file is one that `unpack` reads."""
    return path.is_file() and (zipfile.is_zipfile(path) or tarfile.is_tarfile(path))


def unpack(archive: Path, root: Path, *, check: Callable[[Path], None] | None = None, quiet: bool = False) -> None:
    """Unpack a zip or tar file; nothing is at `root` before everything is.

    Args:
        archive: The file; where it holds a single folder that is no split, that folder becomes `root`.
        root: Folder to make; it must not exist or be empty.
        check: Inspects the unpacked folder before it is put in place, and raises if something is wrong with it.
        quiet: Show no progress.

    Raises:
        DogbreedError: The archive is missing, damaged or a bomb, `root` holds something, or the disk is full.
    """
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DogbreedError(f"{root} exists already: remove it, or choose another data.root.")
    if not archive.is_file():
        raise DogbreedError(f"{archive} is missing: download it first.")
    scratch = root.with_name(f".{root.name}.unpacking")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with locked(scratch):
            shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
            try:
                _extract(archive, scratch, quiet)
                entries = [path for path in scratch.iterdir() if path.is_dir() or path.is_file()]
                single = len(entries) == 1 and entries[0].is_dir() and entries[0].name not in SPLITS
                folder = entries[0] if single else scratch
                if check is not None:
                    check(folder)
                if root.exists():
                    root.rmdir()
                os.rename(folder, root)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except (*_DAMAGE, OSError) as error:
        if isinstance(error, RuntimeError) and "password" in str(error):
            raise DogbreedError(f"{archive} is encrypted: unpack it yourself and give the folder.") from error
        if isinstance(error, OSError) and error.errno in _NAMES and root.parent.is_dir():
            raise DogbreedError(
                f"{archive} holds a name that the disk does not take ({error.strerror}): unpack it yourself and give "
                "the folder."
            ) from error
        # bz2 and seeking raise OSError on damaged bytes, without a number or with that of a wrong argument
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise disk_error(error, root.parent) from error
        raise DogbreedError(f"{archive} is damaged ({error}): delete it and start again.") from error


def _extract(archive: Path, folder: Path, quiet: bool) -> None:
    """Extract all members but noise; zipfile and tarfile keep every name within the folder."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            members = [info for info in packed.infolist() if not info.is_dir() and not _is_noise(info.filename)]
            _check_size(archive, sum(info.file_size for info in members))
            folder.mkdir()
            for info in _progress(members, archive, quiet):
                info.filename = info.filename.replace("\\", "/")  # as some programs for Windows write them
                packed.extract(info, folder)  # reading to the end compares the checksum
        return
    if not tarfile.is_tarfile(archive):
        raise tarfile.ReadError("neither a zip nor a tar file")
    with tarfile.open(archive) as packed_tar:
        regular = {info.name: info for info in packed_tar if info.isfile()}
        # A file of two names is packed once, and links under the other: no link is made, the file is written twice.
        links = [info for info in packed_tar if info.islnk() and info.linkname in regular]
        files = [*regular.values(), *(regular[info.linkname].replace(name=info.name, deep=False) for info in links)]
        files = [info for info in files if not _is_noise(info.name)]
        _check_size(archive, sum(info.size for info in files))
        folder.mkdir()
        for member in _progress(files, archive, quiet):
            packed_tar.extract(member, folder, filter="data")


def _progress(members: list[T], archive: Path, quiet: bool) -> Iterator[T]:
    with track(len(members), f"Unpacking {archive.name}", "files", quiet=quiet) as bar:
        for member in members:
            yield member
            bar.advance()


def _is_noise(name: str) -> bool:
    return any(is_noise(part) for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def _check_size(archive: Path, size: int) -> None:
    packed = archive.stat().st_size
    if size > MAX_RATIO * packed + (1 << 20):
        raise DogbreedError(
            f"{archive} ({packed:,} bytes) would unpack to {size:,} bytes, which no photographs do: "
            "delete it and do not use its source."
        )
    if shutil.disk_usage(archive.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from working on `path`; the system lets go of the lock when the process dies.

    Raises:
        DogbreedError: Another process is at work.
    """
    lock = FileLock(path.with_name(f"{path.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise DogbreedError(
            f"Another process is at work on {path}: wait until it is done, then start again."
        ) from error
    except NotImplementedError:  # some network disks have no locks
        pass
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def disk_error(error: OSError, folder: Path) -> DogbreedError:
    """Return the sentence for an error of the disk."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DogbreedError(f"The disk that holds {folder} is full: make room there or choose another data.root.")
    return DogbreedError(f"{folder} cannot be written ({error.strerror or error}): choose another data.root.")
