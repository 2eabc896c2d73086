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
