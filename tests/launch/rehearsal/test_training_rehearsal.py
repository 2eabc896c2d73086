"""Rehearsals: the same request, SageMaker's own toolkit, an S3 server on loopback; equal to what runs without them."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
from support import runs

from dogbreed import Predictor
from dogbreed.config.compose import compose
from launch.aws.pricing import Prices
from launch.jobs.estimate import counts

ROOT = runs.ROOT
pytest.importorskip("moto")

# What both ways of a run are given.
TINY = (
    "model.backbone=squeezenet1_1",
    "model.weights=none",
    "data.size=64",
    "data.batch_size=4",
    "data.num_workers=0",
    "trainer.max_epochs=4",
    "model.lr=0.001",
)
IMAGE = "sagemaker.image=000000000000.dkr.ecr.us-east-1.amazonaws.com/pytorch:1"  # not to load the SDK for its name


class Rehearsed(NamedTuple):
    """A rehearsal that has ended."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "rehearsal.json").read_text())
        return content

    @property
    def log(self) -> str:
        return (self.folder / "job.log").read_text()

    def unpacked(self, archive: str) -> Path:
        into = self.folder / archive.partition(".")[0]
        with tarfile.open(self.folder / archive) as tar:
            tar.extractall(into, filter="data")
        return into


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsals")


