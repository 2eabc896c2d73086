"""Bad use: one sentence that names the cause and the way out, exit code 2, no traceback, nothing half-written."""

import hashlib
import os
import pickle
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support import runs
from torchvision.models import mobilenet_v3_small

from dogbreed import DogBreedClassifier
from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.export import main as export
from dogbreed.inspect import main as inspect
from dogbreed.predict import main as predict
from dogbreed.train import main as train
from dogbreed.training.resume import check_folder

pytestmark = pytest.mark.slow


def refused(ran: runs.Ran, *parts: str) -> str:
    """Checks that a command ended with one sentence that says all of this; returns the sentence."""
    assert ran.code == 2, f"{ran.code}\n{ran.out}\n{ran.err}"
    sentence = ran.err.strip().splitlines()[-1]
    assert sentence.startswith("error: ")
    assert "Traceback" not in ran.out + ran.err
    assert ran.err.count("error") == 1 or sentence.count("error") > 1, ran.err
    for part in parts:
        assert part in sentence, f"{part!r} is not in: {sentence}"
    return sentence


@pytest.fixture
def bad(tmp_path: Path) -> Callable[..., str]:
    """Calls the command, which has to refuse and to leave no folder; returns its sentence."""

    def call(*more: str, says: list[str], data: Path | None = None) -> str:
        folder = tmp_path / "run"
        sentence = refused(runs.run(*runs.overrides(folder, *more, data=data)), *says)
        assert not folder.exists()
        return sentence

    return call


@pytest.fixture
def dogs(tmp_path: Path) -> Path:
    """Photographs of the test's own, to spoil."""
    root = tmp_path / "dogs"
    shutil.copytree(runs.photographs(), root)
    return root


# Data


def test_missing_folder(bad: Callable[..., str], tmp_path: Path) -> None:
    bad(data=tmp_path / "nowhere", says=[f"{tmp_path / 'nowhere'} does not exist", "data.root=", "data=sample"])


