"""A run that is killed again and again comes to the result of the run that was left alone, bit for bit."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from support import runs

from dogbreed import DogBreedClassifier
from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.models.checkpoints import FROZEN, read_checkpoint
from dogbreed.training.build import read_config
from dogbreed.training.resume import find_checkpoint

EPOCHS = 12
CONFIGS = {
    "cached": ["cache.mode=require", "data.augment=flip", "model.optimizer=adam"],
    "uncached, all at once": [
        "cache.mode=off",
        "data.augment=crop",
        "model.trainable=block",
        "model.schedule=cosine",
        "trainer.accumulate_grad_batches=2",
        "data.batch_size=5",
    ],
}


@pytest.mark.slow
def test_resumed_run_is_the_same_run(tmp_path: Path) -> None:
    """Stopped after an epoch, and gone on with from another folder name, without and with the cache."""
    shared = ["trainer.max_epochs=3", "data.batch_size=5", "cache.mode=off"]
    runs.train_in(tmp_path / "whole", *shared)
    runs.train_in(tmp_path / "half", *shared, "trainer.max_epochs=1")
    runs.train_in(tmp_path / "half", *shared, f"resume={tmp_path / 'half'}", "output_dir=" + str(tmp_path / "rest"))
    runs.assert_same_result(tmp_path / "whole", tmp_path / "rest")


@pytest.mark.slow
def test_gone_on_with_elsewhere_but_never_better(tmp_path: Path) -> None:
    """What is exported is the best of before, though the new folder never wrote it."""
    more = ["test=false", "model.lr=3", "model.optimizer=sgd", "data.batch_size=4"]
    runs.train_in(tmp_path / "whole", *more, "trainer.max_epochs=8")
    best = int(runs.metrics(tmp_path / "whole")["best_epoch"])
    assert best <= 6
    runs.train_in(tmp_path / "half", *more, "trainer.max_epochs=7")
    resume = [*more, "trainer.max_epochs=8", f"resume={tmp_path / 'half'}"]
    runs.train_in(tmp_path / "rest", *resume)
    runs.assert_same_model(tmp_path / "whole", tmp_path / "rest")
    for name in ("best.ckpt", "last.ckpt"):
        DogBreedClassifier.load_from_checkpoint(tmp_path / "rest" / "checkpoints" / name)

    (tmp_path / "half" / "checkpoints" / "best.ckpt").unlink()
    ran = runs.run(*runs.overrides(tmp_path / "other", *resume, f"output_dir={tmp_path / 'other'}"))
    assert ran.code == 2
    assert f"best.ckpt beside it, which has the weights of epoch {best}" in ran.err
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("before", "sentence"), [(True, "Stopped after 1 epoch"), (False, "Stopped after 2 epochs")])
def test_stopped_while_an_epoch_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, sentence: str
) -> None:
    """What is said is what the last checkpoint holds, just before it is replaced and just after."""
    save = Trainer.save_checkpoint

    def interrupted(trainer: Trainer, path: Path) -> None:
        stops = Path(path).name == "last.ckpt" and trainer.current_epoch == 1
        if not (stops and before):
            save(trainer, path)
        if stops:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "save_checkpoint", interrupted)
        ran = runs.run(*runs.overrides(tmp_path, "trainer.max_epochs=3", "test=false"))
    assert ran.code == 130
    assert f"{sentence}; go on with resume={tmp_path}" in ran.err
    ran = runs.train_in(tmp_path, f"resume={tmp_path}")
    assert ("epoch=2 " in ran.out) is before


@pytest.mark.slow
def test_other_views_are_another_run(tmp_path: Path) -> None:
    """How many crops an image has, where crops are looked at, and the precision of features."""
    for augment, code in (("crop", 2), ("flip", 0)):
        folder = tmp_path / augment
        more = [f"data.augment={augment}", "test=false"]
        runs.train_in(folder, *more, "trainer.max_epochs=1")
        ran = runs.run(*runs.overrides(folder, *more, "cache.views=2", f"resume={folder}"))
        assert ran.code == code, ran.err
        assert ("cache.views (was 4, is 2)" in ran.err) is (code == 2)
    ran = runs.run(*runs.overrides(folder, *more, "cache.precision=bfloat16", f"resume={folder}"))
    assert "cache.precision (was float32, is bfloat16)" in ran.err


@pytest.mark.slow
def test_folder_that_is_used_again(tmp_path: Path) -> None:
    """A second run in the same folder, with other random weights: its checkpoints hold its own frozen part.

    Nothing of the first run lies beside what the second wrote.
    """
    folder = tmp_path / "run"
    for seed, more in ((0, "profile=system"), (1, "test=false")):
        runs.train_in(folder, f"seed={seed}", more, "trainer.max_epochs=1", "overwrite=true")
        assert (folder / "profile").exists() is (folder / "predictions.csv").exists() is (seed == 0)
    model = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    for name, value in runs.weights(folder).items():
        assert torch.equal(model.network.state_dict()[name], value), name


@pytest.mark.slow
def test_what_a_finished_run_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is not written over, goes on with its own settings, and says so where no epochs are left."""
    whole, half = tmp_path / "whole", tmp_path / "half"
    more = ["data.batch_size=5", "model.lr=0.01", "data.augment=none"]
    runs.train_in(whole, *more, "trainer.max_epochs=3")
    runs.train_in(half, *more, "trainer.max_epochs=2")
    ran = runs.run(*runs.overrides(half, *more))
    assert ran.code == 2
    assert f"output_dir={half} holds a finished run" in ran.err
    assert runs.metrics(half)["epochs"] == 2
    for epochs in ([], ["trainer.max_epochs=1"]):
        ran = runs.run(f"resume={half}", *epochs)
        assert ran.code == 2
        assert f"{half} has had its 2 epochs; to go on, give trainer.max_epochs=3 or more" in ran.err
    last = half / "checkpoints" / "last.ckpt"
    assert not last.with_name(FROZEN).exists(), "a finished run has its frozen weights in model/ alone"
    read = read_checkpoint(last)["state_dict"]
    assert all(torch.equal(read[f"network.{name}"], value) for name, value in runs.weights(half).items())
    (half / "model").rename(half / "moved")
    with pytest.raises(DogbreedError, match=r"or its finished run's model/; move the whole run"):
        read_checkpoint(last)
    (half / "moved").rename(half / "model")
    checkpoint = torch.load(last, weights_only=True)
    checkpoint["callbacks"]["History"]["seconds"] = 1e6
    torch.save(checkpoint, last)
    beside = ["experiment=published", "model.optimizer=adam"]
    ran = runs.run(f"resume={half}", "trainer.max_epochs=3", *beside)
    assert ran.code == 0, ran.err
    assert f"{half} goes on with its own settings, not with those of experiment=published (they differ in " in ran.out
    note = ran.out[ran.out.index("(they differ in") :].splitlines()[0]
    assert "data.augment" in note
    assert "trainer.max_epochs" not in note, "given beside it"
    assert note.endswith("; give as key=value what is to differ.")
    for words in ([*beside, f"resume={half}"], ["experiment=published"]):
        read_config(None, words)
        assert ("experiment=published (they differ in" in capsys.readouterr().out) == (len(words) == 3), "from Python"
    runs.assert_same_result(whole, half)
    assert runs.metrics(half)["seconds"] > 1e6, "those of before count too"
    ran = runs.run(f"resume={half}", "trainer.max_epochs=4", "model.lr=0.5")
    assert "another configuration: model.lr (was 0.01, is 0.5)" in ran.err


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_killed_again_and_again(name: str, tmp_path: Path) -> None:
    more = [*CONFIGS[name], f"trainer.max_epochs={EPOCHS}", "resume=auto", "model.lr=0.01"]
    whole, killed = tmp_path / "whole" / "run", tmp_path / "killed" / "run"
    for folder in (whole, killed):
        folder.parent.mkdir()
    began = time.monotonic()
    runs.finish(runs.start(runs.overrides(whole, *more), tmp_path))
    seconds = time.monotonic() - began

    numbers = random.Random(name)
    started = numbers.uniform(0.4, 0.8) * seconds  # while it starts up, or a little later
    pause = [numbers.uniform(0, 0.2) for _ in range(3)]
    moments: list[Callable[[], bool]] = [
        _after(started),
        _at(killed, lambda: _epochs(killed) >= 2, pause[0]),  # somewhere in the third epoch
        _at(killed, lambda: _writing(killed, "best.ckpt", "last.ckpt"), 0),  # half a checkpoint is on the disk
        _at(killed, lambda: _epochs(killed) >= 7, pause[1]),
        _at(killed, lambda: _writing(killed, "last.ckpt"), 0),
        _at(killed, lambda: _epochs(killed) >= EPOCHS, pause[2]),  # it validates, tests, exports
    ]
    kills = 0
    for moment in moments:
        process = runs.start(runs.overrides(killed, *more), tmp_path)
        is_now = moment
        while process.poll() is None and not is_now():
            time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3, "the run was too quick to be killed"
    runs.finish(runs.start(runs.overrides(killed, *more), tmp_path, fresh=True))
    runs.assert_same_result(whole, killed)
    assert runs.metrics(killed)["epochs"] == EPOCHS


