"""Writing files so that they are there whole or not at all, and folders that belong to one run alone."""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and rename it once everything is on disk.

    Raises:
        DogbreedError: The disk is full or not writable; nothing half-written is left behind.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except Exception as error:
        with suppress(OSError):  # where there is no folder, there is no file
            beside.unlink(missing_ok=True)
        # A full disk is a RuntimeError of torch, and an exception of its own of safetensors.
        if isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError":
            cause = _cause(error, path)
            raise DogbreedError(f"{path} could not be written ({cause}); what was there before is kept.") from error
        raise
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table; names of files that are not UTF-8 keep their bytes."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    with atomic_write(path) as file:
        file.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape", newline="")


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold, indented, with a line feed at the end."""
    with atomic_write(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def new_folder(parent: Path) -> Path:
    """Make and return `parent/<date>/<time>`, with a number behind it where another run has that second.

    The folder is made exclusively, so that no two runs ever share one.
    """
    now = datetime.now().astimezone()
    base = parent / now.strftime("%Y-%m-%d") / now.strftime("%H-%M-%S")
    folder, number = base, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            number += 1
            folder = base.with_name(f"{base.name}-{number}")
        else:
            return folder


@contextmanager
def discarded_if_empty(folder: Path, *, made: bool, mark: str | None = None) -> Iterator[None]:
    """Remove a folder, and those above it that were made with it, where what follows fails before it writes there.

    Args:
        folder: The folder.
        made: Whether it was made just before; otherwise only what is not there yet is removed.
        mark: File without which everything else in it, such as a logger's first file, counts as nothing.
    """
    own = [path for path in (folder, *folder.parents[:2]) if made or not path.exists()]
    try:
        yield
    except BaseException:
        if mark and folder in own and not (folder / mark).exists():
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # the first that is not empty ends it
            for path in own:
                if path.exists():
                    path.rmdir()
        raise


def is_special(path: str | Path) -> bool:
    """Return whether a path is a pipe, a socket or a device, which may be read for ever; not a shell's `<(command)`."""
    there = os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)
    return there and not str(path).startswith(("/dev/fd/", "/proc/self/fd/"))


def remove(paths: Iterable[Path]) -> None:
    """Delete files and folders, whether they are there or not."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _cause(error: Exception, path: Path) -> str:
    """Return why writing failed; torch and safetensors hide the operating system's number in their text."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < 1 << 20:  # torch's message says no more than that writing failed
            return "the disk is full"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "is the disk full?" if "write" in str(error).lower() else lines[0]