def start(place: Path, name: str, *arguments: str, command: str = "train") -> subprocess.Popen[str]:
    """Starts the command as a person does, with no AWS credentials to be found."""
    given = [f"data.root={runs.photographs(3, 3, 2, 2)}", f"output_dir={place / name}", f"cache.dir={place / 'cache'}"]
    return subprocess.Popen(
        [sys.executable, ROOT / "launch" / f"sagemaker_{command}.py", "mode=rehearse", *TINY, *given, *arguments],
        cwd=place,
        env={**without_aws(), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary(place))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def rehearse(place: Path, name: str, *arguments: str, command: str = "train") -> Rehearsed:
    process = start(place, name, *arguments, command=command)
    out, err = process.communicate(timeout=600)
    return Rehearsed(process.returncode, out, err, place / name)


def temporary(place: Path) -> Path:
    """Where rehearsals have their temporary folders."""
    folder = place / "tmp"
    folder.mkdir(exist_ok=True)
    return folder


def without_aws() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "SM_", "SAGEMAKER_"))}
    return {**ours, "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "HOME": os.environ["HOME"]}


def directly(place: Path, name: str, data: Path, *more: str) -> dict[str, Any]:
    """The metrics of the training command on a rehearsal's data, without the rehearsal."""
    folder = place / name
    arguments = [*TINY, f"data.root={data}", f"output_dir={folder}", f"cache.dir={place / 'cache'}", *more]
    done = runs.run(*arguments)
    assert done.code == 0, done.err
    return runs.metrics(folder)


def left_behind(place: Path) -> list[str]:
    """Containers' folders, and processes that work in them."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    folders = [path.name for path in temporary(place).glob("dogbreed-rehearsal-*")]
    return [*folders, *(line for line in found.splitlines() if f"{temporary(place)}/dogbreed-rehearsal-" in line)]


@pytest.fixture(scope="module")
def trained(place: Path) -> Rehearsed:
    """A training job, rehearsed on two photographs a breed and split."""
    return rehearse(place, "train")


@pytest.mark.slow
def test_a_rehearsed_job_equals_the_direct_run(trained: Rehearsed, place: Path) -> None:
    assert trained.code == 0, trained.out + trained.err
    photographs = sorted(path.name for path in (trained.folder / "data" / "train").rglob("*.jpg"))
    assert len(photographs) == 6, "two of each of three breeds"
    there = json.loads((trained.unpacked("output.tar.gz") / "metrics.json").read_text())
    here = directly(place, "direct", trained.folder / "data")
    for name in runs.NOT_THE_RESULT:
        there.pop(name, None), here.pop(name, None)
    assert there == here
    (job,) = trained.record["jobs"]
    assert job["metrics"]["average test loss"] == pytest.approx(here["test_loss"], abs=1e-6)
    assert job["metrics"]["val_loss"] == pytest.approx(here["val_loss"], abs=1e-6)
    assert len(job["emitted"]["best_val_loss"]) == 4, "one an epoch"
    assert len(set(job["emitted"]["train_loss"])) == 4, "it learned something that could differ"
    assert not left_behind(place)
    assert "| Data:   /opt/ml/input/data" in trained.out, "as in the cloud"
    assert f"{temporary(place)}/dogbreed-rehearsal-" not in trained.out, "a folder that is gone"


@pytest.mark.slow
def test_its_receipt_explains_its_seconds(trained: Rehearsed) -> None:
    """A plan of the same request on the figures of the receipt takes what the rehearsed job took."""
    file = trained.folder / "receipt.json"
    receipt = json.loads(file.read_text())
    (job,) = trained.record["jobs"]
    assert receipt["training_seconds"] == pytest.approx(job["seconds"], abs=0.1)
    assert (receipt["instance_type"], receipt["backbone"], receipt["cost"]) == ("local", "squeezenet1_1", 0)
    row = receipt["prices"]["machines"]["local"]
    (passes,) = row.pop("passes").values()
    assert all(value > 0 for value in (passes, *row.values()))
    words = ("mode=plan", "sagemaker.instance_type=local", f"sagemaker.prices={file}")
    config = compose([*TINY, *words, f"data.root={trained.folder / 'data'}"])
    assert Prices(config).training(counts(config)).seconds == pytest.approx(job["seconds"], rel=0.01)
    assert f"{file} has the figures of this machine" in trained.out


@pytest.mark.slow
def test_the_model_that_comes_out_predicts(trained: Rehearsed) -> None:
    model, photograph = trained.unpacked("model.tar.gz"), next((trained.folder / "data" / "test").rglob("*.jpg"))
    (there,) = Predictor(model).predict([photograph])
    rows = csv.DictReader((trained.unpacked("output.tar.gz") / "predictions.csv").open())
    (here,) = [row for row in rows if row["path"].endswith(f"{photograph.parent.name}/{photograph.name}")]
    assert there.label == here["predicted"]


@pytest.mark.slow
def test_the_toolkit_really_ran(trained: Rehearsed) -> None:
    """It installed the requirements, in an environment that has torch from here and nothing else of ours."""
    assert "sagemaker-training-toolkit INFO     Installing dependencies from requirements.txt" in trained.log
    assert "Reporting training SUCCESS" in trained.log
    (job,) = trained.record["jobs"]
    sent = job["request"]["HyperParameters"]
    arguments = re.search(r"entry\.py (--.*)", trained.log)
    assert arguments
    assert f"--batch-size {sent['batch-size']}" in arguments[1]
    assert "sagemaker_" not in arguments[1]
    (environment,) = re.findall(r"Toolkit:  sagemaker-training 5\.\S+ in (\S+)", trained.out)
    probe = "import lightning, torch; print(lightning.__file__, torch.__file__)"
    python = Path(environment) / "venv" / "bin" / "python"
    said = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert said[0].startswith(f"{environment}/venv/"), "installed there by the toolkit"
    assert said[1].startswith(f"{environment}/linked/"), "and torch is not installed a second time"


@pytest.fixture(scope="module")
def stopped(place: Path) -> Rehearsed:
    """A spot job that loses its machine after an epoch, and is killed on its second one."""
    after = ("sagemaker.rehearsal.interrupt_after=1", "sagemaker.rehearsal.stop_after=1")
    return rehearse(place, "stopped", IMAGE, "sagemaker.spot=true", *after, "sagemaker.job_name=stopped", LONG)


LONG = "trainer.max_epochs=5000"
EPOCHS = "trainer.max_epochs=150"  # more than the killed job could finish in the half second before SIGKILL


@pytest.mark.slow
def test_an_interrupted_spot_job_resumes(stopped: Rehearsed, place: Path) -> None:
    assert stopped.code == 0, stopped.out + stopped.err
    assert "SM_HPS" in stopped.log
    assert "SM_HPS" not in stopped.out, "what the toolkit lists is in the log"
    before, _, after = stopped.log.partition("Spot interruption")
    assert re.findall(r"^epoch=(\d+)", before, re.MULTILINE)[0] == "1"
    assert int(re.findall(r"^epoch=(\d+)", after, re.MULTILINE)[0]) > 1, "it did not start from scratch"
    assert stopped.record["jobs"][0]["interruptions"] == 1
    assert not left_behind(place)


@pytest.mark.slow
def test_a_killed_job_leaves_its_best_model(stopped: Rehearsed) -> None:
    """The shell that stands for the image's got the SIGTERM, the program did not: it had no time to save anything."""
    (job,) = stopped.record["jobs"]
    assert job["status"] == "Stopped"
    assert "Continue it: the same command with sagemaker.resume_from=stopped" in stopped.out
    model = stopped.unpacked("model.tar.gz")
    kept = json.loads((model / "model.json").read_text())["metrics"]
    losses = dict(re.findall(r"^epoch=(\d+) .*?val_loss=(\S+)", stopped.log, re.MULTILINE))
    until = [float(loss) for epoch, loss in losses.items() if int(epoch) <= kept["epoch"]]
    assert kept["val_loss"] == pytest.approx(min(until), abs=1e-6), "the best so far"
    (prediction,) = Predictor(model).predict([next((stopped.folder / "data" / "test").rglob("*.jpg"))])
    assert prediction.label in json.loads((model / "model.json").read_text())["class_names"]
    assert (model / "code" / "inference.py").is_file(), "it deploys as it is"


@pytest.mark.slow
def test_a_new_job_resumes_from_a_killed_one(stopped: Rehearsed, place: Path) -> None:
    resumed = rehearse(place, "resumed", IMAGE, "sagemaker.resume_from=stopped", EPOCHS)
    assert resumed.code == 0, resumed.out + resumed.err
    assert int(re.findall(r"^epoch=(\d+)", resumed.log, re.MULTILINE)[0]) > 3
    there = json.loads((resumed.unpacked("output.tar.gz") / "metrics.json").read_text())
    here = directly(place, "uninterrupted", resumed.folder / "data", EPOCHS)
    for name in runs.NOT_THE_RESULT:
        there.pop(name, None), here.pop(name, None)
    assert there == here
    assert not left_behind(place)


@pytest.mark.slow
def test_two_machines_that_share_no_disk(place: Path) -> None:
    """The toolkit joins them by torchrun: one run, each image tested once, results on the first machine alone."""
    joined = rehearse(place, "joined", IMAGE, "sagemaker.instance_count=2", "trainer.max_epochs=2")
    assert joined.code == 0, joined.out + joined.err
    assert "--nnodes 2" in joined.log
    assert sorted(set(re.findall(r"--node_rank (\d)", joined.log))) == ["0", "1"]
    output = joined.unpacked("output.tar.gz")
    tested = len(list((joined.folder / "data" / "test").rglob("*.jpg")))
    assert len((output / "predictions.csv").read_text().splitlines()) == 1 + tested
    metrics = json.loads((output / "metrics.json").read_text())
    (job,) = joined.record["jobs"]
    assert job["metrics"]["val_loss"] == pytest.approx(metrics["val_loss"], abs=1e-6)
    assert metrics["cache"] == "built"
    assert (joined.unpacked("model.tar.gz") / "model.json").is_file()
    assert not left_behind(place)


@pytest.mark.slow
def test_a_tuning_job_tries_and_picks(place: Path) -> None:
    space = "search.space={model: {lr: {low: 0.0001, high: 0.1, log: true}}, data: {batch_size: {choices: [2, 4]}}}"
    given = [IMAGE, space, "search.trials=6", "sagemaker.rehearsal.trials=2", "trainer.max_epochs=2"]
    given += ["sagemaker.features_first=true", f"cache.dir={place / 'of-the-search'}"]
    tuned = rehearse(place, "tune", *given, command="tune")
    assert tuned.code == 0, tuned.out + tuned.err
    assert "Trials:   2, 2 at a time" in tuned.out
    assert "cache: built; its log is in first.log" in tuned.out, "one extraction"
    logs = [(tuned.folder / f"{name}.log").read_text() for name in ("first", "trial-1", "trial-2")]
    assert ["Computing the frozen part once" in log for log in logs] == [True, False, False]
    assert all(re.search(r'"cache": "hit"', log) for log in logs[1:])
    assert [job["cache"] for job in tuned.record["jobs"]] == ["hit"] * 2, "the features came through S3"
    record = tuned.record
    assert [job["status"] for job in record["jobs"]] == ["Completed"] * 2
    values = [job["metrics"]["val_loss"] for job in record["jobs"]]
    assert record["best"] == values.index(min(values))
    best = record["jobs"][record["best"]]
    chosen = best["request"]["HyperParameters"]
    assert f"trial {record['best'] + 1}, lr {chosen['lr']}, batch-size {chosen['batch-size']}" in tuned.out
    exported = json.loads((tuned.unpacked("output.tar.gz") / "metrics.json").read_text())
    assert exported["val_loss"] == pytest.approx(min(values), abs=1e-6), "the archive is that of the best"
    settings = [f"model.lr={chosen['lr']}", f"data.batch_size={chosen['batch-size']}", "trainer.max_epochs=2"]
    assert directly(place, "winner", tuned.folder / "data", *settings)["test_loss"] == exported["test_loss"]
    assert not left_behind(place)


@pytest.mark.slow
def test_a_search_in_one_job(place: Path) -> None:
    given = [IMAGE, "search.where=one_job", "search.trials=4", "trainer.max_epochs=2"]
    searched = rehearse(place, "one-job", *given, command="tune")
    assert searched.code == 0, searched.out + searched.err
    (job,) = searched.record["jobs"]
    output = searched.unpacked("output.tar.gz")
    trials = (output / "search" / "trials.csv").read_text().splitlines()
    assert len(trials) == 5, "a header and four trials"
    there = json.loads((output / "metrics.json").read_text())
    assert job["metrics"]["val_loss"] == pytest.approx(there["val_loss"], abs=1e-6)
    assert (searched.folder / "model.tar.gz").is_file()
    winner = re.findall(r"(lr|batch_size): (\S+)", (output / "search" / "best.yaml").read_text())
    settings = [f"{'model' if name == 'lr' else 'data'}.{name}={value}" for name, value in winner]
    here = directly(place, "one-job-winner", searched.folder / "data", *settings, "trainer.max_epochs=2")
    assert here["test_loss"] == there["test_loss"]


@pytest.mark.slow
def test_a_job_that_fails_says_why(place: Path) -> None:
    failed = rehearse(place, "failed", IMAGE, "model.lr=1e38")
    assert failed.code == 1
    assert "ended as Failed" in failed.err
    reason = failed.err.partition("The end of its log")[0]
    assert "ExecuteUserScriptError" in reason, "the toolkit's own message"
    assert "training has diverged; try a smaller learning rate" in reason, "with the program's"
    assert "Traceback" not in failed.err
    assert not (failed.folder / "model.tar.gz").exists()
    assert not left_behind(place)


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_running(place: Path) -> None:
    process = start(place, "stopped", IMAGE, "trainer.max_epochs=5000", command="tune")
    assert process.stdout
    for line in process.stdout:
        if "epoch=2" in line:
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, out + err
    assert not left_behind(place)


NEEDS: Sequence[tuple[list[str], str]] = (
    (["data.root=nowhere"], "the folder nowhere/train does not exist; give data.root=FOLDER"),
    (["sagemaker.weights=s3://elsewhere/weights.pth"], "s3://elsewhere/weights.pth is out of reach for a rehearsal"),
    (["sagemaker.packages=s3://elsewhere/wheels"], "the channel packages would be empty"),
    (["sagemaker.rehearsal.interrupt_after=1"], "interrupt_after needs sagemaker.spot=true"),
    (["sagemaker.instance_count=9"], "A rehearsal has at most 8 machines"),
    (["sagemaker.resume_from=none"], "none/checkpoints/none does not exist; a rehearsal resumes from the rehearsal"),
    (["sagemaker.rehearsal.images=-1"], "sagemaker.rehearsal.images=-1 is out of range"),
)


@pytest.mark.parametrize(("arguments", "sentence"), NEEDS, ids=[needs[0][0] for needs in NEEDS])
@pytest.mark.slow
def test_what_a_rehearsal_cannot_do_it_says_at_once(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from launch.sagemaker_train import main

    monkeypatch.chdir(tmp_path)
    given = [f"data.root={runs.photographs(3, 3, 2, 2)}", "output_dir=out", IMAGE, *TINY, *arguments]
    assert main(["mode=rehearse", *given]) == 2
    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [], "nothing was begun"


def test_a_job_with_the_managed_hook_finds_its_configuration(tmp_path):
    """As the platform leaves it: https://github.com/awslabs/sagemaker-debugger, debughookconfig.json."""
    from launch.rehearsal import container
    from launch.rehearsal.s3 import LocalS3

    collections = [{"CollectionName": "loss", "CollectionParameters": {"save_interval": "10"}}]
    hook = {"S3OutputPath": "s3://mine/debugger", "CollectionConfigurations": collections}
    request = {
        "AlgorithmSpecification": {"TrainingInputMode": "File"},
        "ResourceConfig": {"InstanceType": "ml.m5.large"},
        "DebugHookConfig": hook,
    }
    container.lay_out(request, tmp_path, cast(LocalS3, None))
    written = json.loads((tmp_path / "input" / "config" / "debughookconfig.json").read_text())
    assert written == {**hook, "LocalPath": str(tmp_path / "output" / "tensors")}
