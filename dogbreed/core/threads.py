"""Threads that each have their own number of torch's threads."""

import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier, Event, Thread, local
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")
_here = local()


def set_num_threads(count: int) -> None:
    """Set how many threads torch uses in what this thread does."""
    torch.get_num_threads()  # torch takes over what other threads have set when a thread first asks, but not later
    torch.set_num_threads(count)


def in_threads(work: Callable[[Any], T], parts: Sequence[Any]) -> list[T]:
    """Do the work of all parts, in as many threads as torch would use; each has one thread of torch.

    Work of many small steps gains: were each step shared out by torch, its threads would wait for each other after
    every one. Nothing in it is differentiated.

    Args:
        work: Called with each of the parts.
        parts: What there is to do.

    Returns:
        What came out, in the order of the parts.
    """
    count = torch.get_num_threads()
    if count == 1 or len(parts) == 1 or getattr(_here, "is_worker", False):
        return [work(part) for part in parts]
    inference = torch.is_inference_mode_enabled()

    def run(part: Any) -> T:
        with torch.inference_mode(inference), torch.set_grad_enabled(False):
            return work(part)

    return list(_workers(count).map(run, parts))


@cache
def stop_spinning() -> None:
    """Let OpenMP's threads sleep soon where torch was loaded before dogbreed, as notebooks do.

    libgomp reads OMP_WAIT_POLICY while it is loaded. Without it threads wait by spinning for milliseconds, and on busy
    cores for each other: features took five times as long. Where it has more threads than cores, though, they sleep
    after a hundred turns (`gomp_throttled_spin_count_var`); so here are more, of which all sleep.
    """
    if sys.platform != "linux" or "OMP_WAIT_POLICY" in os.environ:
        return
    before, cores, started = torch.get_num_threads(), len(os.sched_getaffinity(0)), Event()

    def hold() -> None:
        try:
            set_num_threads(cores + 1)
            torch.empty((cores + 1) * 2**15, dtype=torch.uint8).fill_(0)  # 2**15 elements are one thread's least share
        finally:
            started.set()
        Event().wait()  # its team lives as long as it does

    Thread(target=hold, name="dogbreed-idle", daemon=True).start()
    started.wait()
    torch.set_num_threads(before)  # which is also what threads to come will have


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Return threads within which torch has one thread each."""
    started = Barrier(count + 1)

    def start() -> None:
        set_num_threads(1)
        _here.is_worker = True
        started.wait()

    workers = ThreadPoolExecutor(count, "dogbreed", initializer=start)
    for _ in range(count):
        workers.submit(int)
    started.wait()
    torch.set_num_threads(count)  # which is also what threads to come will have
    return workers


if hasattr(os, "register_at_fork"):  # a child has none of its parent's threads, and would wait for them forever
    os.register_at_fork(after_in_child=_workers.cache_clear)
