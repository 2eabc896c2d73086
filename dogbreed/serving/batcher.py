"""Concurrent requests share passes through the network, which one thread runs.

A pass takes whatever is waiting. It waits itself only while others are known to be coming (their images are being
decoded), and never longer than `max_wait`: a single client is answered at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from dogbreed.core.threads import set_num_threads

T = TypeVar("T")
STALLED_AFTER = 60.0  # seconds in one pass after which the thread counts as dead


class Closed(RuntimeError):
    """The thread has ended; nothing will be answered any more."""


class Batcher:
    """A thread that owns the network.

    Args:
        compute: From inputs [N, ...] to an output for each.
        max_batch: Images in one pass.
        max_wait: Longest time a pass waits for images that are being decoded, in seconds.
        threads: Of torch within a pass; None leaves torch's own choice.
        on_pass: Called after each pass with its images and seconds.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Sequence[Any]],
        *,
        max_batch: int = 8,
        max_wait: float = 0.01,
        threads: int | None = None,
        on_pass: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.compute, self.max_batch, self.max_wait, self.on_pass = compute, max_batch, max_wait, on_pass
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._coming = 0
        self._closed = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, args=(threads,), name="network", daemon=True)
        self._thread.start()

    def submit(self, item: Tensor) -> "Future[Any]":
        """Return the output of one input, when a pass has made it.

        Raises:
            Closed: The thread has ended.
        """
        return self._add(item)

    def run(self, task: Callable[[], T]) -> "Future[T]":
        """Return the result of a task, which the thread does between two passes.

        Raises:
            Closed: The thread has ended.
        """
        return self._add(task)

    @contextmanager
    def coming(self, count: int = 1) -> Iterator[None]:
        """Let passes wait for `count` inputs that are being made within the block."""
        with self._changed:
            self._coming += count
        try:
            yield
        finally:
            with self._changed:
                self._coming -= count
                self._changed.notify_all()

    @property
    def waiting(self) -> int:
        """Inputs and tasks that no pass has taken yet."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be answered."""
        since = self._busy_since
        stalled = since is not None and time.monotonic() - since > STALLED_AFTER
        return self._thread.is_alive() and not self._closed and not stalled

    def close(self) -> None:
        """Answer what is waiting, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _add(self, work: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        with self._changed:
            if self._closed:
                raise Closed
            self._waiting.append((work, future))
            self._changed.notify_all()
        return future

    def _work(self, threads: int | None) -> None:
        if threads is not None:
            set_num_threads(threads)
        try:
            while group := self._next():
                self._busy_since = time.monotonic()
                self._answer(group)
                self._busy_since = None
        finally:  # also where the thread dies of a fault, so that nobody waits forever
            with self._changed:
                self._closed = True
                remaining = list(self._waiting)
                self._waiting.clear()
            for _, future in remaining:
                if future.set_running_or_notify_cancel():
                    future.set_exception(Closed())

    def _next(self) -> list[tuple[Any, "Future[Any]"]]:
        """Return the next task, or the inputs of the next pass; nothing when closed."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            if not isinstance(self._waiting[0][0], Tensor):
                return [self._waiting.popleft()]
            until = time.monotonic() + self.max_wait
            while self._coming and len(self._waiting) < self.max_batch and not self._closed:
                if not self._changed.wait(until - time.monotonic()):
                    break
            group: list[tuple[Any, Future[Any]]] = []
            while self._waiting and len(group) < self.max_batch and isinstance(self._waiting[0][0], Tensor):
                group.append(self._waiting.popleft())
            return group

    def _answer(self, group: list[tuple[Any, "Future[Any]"]]) -> None:
        group = [(work, future) for work, future in group if future.set_running_or_notify_cancel()]
        if not group:
            return
        started = time.perf_counter()
        try:
            if isinstance(group[0][0], Tensor):
                outputs: Any = self.compute(torch.stack([work for work, _ in group]))
            else:
                outputs = [group[0][0]()]
        except BaseException as error:
            for _, future in group:
                future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), output in zip(group, outputs, strict=True):
            future.set_result(output)
        self.on_pass(len(group), time.perf_counter() - started)