def _after(seconds: float) -> Callable[[], bool]:
    began: list[float] = []

    def now() -> bool:
        began[:] = began or [time.monotonic()]
        return time.monotonic() - began[0] > seconds

    return now


def _at(folder: Path, begins: Callable[[], bool], pause: float) -> Callable[[], bool]:
    """True `pause` seconds after `begins` has become true."""
    since: list[float] = []

    def now() -> bool:
        if not since and begins():
            since.append(time.monotonic())
        return bool(since) and time.monotonic() - since[0] >= pause

    return now


def _epochs(folder: Path) -> int:
    try:
        return len((folder / "metrics.csv").read_text().splitlines()) - 1
    except OSError:
        return 0


def _writing(folder: Path, *names: str) -> bool:
    """Whether one of the files is being written: it is, under another name, beside its place."""
    try:
        return any(file.name.startswith(f".{name}.") for name in names for file in (folder / "checkpoints").iterdir())
    except OSError:
        return False


@pytest.mark.slow
def test_last_is_the_newest_run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_time, named, trial = (
        Path("outputs", *parts, "checkpoints", "last.ckpt")
        for parts in (("2026-01-01", "10-00-00"), ("dogs",), ("search", "trials", "000"))
    )
    for age, path in ((20, by_time), (10, named), (0, trial)):  # a trial of a search is no run of its own
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert find_checkpoint(Config.from_dict(compose(["resume=last"]))) == named
    config = Config.from_dict(compose(["resume=last", "output_dir=outputs/2026-01-01/10-00-00"]))
    assert find_checkpoint(config) == by_time
