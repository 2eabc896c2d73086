"""One way to show how far a long piece of work has come: how much, how fast, how long still."""

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from dogbreed.core.text import duration, size

LINE_EVERY_SECONDS = 10.0
LINE_EVERY_FRACTION = 0.25
REFRESH_SECONDS = 0.1


class Tracker(Protocol):
    """What `track` hands out."""

    def advance(self, n: int = 1, status: Callable[[], str] | None = None) -> None:
        """Say that `n` more units are done; any thread may call it.

        Args:
            n: Units.
            status: Returns what else is to be shown; called only when it is.
        """


@contextmanager
def track(
    total: int | None,
    description: str,
    unit: str = "images",
    *,
    done: int = 0,
    quiet: bool = False,
    plain: bool = False,
    transient: bool = False,
) -> Iterator[Tracker]:
    """Show progress on standard error: a bar on a terminal, elsewhere a plain line now and then.

    Args:
        total: How many units there are, None when nobody knows.
        description: What is going on, such as "Reading images".
        unit: What is counted; "bytes" is shown as kB, MB and GB.
        done: Units that were done before, as in a download that is resumed; they do not count into the rate.
        quiet: Show nothing.
        plain: Lines on a terminal too.
        transient: Leave nothing behind: the bar vanishes at the end, and lines are those of every ten seconds.
    """
    if quiet:
        yield _Silent()
    elif (_display.is_shown or sys.stderr.isatty()) and not plain:  # a display stands in front of standard error
        with _display.bar(description, total, done, unit, transient) as bar:
            yield bar
    else:
        lines = _Lines(total, description, unit, done, transient)
        yield lines
        lines.finish()


class _Silent:
    def advance(self, n: int = 1, status: Callable[[], str] | None = None) -> None:
        """Show nothing."""


class _Display:
    """What draws on the terminal: rich has one display, so a bar that begins while another is shown joins it."""

    def __init__(self) -> None:
        self._drawn: Progress | None = None
        self._open = 0

    @property
    def is_shown(self) -> bool:
        return self._drawn is not None

    @contextmanager
    def bar(self, description: str, total: int | None, done: int, unit: str, transient: bool) -> Iterator["_Bar"]:
        """Show a bar, below those that are there."""
        drawn = self._drawn = self._drawn or self._start()
        self._open += 1
        task = drawn.add_task(description, total=total, completed=done, status="", unit=unit)
        try:
            yield _Bar(drawn, task)
        finally:
            self._open -= 1
            alone = len(drawn.tasks) == 1
            if transient and not alone:
                drawn.remove_task(task)
            if not self._open:
                self._drawn = None
                drawn.live.transient = transient and alone
                drawn.stop()

    def _start(self) -> Progress:
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), _Amount(), _Rate(), TimeRemainingColumn()),
            TextColumn("{task.fields[status]}"),
        )
        # What is printed meanwhile goes above the bar, but never from a file or a pipe to the terminal.
        console, above = Console(file=sys.stderr), sys.stdout.isatty()
        drawn = Progress(*columns, console=console, speed_estimate_period=30, redirect_stdout=above)
        drawn.start()
        return drawn


_display = _Display()


class _Bar:
    def __init__(self, bar: Progress, task: TaskID) -> None:
        self.bar, self.task, self.shown = bar, task, -math.inf

    def advance(self, n: int = 1, status: Callable[[], str] | None = None) -> None:
        if status and time.monotonic() - self.shown >= REFRESH_SECONDS:
            self.shown = time.monotonic()
            self.bar.update(self.task, status=status())
        self.bar.advance(self.task, n)


class _Lines:
    """Plain lines for log files: one per quarter of the work, and one when ten seconds went by without."""

    def __init__(self, total: int | None, description: str, unit: str, done: int, transient: bool) -> None:
        self.total, self.description, self.unit, self.transient = total, description, unit, transient
        self.before = self.done = self.printed = done
        self.start = self.last = time.monotonic()
        self.lock = threading.Lock()

    def advance(self, n: int = 1, status: Callable[[], str] | None = None) -> None:
        with self.lock:
            self.done += n
            quarter = bool(self.total) and self._quarter(self.done) > self._quarter(self.printed)
            if (quarter and not self.transient) or time.monotonic() - self.last >= LINE_EVERY_SECONDS:
                self._print(f", {status()}" if status else "")

    def finish(self) -> None:
        with self.lock:
            if self.done > self.printed and not self.transient:
                self._print()

    def _quarter(self, done: int) -> int:
        return int(done / (self.total or 1) / LINE_EVERY_FRACTION)

    def _print(self, status: str = "") -> None:
        self.printed, self.last = self.done, time.monotonic()
        rate = (self.done - self.before) / max(self.last - self.start, 1e-9)
        text = f"{self.description}: {_amount(self.done, self.total, self.unit)}, {_count(rate, self.unit)}/s"
        if self.total and rate and self.done < self.total:
            text += f", {duration((self.total - self.done) / rate)} left"
        print(f"{text}{status}", file=sys.stderr, flush=True)


class _Amount(ProgressColumn):
    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        return Text(_amount(int(task.completed), total, task.fields["unit"]))


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{_count(speed, task.fields['unit'])}/s")


def _amount(done: int, total: int | None, unit: str) -> str:
    if total is None:
        return _count(done, unit)
    if unit == "bytes":
        return f"{_count(done, unit)} of {_count(total, unit)}"
    return f"{done:,} of {total:,} {unit}"


def _count(number: float, unit: str) -> str:
    if unit != "bytes":
        return f"{number:,.1f} {unit}" if number < 10 and number != int(number) else f"{number:,.0f} {unit}"
    return size(number)
