"""What the Makefile's targets would run, as `make --dry-run` prints it."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def dry_run(*words: str) -> str:
    command = ["make", "--dry-run", "--always-make", "PYTHON=python3", *words]
    outer = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS", "ARGS", "TORCH")  # of the make that runs these tests
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.parametrize("target", ["train", "lint"])
def test_torch_for_the_cpu_is_asked_for_in_so_many_words(target: str) -> None:
    before, _, behind = dry_run(target, "TORCH=cpu").partition("--index-url https://download.pytorch.org/whl/cpu")
    assert "-m pip install torch torchvision" in before
    assert "-m pip install --editable" not in before, "which would install another torch first"
    assert "-m pip install --editable" in behind
    assert "--index-url" not in dry_run(target, "TORCH=")


def test_train_runs_the_quickstart_or_what_is_asked_for() -> None:
    assert dry_run("train").rstrip().endswith("-m dogbreed.train experiment=quickstart")
    assert dry_run("train", "ARGS=data.root=my_dogs").rstrip().endswith("-m dogbreed.train data.root=my_dogs")


def test_the_debugger_has_an_environment_of_its_own() -> None:
    said = dry_run("debugger")
    assert "-m venv --clear .venvs/debugger" in said
    assert ".venvs/debugger/bin/python -m pip install --editable '.[debugger]'" in said
    assert "Ready: .venvs/debugger/bin/python -m dogbreed.train debugger.enabled=true" in said


def test_help_lists_every_target() -> None:
    listed = {
        line.split()[1]
        for line in subprocess.run(
            ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
        ).stdout.splitlines()
        if line.startswith("make ")
    }
    (phony,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:")]
    assert listed == set(phony.split()[1:])
