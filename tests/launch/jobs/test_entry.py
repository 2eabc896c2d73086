"""What runs in the container: the same run as at home, its model and results where SageMaker looks for them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from support import runs
from torchvision.models import squeezenet1_1

from dogbreed import Predictor
from dogbreed.config.overrides import to_wire
from dogbreed.core.metric_lines import METRIC_REGEXES
from launch.jobs import entry

pytestmark = pytest.mark.slow

WIRE = [
    word
    for name, value in to_wire(
        {
            "model.backbone": "squeezenet1_1",
            "model.weights": "none",
            "data.size": 64,
            "data.batch_size": 8,
            "data.num_workers": 0,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.max_epochs": 2,
            "loggers": None,
        }
    ).items()
    for word in (f"--{name}", value)
]


@pytest.fixture
def container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders as in the container, with the three channels."""
    ml = tmp_path / "ml"
    for split in entry.SPLITS:
        channel = ml / "input" / "data" / split
        shutil.copytree(runs.photographs() / split, channel)
        monkeypatch.setenv(f"SM_CHANNEL_{split.upper()}", str(channel))
    monkeypatch.setenv("SM_MODEL_DIR", str(ml / "model"))
    monkeypatch.setenv("SM_OUTPUT_DATA_DIR", str(ml / "output" / "data"))
    monkeypatch.setenv("DOGBREED_CHECKPOINTS", str(ml / "checkpoints"))
    monkeypatch.setenv("DOGBREED_CACHE", str(ml / "cache"))
    monkeypatch.setenv("DOGBREED_JOBS", "s3://mine/dogbreed/jobs")
    monkeypatch.setenv("TRAINING_JOB_NAME", "one")
    monkeypatch.delenv("SM_CHANNEL_TRAINING", raising=False)
    with runs.one_thread():
        yield ml
    os.environ.pop("SM_CHANNEL_TRAINING", None)  # set by the entry point


def result(folder: Path) -> dict:
    metrics = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name not in runs.NOT_THE_RESULT}


def test_the_same_run_as_at_home(container, tmp_path, capfd):
    assert entry.main(WIRE) == 0
    out = capfd.readouterr().out
    home = runs.train_in(tmp_path / "home", f"data.root={runs.photographs()}", f"cache.dir={tmp_path / 'home-cache'}")
    assert home.code == 0
    output = container / "output" / "data"
    assert result(output) == result(tmp_path / "home")
    assert {"metrics.json", "metrics.csv", "report.html", "predictions.csv", "config.yaml"} <= {
        path.name for path in output.iterdir()
    }
    assert not (output / "checkpoints").exists()
    assert (container / "checkpoints" / "one" / "checkpoints" / "last.ckpt").exists()
    assert (container / "model" / "code" / "dogbreed" / "inference" / "handler.py").exists(), "it deploys as it is"
    photo = next((runs.photographs() / "test").rglob("*.jpg"))
    (there,) = Predictor(container / "model").predict([photo])
    (here,) = Predictor(tmp_path / "home" / "model").predict([photo])
    assert (there.label, there.probability) == (here.label, here.probability)

    # The tuner takes the last value of a metric: that of the exported weights.
    exported = json.loads((output / "metrics.json").read_text())["val_loss"]
    assert float(re.findall(METRIC_REGEXES["val_loss"], out)[-1]) == pytest.approx(exported, abs=1e-6)

    assert "  s3://mine/dogbreed/jobs/one/output/model.tar.gz " in out
    assert f"{container}/checkpoints/one" not in out, "that folder is gone with the machine"
    assert "Next: " not in out

    # Started once more, as after an interruption, it goes on instead of starting anew.
    assert entry.main([*WIRE, "--epochs", "3"]) == 0
    assert re.findall(r"^epoch=(\d)", capfd.readouterr().out, re.MULTILINE) == ["3"]


def test_one_root_and_weights_from_a_channel(container, monkeypatch, tmp_path, capfd):
    """The channel's file goes before the configuration's, which the wire cannot carry."""
    for split in entry.SPLITS:
        monkeypatch.delenv(f"SM_CHANNEL_{split.upper()}")
    monkeypatch.setenv("SM_CHANNEL_TRAINING", str(runs.photographs()))
    channel = container / "input" / "data" / "weights"
    channel.mkdir()
    torch.manual_seed(5)
    torch.save(squeezenet1_1(weights=None).state_dict(), channel / "mine.pth")
    monkeypatch.setenv("SM_CHANNEL_WEIGHTS", str(channel))
    wire = [word for word in WIRE if word not in ("--weights", "none")]
    assert entry.main([*wire, "--epochs", "1"]) == 0
    config = json.loads((container / "model" / "model.json").read_text())["config"]
    assert config["model"]["weights"] == str(channel / "mine.pth")
    assert config["data"]["root"] == str(runs.photographs())


def test_a_search_in_one_job(container, capfd):
    words = ["--search__where", "one_job", "--search__trials", "3", "--search__parallel", "3"]
    assert entry.main([*WIRE, *words]) == 0
    output = container / "output" / "data"
    assert len((output / "search" / "trials.csv").read_text().splitlines()) == 4
    best = (output / "search" / "best.yaml").read_text()
    config = json.loads((container / "model" / "model.json").read_text())["config"]
    assert f"lr: {config['model']['lr']}" in best
    assert f"batch_size: {config['data']['batch_size']}" in best
    exported = json.loads((output / "metrics.json").read_text())["val_loss"]
    # The model that leaves is the winner, trained as in the search: the best val_loss that any trial had.
    losses = [float(loss) for loss in re.findall(r"^# val_loss ([0-9.]+)", best)]
    assert exported == pytest.approx(losses[0], abs=1e-4)


def test_what_is_wrong_is_the_reason_of_the_failure(container, monkeypatch, capfd):
    monkeypatch.delenv("SM_CHANNEL_TEST")
    assert entry.main(WIRE) == 2
    err = capfd.readouterr().err
    assert "RuntimeError: The channels are train, valid and test, all three" in err
    assert "Traceback" not in err
    assert not (container / "model").exists()


def test_a_gpu_that_torch_does_not_see_is_not_paid_for(container, monkeypatch, capfd):
    monkeypatch.setenv("SM_CURRENT_INSTANCE_TYPE", "ml.g4dn.xlarge")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert entry.main([word for word in WIRE if word not in ("--trainer__accelerator", "cpu")]) == 2
    assert "RuntimeError: ml.g4dn.xlarge has a GPU, and torch" in capfd.readouterr().err
    assert not (container / "checkpoints").exists()


def test_a_run_of_another_job_has_to_be_one(container, monkeypatch, capfd):
    monkeypatch.setenv("SM_CHANNEL_RESUME", str(container))
    assert entry.main(WIRE) == 2
    assert "RuntimeError: The channel resume should hold the run of an earlier job" in capfd.readouterr().err
