"""Writing files so that they are there whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from dogbreed.core.errors import DogbreedError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames it when all is on disk: never a half-written file.

    Raises:
        DogbreedError: The disk is full or not writable; nothing is left behind.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        cause = _cause(error, path)
        with suppress(OSError):  # where there is no folder, there is no file
            beside.unlink(missing_ok=True)
        raise DogbreedError(f"{path} could not be written ({cause}); what was there before is kept.") from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _cause(error: Exception, path: Path) -> str:
    """Why writing failed; torch and safetensors hide the operating system's number in their text."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    with suppress(OSError):
        if shutil.disk_usage(path.parent).free < 1 << 20:  # torch says no more than that it got stuck
            return "the disk is full"
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return "is the disk full?" if "write" in str(error).lower() else lines[0]
