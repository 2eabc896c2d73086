"""One whole run: what it writes, what it says, and that both agree; and the ways to start one."""

import csv
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from support import runs
from support.forks import Forked, command, program

from dogbreed import DogBreedClassifier, Predictor
from dogbreed.config.compose import compose, flatten
from dogbreed.config.settings import Config
from dogbreed.core import text
from dogbreed.core.metric_lines import EPOCH_LINE, METRIC_REGEXES, TEST_LINE
from dogbreed.data.images import load
from dogbreed.training.build import run_folder
from dogbreed.training.run import Result

pytestmark = pytest.mark.slow

EPOCHS = 3
DOCUMENTED = {
    "train_loss",
    "val_loss",
    "val_acc",
    "test_loss",
    "test_acc",
    "test_top5",
    "test_acc_ci95",
    "test_ece",
    "epochs",
    "seconds",
    "images_seen",
    "images_per_second",
    "cache",
    "device",
}
NUMBER = r"([0-9.eE+-]+)"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run with its default logger, and what it printed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    ran = runs.train_in(folder, f"trainer.max_epochs={EPOCHS}", "model.lr=0.03", "loggers={tensorboard: {}, csv: {}}")
    return folder, ran.out


def test_files(whole: tuple[Path, str]) -> None:
    folder, said = whole
    found = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert {
        "config.yaml",
        "metrics.json",
        "metrics.csv",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "model/model.safetensors",
        "model/model.json",
        "report.html",
        "predictions.csv",
    } <= found
    assert not [name for name in found if name.endswith(".tmp")]
    assert not (folder / "skipped.csv").exists()
    for part in ("model", "checkpoints"):
        taken = text.size(sum(file.stat().st_size for file in (folder / part).iterdir()))
        assert re.search(rf"\b{part}/.*\({taken}\)$", said, re.MULTILINE), taken


