"""What every command shares: the frame of its arguments, and turning errors into one sentence and an exit code.

Exit codes: 0 done, 1 a fault of this program (with its traceback), 2 something a person can put right, 130 stopped
with Ctrl-C, 143 with SIGTERM.
Nothing heavy is imported here: a help page or a usage error answers in a fraction of a second.
"""

import argparse
import atexit
import errno
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.extras import install
from dogbreed.core.machine import ensure_home
from dogbreed.core.version import __version__

CLEARING_UP = 5.0  # seconds in which another Ctrl-C is not heard
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EROFS)
# Packages of extras, by the name that is imported.
_EXTRAS = {
    **dict.fromkeys(("boto3", "botocore", "sagemaker"), "sagemaker"),
    **dict.fromkeys(("anyio", "h11", "prometheus_client", "starlette", "uvicorn"), "serve"),
    "optuna": "search",
    "moto": "rehearse",
}


def parser(prog: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """Return the frame of a command's arguments: help page, `--version`, no abbreviated flags."""
    frame = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    frame.add_argument("--version", action="version", version=f"dogbreed {__version__}")
    return frame


def guard(task: Callable[[], int | None]) -> int:
    """Run a task and turn what it raises into a sentence on standard error and an exit code."""
    ensure_home()
    if sys.stdout is None or sys.stderr is None:  # closed by whoever started this process
        sys.stdout, sys.stderr = (stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the stream cannot encode is shown with escapes
            stream.reconfigure(errors="backslashreplace")
    with _stopped_once() as stopped_by:
        try:
            code = task() or 0
            sys.stdout.flush()  # a closed pipe shows here, not in the interpreter's last breath
        except (KeyboardInterrupt, Interrupted) as interrupted:
            # Another Ctrl-C would print a traceback of whatever else is cleared up at exit; this comes first there.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
            return _say(str(interrupted) or "stopped", 128 + stopped_by[-1])
        except Exception as error:
            return _report(error)
    return code


@contextmanager
def _stopped_once() -> Iterator[list[int]]:
    """Stop at SIGTERM as at Ctrl-C; the last entry of what is yielded is the signal's number.

    Who presses Ctrl-C again at once does not disturb the clearing up. A server and a rehearsal have handlers of their
    own meanwhile; forked workers get torch's.
    """
    numbers = [int(signal.SIGINT)]
    last = -CLEARING_UP

    def stop(number: int, frame: object) -> None:
        nonlocal last
        if time.monotonic() - last > CLEARING_UP:
            last = time.monotonic()
            numbers.append(number)
            if hasattr(signal, "SIGCHLD"):  # workers that were stopped too are no error, as torch's handler has it
                signal.signal(signal.SIGCHLD, lambda *_: None)
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield numbers
        return
    # A shell leaves Ctrl-C ignored for what it starts in the background.
    ours = [signal.SIGTERM, *([signal.SIGINT] if signal.getsignal(signal.SIGINT) != signal.SIG_IGN else [])]
    before = {number: signal.signal(number, stop) for number in ours}
    try:
        yield numbers
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def path(text: str) -> Path:
    """Return an argument as a path; `~` is expanded where a shell has not done so, as in `--output=~/photos`."""
    return Path(os.path.expanduser(text))


def _report(error: Exception) -> int:
    if isinstance(error, DogbreedError):
        return _say(f"error: {error}", error.exit_code)
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has enough of it. The interpreter flushes once more at exit: let that succeed.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell reports a program that ended by SIGPIPE
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRAS.get(str(error.name).partition(".")[0])):
        return _say(f"error: This needs {error.name}, which is not installed: {install(extra)}", 2)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not loaded here
        return _say(
            "error: The GPU's memory is too small: take a smaller data.batch_size or network, or the CPU "
            "(trainer.accelerator=cpu, --device cpu); see whether another process uses the GPU.",
            2,
        )
    if cause := _os_error(error, _DISK_FULL):
        where = f" while writing {cause.filename}" if cause.filename else ""
        return _say(f"error: The disk is full{where}; free some space, or choose a folder on another disk", 2)
    if _os_error(error, (errno.EMFILE, errno.ENFILE)):
        return _say("error: Too many files are open; raise the limit (ulimit -n 4096), or give data.num_workers=0", 2)
    if cause := _os_error(error, (errno.ENAMETOOLONG,)):
        return _say(f"error: {str(cause.filename)[:60]}... is too long a name for this disk; choose another", 2)
    if cause := _os_error(error, _FORBIDDEN):
        return _say(f"error: No permission to use {cause.filename or 'a file'} ({cause.strerror})", 2)
    traceback.print_exception(error)
    return 1


def _os_error(error: BaseException | None, numbers: tuple[int, ...]) -> OSError | None:
    """Return the operating system's error behind an error, if its number is one of these."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in numbers:
            return error
        error = error.__cause__ or error.__context__
    return None


def _say(sentence: str, code: int) -> int:
    with suppress(OSError):
        print(sentence, file=sys.stderr, flush=True)
    return code
