"""Commands in processes of their own that start at once: each is forked from one that has loaded everything already.

What a test wants of such a process is that it can be stopped and killed, not that it loads torch first, which takes
longer than most of these tests.
"""

import atexit
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

SAFE = sys.platform == "linux"  # elsewhere there is no fork, or libraries that do not survive one
LOADED = ["dogbreed.config.cli", "hydra", "dogbreed.search.run", "dogbreed.serving.app", "dogbreed.serving.server"]


class Forked:
    """A function in such a process, with the parts of `subprocess.Popen` that tests use.

    Args:
        function: Of a module that both processes can import.
        arguments: Of the function.
        environment: The process's variables.
        folder: In which it works.
        apart: Whether its errors are in `stderr`; otherwise they are among its output, in `stdout`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        arguments: Sequence[Any],
        environment: Mapping[str, str],
        folder: Path | None = None,
        *,
        apart: bool = False,
    ) -> None:
        context = _context(environment["PYTHONPATH"])
        (out, out_end), (errors, errors_end) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        streams = out_end, (errors_end if apart else out_end)
        target = (function, list(arguments), dict(environment), folder or Path.cwd(), *streams)
        self._process = context.Process(target=_run, args=target)
        self._process.start()
        atexit.register(self.kill)  # of a test that failed; multiprocessing would wait for it
        out_end.close(), errors_end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), encoding="utf-8") for end in (out, errors))
        out.close(), errors.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("forked", timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of what it prints, when it has ended."""
        rest = ["", ""]

        def read(number: int) -> None:
            rest[number] = (self.stdout, self.stderr)[number].read()

        readers = [threading.Thread(target=read, args=(number,), daemon=True) for number in range(2)]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return rest[0], rest[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def command(module: str, *arguments: str) -> None:
    """What `python -m MODULE ARGUMENTS...` runs."""
    sys.argv[1:] = arguments
    sys.modules.pop(module, None)  # else runpy warns that it is there already
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def program(code: str, *arguments: str) -> None:
    """What `python -c CODE ARGUMENTS...` runs."""
    sys.argv[1:] = arguments
    exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102


@cache
def _context(path: str) -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    with patch.dict(os.environ, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}):  # torch reads it when it is loaded
        multiprocessing.forkserver.ensure_running()
    return context


def _run(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    environment: Mapping[str, str],
    folder: Path,
    out: Connection,
    errors: Connection,
) -> None:
    os.dup2(out.fileno(), 1), os.dup2(errors.fileno(), 2)
    out.close(), errors.close()
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # its own processes are made as they usually are
    function(*arguments)
