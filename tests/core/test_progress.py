"""Progress that leaves nothing behind, and says more where it is shown."""

import io
import re
import time

import pytest

from dogbreed.core import progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def epoch(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, plain: bool = False) -> tuple[str, int]:
    """What an epoch of 100 steps shows, and how often its loss was asked for."""
    asked = []
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    with progress.track(100, "Epoch 1/2", "steps", plain=plain, transient=True) as tracker:
        for step in range(100):
            tracker.advance(1, lambda step=step: asked.append(step) or f"loss {step}")
    return stream.getvalue(), len(asked)


def test_a_bar_that_vanishes(monkeypatch):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 1e9)  # once, at the first step
    text, asked = epoch(monkeypatch, Terminal())
    assert "Epoch 1/2" in text
    assert "loss 0" in text
    assert asked == 1
    assert text.rstrip("\x1b[?25h").endswith("\x1b[2K"), "its line is cleared in the end"


def test_lines_only_where_it_takes_long(monkeypatch):
    assert epoch(monkeypatch, io.StringIO()) == ("", 0)
    monkeypatch.setattr(progress, "LINE_EVERY_SECONDS", 0.0)
    for stream, plain in ((io.StringIO(), False), (Terminal(), True)):
        lines = epoch(monkeypatch, stream, plain)[0].splitlines()
        assert len(lines) == 100
        assert re.fullmatch(r"Epoch 1/2: 50 of 100 steps, [\d,.]+ steps/s, .+ left, loss 49", lines[49])


def test_a_bar_joins_the_one_that_is_shown(monkeypatch):
    """In whichever order they end; what stays is the one that is not transient."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    for first in (0, 1):
        bars = [
            progress.track(10, "Features", "views"),
            progress.track(None, "Epoch", "steps", transient=True),
        ]
        for bar in bars:
            bar.__enter__().advance(3)
        time.sleep(0.5)  # it is drawn ten times a second
        bars[first].__exit__(None, None, None)
        assert "Epoch" in stream.getvalue()
        assert "3 steps" in stream.getvalue()
        bars[1 - first].__exit__(None, None, None)
        shown = stream.getvalue()[-500:]
        assert "3 of 10 views" in shown
        assert shown.rindex("Features") > shown.rfind("Epoch"), "the epoch's is gone"
        stream.truncate(0)
