"""Work that goes on beside a block of code, and ends with it; work of threads in its order."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


@contextmanager
def in_background(work: Callable[[Event], None]) -> Iterator[None]:
    """Run `work` in a thread of its own; the event that it receives is set when the block ends, which waits for it."""
    ended = Event()
    thread = Thread(target=work, args=(ended,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def in_order(
    work: Callable[[T], R], items: Iterable[T], workers: int, name: str = "dogbreed"
) -> Generator[R, None, None]:
    """Yield the work of all items in their order, done by threads; few wait at a time, however many there are."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix=name) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 8 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also after Ctrl-C: do not go through the rest
            for future in waiting:
                future.cancel()
