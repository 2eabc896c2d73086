"""The folders that feature stores lie in: where they are, what they take, who may write. Nothing here loads torch."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from dogbreed.core.errors import DogbreedError

META, LOCK = "store.json", ".lock"
SECONDS_TO_LOOK = 5
SECONDS_WITHOUT_A_BLOCK = 900  # a build writes one every 15 seconds (`extract.BLOCK_SECONDS`), once it has started
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def cache_folder(folder: str | Path | None = None) -> Path:
    """Return the folder, or that of DOGBREED_CACHE, or `dogbreed` in the user's cache folder."""
    if folder := folder or os.environ.get("DOGBREED_CACHE"):
        return Path(os.path.expanduser(folder))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dogbreed"


def scan_memory(folder: str | Path | None = None) -> Path:
    """Return the file that remembers what scans of images have found; `folder` is as for `cache_folder`."""
    return cache_folder(folder) / "scan.sqlite"


def evict(folder: Path, max_gb: float, keep: Path, coming: int = 0) -> list[Path]:
    """Delete the longest unused stores until all together are within the limit; never `keep`, never one in use.

    Args:
        folder: Folder of all stores.
        max_gb: The limit in 10^9 bytes.
        keep: The store that is being filled.
        coming: Bytes that will be added to it.

    Returns:
        The deleted stores.
    """
    present = stores(folder)
    total = coming + sum(size for _, size, _ in present)
    deleted = []
    for store, size, _ in sorted(present, key=lambda entry: entry[2]):
        if total <= max_gb * 1e9:
            break
        if store != keep and delete(store):
            total -= size
            deleted.append(store)
    return deleted


def stores(folder: Path) -> list[tuple[Path, int, float]]:
    """Return every store with its size in bytes and when it was last used (seconds since 1970)."""
    present = []
    for meta in folder.glob(f"*/{META}"):
        with suppress(FileNotFoundError):  # another process is deleting it
            size = sum(file.stat().st_size for file in meta.parent.glob("*.safetensors"))
            present.append((meta.parent, size, meta.stat().st_mtime))
    return present


def delete(store: Path) -> bool:
    """Delete a store unless a build holds it; return whether it was deleted."""
    if not store.exists():  # another process was faster
        return True
    try:
        with FileLock(store / LOCK, timeout=0):
            shutil.rmtree(store, ignore_errors=True)
    except Timeout:
        return False
    except FileNotFoundError:
        return True
    except (OSError, NotImplementedError):  # no locks here, or no right to the folder
        shutil.rmtree(store, ignore_errors=True)
    return not store.exists()


@contextmanager
def locked(folder: Path, leader: bool) -> Iterator[None]:
    """Let one build at a time in; the others wait and find its result. The lock ends with the process that holds it.

    Where the file system has no locks nobody waits: blocks are written whole and found by their content.

    Raises:
        DogbreedError: The folder cannot be written, or what holds the lock has written nothing for a long time.
    """
    if not leader:
        yield
        return
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise DogbreedError(
                f"{folder} cannot be written ({error.strerror}); choose another folder with cache.dir="
            ) from error
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, folder: Path) -> None:
    """Wait for a lock as long as who holds it writes blocks."""
    waited, newest = 0, 0.0
    while True:
        try:
            lock.acquire(timeout=SECONDS_TO_LOOK)
        except Timeout:
            if waited == 0:
                print("Another run computes these features; waiting for it.", flush=True)
            written = max((file.stat().st_mtime for file in folder.glob("*.safetensors")), default=0.0)
            waited, newest = (waited if written <= newest else 0) + SECONDS_TO_LOOK, max(newest, written)
            if waited >= SECONDS_WITHOUT_A_BLOCK:
                raise DogbreedError(
                    f"Another process holds {folder} and has written nothing there for {SECONDS_WITHOUT_A_BLOCK // 60} "
                    "minutes; end it, or choose another folder with cache.dir= or cache.mode=off"
                ) from None
        else:
            return


def existing(folder: Path) -> Path:
    """Return the folder, or the first above it that is there."""
    return folder if os.access(folder, os.F_OK) else existing(folder.parent)  # `exists` may raise below another's
