"""The search command: what it records, that it repeats itself, and that it goes on after it was killed."""

import csv
import re
import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from support import runs
from support.forks import Forked, command

from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.search import results
from dogbreed.search.run import tune
from dogbreed.search.study import Search
from dogbreed.training.run import train
from dogbreed.training.stacked_heads import Head, HeadTrainer
from dogbreed.tune import main

pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'dogbreed[search]'")

SMALL = (*runs.STACKABLE, "search.space.data.batch_size.choices=[4,8]", "search.seeds=0")


def trials_of(folder: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((folder / "trials.csv").read_text().splitlines()))
    for row in rows:
        del row["seconds"]
    return rows


@pytest.fixture(scope="module")
def settings(dog_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Of a small search; all share the features, which none but the first computes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("DOGBREED_CACHE", raising=False)
        yield [*SMALL, f"data.root={dog_tree}"]


@pytest.mark.slow
def test_a_search_records_its_trials_and_repeats_itself(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, other = tmp_path / "one", tmp_path / "two", tmp_path / "other"
    assert main([*settings, "search.trials=12", "search.parallel=6", f"output_dir={one}"]) == 0
    said = capsys.readouterr().out
    assert "side by side" in said
    assert "12 of 12 trials" in said
    rows = trials_of(one)
    assert [int(row["number"]) for row in rows] == list(range(12))
    assert {row["data.batch_size"] for row in rows} == {"4", "8"}
    assert all(0.001 <= float(row["model.lr"]) <= 0.1 for row in rows)
    complete = [row for row in rows if row["state"] == "complete"]
    winner = min(complete, key=lambda row: float(row["val_loss"]))
    best = yaml.safe_load((one / "best.yaml").read_text())
    assert best["model"]["lr"] == float(winner["model.lr"])
    assert best["data"]["batch_size"] == int(winner["data.batch_size"])
    command = next(line for line in said.splitlines() if line.startswith("Train with it: "))
    assert f"model.lr={winner['model.lr']}" in command
    assert (one / "search.png").read_bytes().startswith(b"\x89PNG")

    tune(overrides=[*settings, "search.trials=12", "search.parallel=6", f"output_dir={two}", "progress=none"])
    assert trials_of(two) == rows
    tune(overrides=[*settings, "search.trials=4", f"output_dir={other}", "seed=1", "progress=none"])
    assert [row["model.lr"] for row in trials_of(other)] != [row["model.lr"] for row in rows[:4]]


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "inside"), [(0.1, True), (0.5, False)])
def test_the_first_trial_is_the_configuration_as_it_is_and_runs_to_its_end(
    settings: list[str], tmp_path: Path, lr: float, inside: bool
) -> None:
    tune(overrides=[*settings, f"model.lr={lr}", "data.batch_size=4", "search.trials=8", "search.parallel=8",
                    "trainer.max_epochs=4", f"output_dir={tmp_path}", "progress=none"])  # fmt: skip
    first, *others = trials_of(tmp_path)
    assert ((float(first["model.lr"]), first["data.batch_size"]) == (lr, "4")) is inside
    if inside:  # by far too fast: the median rule would have stopped it
        assert float(first["val_loss"]) > max(float(row["val_loss"]) for row in others if row["state"] == "complete")
        assert (first["state"], first["epochs"]) == ("complete", "4")


@pytest.mark.slow
def test_the_printed_winner_trains_to_what_the_search_found(settings: list[str], tmp_path: Path) -> None:
    search = tune(overrides=[*settings, "search.trials=6", f"output_dir={tmp_path / 'search'}", "progress=none"])
    best = search.best()
    assert best is not None
    given = results.command(search).split()[3:]
    result = train(overrides=[*given, f"output_dir={tmp_path / 'run'}", "progress=none"])
    assert result.metrics["val_loss"] == pytest.approx(best.value, abs=1e-4)


