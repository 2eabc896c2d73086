"""Ctrl-C, however often."""

import subprocess
import sys

import pytest
from support import runs

SCRIPT = """
import atexit, os, signal
from dogbreed.core.cli import guard

def task():
    atexit.register(os.kill, os.getpid(), signal.SIGINT)  # what is cleared up at exit, when a second one comes
    os.kill(os.getpid(), signal.SIGINT)

raise SystemExit(guard(task))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C")
def test_a_second_ctrl_c_at_exit_prints_no_traceback():
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler)" + SCRIPT]
    ran = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "", "stopped\n")


IMPATIENT = """
import os, signal
from dogbreed.core.cli import guard

def task():
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        print("cleared up")

raise SystemExit(guard(task))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C")
def test_another_ctrl_c_does_not_disturb_the_clearing_up():
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.default_int_handler)" + IMPATIENT]
    ran = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stdout, ran.stderr) == (130, "cleared up\n", "stopped\n")


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot send itself a Ctrl-C")
def test_who_is_not_to_hear_ctrl_c_goes_on():
    """As what a shell starts in the background."""
    script = "import os; from dogbreed.core.cli import guard; raise SystemExit(guard(lambda: os.kill(os.getpid(), 2)))"
    command = [sys.executable, "-c", "import signal; signal.signal(2, signal.SIG_IGN);" + script]
    ran = subprocess.run(command, env=runs.environment(), capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
