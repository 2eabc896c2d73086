"""Optuna's samplers and pruners by name: what they propose, what they stop, and what is refused in a sentence."""

import csv
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support import runs

from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.search import results
from dogbreed.search.study import Search
from dogbreed.training.stacked_heads import Head

optuna = pytest.importorskip("optuna", reason="the search needs Optuna: pip install 'dogbreed[search]'")

pytestmark = pytest.mark.slow  # a search is checked as a run is, which takes a second
GRID = "search.space={model: {lr: {choices: [0.01, 0.02, 0.03]}}, data: {batch_size: {choices: [4, 8]}}}"


def opened(folder: Path, *more: str) -> Search:
    data = f"data.root={runs.photographs()}"
    search = Search(Config.from_dict(compose([*runs.STACKABLE, data, f"output_dir={folder}", *more])))
    search.open()
    return search


def curve_of(*losses: float) -> list[dict[str, float]]:
    return [{"train_loss": loss, "val_loss": loss, "val_acc": 1 - loss} for loss in losses]


def run_all(search: Search) -> list[dict[str, Any]]:
    """The settings of all trials, whose results are made up."""
    while trials := search.ask():
        search.tell_round(
            [
                (trial, {"curve": curve_of(trial.params["model.lr"]), "stopped": False, "seconds": 0.0})
                for trial in trials
            ]
        )
    return [trial.params for trial in search.finished()]


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "gp", "[tpe,{n_startup_trials: 2, multivariate: true}]"])
def test_a_sampler_proposes_within_the_space_and_repeats_itself(tmp_path: Path, sampler: str) -> None:
    settings = [f"search.sampler={sampler}", "search.trials=9", "search.parallel=3", "model.lr=0.05"]
    tried = run_all(opened(tmp_path / "one", *settings))
    assert len(tried) == 9
    assert tried[0] == {"model.lr": 0.05, "data.batch_size": 512}  # the configuration as it is
    assert all(0.001 <= params["model.lr"] <= 0.1 for params in tried)
    assert len({params["model.lr"] for params in tried}) == 9
    assert run_all(opened(tmp_path / "two", *settings)) == tried


def test_samplers_differ(tmp_path: Path) -> None:
    tried = {
        sampler: str(run_all(opened(tmp_path / sampler, f"search.sampler={sampler}", "search.trials=15")))
        for sampler in ("tpe", "random", "qmc")
    }
    assert len(set(tried.values())) == 3


@pytest.mark.parametrize("batch_size", [4, 512])
def test_a_grid_tries_every_combination_once(tmp_path: Path, batch_size: int) -> None:
    search = opened(tmp_path, "search.sampler=grid", GRID, "search.parallel=4", "model.lr=0.02",
                    f"data.batch_size={batch_size}")  # fmt: skip
    assert search.trials == 6
    tried = run_all(search)
    assert sorted(tuple(params.values()) for params in tried) == sorted(product((0.01, 0.02, 0.03), (4, 8)))
    if batch_size == 4:
        assert tried[0] == {"model.lr": 0.02, "data.batch_size": 4}


def test_a_grid_proposes_again_what_was_interrupted(tmp_path: Path) -> None:
    settings = ["search.sampler=grid", GRID, "search.parallel=4"]
    lost = [trial.params for trial in opened(tmp_path, *settings).ask()]
    assert len(lost) == 4
    tried = run_all(opened(tmp_path, *settings))
    assert len(tried) == 6
    assert all(params in tried for params in lost)


@pytest.mark.parametrize("prune", ["median", "[percentile,{percentile: 50.0}]", "[median,{n_startup_trials: 2}]"])
def test_a_pruner_of_optuna_stops_what_it_finds_poor(tmp_path: Path, prune: str) -> None:
    search = opened(tmp_path, f"search.prune={prune}", "search.parallel=8", "search.trials=20")
    first = search.ask()
    search.tell_round([(trial, {"curve": curve_of(0.5, 0.4), "stopped": False, "seconds": 0.0}) for trial in first])
    good, poor, *_ = search.ask()
    heads = [Head(lr=0.01, history=curve_of(loss)) for loss in (0.3, 0.9)]
    assert search.should_prune(1, heads, [good, poor]) == [False, True]


def test_a_pruner_looks_at_the_objective(tmp_path: Path) -> None:
    """A higher accuracy is better, where a higher loss would be worse."""
    search = opened(tmp_path, "search.prune=median", "search.objective=val_acc", "search.direction=maximize",
                    "search.parallel=6")  # fmt: skip
    search.tell_round([(trial, {"curve": curve_of(0.5), "stopped": False, "seconds": 0.0}) for trial in search.ask()])
    good, poor, *_ = search.ask()
    heads = [Head(lr=0.01, history=curve_of(loss)) for loss in (0.3, 0.9)]
    assert search.should_prune(1, heads, [good, poor]) == [False, True]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("search.sampler=cmaes", r"search\.sampler=cmaes is unknown; it is tpe, random, qmc, gp or grid\."),
        ("search.sampler=[tpe,{startup: 3}]", r"search\.sampler: TPESampler refuses its arguments: .*startup"),
        ("search.sampler=[tpe,{seed: 3}]", r"search\.sampler takes no seed"),
        ("search.sampler=[tpe]", r"search\.sampler is a name, or \[NAME,\{ARGUMENT: VALUE\}\], not \['tpe'\]"),
        ("search.sampler=7", r"search\.sampler is a name"),
        ("search.sampler=grid", r"takes choices only; model\.lr ranges from 0\.001 to 0\.1\."),
        ("search.prune=asha", r"search\.prune=asha is unknown; it is median, percentile, halving or hyperband\."),
        ("search.prune=percentile", r"search\.prune: PercentilePruner refuses its arguments: .*percentile"),
        ("search.seeds=-1", r"search\.seeds=-1 is out of range; it is a whole number from 0\."),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path: Path, override: str, sentence: str) -> None:
    with pytest.raises(DogbreedError, match=sentence):
        opened(tmp_path / "search", override)
    assert not (tmp_path / "search").exists()


def test_an_interrupted_trial_has_no_number(tmp_path: Path) -> None:
    opened(tmp_path, "search.sampler=random", "search.trials=4").ask()  # and it is killed
    search = opened(tmp_path, "search.sampler=random", "search.trials=4")
    run_all(search)
    results.write(search)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    best = min(rows, key=lambda row: float(row["val_loss"]))
    first = (tmp_path / "best.yaml").read_text().splitlines()[0]
    assert first == f"# val_loss {float(best['val_loss']):.6f}, trial {best['number']}"
    assert search.best().number != search.number_of(search.best())


def test_the_parameter_that_decides_is_named_as_such(tmp_path: Path) -> None:
    search = opened(tmp_path, "search.sampler=random", "search.trials=40", "search.parallel=40")
    assert results.importances(search) == {}  # of no trial, nothing is known
    run_all(search)
    shares = results.importances(search)
    assert next(iter(shares)) == "model.lr"  # the made-up loss is the learning rate
    assert shares["model.lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)
    results.write(search)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert len(rows) == 40
