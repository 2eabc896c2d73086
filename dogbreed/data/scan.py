"""Look at every image file once: which can be used, and which are the same picture.

A second look costs nothing: what was found is remembered beside the data and asked for again only when a file changed.
"""

import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import PIL
from numpy.typing import NDArray

from dogbreed.core.background import in_order
from dogbreed.core.machine import cpu_count
from dogbreed.core.progress import track
from dogbreed.data import decoding
from dogbreed.data.columns import Digests, Paths

# To be raised when decoding.check comes to refuse or to accept other files; a new Pillow may do so as well.
CHECK_VERSION = f"3, Pillow {PIL.__version__}"
SHOW_PROGRESS_ABOVE = 200
_ROWS = 4096  # of the memory, written at once
_SECONDS = 10.0  # that another process may hold the memory
_DAMAGED = ("not a database", "malformed", "no such column", "no such table")
_TABLE = """
    CREATE TABLE IF NOT EXISTS files (
        path BLOB PRIMARY KEY, size INTEGER, mtime INTEGER, ctime INTEGER, digest BLOB, reason TEXT, checked TEXT
    ) WITHOUT ROWID
"""


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


class Scanned(Sequence[ScannedFile]):
    """What a look at many files has shown.

    Args:
        paths: The files.
        digests: Of each.
        reasons: Why those that cannot be used cannot, by their positions.
    """

    def __init__(self, paths: Paths, digests: Digests, reasons: dict[int, str]) -> None:
        self.paths, self.digests, self.reasons = paths, digests, reasons

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> ScannedFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[ScannedFile]: ...
    def __getitem__(self, index: int | slice) -> ScannedFile | list[ScannedFile]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return ScannedFile(self.paths[index], self.digests[index], self.reasons.get(index))

    def usable(self) -> NDArray[np.int64]:
        """Return the positions of the files that can be used."""
        unusable = np.zeros(len(self), dtype=bool)
        unusable[list(self.reasons)] = True
        return np.flatnonzero(~unusable)


def scan(
    files: Iterable[Path],
    *,
    memory: Path | None,
    max_pixels: int = decoding.MAX_PIXELS,
    workers: int | None = None,
    quiet: bool = False,
) -> Scanned:
    """Check that each file is a whole image, in parallel, and take the digest of its bytes.

    Args:
        files: The files to look at.
        memory: File that remembers what was found, None to look at every file anew.
        max_pixels: Larger images cannot be used.
        workers: Threads that read and decode, by default one per CPU.
        quiet: Show no progress.

    Returns:
        One entry per file, in the order of `files`.
    """
    paths = Paths.of(files)
    scanned = Scanned(paths, Digests(np.zeros((len(paths), 16), np.uint8)), {})
    known = np.zeros(len(paths), dtype=bool)
    with _remembered(memory, f"{CHECK_VERSION}, {max_pixels} pixels") as kept:
        for index, path in enumerate(paths) if kept.opened else ():
            entry = kept.recall(path)
            if entry is not None and entry[:3] == _stamp(path):
                known[index] = True
                _note(scanned, index, *entry[3:])
        unknown = np.flatnonzero(~known)
        quiet = quiet or len(unknown) <= SHOW_PROGRESS_ABOVE
        # Pillow lets go of the interpreter lock while it decodes, so threads do; they also start at once.
        looks = in_order(
            lambda index: _look(paths[index], max_pixels), unknown.tolist(), workers or cpu_count(), name="scan"
        )
        with closing(looks), track(len(unknown), "Checking images", "images", quiet=quiet) as progress:
            for index, (seen, stamp) in zip(unknown.tolist(), looks, strict=True):
                digest = bytes.fromhex(seen.digest)
                _note(scanned, index, digest, seen.reason)
                if stamp:
                    kept.remember(seen.path, (*stamp, digest, seen.reason))
                progress.advance()
    return scanned


def _note(scanned: Scanned, index: int, digest: bytes, reason: str | None) -> None:
    if digest:
        scanned.digests.values[index] = np.frombuffer(digest, np.uint8)
    if reason is not None:
        scanned.reasons[index] = reason


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
            decoding.check(data, max_pixels=max_pixels)
        except decoding.BadImage as bad:
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
_Entry = tuple[int, int, int, bytes, str | None]


class _Memory:
    """What earlier scans have found, in a small database; it saves time, and nothing depends on it.

    Args:
        connection: To the database; None remembers nothing.
        check: What the files were checked for: what another check has found does not count.
    """

    def __init__(self, connection: sqlite3.Connection | None, check: str) -> None:
        self._connection, self._check = connection, check
        self._fresh: list[tuple[bytes | int | str | None, ...]] = []
        self._changed = False

    @property
    def opened(self) -> bool:
        return self._connection is not None

    def recall(self, path: Path) -> _Entry | None:
        """Return what was found in a file; what is no entry counts as nothing."""
        if self._connection is None:
            return None
        query = "SELECT size, mtime, ctime, digest, reason FROM files WHERE path = ? AND checked = ?"
        try:
            row = self._connection.execute(query, (_key(path), self._check)).fetchone()
        except sqlite3.Error:
            return None
        valid = row and all(isinstance(value, int) for value in row[:3]) and isinstance(row[3], bytes)
        return row if valid and len(row[3]) == 16 and isinstance(row[4], str | None) else None

    def remember(self, path: Path, entry: _Entry) -> None:
        """Keep what was found in a file."""
        self._fresh.append((_key(path), *entry, self._check))
        if len(self._fresh) >= _ROWS:
            self.write()

    def write(self) -> None:
        """Write what is not written yet."""
        if self._connection is not None and self._fresh:
            self._changed = True
            with suppress(sqlite3.Error), self._connection:
                self._connection.executemany("REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", self._fresh)
        self._fresh.clear()

    def forget_vanished(self) -> None:
        """Remove the files that are no longer there, if anything was written."""
        if self._connection is None or not self._changed:
            return
        with suppress(sqlite3.Error), self._connection:
            rows = self._connection.execute("SELECT path FROM files")
            vanished = [row for row in rows if not (isinstance(row[0], bytes) and os.path.exists(row[0]))]
            self._connection.executemany("DELETE FROM files WHERE path = ?", vanished)


def _key(path: Path) -> bytes:
    return os.fsencode(os.path.abspath(path))


@contextmanager
def _remembered(file: Path | None, check: str) -> Iterator[_Memory]:
    """Open the memory; what was learnt until an interruption is kept, too."""
    connection = None if file is None else _open(file)
    with closing(connection) if connection else nullcontext():
        memory = _Memory(connection, check)
        try:
            yield memory
        finally:
            memory.write()
            memory.forget_vanished()


def _open(file: Path) -> sqlite3.Connection | None:
    """Return a connection to a memory, which is made anew where it is damaged; None if it cannot be used."""
    for _ in range(2):
        connection = None
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(file, timeout=_SECONDS)
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(_TABLE)
            connection.execute("SELECT path, size, mtime, ctime, digest, reason, checked FROM files LIMIT 1").fetchone()
        except (OSError, sqlite3.Error) as error:
            if connection is not None:
                connection.close()
            if not any(words in str(error) for words in _DAMAGED):
                return None
            with suppress(OSError):
                file.unlink()
        else:
            return connection
    return None