def test_empty_folder(bad: Callable[..., str], tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    bad(data=root, says=[f"{root} has no folder train/", "train/, valid/ and test/"])
    for split in ("train", "valid", "test"):
        (root / split).mkdir()
    bad(data=root, says=[f"{root} is empty", "one folder per class"])


def test_class_in_one_split_only(bad: Callable[..., str], dogs: Path) -> None:
    shutil.rmtree(dogs / "valid" / "002.Cream_spitz")
    bad(data=dogs, says=["002.Cream_spitz", f"is in {dogs / 'train'} but not in {dogs / 'valid'}"])


def test_split_without_a_readable_image(bad: Callable[..., str], dogs: Path) -> None:
    for file in (dogs / "valid").rglob("*.jpg"):
        file.write_text("no image")
    bad(data=dogs, says=[f"{dogs / 'valid'} holds no readable image"])


def test_bad_image_that_is_an_error(bad: Callable[..., str], dogs: Path) -> None:
    file = sorted((dogs / "test").rglob("*.jpg"))[0]
    file.write_bytes(file.read_bytes()[:500])
    bad("data.on_bad_image=error", data=dogs, says=["1 of 36 files", str(file), "data.on_bad_image=skip"])


def test_no_network_for_the_photographs(bad: Callable[..., str], tmp_path: Path) -> None:
    root = tmp_path / "dogImages"
    address = f"http://127.0.0.1:{_closed_port()}/dogImages.zip"
    bad(f"data.url={address}", data=root, says=[address, "data=sample", "data.root="])
    assert not root.exists()
    assert not list(tmp_path.glob("*dogImages*")), "nothing half-downloaded"


# Weights


def test_no_network_for_the_weights(bad: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{_closed_port()}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    bad(
        "model.weights=imagenet",
        says=["weights of squeezenet1_1 could not be downloaded", "model.weights=PATH", "model.weights=none"],
    )
    assert not [file for file in (tmp_path / "torch").rglob("*") if file.is_file()]


def test_weights_of_another_network(bad: Callable[..., str], tmp_path: Path) -> None:
    state = mobilenet_v3_small(num_classes=3).state_dict()
    for name, save in (("other.pth", torch.save), ("other.safetensors", save_file)):
        save(state, tmp_path / name)
        bad(f"model.weights={tmp_path / name}", says=[name, "do not fit squeezenet1_1", "model.backbone"])


def test_weights_that_would_run_code(bad: Callable[..., str], tmp_path: Path) -> None:
    """The file would make a folder when unpickled; that it is not there shows that the code did not run."""
    sentinel = tmp_path / "it_ran"
    for name, save in (("zip.pth", torch.save), ("pickle.pth", _pickle)):
        save(_Evil(sentinel), tmp_path / name)
        bad(f"model.weights={tmp_path / name}", says=[name, "would run code", "state_dict"])
        assert not sentinel.exists()
    pickle.loads((tmp_path / "pickle.pth").read_bytes())  # noqa: S301
    assert sentinel.exists(), "the file was no threat, so the test shows nothing"


def test_truncated_weights(bad: Callable[..., str], tmp_path: Path) -> None:
    state = {"classifier.1.weight": torch.zeros(64, 512)}
    for name, save in (("half.pth", torch.save), ("half.safetensors", save_file)):
        file = tmp_path / name
        save(state, file)
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        bad(f"model.weights={file}", says=[name, "not a readable weights file"])


def test_silent_proxy_in_front_of_the_weights(
    bad: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts the connection and says nothing, which ends after the limit."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("dogbreed.models.weights.TIMEOUT", 0.2)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps the proxies of its first call
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        bad("model.weights=imagenet", says=["weights of squeezenet1_1 could not be downloaded", "timed out"])
    assert socket.getdefaulttimeout() is None


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_pipes_that_nobody_writes(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A command that opened one would wait for ever."""
    pipe, model = tmp_path / "pipe.csv", tmp_path / "model"
    os.mkfifo(pipe)
    shutil.copytree(done / "model", model)
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    commands: list[tuple[Callable[[list[str]], int], list[object]]] = [
        (train, [*runs.overrides(tmp_path / "run"), f"data.labels={pipe}"]),
        (inspect, [runs.photographs(), "--labels", pipe, "--output", tmp_path / "page"]),
        (predict, [model, next(runs.photographs().rglob("*.jpg"))]),
        (export, [done, pipe, "--torch-export", tmp_path / "model.pt2"]),
    ]
    for command, arguments in commands:
        assert command([str(argument) for argument in arguments]) == 2
        assert "is no regular file" in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"pipe.csv", "model"}


def test_missing_weights(bad: Callable[..., str], tmp_path: Path) -> None:
    bad(f"model.weights={tmp_path / 'none.pth'}", says=["none.pth does not exist", "model.weights is imagenet, none"])


# Configuration


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.learning_rate=0.1"], ["Unknown key model.learning_rate", "did you mean model.lr?"]),
        (["data.batchsize=4"], ["Unknown key data.batchsize", "did you mean data.batch_size?"]),
        (["--learning-rate", "0.1"], ["Unknown key learning_rate", "did you mean model.lr?"]),
        (["model.backbone=vgg61"], ["model.backbone=vgg61", "did you mean vgg"]),
        (["model.backbone=resnet_50"], ["model.backbone=resnet_50", "did you mean resnet50?"]),
        (["experiment=quickstat"], ["no experiment called quickstat", "did you mean experiment=quickstart?"]),
        (["data.batch_size=0"], ["data.batch_size=0 is out of range", "from 1"]),
        (["data.batch_size=many"], ["data.batch_size", "a whole number", "many"]),
        (["data.augment=rotate"], ["data.augment=rotate", "none, flip, crop"]),
        (["data.num_workers=-1"], ["data.num_workers=-1", "auto or 0"]),
        (["model.lr=0"], ["model.lr=0", "more than 0"]),
        (["model.optimizer=lion"], ["model.optimizer=lion", "adam, adamw, sgd"]),
        (["model.trainable=tail"], ["model.trainable=tail", "head, block, all"]),
        (["cache.mode=on"], ["cache.mode=on", "auto, off, require"]),
        (["cache.precision=int8"], ["cache.precision=int8", "bfloat16"]),
        (["early_stopping=0"], ["early_stopping=0", "from 1"]),
        (["abstain_above=0"], ["abstain_above=0", "from 1"]),
        (["progress=loud"], ["progress=loud", "auto, bar, plain, none"]),
        (["loggers.tensorbord={}"], ["loggers.tensorbord is unknown", "tensorboard"]),
        (["loggers={csv: {colour: red}}"], ["loggers.csv", "colour"]),
        (["trainer.precision=foo"], ["Trainer refuses", "foo"]),
        (["trainer.accelerator=abacus"], ["Trainer refuses", "abacus"]),
        (["trainer.strategy=teamwork"], ["Trainer refuses", "teamwork"]),
        (["trainer.max_epochs=0"], ["trainer.max_epochs=0", "nothing to train"]),
        (["trainer.limit_val_batches=0"], ["trainer.limit_val_batches=0", "best epoch"]),
        (["trainer.max_epochs=-1", "model.schedule=cosine"], ["model.schedule=cosine", "no end", "max_epochs"]),
        (["seed=-1"], ["seed=-1 is out of range", "from 0"]),
        (["seed=99999999999999999999"], ["is out of range", "to 2^63 - 1"]),
        (["~data"], ["can be changed, but not removed"]),
        (["~loggers"], ["loggers is missing"]),
        (["hydra.mode=FOO"], ["hydra.mode=FOO is unknown", "RUN, MULTIRUN"]),
        (["trainer.max_epoch=3"], ["Unknown key trainer.max_epoch", "did you mean trainer.max_epochs?"]),
        (["cache.mode=require", "model.trainable=all"], ["cache.mode=require", "cannot be used"]),
    ],
    ids=lambda value: value[0] if value[0].startswith("--") or "=" in value[0] else "",
)
@pytest.mark.slow
def test_configuration(bad: Callable[..., str], words: list[str], says: list[str]) -> None:
    bad(*words, says=says)


def test_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("of a person's own")
    for name in ("file", "file/run"):
        refused(runs.run(*runs.overrides(tmp_path / name)), f"{tmp_path / 'file'} is a file; give a folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "no features were computed"


def test_output_in_a_folder_of_others(tmp_path: Path, nobody: Callable[[], Any]) -> None:
    (tmp_path / "others").mkdir(mode=0o500)
    config = Config.from_dict(compose([f"output_dir={tmp_path}/others/run/1"]))
    with nobody(), pytest.raises(DogbreedError, match=r"others.* may not be written to; give another folder"):
        check_folder(config)


def test_no_time_for_one_epoch(tmp_path: Path) -> None:
    refused(runs.run(*runs.overrides(tmp_path / "run", "trainer.max_time=00:00:00:00")), "epoch", "max_time")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there(bad: Callable[..., str]) -> None:
    bad("trainer.accelerator=gpu", "trainer.devices=99", says=["Trainer refuses"])


# Training that cannot go on


def test_diverging_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ran = runs.run(*runs.overrides(folder, "model.lr=1e38"))
    sentence = refused(ran, "is not finite", "smaller learning rate", "model.lr=1e+38")
    assert re.search(r"step \d+ of epoch 1\b", sentence)
    assert not (folder / "model").exists()
    assert not (folder / "metrics.json").exists()


@pytest.mark.slow
def test_diverging_later_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """Decay of 1e9 a step multiplies the weights by about -1e9: finite for some epochs, then no longer."""
    folder = tmp_path / "run"
    more = ["model.optimizer=sgd", "model.lr=1", "model.weight_decay=1e9", "data.batch_size=32"]
    ran = runs.run(*runs.overrides(folder, *more, "trainer.max_epochs=20"))
    done = len(re.findall(r"^epoch=", ran.out, re.MULTILINE))
    assert done >= 1
    refused(ran, "is not finite", f"of epoch {done + 1}:", "last good checkpoint is kept")
    assert len(runs.history(folder)) == done
    for name in ("best.ckpt", "last.ckpt"):
        model = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / name)
        assert all(value.isfinite().all() for value in model.network.state_dict().values())


@pytest.mark.slow
def test_full_disk_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    """On a disk of 20 MB: two checkpoints of about 9 MB fit, the third, written beside the second, does not."""
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    arguments = runs.overrides(disk / "run", "model.trainable=all", "model.lr=1e-5", "trainer.max_epochs=9")
    train = shlex.join([sys.executable, "-m", "dogbreed.train", *arguments, f"cache.dir={tmp_path / 'cache'}"])
    script = f"""
        mount -t tmpfs -o size=20m none {shlex.quote(str(disk))} || exit 77
        {train}
        code=$?
        cp -r {shlex.quote(str(disk))} {shlex.quote(str(kept))}
        exit $code
    """
    if shutil.which("unshare") is None:
        pytest.skip("a disk of its own needs unshare")
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    done = subprocess.run(
        command, cwd=tmp_path, env=runs.environment(), capture_output=True, text=True, timeout=240, check=False
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip(f"a disk of its own may not be mounted here: {done.stderr.strip()}")
    sentence = refused(runs.Ran(done.returncode, done.stdout, done.stderr), "could not be written", "is kept")
    assert re.search(r"disk is full", sentence)
    checkpoints = kept / "run" / "checkpoints"
    assert "epoch=1 " in done.stdout
    assert sorted(file.name for file in checkpoints.iterdir()) == ["best.ckpt", "last.ckpt"], "no temporary file"
    for name in ("best.ckpt", "last.ckpt"):
        DogBreedClassifier.load_from_checkpoint(checkpoints / name)


# Going on


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has ended."""
    folder = tmp_path_factory.mktemp("done") / "run"
    runs.train_in(folder, "test=false", "trainer.max_epochs=1")
    return folder


def test_resume_with_another_configuration(done: Path) -> None:
    before = _digests(done)
    words = [f"resume={done}", "test=false", "trainer.max_epochs=2", "model.lr=0.5", "data.augment=none"]
    refused(
        runs.run(*runs.overrides(done, *words)),
        "another configuration",
        "model.lr (was 0.0033047276512977604, is 0.5)",
        "data.augment (was flip, is none)",
    )
    assert _digests(done) == before


def test_resume_with_other_classes(bad: Callable[..., str], done: Path, dogs: Path) -> None:
    for split in ("train", "valid", "test"):
        (dogs / split / "002.Cream_spitz").rename(dogs / split / "002.Wolf")
    bad(f"resume={done}", "test=false", data=dogs, says=["other classes", str(dogs)])


@pytest.mark.slow
def test_resume_from_something_else(bad: Callable[..., str], tmp_path: Path) -> None:
    text, state = tmp_path / "text.ckpt", tmp_path / "state.pth"
    text.write_text("not a checkpoint")
    torch.save({"classifier.1.weight": torch.zeros(3)}, state)
    bad(f"resume={tmp_path / 'nothing'}", says=["nothing is no checkpoint and no run's folder"])
    bad(f"resume={text}", says=["text.ckpt is not a readable checkpoint"])
    bad(f"resume={state}", says=["state.pth is no checkpoint of this project", "model.weights=PATH"])
    bad("resume=last", says=["resume=last: there is no checkpoint in", "resume=auto"])


@pytest.mark.parametrize("content", [b"", b"- a\n", b"model: 3\n", b"a: [", b"\xff\xfe\0\0"], ids=ascii)
def test_resume_with_damaged_settings(bad: Callable[..., str], done: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(done, tmp_path / "damaged")
    (tmp_path / "damaged" / "config.yaml").write_bytes(content)
    bad(f"resume={tmp_path / 'damaged'}", says=[f"{tmp_path / 'damaged' / 'config.yaml'} "])


@pytest.mark.slow
def test_resume_with_a_damaged_best_checkpoint(bad: Callable[..., str], tmp_path: Path) -> None:
    """Where the best epoch is not the last, its weights are needed at the end: that shows before anything trains."""
    more = ["test=false", "model.lr=3", "model.optimizer=sgd", "data.batch_size=4"]
    runs.train_in(tmp_path / "half", *more, "trainer.max_epochs=7")
    assert runs.metrics(tmp_path / "half")["best_epoch"] < 7
    file = tmp_path / "half" / "checkpoints" / "best.ckpt"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    bad(*more, "trainer.max_epochs=8", f"resume={tmp_path / 'half'}", says=["best.ckpt is not a readable checkpoint"])


def test_resume_from_a_checkpoint_alone(bad: Callable[..., str], done: Path, tmp_path: Path) -> None:
    """Its frozen half was left behind."""
    shutil.copy(done / "checkpoints" / "last.ckpt", tmp_path / "moved.ckpt")
    says = ["moved.ckpt needs the frozen weights", "move the whole run"]
    bad(f"resume={tmp_path / 'moved.ckpt'}", "test=false", says=says)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("epochs", "pause", "number"),
    [(100_000, 0.0, signal.SIGINT), (100_000, 0.0, signal.SIGTERM), (3, 0.2, signal.SIGINT)],
    ids=["training", "training, by another program", "evaluating at the end"],
)
def test_stopped_by_hand(epochs: int, pause: float, number: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM some time after the third epoch's line: says how to go on, and that way works."""
    folder = tmp_path / "run"
    process = runs.start(runs.overrides(folder, f"trainer.max_epochs={epochs}"), tmp_path)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("epoch=3 "):
            time.sleep(pause)
            process.send_signal(number)
            break
    rest, _ = process.communicate(timeout=60)
    said += rest
    assert process.returncode == 128 + number, said
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    assert "Traceback" not in said
    found = re.search(r"Stopped after (\d+) epochs; go on with (resume=\S+) and the same settings", said)
    assert found, said
    kept = int(found[1])
    assert kept >= 2, "what was being saved when the signal came may be lost, no more"
    assert not [file for file in folder.rglob("*") if file.name.endswith(".tmp")]
    ran = runs.train_in(folder, found[2], f"trainer.max_epochs={kept + 1}")
    assert re.findall(r"^epoch=(\d+)", ran.out, re.MULTILINE) == [str(kept + 1)]
    assert [row["epoch"] for row in runs.history(folder)] == list(range(1, kept + 2))


class _Evil:
    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.sentinel,)


def _pickle(content: object, file: Path) -> None:
    file.write_bytes(pickle.dumps(content))


def _closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