@pytest.mark.slow
def test_a_killed_search_goes_on_and_comes_to_the_same(settings: list[str], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    wanted = [*settings, "search.trials=9", "search.parallel=3", "trainer.max_epochs=12"]
    tune(overrides=[*wanted, f"output_dir={whole}", "progress=none"])
    process = Forked(command, ["dogbreed.tune", *wanted, f"output_dir={killed}"], runs.environment())
    for line in process.stdout:
        if line.startswith("3 of 9"):
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(trials_of(killed)) < 9
    tune(overrides=[*wanted, f"output_dir={killed}", "progress=none"])
    assert trials_of(killed) == trials_of(whole)


THREE_ROUNDS = ["search.trials=9", "search.parallel=3", "trainer.max_epochs=4", "progress=none"]


@pytest.fixture(scope="module")
def three_rounds(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was left alone."""
    folder = tmp_path_factory.mktemp("search") / "whole"
    tune(overrides=[*settings, *THREE_ROUNDS, f"output_dir={folder}"])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("last", [3, 4, 5])
def test_a_search_killed_between_two_records_goes_on_to_the_same(
    settings: list[str], three_rounds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
) -> None:
    """The second of three rounds is recorded trial by trial; it ends after each, and within one."""
    wanted = [*settings, *THREE_ROUNDS]

    class Killed(BaseException):
        pass

    tell = Search.tell

    def tell_until(search: Search, trial: Any, curve: list[dict[str, float]], *rest: Any, **more: Any) -> None:
        if trial.number == last:
            trial.report(curve[0]["val_loss"], 0)
            raise Killed
        tell(search, trial, curve, *rest, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Search, "tell", tell_until)
        with pytest.raises(Killed):
            tune(overrides=[*wanted, f"output_dir={tmp_path / 'killed'}"])
    tune(overrides=[*wanted, f"output_dir={tmp_path / 'killed'}"])
    assert trials_of(tmp_path / "killed") == trials_of(three_rounds)


@pytest.mark.slow
def test_where_more_trains_trials_run_one_after_the_other(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*settings, "model.trainable=block", "search.trials=2", "trainer.max_epochs=1", f"output_dir={tmp_path}"]
    assert main(given) == 0
    assert "Trials run one after the other: model.trainable=block" in capsys.readouterr().out
    assert len(trials_of(tmp_path)) == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search.trials=0", "search.trials=0 is out of range"),
        ("search.objective=test_loss", "The test split is not for choosing"),
        ("search.direction=maximize", "does not fit search.objective=val_loss"),
        ("search.space.model.lr.low=1", "search.space.model.lr"),
        ("trainer.max_epochs=null", "trainer.max_epochs=None: a search needs trainer.max_epochs >= 1"),
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: a search needs trainer.max_epochs >= 1"),
        ("trainer.limit_val_batches=0", "choose the best epoch by"),
        ("search.space.model.lr={low: -0.1, high: 0.1, log: false}", "model.lr=-0.1 is out of range"),
        ("search.space.data.batch_size.choices=[8,0]", "data.batch_size=0 is out of range"),
        ("search.space.data.batch_size.choices=[8,many]", "data.batch_size must be a whole number"),
        ("search.space.model.optimizer.choices=[lion]", "model.optimizer=lion is unknown"),
    ],
)
@pytest.mark.slow
def test_bad_use(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, sentence: str
) -> None:
    folder = tmp_path / "search"
    assert main([*settings, override, f"output_dir={folder}"]) == 2
    assert sentence in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The Trainer's strategy says where a search runs, as it does for a run."""
    folder = tmp_path / "search"
    assert main([*settings, "trainer.accelerator=gpu", f"output_dir={folder}"]) == 2
    assert "Trainer refuses these settings" in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.slow
def test_another_search_in_the_same_folder_is_refused(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [*settings, "search.trials=1", f"output_dir={tmp_path}"]
    assert main(given) == 0
    assert main([*given, "trainer.max_epochs=4"]) == 2
    assert "trainer.max_epochs" in capsys.readouterr().err


@pytest.mark.slow
def test_the_printed_line_carries_any_value(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "search.space={model: {backbone_lr: {choices: [null]}, schedule: {choices: [cosine]}}}"
    given = [*settings, space, "search.trials=1", "trainer.max_epochs=1", f"output_dir={tmp_path}"]
    assert main(given) == 0
    line = re.search(r"^Train with it: python -m dogbreed.train (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert line
    composed = compose(shlex.split(line[1]))
    assert composed["model"]["backbone_lr"] is None
    assert composed["model"]["schedule"] == "cosine"


@pytest.mark.slow
def test_stopped_by_hand(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the second round: says where the search lies and how it goes on."""
    train_heads, rounds = HeadTrainer.train, []

    def pressed(*arguments: Any, **more: Any) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        train_heads(*arguments, **more)

    monkeypatch.setattr(HeadTrainer, "train", pressed)
    given = [*settings, "search.space={model: {lr: {low: 0.001, high: 0.1}}}", "search.parallel=2"]
    assert main([*given, "search.trials=9", f"output_dir={tmp_path}"]) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"Stopped after 4 of 9 trials; the same command with output_dir={tmp_path} continues the search."


def test_the_median_rule(settings: list[str], tmp_path: Path) -> None:
    search = Search(Config.from_dict(compose([*settings, f"output_dir={tmp_path}"])))

    def head(*losses: float) -> Head:
        return Head(lr=0.01, history=[{"val_loss": loss, "val_acc": 0.0} for loss in losses])

    still, trials = [head(5.0, 1.0), head(5.0, 2.0), head(5.0, 3.0)], [None] * 3
    assert search.should_prune(2, still, trials) == [False, False, False]  # three are too few to compare
    search.curves = [[2.0, 1.5], [4.0, 4.0, 4.0], [0.1]]  # the last one never came as far
    assert search.should_prune(2, still, trials) == [False, False, True]  # the median of 1, 1.5, 2, 3, 4 is 2
    assert search.should_prune(1, still, trials) == [False, False, False]  # too early
