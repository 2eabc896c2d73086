"""smdebug's hook in real runs: what it saves is the run's own, and a run is the same with and without it."""

import csv
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import runs
from support.debugger import result_of
from support.places import ROOT

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from dogbreed.monitor.smdebug_hook import hook_config, hook_enabled
from launch.jobs import debugger

LOSS = "CrossEntropyLoss_output_0"
# Of SageMaker's debughookconfig.json; the launcher sends these values.
PUBLISHED = {
    "S3OutputPath": "s3://bucket/debug",
    "HookParameters": {"train.save_interval": "100", "eval.save_interval": "10"},
    "CollectionConfigurations": [
        {
            "CollectionName": LOSS,
            "CollectionParameters": {
                "include_regex": LOSS,
                "train.save_interval": "10",
                "eval.save_interval": "1",
            },
        }
    ],
}


def test_the_default_configuration_is_the_published_one(tmp_path):
    made = hook_config(compose()["debugger"], tmp_path)
    assert made["LocalPath"] == str(tmp_path)
    assert made["HookParameters"] == PUBLISHED["HookParameters"] == debugger.HOOK
    loss, gradients = made["CollectionConfigurations"]
    assert loss == PUBLISHED["CollectionConfigurations"][0] == debugger.LOSS
    assert gradients["CollectionName"] == "gradients"
    assert "abs_mean" in gradients["CollectionParameters"]["reductions"].split(",")


def test_collections_get_reductions_unless_they_say_otherwise(tmp_path):
    given = ["debugger.collections={weights:{},biases:{reductions:null},relu:{reductions:max,save_interval:7}}"]
    made = hook_config(compose(given)["debugger"], tmp_path)["CollectionConfigurations"]
    parameters = {one["CollectionName"]: one["CollectionParameters"] for one in made}
    assert parameters["weights"] == {"reductions": compose()["debugger"]["reductions"]}
    assert parameters["biases"] == {}
    assert parameters["relu"] == {"reductions": "max", "save_interval": "7"}


@pytest.mark.slow
def test_who_asks_for_the_hook(tmp_path, monkeypatch):
    file = tmp_path / "debughookconfig.json"
    monkeypatch.setenv("SMDEBUG_CONFIG_FILE_PATH", str(file))
    assert not hook_enabled(compose()["debugger"])
    file.write_text("{}")
    assert hook_enabled(compose()["debugger"])
    assert not hook_enabled(compose(["debugger.enabled=false"])["debugger"])
    assert hook_enabled(compose(["debugger.enabled=true"])["debugger"])
    with pytest.raises(DogbreedError, match="one of true, false, auto"):
        hook_enabled(compose(["debugger.enabled=perhaps"])["debugger"])


def test_without_smdebug_it_says_what_to_install(tmp_path):
    if importlib.util.find_spec("smdebug") is not None:
        pytest.skip("smdebug is installed")
    ran = runs.run(*runs.overrides(tmp_path / "run", "debugger.enabled=true"))
    assert ran.code == 2
    assert "pip install -e '.[debugger]'" in ran.err.replace(str(ROOT), "."), "as it installs from a checkout"
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


PROGRAM = r"""
import contextlib, io, json, os, sys
from pathlib import Path

folder, published, arguments = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])

import dogbreed.train
from dogbreed.train import main
from dogbreed.training.run import train

said = {}

def run(name, *more, output=None):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*arguments, f"output_dir={folder / (output or name)}", *more])
    said[name] = [code, out.getvalue(), err.getvalue()]

def hooks_left(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) + sum(
        len(p._backward_hooks or {}) for p in model.parameters())

run("plain", "cache.mode=off")
said["imported"] = "smdebug" in sys.modules
on = "debugger.enabled=true"
with contextlib.redirect_stdout(io.StringIO()):
    result = train(overrides=[*arguments, f"output_dir={folder / 'cached'}", on])
said["hooks left"] = hooks_left(result.model)
loss = "CrossEntropyLoss_output_0"
every = f"debugger.collections={{{loss}:{{include_regex:{loss},reductions:null,save_interval:1}}}}"
there = f"debugger.dir={folder / 'given'}"
run("every", on, every, there, "cache.mode=off")
run("again", on, "resume=last", "trainer.max_epochs=3", output="cached")
os.environ["SMDEBUG_CONFIG_FILE_PATH"] = published
run("published", "trainer.max_epochs=1")
run("published twice", "trainer.max_epochs=1")
del os.environ["SMDEBUG_CONFIG_FILE_PATH"]
run("used", on, there)
run("diverged", on, "model.lr=1e38")
said["closed"] = (folder / "diverged" / "tensors" / "training_job_end.ts").exists()
run("refused", on, "debugger.reductions=median")

from smdebug import modes
from smdebug.exceptions import TensorUnavailableForStep
from smdebug.trials import create_trial

tensors = {}
for name, place in {"cached": "cached/tensors", "every": "given", "again": "cached/tensors-2",
                    "published": "published-tensors"}.items():
    trial = create_trial(str(folder / place))
    saved = trial.tensor(loss)
    values = {mode.name: {step: float(saved.value(step, mode=mode)) for step in saved.steps(mode=mode)}
              for mode in (modes.TRAIN, modes.EVAL)}
    tensors[name] = {"loss": values, "names": trial.tensor_names()}
trial = create_trial(str(folder / "cached" / "tensors"))
gradient = trial.tensor(next(name for name in trial.tensor_names() if name.startswith("gradient/")))
try:
    gradient.value(0, mode=modes.TRAIN)
    said["whole gradient"] = True
except TensorUnavailableForStep:
    said["whole gradient"] = False
said["mean gradient"] = float(gradient.reduction_value(0, "mean", mode=modes.TRAIN, abs=True))
print(json.dumps({"said": said, "tensors": tensors}))
"""

