"""`python -m dogbreed.tune`: search hyperparameters on this machine.

Optuna proposes a round of trials and learns from their results. Where only the last layer trains, the features are
computed once and all trials of a round that share a batch size train side by side (`stacked_heads`); where more of the
network trains, trials run one after the other, each a run of `dogbreed.train`. Everything lies in one folder: the study
(SQLite), `trials.csv`, `best.yaml` and `search.png`; the same command with the same `output_dir` continues it.
"""

import csv
import io
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from dogbreed.config.settings import Config
from dogbreed.core.errors import Interrupted
from dogbreed.core.files import discarded_if_empty, write_json
from dogbreed.core.text import count
from dogbreed.models.classifier import NonFiniteLoss
from dogbreed.search import results
from dogbreed.search.finalists import confirm
from dogbreed.search.space import BATCH_SIZE, STACKED, Space, head_of, shown, with_values
from dogbreed.search.study import Search
from dogbreed.training.build import (
    build_cache,
    build_data,
    build_model,
    device_of,
    fit_batch_size,
    prepare_process,
    read_config,
    say,
)
from dogbreed.training.run import train
from dogbreed.training.stacked_heads import Head, HeadTrainer, why_not_stacked
from dogbreed.training.stem import NotStackable

FEW_VALID = 30  # images, of which one is more than 3 points of accuracy
TrainRound = Callable[[Sequence[Any]], None]


def tune(config: Config | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Search:
    """Run one whole search.

    Args:
        config: A composed configuration; None composes it from `overrides`.
        overrides: As on the command line.

    Returns:
        The search, with its study and folder.

    Raises:
        DogbreedError: Something a person can put right.
    """
    config = read_config(config, overrides)
    prepare_process()
    search = Search(config)
    with discarded_if_empty(search.folder, made=not config.output_dir):
        _search(search)
    return search


def _search(search: Search) -> None:
    config = search.config
    reason = _why_not_stacked(config, search.space)
    stacked: HeadTrainer | None = None
    if reason is None:
        stacked, reason = _head_trainer(config, search.space)
    search.open()
    done, trials = len(search.finished()), search.trials
    if done:
        _say(config, f"Continuing {search.folder}: {done} of {trials} trials are done.")
    if stacked is None:
        _say(config, f"Trials run one after the other: {reason}.")
    else:
        _say(config, "Trials of equal batch size train side by side, on features that are computed once.")
    train_round = _one_by_one(search) if stacked is None else _side_by_side(search, stacked)
    try:
        while len(search.finished()) < trials:
            if asked := search.ask():
                train_round(asked)
                results.write(search)
                _say(config, _progress(search))
            elif len(search.finished()) < trials:
                search.wait()
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            f"Stopped after {len(search.finished())} of {trials} trials; the same command with "
            f"{shlex.quote(f'output_dir={search.folder}')} continues the search."
        ) from None
    finally:
        search.close()
    said = _confirm(search, stacked)
    results.write(search)
    _say(config, _summary(search, said))


def _confirm(search: Search, stacked: HeadTrainer | None) -> list[str]:
    """Compare the winner with the settings as they are; return what there is to say."""
    if not search.settings.seeds:
        return []
    if stacked is None:
        return [
            "The winner was not compared with your settings, which takes heads side by side; its result on valid is "
            "that of the luckiest trial."
        ]
    _say(search.config, "Training the best trials and your settings again, with other seeds.")
    verdict = confirm(search, stacked)
    if verdict is None:
        return []
    write_json(search.folder / "winner.json", verdict.to_json())
    return ["", *verdict.lines(), *caution(len(stacked.data.samples["valid"]))]


def caution(valid: int) -> list[str]:
    """Return what to say of a search by so few validation images that luck decides it."""
    if valid >= FEW_VALID:
        return []
    return [
        f"It chose by {count(valid, 'validation image')}, {100 / valid:.0f} points of val_acc each: mostly by luck."
    ]


# Side by side


def _why_not_stacked(config: Config, space: Space) -> str | None:
    other = [key for key in space if key not in (*STACKED, BATCH_SIZE)]
    if other:
        return f"{other[0]} differs between trials"
    if config.model.optimizer == "lbfgs":
        return "model.optimizer=lbfgs takes no steps"
    if config.early_stopping is not None:
        return "early_stopping is set"
    return why_not_stacked(config)


def _head_trainer(config: Config, space: Space) -> tuple[HeadTrainer | None, str | None]:
    """Return what trains heads side by side, or the reason why it is not to be had."""
    device = device_of(config)
    data = build_data(config, quiet=config.progress == "none")
    data.prepare_data()
    data.setup()
    if BATCH_SIZE not in space and fit_batch_size(config, data) is not config:
        _say(config, data.warnings[0])
    model = build_model(config, data, None)
    cache = build_cache(config, quiet=False)
    # Other seeds see the images in other views: then all are computed.
    cache.attach(model, data, device, epochs=None if config.search.seeds else config.trainer["max_epochs"])
    if cache.state == "off":
        return None, cache.reason
    try:
        return HeadTrainer(model, data), None
    except NotStackable as error:
        return None, str(error)


