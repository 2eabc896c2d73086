"""Where the benchmarks write."""

import subprocess

import pytest
from support.places import ROOT

from benchmarks import stub
from benchmarks.__main__ import result_file


@pytest.mark.parametrize("record", [False, True])
def test_tracked_results_are_written_over_only_when_asked(record: bool) -> None:
    file = result_file("AMD EPYC 9R14 (2 cores)", record)
    assert file.name == f"amd-epyc-9r14--2-cores{'' if record else '.local'}.json"
    ignored = subprocess.run(
        ["git", "check-ignore", "--no-index", str(file)], cwd=ROOT, capture_output=True, check=False
    )
    assert ignored.returncode == int(record), "a local result is no change of the checkout"


def test_without_a_compiler_the_stub_of_cuda_is_skipped(monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "")
    stub._built.cache_clear()
    stub.stub(None)
    assert "skipped: the stub of CUDA needs a compiler" in capsys.readouterr().out
