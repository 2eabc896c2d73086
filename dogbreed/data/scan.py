"""Look at every image file once: which can be used, and which are the same picture.

A second look costs nothing: what was found is remembered beside the data and asked for again only when a file changed.
"""

import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import PIL

from dogbreed.core.machine import cpu_count
from dogbreed.core.progress import track
from dogbreed.data import images

# To be raised when images.check comes to refuse or to accept other files; a new Pillow may do so as well.
CHECK_VERSION = f"3, Pillow {PIL.__version__}"
SHOW_PROGRESS_ABOVE = 200


@dataclass(frozen=True)
class ScannedFile:
    """What a look at one file has shown.

    Attributes:
        path: The file, as it was named to `scan`.
        digest: BLAKE2b-128 of its bytes in hexadecimal, "" when they could not be read.
        reason: Why it cannot be used, None when it can.
    """

    path: Path
    digest: str
    reason: str | None


def scan(
    files: Sequence[Path],
    *,
    memory: Path | None,
    max_pixels: int = images.MAX_PIXELS,
    workers: int | None = None,
    quiet: bool = False,
) -> list[ScannedFile]:
    """Check that each file is a whole image, in parallel, and take the digest of its bytes.

    Args:
        files: The files to look at.
        memory: JSON file that remembers what was found, None to look at every file anew.
        max_pixels: Larger images cannot be used.
        workers: Threads that read and decode, by default one per CPU.
        quiet: Show no progress.

    Returns:
        One entry per file, in the order of `files`.
    """
    check = f"{CHECK_VERSION}, {max_pixels} pixels"
    known = {} if memory is None else _recall(memory, check)
    scanned: dict[Path, ScannedFile] = {}
    unknown: list[Path] = []
    for path in dict.fromkeys(files):
        entry = known.get(os.path.abspath(path))
        if entry is not None and entry[:3] == _stamp(path):
            scanned[path] = ScannedFile(path, entry[3], entry[4])
        else:
            unknown.append(path)
    if unknown:
        quiet = quiet or len(unknown) <= SHOW_PROGRESS_ABOVE
        looks = _look_at_all(unknown, memory, check, max_pixels, workers, quiet)
        scanned |= {seen.path: seen for seen in looks}
    return [scanned[path] for path in files]


def _look_at_all(
    paths: list[Path], memory: Path | None, check: str, max_pixels: int, workers: int | None, quiet: bool
) -> list[ScannedFile]:
    # Pillow lets go of the interpreter lock while it decodes, so threads do; they also start at once.
    pool = ThreadPoolExecutor(workers or cpu_count(), thread_name_prefix="scan")
    futures = [pool.submit(_look, path, max_pixels) for path in paths]
    try:
        with track(len(paths), "Checking images", "images", quiet=quiet) as progress:
            for future in as_completed(futures):
                future.result()
                progress.advance()
    finally:
        # Also after Ctrl-C: do not go through the rest of the queue, and keep what was learnt.
        pool.shutdown(cancel_futures=True)
        looks = [future.result() for future in futures if not future.cancelled() and not future.exception()]
        fresh = {os.path.abspath(seen.path): (*stamp, seen.digest, seen.reason) for seen, stamp in looks if stamp}
        if memory is not None and fresh:
            _remember(memory, check, fresh)
    return [seen for seen, _ in looks]


def _look(path: Path, max_pixels: int) -> tuple[ScannedFile, "_Stamp | None"]:
    """Read and check one file; the stamp is None when a second look might find something else."""
    try:
        stamp = _stamp(path)  # before reading: a file that changes meanwhile is then looked at again next time
        if stamp is None and path.exists():
            return ScannedFile(path, "", "not a regular file"), None
        data = path.read_bytes()
    except OSError as error:
        return ScannedFile(path, "", f"cannot be read: {error.strerror or error}"), None
    reason = None
    if not data:
        reason = "empty file"
    else:
        try:
            images.check(data, max_pixels=max_pixels)
        except images.BadImage as bad:
            reason = bad.reason
    return ScannedFile(path, hashlib.blake2b(data, digest_size=16).hexdigest(), reason), stamp


def _stamp(path: Path) -> "_Stamp | None":
    """Return the stamp of a file as it is now; None for what is none, such as a pipe, which would block the reader."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns) if stat.S_ISREG(status.st_mode) else None


# Size, and the times at which the content and the file's own record were changed, in nanoseconds: a file that is put in
# another's place may bring the first of the two along.
_Stamp = tuple[int, int, int]
# Stamp, digest, reason.
_Entry = tuple[int, int, int, str, str | None]


def _recall(memory: Path, check: str) -> dict[str, _Entry]:
    """Read the memory; one that is damaged, foreign or of another check counts as empty."""
    try:
        content = json.loads(memory.read_bytes())
        if content["check"] != check:
            return {}
        return {path: _entry(*values) for path, values in content["files"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}


def _entry(size: object, mtime: object, ctime: object, digest: object, reason: object) -> _Entry:
    if not (isinstance(size, int) and isinstance(mtime, int) and isinstance(ctime, int)):
        raise TypeError("not an entry of the memory")
    if not (isinstance(digest, str) and len(digest) == 32):
        raise TypeError("not an entry of the memory")
    if not (reason is None or isinstance(reason, str)):
        raise TypeError("not an entry of the memory")
    return size, mtime, ctime, digest, reason


def _remember(memory: Path, check: str, fresh: dict[str, _Entry]) -> None:
    """Add to the memory as it is now, which another process may have written meanwhile."""
    entries = {path: entry for path, entry in (_recall(memory, check) | fresh).items() if os.path.exists(path)}
    part = None
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, prefix=f".{memory.name}.", delete=False) as file:
            part = file.name
            json.dump({"check": check, "files": entries}, file, separators=(",", ":"))
        os.replace(part, memory)
    except OSError:
        # Data may lie on a read-only disk; the memory saves time and nothing depends on it.
        if part is not None:
            Path(part).unlink(missing_ok=True)
