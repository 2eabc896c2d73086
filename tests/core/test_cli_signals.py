"""Ctrl-C, however often."""

import subprocess
import sys

import pytest
from support import runs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C")

SECOND_AT_EXIT = """
def task():
    atexit.register(os.kill, os.getpid(), signal.SIGINT)  # what is cleared up at exit, when a second one comes
    os.kill(os.getpid(), signal.SIGINT)
"""
SECOND_AT_ONCE = """
def task():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        print("cleared up")
"""
WORKER_STOPPED_TOO = """
def task():
    def worker_died(*_):
        raise RuntimeError("a worker is killed by a signal")
    signal.signal(signal.SIGCHLD, worker_died)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        os.kill(os.getpid(), signal.SIGCHLD)
        print("cleared up")
"""
FIRST = """
def task():
    os.kill(os.getpid(), signal.SIGINT)
"""


def ended(task: str, handler: str = "default_int_handler") -> tuple[int, str, str]:
    """Return exit code and outputs of a process that runs a task, and begins with this handler of Ctrl-C."""
    script = f"""
import atexit, os, signal
from dogbreed.core.cli import guard
signal.signal(signal.SIGINT, signal.{handler})
{task}
raise SystemExit(guard(task))
"""
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stdout, ran.stderr


def test_a_second_ctrl_c_at_exit_prints_no_traceback():
    assert ended(SECOND_AT_EXIT) == (130, "", "stopped\n")


def test_another_ctrl_c_does_not_disturb_the_clearing_up():
    assert ended(SECOND_AT_ONCE) == (130, "cleared up\n", "stopped\n")


def test_workers_that_are_stopped_with_a_command_do_not_disturb_the_clearing_up():
    """As by `timeout`, or by whatever else stops a group of processes."""
    assert ended(WORKER_STOPPED_TOO) == (143, "cleared up\n", "stopped\n")


def test_what_does_not_hear_ctrl_c_goes_on():
    """As a command that a shell starts in the background."""
    assert ended(FIRST, "SIG_IGN") == (0, "", "")