def test_metrics(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    metrics = runs.metrics(folder)
    assert metrics.keys() >= DOCUMENTED
    assert not any(isinstance(value, dict) for value in metrics.values()), "it is flat"
    assert (metrics["epochs"], metrics["images_seen"]) == (EPOCHS, EPOCHS * 18)
    assert (metrics["cache"], metrics["device"]) == ("built", "cpu")
    low, high = metrics["test_acc_ci95"]
    assert 0 <= low <= metrics["test_acc"] <= high <= 1
    best = min(runs.history(folder), key=lambda row: row["val_loss"])
    assert metrics["train_loss"] == best["train_loss"]
    assert metrics["val_loss"] == pytest.approx(best["val_loss"], abs=1e-6)


def test_predictions_are_every_test_image(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    rows = runs.predictions(folder)
    root = runs.photographs()
    assert [root / row["path"] for row in rows] == sorted((root / "test").rglob("*.jpg"))
    assert all(row["label"] == row["path"].split("/")[1].partition(".")[2] for row in rows)
    assert all((row["label"] == row["predicted"]) == bool(int(row["correct"])) for row in rows)
    assert sum(int(row["correct"]) for row in rows) / len(rows) == runs.metrics(folder)["test_acc"]


def test_epoch_lines(whole: tuple[Path, str]) -> None:
    """What SageMaker's tuner reads from the log is what the files say, each value once an epoch."""
    folder, out = whole
    rows = runs.history(folder)
    assert [row["epoch"] for row in rows] == list(range(1, EPOCHS + 1))
    best = [min(row["val_loss"] for row in rows[: n + 1]) for n in range(EPOCHS)]
    for name, digits in (("train_loss", 6), ("val_loss", 6), ("val_acc", 4)):
        assert re.findall(METRIC_REGEXES[name], out) == [f"{row[name]:.{digits}f}" for row in rows], name
    assert re.findall(METRIC_REGEXES["best_val_loss"], out) == [f"{value:.6f}" for value in best]
    pattern = f"epoch=([0-9]+) train_loss={NUMBER} val_loss={NUMBER} val_acc={NUMBER} best_val_loss={NUMBER}"
    lines = [line for line in out.splitlines() if "val_loss" in line]
    assert all(re.fullmatch(pattern, line) for line in lines)
    assert len(lines) == EPOCHS
    for line in lines:  # a log's reader sees one line at a time
        assert all(len(re.findall(regex, line)) == 1 for name, regex in METRIC_REGEXES.items() if "test" not in name)


def test_test_line(whole: tuple[Path, str]) -> None:
    folder, out = whole
    metrics, count = runs.metrics(folder), len(runs.predictions(folder))
    (line,) = (line for line in out.splitlines() if line.startswith("Test set"))
    correct = round(metrics["test_acc"] * count)
    loss = metrics["test_loss"]
    assert line == f"Test set: Average loss: {loss:.6f}, Accuracy: {correct}/{count} ({100 * correct / count:.1f}%)"
    assert re.findall(METRIC_REGEXES["average test loss"], out) == [f"{loss:.6f}"]


def test_lines_as_documented() -> None:
    row = {"epoch": 3, "train_loss": 0.812345, "val_loss": 0.700123, "val_acc": 0.8012, "best_val_loss": 0.700123}
    documented = "epoch=3 train_loss=0.812345 val_loss=0.700123 val_acc=0.8012 best_val_loss=0.700123"
    assert EPOCH_LINE.format(**row) == documented
    documented = "Test set: Average loss: 0.463112, Accuracy: 713/836 (85.3%)"
    assert TEST_LINE.format(loss=0.463112, correct=713, total=836, percent=100 * 713 / 836) == documented


@pytest.mark.parametrize("value", ["1e-07", "12345.6", "0.5"])
def test_metric_expressions_read_any_number(value: str) -> None:
    line = f"epoch=1 train_loss={value} val_loss={value} val_acc={value} best_val_loss=0.25"
    for name in ("train_loss", "val_loss", "val_acc"):
        assert re.findall(METRIC_REGEXES[name], line) == [value]


def test_loggers(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    assert list(folder.rglob("events.out.tfevents.*"))
    with (folder / "csv" / "metrics.csv").open(newline="") as stream:
        logged = [float(row["val_loss"]) for row in csv.DictReader(stream) if row.get("val_loss")]
    assert logged[:EPOCHS] == pytest.approx([row["val_loss"] for row in runs.history(folder)])


@pytest.mark.slow
def test_mlflow_gets_every_setting_within_its_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes 100 parameters at once, and names and values of a limited length; a folder counts as outdated."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # noted as absent, so that what MLflow sets itself is undone too
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    folder = tmp_path / ("of_a_long_name" * 15) / ("of_another" * 20)
    folder.mkdir(parents=True)
    runs.train_in(folder / "run", "trainer.max_epochs=1", "loggers.mlflow={}")
    (parameters,) = folder.glob("run/mlruns/*/*/params")
    logged = {str(file.relative_to(parameters)): file.read_text() for file in parameters.rglob("*") if file.is_file()}
    settings = flatten(yaml.safe_load((folder / "run" / "config.yaml").read_text()))
    assert len(settings) > 100
    assert {key.replace(".", "/") for key, value in settings.items() if value != {}} <= logged.keys()
    assert logged["output_dir"] == str(folder / "run")[:250]
    assert list(folder.glob("run/mlruns/*/*/metrics/val_loss"))
    (artifacts,) = folder.glob("run/mlruns/*/*/artifacts")
    kept = {str(file.relative_to(artifacts)): file.read_bytes() for file in artifacts.rglob("*") if file.is_file()}
    model = {f"model/{file.name}": file.read_bytes() for file in (folder / "run" / "model").iterdir()}
    assert kept == {"report.html": (folder / "run" / "report.html").read_bytes(), **model}


@pytest.mark.slow
def test_wandb_gets_the_report_and_the_model(tmp_path: Path) -> None:
    """Two trainings of one process are two runs there; the process writes them down when it ends."""
    options = {"whole": "offline: true", "small": "offline: true, log_model: false"}
    code = "from dogbreed import train\n"
    for name, arguments in options.items():
        settings = runs.overrides(tmp_path / name, "trainer.max_epochs=1", f"loggers.wandb={{{arguments}}}")
        code += f"train(overrides={[*settings]!r})\n"
    process = Forked(program, [code], runs.environment(), tmp_path, apart=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    for name in options:
        (record,) = tmp_path.glob(f"{name}/wandb/offline-run-*/*.wandb")
        number, written = record.stem.removeprefix("run-"), record.read_bytes()
        logged = {sort: f"{sort}-{number}".encode() in written for sort in ("report", "model")}
        assert logged == {"report": True, "model": name == "whole"}
        assert b"test_loss" in written


@pytest.mark.slow
def test_a_logger_that_cannot_start(tmp_path: Path) -> None:
    """Its library raises what another library of its own raises, here pydantic."""
    words = ["dogbreed.train", *runs.overrides(tmp_path / "run", "loggers.wandb={offline: true}")]
    process = Forked(command, words, runs.environment(WANDB_SILENT="neither"), tmp_path, apart=True)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: loggers.wandb: 1 validation error for Settings silent" in err


def test_export_answers_as_the_run_did(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    rows = runs.predictions(folder)
    root = runs.photographs()
    predictor = Predictor(folder / "model", device="cpu")
    answers = predictor.predict([root / row["path"] for row in rows])
    assert [answer.label for answer in answers] == [row["predicted"] for row in rows]
    assert [answer.probability for answer in answers] == pytest.approx(
        [float(row["probability"]) for row in rows], abs=2e-6
    )


@pytest.mark.slow
def test_train_from_python(tmp_path: Path) -> None:
    """Once `dogbreed.train` is imported, the public name is that module; it may be called all the same."""
    from dogbreed import train

    with runs.one_thread():
        result = train(overrides=runs.overrides(tmp_path / "run", "trainer.max_epochs=1", "model.lr=0.03"))
    assert isinstance(result, Result)
    assert result.output_dir == tmp_path / "run"
    assert result.metrics == runs.metrics(tmp_path / "run")
    exported = Predictor(tmp_path / "run" / "model", device="cpu")
    root = runs.photographs()
    paths = [root / row["path"] for row in runs.predictions(tmp_path / "run")]
    inputs = torch.stack([load(path, exported.model.preprocessing) for path in paths])
    kept = result.model.predictions
    assert kept is not None
    torch.testing.assert_close(exported.logits(inputs), kept.logits, atol=1e-5, rtol=0)
    for name, value in runs.weights(tmp_path / "run").items():
        assert torch.equal(value, result.model.network.state_dict()[name])


@pytest.mark.slow
def test_train_from_python_before_anything_is_imported(tmp_path: Path) -> None:
    arguments = runs.overrides(tmp_path / "run", "trainer.max_epochs=1", "test=false")
    code = f"""
import sys
import dogbreed
assert "torch" not in sys.modules and "lightning" not in sys.modules, "import dogbreed alone loads neither"
from dogbreed import train
assert callable(train)
assert train(overrides={arguments!r}).metrics["epochs"] == 1
from dogbreed import train as again
import dogbreed.train
assert callable(again) and callable(dogbreed.train)
assert again(overrides=[*{arguments!r}, "overwrite=true"]).metrics["epochs"] == 1
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=runs.environment(), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_flags_mean_the_same_as_overrides(tmp_path: Path) -> None:
    ways = {"flags": ["--batch-size", "5", "--lr=0.001"], "keys": ["data.batch_size=5", "model.lr=0.001"]}
    shared = [word for word in runs.TINY if not word.startswith("data.batch_size")]
    configs = []
    for name, way in ways.items():
        folder = tmp_path / name
        where = [f"data.root={runs.photographs()}", f"output_dir={folder}", f"cache.dir={tmp_path / 'cache'}"]
        ran = runs.run(*shared, *where, "trainer.max_epochs=1", *way)
        assert ran.code == 0, ran.err
        configs.append(yaml.safe_load((folder / "config.yaml").read_text()))
        assert (configs[-1]["data"]["batch_size"], configs[-1]["model"]["lr"]) == (5, 0.001)
        configs[-1].pop("output_dir")
    assert configs[0] == configs[1]
    runs.assert_same_result(tmp_path / "flags", tmp_path / "keys")


@pytest.mark.slow
def test_early_stopping_and_no_test(tmp_path: Path) -> None:
    """Ends just as many epochs after the best one as its patience says, and answers with the best one's weights."""
    folder = tmp_path / "run"
    more = ("early_stopping=2", "trainer.max_epochs=60", "model.lr=3", "model.optimizer=sgd")
    ran = runs.train_in(folder, *more, "test=false")
    rows, metrics = runs.history(folder), runs.metrics(folder)
    losses = [row["val_loss"] for row in rows]
    assert len(rows) < 60
    assert len(rows) == losses.index(min(losses)) + 1 + 2
    assert metrics["best_epoch"] == losses.index(min(losses)) + 1
    assert metrics["val_loss"] == pytest.approx(min(losses), abs=1e-6)
    assert "Test set" not in ran.out
    assert not (folder / "predictions.csv").exists()
    assert "test_acc" not in metrics
    assert (folder / "model" / "model.json").exists()


@pytest.mark.slow
def test_epochs_without_a_validation_are_never_the_best(tmp_path: Path) -> None:
    """Lightning shows the val_loss of an earlier epoch for them; the weights are others."""
    folder = tmp_path / "run"
    more = ("trainer.check_val_every_n_epoch=2", "trainer.max_epochs=5", "model.lr=0.01", "early_stopping=9")
    runs.train_in(folder, *more)
    rows, metrics = runs.history(folder), runs.metrics(folder)
    validated = {row["epoch"]: row["val_loss"] for row in rows if math.isfinite(row["val_loss"])}
    assert list(validated) == [2, 4]
    assert metrics["best_epoch"] == min(validated, key=lambda epoch: validated[epoch])
    assert metrics["val_loss"] == pytest.approx(min(validated.values()), abs=1e-6)


@pytest.mark.slow
def test_steps_that_end_within_the_first_epoch(tmp_path: Path) -> None:
    """Nothing was validated: what was trained last is exported."""
    folder = tmp_path / "run"
    ran = runs.train_in(folder, "trainer.max_steps=2", "early_stopping=1", "data.batch_size=4")
    assert "val_loss=nan" in ran.out
    last = DogBreedClassifier.load_from_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert torch.equal(last.network.state_dict()["classifier.1.weight"], runs.weights(folder)["classifier.1.weight"])
    assert runs.metrics(folder)["best_epoch"] == 1


@pytest.mark.slow
def test_what_is_said_of_a_test_is_of_that_test(tmp_path: Path) -> None:
    """Of as many images as were tested; without any, the validation's answers do not pass for the test's."""
    ran = runs.train_in(tmp_path / "few", "trainer.limit_test_batches=1", "data.batch_size=4")
    assert re.search(r"Accuracy: \d/4 ", ran.out)
    assert "/4, 95 % CI" in ran.out
    ran = runs.train_in(tmp_path / "none", "trainer.limit_test_batches=0")
    assert "Test set" not in ran.out
    assert "test_acc" not in runs.metrics(tmp_path / "none")


@pytest.mark.slow
def test_a_resumed_run_has_the_patience_that_it_was_given(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    more = ("model.lr=3", "model.optimizer=sgd", "test=false")  # no epoch is better than one of the first
    runs.train_in(folder, *more, "early_stopping=1", "trainer.max_epochs=60")
    stopped = len(runs.history(folder))
    runs.train_in(folder, *more, "early_stopping=4", "trainer.max_epochs=60", f"resume={folder}")
    losses = [row["val_loss"] for row in runs.history(folder)]
    assert len(losses) == losses.index(min(losses)) + 1 + 4
    assert len(losses) > stopped


@pytest.mark.slow
def test_damaged_image_is_skipped_and_listed(tmp_path: Path) -> None:
    root = tmp_path / "dogs"
    shutil.copytree(runs.photographs(), root)
    damaged = sorted((root / "train").rglob("*.jpg"))[4]
    damaged = damaged.rename(damaged.with_name("caf\udce9.jpg"))  # not UTF-8, as in archives of other systems
    tested = next((root / "test").rglob("*.jpg"))
    tested.rename(tested.with_name("\udce9.jpg"))
    damaged.write_bytes(damaged.read_bytes()[:700])
    ran = runs.train_in(tmp_path / "run", "trainer.max_epochs=1", data=root)
    with (tmp_path / "run" / "skipped.csv").open(newline="", errors="surrogateescape") as stream:
        (row,) = csv.DictReader(stream)
    assert row["path"] == str(damaged.relative_to(root))
    assert row["reason"]
    assert "caf\\udce9.jpg" in ran.out
    assert b"/\xe9.jpg," in (tmp_path / "run" / "predictions.csv").read_bytes()
    metrics = runs.metrics(tmp_path / "run")
    assert (metrics["images_skipped"], metrics["images_seen"]) == (1, 17)


@pytest.mark.slow
def test_losses_do_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    """Means over images, not over batches: 18, 9 and 9 images in batches of 4, the last one short, and of all.

    ResNet has no dropout, and a learning rate of next to nothing leaves the weights alone, so train_loss stays too.
    """
    found = []
    for size in (4, 512):
        folder = tmp_path / str(size)
        more = ("model.backbone=resnet18", "model.lr=1e-30", f"data.batch_size={size}", "trainer.max_epochs=1")
        runs.train_in(folder, *more)
        metrics, (row,) = runs.metrics(folder), runs.history(folder)
        found.append([row["train_loss"], row["val_loss"], row["val_acc"], metrics["val_loss"], metrics["test_loss"]])
    assert found[1] == pytest.approx(found[0], abs=1e-5)


def test_cfg_shows_the_configuration_and_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = runs.run("--cfg", "job", "experiment=quickstart", "--lr", "0.5")
    assert ran.code == 0
    shown = yaml.safe_load(ran.out)
    assert (shown["model"]["lr"], shown["model"]["weights"], shown["data"]["source"]) == (0.5, "imagenet", "sample")
    assert not list(tmp_path.iterdir())


def test_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ran = runs.run("--help")
    assert ran.code == 0
    assert ran.out.startswith("usage: python -m dogbreed.train ")
    assert "data.batch_size=512" in ran.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_multirun_and_folders_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run for each value, each in a folder of its own below outputs/, and nothing else is left."""
    monkeypatch.chdir(tmp_path)
    words = [word for word in runs.overrides(tmp_path / "run", "trainer.max_epochs=1") if "output_dir" not in word]
    ran = runs.run("--multirun", *words, "model.lr=0.001,0.01", f"cache.dir={tmp_path / 'cache'}")
    assert ran.code == 0, ran.err
    folders = sorted((tmp_path / "outputs").glob("*/*"))
    rates = [yaml.safe_load((folder / "config.yaml").read_text())["model"]["lr"] for folder in folders]
    assert sorted(rates) == [0.001, 0.01]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d(-\d+)?", "/".join(f.parts[-2:])) for f in folders)
    assert [runs.metrics(folder)["cache"] for folder in sorted(folders, key=lambda f: f.stat().st_mtime)].count("hit")
    assert {path.name for path in tmp_path.iterdir()} == {"outputs", "cache"}


def test_two_runs_of_one_second_have_a_folder_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is made at the moment of choosing, and is gone again where a run is refused."""
    monkeypatch.chdir(tmp_path)
    first, second = (run_folder(Config.from_dict(compose(())), None) for _ in range(2))
    assert first != second
    assert first.is_dir()
    assert second.is_dir()
    shutil.rmtree("outputs")
    assert runs.run(*runs.TINY, f"data.root={tmp_path / 'nowhere'}").code == 2
    assert not Path("outputs").exists()
