"""smdebug for the tests: an interpreter that has it, and programs that run there.

It pins a protobuf that others no longer take, so `make test` gives it an environment of its own. A test that needs it
is skipped where there is none; under CI=true it fails there instead.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import runs

PYTHON = runs.ROOT / ".venvs" / "debugger" / "bin" / "python"


@pytest.fixture(scope="session")
def smdebug_python() -> Path:
    """An interpreter that can import smdebug beside everything else."""
    if importlib.util.find_spec("smdebug") is not None:
        return Path(sys.executable)
    if not PYTHON.exists():
        pytest.skip("smdebug is not installed (make test makes .venvs/debugger for it)")
    return PYTHON


def result_of(python: Path, program: str, *arguments: str, folder: Path) -> Any:
    """Runs a program there; what it prints last is read as JSON."""
    done = subprocess.run(
        [str(python), "-c", program, *arguments],
        cwd=folder,
        env=runs.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