TRAIN, EVAL = [2] * 12, [2, 2, 2, 2, 1]  # images in the batches of an epoch


class Seen:
    """What the program above left."""

    def __init__(self, folder: Path, result: dict[str, Any]) -> None:
        self.folder, self.said, self._tensors = folder, result["said"], result["tensors"]

    def losses(self, name: str, mode: str) -> dict[int, float]:
        return {int(step): value for step, value in self._tensors[name]["loss"][mode].items()}

    def names(self, name: str) -> list[str]:
        return self._tensors[name]["names"]


@pytest.fixture(scope="module")
def seen(smdebug_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("hook")
    published = folder / "debughookconfig.json"
    published.write_text(json.dumps({**PUBLISHED, "LocalPath": str(folder / "published-tensors")}))
    data = runs.photographs(train=8, valid=3, test=3)
    arguments = [*runs.TINY, f"data.root={data}", f"cache.dir={folder / 'cache'}", "data.batch_size=2", "progress=none"]
    given = json.dumps(arguments)
    return Seen(folder, result_of(smdebug_python, PROGRAM, str(folder), str(published), given, folder=folder))


@pytest.mark.slow
def test_both_modes_at_the_published_intervals(seen: Seen):
    for name, epochs in (("cached", 2), ("published", 1)):
        assert list(seen.losses(name, "TRAIN")) == list(range(0, epochs * len(TRAIN), 10)), name
        assert list(seen.losses(name, "EVAL")) == list(range(epochs * len(EVAL))), name
    assert seen.names("published") == [LOSS]
    assert len(seen.names("cached")) == 3  # with the gradients of the head's weight and bias
    assert list(seen.losses("every", "TRAIN")) == list(range(2 * len(TRAIN)))


@pytest.mark.slow
def test_the_losses_are_the_runs_own(seen: Seen):
    rows = runs.history(seen.folder / "every")
    for column, mode, sizes in (("train_loss", "TRAIN", TRAIN), ("val_loss", "EVAL", EVAL)):
        of_batches = np.array(list(seen.losses("every", mode).values())).reshape(len(rows), len(sizes))
        np.testing.assert_allclose(of_batches @ sizes / sum(sizes), [row[column] for row in rows], rtol=0, atol=2e-6)
    # The same run with its features computed beforehand, where smdebug's steps are started by the callback.
    every = {mode: seen.losses("every", mode) for mode in ("TRAIN", "EVAL")}
    for mode in every:
        for step, value in seen.losses("cached", mode).items():
            assert value == pytest.approx(every[mode][step], abs=1e-5), (mode, step)
    assert runs.metrics(seen.folder / "cached")["cache"] != "off"
    assert runs.metrics(seen.folder / "every")["cache"] == "off"


@pytest.mark.slow
def test_a_run_is_the_same_without_it(seen: Seen):
    assert seen.said["imported"] is False
    assert seen.said["hooks left"] == 0
    runs.assert_same_result(seen.folder / "plain", seen.folder / "every")


@pytest.mark.slow
def test_a_resumed_run_goes_on_counting_beside(seen: Seen):
    code, out, err = seen.said["again"]
    assert code == 0, err
    assert "tensors-2" in out
    assert list(seen.losses("again", "TRAIN")) == [30]
    assert list(seen.losses("again", "EVAL")) == list(range(2 * len(EVAL), 3 * len(EVAL)))
    with (seen.folder / "cached" / "metrics.csv").open() as file:
        last = list(csv.DictReader(file))[-1]
    of_batches = list(seen.losses("again", "EVAL").values())
    assert np.dot(of_batches, EVAL) / sum(EVAL) == pytest.approx(float(last["val_loss"]), abs=2e-6)


@pytest.mark.slow
def test_a_run_that_fails_leaves_its_tensors_readable(seen: Seen):
    code, _, err = seen.said["diverged"]
    assert code == 2
    assert "training has diverged" in err
    assert seen.said["closed"] is True


@pytest.mark.slow
def test_reductions_take_the_place_of_tensors(seen: Seen):
    assert seen.said["whole gradient"] is False
    assert seen.said["mean gradient"] > 0
    tensors = [file for file in (seen.folder / "cached" / "tensors").rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in tensors) < 200_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("published twice", "published-tensors holds tensors of another run; give a new folder as debugger.dir."),
        ("used", "given holds tensors of another run; give a new folder as debugger.dir."),
        ("refused", "smdebug refuses the debugger's settings: reductions can only be one of min,max"),
    ],
)
def test_bad_use(name, sentence, seen: Seen):
    code, _, err = seen.said[name]
    assert code == 2
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert not (seen.folder / name).exists()