def _side_by_side(search: Search, trainer: HeadTrainer) -> TrainRound:
    def train_round(trials: Sequence[Any]) -> None:
        groups: dict[int, list[Any]] = {}
        for trial in trials:
            groups.setdefault(trial.params.get(BATCH_SIZE, trainer.data.batch_size), []).append(trial)
        rows: dict[int, dict[str, Any]] = {}
        for batch_size, members in sorted(groups.items(), reverse=True):
            rows |= _train_group(search, trainer, batch_size, members)
        search.tell_round([(trial, rows[trial.number]) for trial in trials])

    return train_round


def _train_group(
    search: Search, trainer: HeadTrainer, batch_size: int, trials: Sequence[Any]
) -> dict[int, dict[str, Any]]:
    """Train the trials of one batch size; return what `Search.tell` records of each, by trial number."""
    started = time.monotonic()
    heads = [head_of(search.config, trial.params) for trial in trials]
    trial_of = {id(head): trial for trial, head in zip(trials, heads, strict=True)}

    def stop(epoch: int, training: Sequence[Head]) -> list[bool]:
        own = [trial_of[id(head)] for head in training]
        poor = search.should_prune(epoch, training, own)
        return [is_poor and trial.params != search.current for is_poor, trial in zip(poor, own, strict=True)]

    trainer.train(heads, batch_size=batch_size, epochs=search.config.trainer["max_epochs"], should_stop=stop)
    search.curves += [[row["val_loss"] for row in head.history] for head in heads]
    seconds = (time.monotonic() - started) / len(trials)
    return {
        trial.number: {"curve": head.history, "stopped": head.stopped, "seconds": seconds}
        for trial, head in zip(trials, heads, strict=True)
    }


# One by one


def _one_by_one(search: Search) -> TrainRound:
    def train_round(trials: Sequence[Any]) -> None:
        for trial in trials:
            started = time.monotonic()
            folder = search.folder / "trials" / f"{trial.number:03d}"
            quietly: dict[str, Any] = {
                "output_dir": str(folder),
                "resume": "auto",
                "test": False,
                "progress": "none",
                "loggers": {},
                "refit": False,
                "data.folds": None,
                **({"data.min_steps": 0} if BATCH_SIZE in trial.params else {}),
            }
            config = with_values(search.config, {**trial.params, **quietly})
            with redirect_stdout(io.StringIO()), suppress(NonFiniteLoss):
                train(config)
            written = folder / "metrics.csv"
            rows = list(csv.DictReader(written.read_text().splitlines())) if written.exists() else []
            curve = [{name: float(row[name]) for name in ("train_loss", "val_loss", "val_acc")} for row in rows]
            search.tell(trial, curve, stopped=False, seconds=time.monotonic() - started)
            _say(search.config, _progress(search))

    return train_round


# What is printed


def _progress(search: Search) -> str:
    finished = search.finished()
    pruned = sum(trial.state.name == "PRUNED" for trial in finished)
    line = f"{len(finished)} of {search.trials} trials, {pruned} stopped early"
    best = search.best()
    if best is None:
        return line
    return f"{line}; best {search.config.search.objective}={best.value:.6f} with {shown(best.params)}"


def _summary(search: Search, verdict: Sequence[str]) -> str:
    best, folder = search.best(), search.folder
    lines = ["", f"{len(search.finished())} trials in {time.monotonic() - search.started:.0f} s."]
    if best is None:
        return "\n".join([*lines, "No trial finished with a finite loss; try smaller learning rates."])
    figures = best.user_attrs
    lines += [
        f"Best: val_loss={figures['val_loss']:.6f} val_acc={figures['val_acc']:.4f} with {shown(best.params)}",
        *_importances(search),
        *verdict,
        "",
        f"{folder}/",
        "  trials.csv   every trial",
        "  search.png   the objective over each parameter, and the history",
        "  best.yaml    the winner",
    ]
    lines += ["  winner.json  the winner against your settings"] if (folder / "winner.json").exists() else []
    lines += [] if search.storage else ["  study.db     the study, for Optuna's own tools"]
    return "\n".join([*lines, "", f"Train with it: {results.command(search)}"])


def _importances(search: Search) -> list[str]:
    shares = results.importances(search)
    shown_shares = ", ".join(f"{key} {100 * share:.0f} %" for key, share in shares.items())
    return [f"What decided whether a trial was among the best quarter: {shown_shares}."] if shares else []


def _say(config: Config, text: str) -> None:
    if config.progress != "none":
        say(text)
