"""What a person brings along: callbacks, loggers, a drawn seed, weights of another run, an objective for a sweeper."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import callbacks, runs

from dogbreed import DogBreedClassifier, train
from dogbreed.core.errors import DogbreedError
from dogbreed.training.build import build_own_callbacks, read_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with an own callback by its class, one from Python, a CSV logger and a drawn seed."""
    folder = tmp_path_factory.mktemp("own") / "run"
    callbacks.CountEpochs.seen.clear()
    by_class = "callbacks=[{class_path: support.callbacks.CountEpochs, init_args: {first: 100}}]"
    settings = [word for word in runs.TINY if word != "loggers=null"]
    where = [f"data.root={runs.photographs()}", f"output_dir={folder}", f"cache.dir={folder.parent / 'cache'}"]
    with runs.one_thread():
        own = [callbacks.CountEpochs()]
        train(overrides=[*settings, *where, by_class, "logger=csv", "seed=null"], callbacks=own)
    return folder


def test_own_callbacks_see_every_epoch(run: Path) -> None:
    assert sorted(callbacks.CountEpochs.seen) == [0, 1, 100, 101]


def test_loggers_get_the_whole_configuration(run: Path) -> None:
    logged = yaml.load((run / "csv" / "hparams.yaml").read_text(), Loader=yaml.UnsafeLoader)  # noqa: S506 - our own
    assert (logged["data"]["batch_size"], logged["trainer"]["max_epochs"], logged["refit"]) == (8, 2, False)
    with (run / "csv" / "metrics.csv").open(newline="") as stream:
        assert any(row.get("val_loss") for row in csv.DictReader(stream))
    assert not (run / "tensorboard").exists()


def test_a_drawn_seed_is_noted_and_repeats(run: Path) -> None:
    seed = yaml.safe_load((run / "config.yaml").read_text())["seed"]
    assert isinstance(seed, int)
    best = DogBreedClassifier.load_from_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best.hparams["seed"] == seed


@pytest.mark.parametrize("weights", [".", "model", "checkpoints/best.ckpt"])
def test_weights_of_a_run_with_another_number_of_classes(weights: str, run: Path) -> None:
    """The backbone's values are the run's, the head is new."""
    model = DogBreedClassifier(7, backbone="squeezenet1_1", weights=str(run / weights))
    exported = runs.weights(run)
    for name, value in model.network.state_dict().items():
        if name.startswith("classifier.1"):
            assert value.shape[0] == 7
        else:
            assert torch.equal(value, exported[name]), name


@pytest.mark.parametrize("weights", [".", "model", "checkpoints/best.ckpt"])
def test_weights_of_a_run_bring_their_network(weights: str, run: Path) -> None:
    """Unless another one is given, or the run's is code that a file may not name."""
    config = read_config(None, [f"model.weights={run / weights}"])
    assert config.model.backbone == "squeezenet1_1"
    assert read_config(None, [f"model.weights={run / weights}", "model.backbone=resnet18"]).model.backbone == "resnet18"
    assert read_config(None, ["model.weights=none"]).model.backbone == "vgg16"


def test_a_network_of_ones_own_is_not_named_by_a_file(run: Path, tmp_path: Path) -> None:
    manifest = json.loads((run / "model" / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(manifest | {"backbone": "evil:network"}))
    assert read_config(None, [f"model.weights={tmp_path}"]).model.backbone == "vgg16"


@pytest.mark.parametrize(
    ("item", "sentence"),
    [
        ("LearningRateMonitor", "LearningRateMonitor is not the dotted path of a class"),
        ("os.system", "os.system is no class derived from lightning.pytorch.Callback"),
        ("no.such.Class", "no.such.Class cannot be imported (No module named 'no')"),
        ("lightning.pytorch.callbacks.Nothing", "cannot be imported"),
        ("__import__('os')", "is not the dotted path of a class"),
        ({"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"a": 1}}, "does not take these arguments"),
        ({"target": "x"}, "callbacks takes package.Class, or class_path with init_args"),
        (3, "callbacks takes package.Class"),
    ],
)
def test_what_is_no_callback_is_refused(item: Any, sentence: str) -> None:
    with pytest.raises(DogbreedError) as refused:
        build_own_callbacks([item])
    assert sentence in str(refused.value)
    with pytest.raises(DogbreedError, match="callbacks is a list"):
        build_own_callbacks("lightning.pytorch.callbacks.Timer")


@pytest.mark.slow
def test_a_sweeper_gets_the_objective(tmp_path: Path) -> None:
    callbacks.objectives.clear()
    more = ["--multirun", "model.lr=0.001,0.1", "trainer.max_epochs=1", "search.objective=val_acc"]
    hook = "+hydra.callbacks.seen._target_=support.callbacks.Objective"
    runs.train_in(tmp_path / "sweep", *more, "search.direction=maximize", hook, "test=false")
    found = [runs.metrics(tmp_path / "sweep" / number)["val_acc"] for number in ("0", "1")]
    assert callbacks.objectives == found
