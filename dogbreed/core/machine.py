"""What this process may use of the machine."""

import os
import shutil
import tempfile
from pathlib import Path


def cpu_count() -> int:
    """Return the number of CPUs that this process may use: a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_memory() -> int:
    """Return how many bytes of memory are left: a container may have less than the machine."""
    import psutil  # here, since an endpoint's container may lack it

    free = psutil.virtual_memory().available
    try:
        limit, used = (int(Path("/sys/fs/cgroup", f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no such files, or no limit
        return free
    return min(free, max(0, limit - used))


def ensure_home() -> None:
    """Give a process of an account without a home a temporary one, where its libraries keep what they download."""
    try:
        Path.home()
    except RuntimeError:  # neither HOME nor an entry in the list of accounts
        account = str(os.getuid())
        home = Path(tempfile.gettempdir(), f"home-{account}")
        home.mkdir(mode=0o700, exist_ok=True)
        os.environ["HOME"] = str(home)
        os.environ.setdefault("USER", account)


def workers_with_room(workers: int, batch_bytes: int, loaders: int = 1) -> int:
    """Return how many worker processes the shared memory has room for; through it each hands over what it has made.

    Args:
        workers: As many as are wanted.
        batch_bytes: Size of what a worker hands over at once; two wait while a third is made.
        loaders: How many sets of workers there are at the same time.
    """
    try:
        free = shutil.disk_usage("/dev/shm").free  # noqa: S108
    except OSError:  # a system without
        return workers
    return min(workers, max(0, free // batch_bytes - 1) // (3 * loaders))
