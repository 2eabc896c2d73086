"""Whole runs of the training command for the end-to-end tests: small photographs, tiny networks, what a run left."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from support.forks import SAFE, Forked, command
from support.places import ROOT

from dogbreed.data.synthetic import make_sample
from dogbreed.models import backbones
from dogbreed.train import main

# Inputs of 64 pixels and one thread: a run takes a second, and adds its numbers in the same order each time.
TINY = (
    "model.backbone=squeezenet1_1",
    "model.weights=none",
    "data.size=64",
    "data.batch_size=8",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.devices=1",
    "trainer.max_epochs=2",
    "loggers=null",
)

# A hidden layer and a dropout lie between MobileNetV3's features and its last layer.
STACKABLE = (
    "model.backbone=mobilenet_v3_small",
    "model.weights=none",
    "data.size=64",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "loggers=null",
)

# What says how long a run took or how it came to its result, not what the result is.
NOT_THE_RESULT = (
    *("seconds", "images_per_second", "cache"),
    *("features_computed", "features_seconds", "decoding_seconds"),
)

_KEPT: list[tempfile.TemporaryDirectory[str]] = []  # removed when the tests end


class Ran(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


@cache
def photographs(classes: int = 3, train: int = 6, valid: int = 3, test: int = 3) -> Path:
    """A folder of drawn photographs, made once for all tests; a test that changes it takes a copy."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="dogbreed-photographs-"))
    root = Path(_KEPT[-1].name) / "dogs"
    make_sample(root, classes=classes, train=train, valid=valid, test=test)
    return root


def headless_weights(folder: Path) -> str:
    """The setting of a ResNet18's weights whose head does not fit, so that a run's head follows from its seed alone."""
    file = folder / "resnet18.pth"
    torch.save(backbones.create("resnet18", 7, weights="none").state_dict(), file)
    return f"model.weights={file}"


def overrides(folder: Path, *more: str, data: Path | None = None) -> list[str]:
    """A tiny run that writes to `folder` and keeps its features beside it."""
    where = [f"data.root={data or photographs()}", f"output_dir={folder}", f"cache.dir={folder.parent / 'cache'}"]
    return [*TINY, *where, *more]


def run(*arguments: str) -> Ran:
    """Calls the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with one_thread(), redirect_stdout(out), redirect_stderr(err):
        code = main(list(arguments))
    return Ran(code, out.getvalue(), err.getvalue())


def train_in(folder: Path, *more: str, data: Path | None = None) -> Ran:
    """A tiny run in this process that has to succeed."""
    ran = run(*overrides(folder, *more, data=data))
    assert ran.code == 0, ran.err
    return ran


@contextmanager
def one_thread() -> Iterator[None]:
    """Threads add up in another order, and wait for each other where the machine has other things to do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(**more: str) -> dict[str, str]:
    """For a process of its own: one thread, this checkout."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def start(arguments: Sequence[str], folder: Path, *, fresh: bool = False) -> subprocess.Popen[str] | Forked:
    """Starts the command as a process of its own in `folder`; a fresh one loads everything itself."""
    if SAFE and not fresh:
        return Forked(command, ["dogbreed.train", *arguments], environment(), folder)
    return subprocess.Popen(
        [sys.executable, "-m", "dogbreed.train", *arguments],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the suite runs in the background
    )


def finish(process: subprocess.Popen[str] | Forked, timeout: float = 240) -> str:
    """Waits for the end of a command that has to succeed; returns what it said."""
    said, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, said
    return said


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def history(folder: Path) -> list[dict[str, float]]:
    return [{name: float(value) for name, value in row.items()} for row in _rows(folder / "metrics.csv")]


def predictions(folder: Path) -> list[dict[str, str]]:
    return _rows(folder / "predictions.csv")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same_result(one: Path, other: Path) -> None:
    """The two runs came to the same, bit for bit."""
    for left, right in ((metrics(one), metrics(other)), *zip(history(one), history(other), strict=True)):
        for name in NOT_THE_RESULT:
            left.pop(name, None), right.pop(name, None)
        assert left == right
    assert predictions(one) == predictions(other)
    assert_same_model(one, other)


def assert_same_model(one: Path, other: Path) -> None:
    """The two runs exported the same weights, bit for bit."""
    assert weights(one).keys() == weights(other).keys()
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))
