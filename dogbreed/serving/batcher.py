"""Concurrent requests answered in common passes through the network, by one thread.

A pass takes whatever is waiting. It waits itself only while others are known to be coming (their images are being
decoded), and never longer than `max_wait`: a person alone is answered at once.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
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
        compute: From inputs [N, ...] to outputs [N, ...].
        max_batch: Images in one pass.
        max_wait: Longest time a pass waits for images that are being decoded, in seconds.
        threads: Of torch within a pass; None leaves torch's own choice.
        passed: Called after each pass with its images and seconds.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        *,
        max_batch: int = 8,
        max_wait: float = 0.01,
        threads: int | None = None,
        passed: Callable[[int, float], None] = lambda images, seconds: None,
    ) -> None:
        self.compute, self.max_batch, self.max_wait, self.passed = compute, max_batch, max_wait, passed
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Any, Future[Any]]] = deque()
        self._coming = 0
        self._closed = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._work, args=(threads,), name="network", daemon=True)
        self._thread.start()

    def submit(self, item: Tensor) -> "Future[Tensor]":
        """Asks for the output of one input.

        Raises:
            Closed: The thread has ended.
        """
        return self._add(item)

    def run(self, task: Callable[[], T]) -> "Future[T]":
        """Lets the thread do something else between two passes.

        Raises:
            Closed: The thread has ended.
        """
        return self._add(task)

    @contextmanager
    def coming(self, count: int = 1) -> Iterator[None]:
        """Within it, `count` inputs are being made that a pass should wait for."""
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
        """Answers what is waiting, then ends the thread."""
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
        finally:  # also where the thread dies of something: whoever waits is told
            with self._changed:
                self._closed = True
                left = list(self._waiting)
                self._waiting.clear()
            for _, future in left:
                if future.set_running_or_notify_cancel():
                    future.set_exception(Closed())

    def _next(self) -> list[tuple[Any, "Future[Any]"]]:
        """The next task, or the inputs of the next pass; nothing when closed."""
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
        wanted = [(work, future) for work, future in group if future.set_running_or_notify_cancel()]
        if not wanted:
            return
        started = time.perf_counter()
        try:
            if isinstance(wanted[0][0], Tensor):
                outputs: Any = self.compute(torch.stack([work for work, _ in wanted]))
            else:
                outputs = [wanted[0][0]()]
        except BaseException as error:
            for _, future in wanted:
                future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), output in zip(wanted, outputs, strict=True):
            future.set_result(output)
        self.passed(len(wanted), time.perf_counter() - started)
