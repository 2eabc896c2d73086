"""What this process may use of the machine."""

import os


def cpu_count() -> int:
    """Return the number of CPUs that this process may use: a container often has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
