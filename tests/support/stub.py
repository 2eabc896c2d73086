"""The stub of CUDA (`benchmarks.stub`) for tests, which are skipped where it cannot be built."""

import subprocess

import pytest
from support import runs

from benchmarks import stub


def run(code: str, **card: str) -> subprocess.CompletedProcess[str]:
    """Run Python code over the stub, as `benchmarks.stub.run` does, with the tests' modules at hand."""
    try:
        return stub.run(code, runs.ROOT / "tests", **card)
    except stub.NoStubError as reason:
        pytest.skip(str(reason))
