"""`python -m dogbreed.tune`: searches hyperparameters on this machine.

Optuna proposes a round of trials and learns from their results. Where only the last layer trains, the features are
computed once and all trials of a round that share a batch size train side by side (`stacked_heads`); where more of the
network trains, trials run one after the other, each a run of `dogbreed.train`. Everything lies in one folder: the study
(SQLite), `trials.csv`, `best.yaml` and `search.png`; the same command with the same `output_dir` goes on with it.
"""

import csv
import io
import json
import math
import shlex
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

import torch

from dogbreed.cache.callback import FeatureCache
from dogbreed.config import cli, reproduce
from dogbreed.config.compose import check, compose, diff, flatten, ranges, to_yaml
from dogbreed.config.help import TUNE_HELP
from dogbreed.config.overrides import literal
from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.files import atomic_write
from dogbreed.models.classifier import NonFiniteLoss, check_training
from dogbreed.search.stacked_heads import Head, HeadTrainer, NotStackable
from dogbreed.training.build import build_cache, build_data, build_model, check_trainer, prepare_process, run_folder
from dogbreed.training.run import train

OBJECTIVES = ("val_loss", "val_acc")
# What may differ between heads that train side by side; the batch size makes groups of them.
STACKED = ("model.lr", "model.weight_decay", "model.label_smoothing")
BATCH_SIZE = "data.batch_size"
# Settings under which a head trained in a stack would not be the same run; stacked trials need their defaults.
PLAIN_TRAINER: Mapping[str, Sequence[Any]] = {
    "accumulate_grad_batches": (1,),
    "gradient_clip_val": (None, 0),
    "precision": (None, 32, "32", "32-true"),
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "overfit_batches": (0, 0.0),
    "max_steps": (-1,),
    "max_time": (None,),
    "check_val_every_n_epoch": (1,),
    "fast_dev_run": (False,),
    "devices": ("auto", 1, "1"),
    "num_nodes": (1,),
}
MIN_EPOCHS_BEFORE_PRUNING = 2
MIN_TRIALS_TO_COMPARE = 5

Parameters = dict[str, Any]


class Search:
    """One study and its folder.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: The search group is not sensible, Optuna is not installed, or the folder holds another search.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.optuna = _optuna()
        self.config = config
        self.wanted = config["search"]
        self.space = ranges(self.wanted["space"])
        check_trainer(config["trainer"])
        _check(config, self.space)
        _check_values(config, self.space)
        self.folder = run_folder(config, None)
        self.started = time.monotonic()
        self.curves: list[list[float]] = []  # val_loss by epoch of every trial so far, for the median
        self.present = _present(config, self.space)

    # The study

    def open(self) -> None:
        """Makes the study, or takes up one that was interrupted."""
        optuna = self.optuna
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=f"sqlite:///{(self.folder / 'study.db').resolve()}",
            study_name="search",
            direction=self.wanted["direction"],
            load_if_exists=True,
        )
        kept = self.study.user_attrs.get("config")
        if kept is None:
            self.study.set_user_attr("config", dict(self.config))
            with atomic_write(self.folder / "config.yaml") as file:
                file.write_text(to_yaml(self.config))
        else:
            other = [key for key in diff(kept, self.config) if not key.startswith(_MAY_DIFFER)]
            if other:
                raise DogbreedError(
                    f"{self.folder} holds a search with another configuration: {', '.join(other[:5])} differ. Go on "
                    "with the same, or choose another output_dir."
                )
        for trial in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # interrupted; will be proposed again
        self.curves = [[value for _, value in sorted(trial.intermediate_values.items())] for trial in self.finished()]

    def finished(self) -> list[Any]:
        """Trials with a result, in their order."""
        states = self.optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def ask(self, count: int) -> list[Any]:
        """Proposes trials. What is proposed depends on the seed and on what has finished, not on interruptions.

        The first is the configuration as it is, so that the winner is never worse by the objective.
        """
        optuna = self.optuna
        finished = self.finished()
        done = len(finished)
        waiting = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        if self.present and not waiting and all(trial.params != self.present for trial in finished):
            self.study.enqueue_trial(self.present)
        self.study.sampler = optuna.samplers.TPESampler(seed=self.config["seed"] * 100_003 + done, constant_liar=True)
        distributions = {key: _distribution(optuna, bounds) for key, bounds in self.space.items()}
        return [self.study.ask(distributions) for _ in range(count)]

    def tell(self, trial: Any, curve: Sequence[Mapping[str, float]], stopped: bool, seconds: float) -> None:
        """Records a trial.

        Args:
            trial: As `ask` gave it.
            curve: One row an epoch with `train_loss`, `val_loss` and `val_acc`.
            stopped: Whether it was given up early.
            seconds: Its share of the time.
        """
        states = self.optuna.trial.TrialState
        for epoch, row in enumerate(curve):
            trial.report(row["val_loss"], epoch)
        finite = [row for row in curve if all(map(math.isfinite, row.values()))]
        trial.set_user_attr("seconds", round(seconds, 3))
        trial.set_user_attr("epochs", len(curve))
        if not finite:
            trial.set_user_attr("diverged", True)
            self.study.tell(trial, state=states.PRUNED)
            return
        best = min(finite, key=lambda row: row["val_loss"])
        trial.set_user_attr("val_loss", best["val_loss"])
        trial.set_user_attr("val_acc", best["val_acc"])
        trial.set_user_attr("best_epoch", curve.index(best) + 1)
        if stopped:
            self.study.tell(trial, state=states.PRUNED)
        else:
            self.study.tell(trial, best[self.wanted["objective"]])

    def best(self) -> Any | None:
        """The best complete trial; None before there is one."""
        try:
            return self.study.best_trial
        except ValueError:
            return None

    def behind(self, epoch: int, heads: Sequence[Head]) -> list[bool]:
        """The median stopping rule (Golovin et al., 2017, "Google Vizier", section 3.2.2), with the best loss so far.

        Args:
            epoch: Epochs done.
            heads: The trials that are still training.

        Returns:
            For each whether its best val_loss is above the median of all trials that have come this far.
        """
        ours = [head.best["val_loss"] for head in heads]
        earlier = [min(curve[:epoch]) for curve in self.curves if len(curve) >= epoch]
        everyone = [value for value in ours + earlier if math.isfinite(value)]
        if not self.wanted["prune"] or epoch < MIN_EPOCHS_BEFORE_PRUNING or len(everyone) < MIN_TRIALS_TO_COMPARE:
            return [False] * len(heads)
        median = statistics.median(everyone)
        return [value > median for value in ours]

    # What it leaves

    def write(self) -> None:
        """Writes `trials.csv`, `best.yaml` and `search.png`."""
        self._write_trials()
        best = self.best()
        if best is None:
            return
        nested: dict[str, Any] = {}
        for key, value in best.params.items():
            group, _, name = key.rpartition(".")
            place = nested
            for part in group.split(".") if group else []:
                place = place.setdefault(part, {})
            place[name] = value
        text = (
            f"# {self.wanted['objective']} {best.value:.6f}, trial {best.number}\n# {self.command()}\n{to_yaml(nested)}"
        )
        with atomic_write(self.folder / "best.yaml") as file:
            file.write_text(text)
        _plot(self)

    def command(self) -> str:
        """The line that trains with the winner."""
        best = self.best()
        values = best.params if best else {}
        given = [part for part in reproduce.overrides(self.config) if part.split("=")[0] not in values]
        given = [part for part in given if not part.startswith("search.")]
        found = [f"{key}={literal(value)}" for key, value in values.items()]
        return shlex.join(["python", "-m", "dogbreed.train", *given, *found])

    def _write_trials(self) -> None:
        keys = list(self.space)
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["number", "state", *keys, "val_loss", "val_acc", "best_epoch", "epochs", "seconds"])
        for number, trial in enumerate(self.finished()):
            told = trial.user_attrs
            state = "diverged" if told.get("diverged") else trial.state.name.lower()
            columns = (told.get(name, "") for name in ("val_loss", "val_acc", "best_epoch", "epochs", "seconds"))
            writer.writerow([number, state, *(trial.params[key] for key in keys), *columns])
        with atomic_write(self.folder / "trials.csv") as file:
            file.write_text(text.getvalue())


def tune(config: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Search:
    """One whole search.

    Args:
        config: A composed configuration; None composes it from `overrides`.
        overrides: As on the command line.

    Returns:
        The search, with its study and folder.

    Raises:
        DogbreedError: Something a person can put right.
    """
    settings = compose(overrides) if config is None else dict(config)
    prepare_process()
    search = Search(settings)
    quiet = settings["progress"] == "none"
    say = (lambda text: None) if quiet else _say
    reason = _why_not_stacked(settings, search.space)
    stacked: HeadTrainer | None = None
    if reason is None:
        stacked, reason = _head_trainer(settings, quiet)
    search.open()
    done = len(search.finished())
    if done:
        say(f"Going on with {search.folder}: {done} of {search.wanted['trials']} trials are done.")
    if stacked is None:
        say(f"Trials run one after the other: {reason}.")
    else:
        say("Trials of equal batch size train side by side, on features that are computed once.")
    train_round = _one_by_one(search) if stacked is None else _side_by_side(search, stacked)
    try:
        while (done := len(search.finished())) < search.wanted["trials"]:
            train_round(search.ask(min(search.wanted["parallel"], search.wanted["trials"] - done)))
            search.write()
            say(_so_far(search))
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            f"Stopped after {len(search.finished())} of {search.wanted['trials']} trials; the same command with "
            f"output_dir={search.folder} goes on with the search."
        ) from None
    search.write()
    say(_summary(search))
    return search


# Side by side


def _why_not_stacked(config: Mapping[str, Any], space: Mapping[str, Any]) -> str | None:
    other = [key for key in space if key not in (*STACKED, BATCH_SIZE)]
    if other:
        return f"{other[0]} differs between trials"
    if config["model"]["trainable"] != "head":
        return f"model.trainable={config['model']['trainable']}, so more than the last layer differs"
    if config["cache"]["mode"] == "off":
        return "cache.mode=off"
    if config["early_stopping"] is not None:
        return "early_stopping is set"
    for key, plain in PLAIN_TRAINER.items():
        if config["trainer"].get(key) not in plain:
            return f"trainer.{key}={config['trainer'][key]}"
    return None


def _head_trainer(config: Mapping[str, Any], quiet: bool) -> tuple[HeadTrainer | None, str | None]:
    """What trains heads side by side, or the reason why it cannot be had."""
    data = build_data(config, quiet=quiet)
    data.prepare_data()
    data.setup()
    model = build_model(config, data, None)
    cache: FeatureCache = build_cache(config, quiet=quiet)
    cache.attach(model, data, _device(config))
    if cache.state == "off":
        return None, cache.reason
    try:
        return HeadTrainer(model, data), None
    except NotStackable as error:
        return None, str(error)


def _device(config: Mapping[str, Any]) -> torch.device:
    accelerator = config["trainer"]["accelerator"]
    if accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available()):
        return torch.device("cuda")
    return torch.device("cpu")


def _side_by_side(search: Search, trainer: HeadTrainer) -> Callable[[Sequence[Any]], None]:
    config = search.config

    def train_round(trials: Sequence[Any]) -> None:
        groups: dict[int, list[Any]] = {}
        ended: dict[int, tuple[Head, float]] = {}
        for trial in trials:
            groups.setdefault(trial.params.get(BATCH_SIZE, config["data"]["batch_size"]), []).append(trial)
        for batch_size, members in sorted(groups.items(), reverse=True):
            started = time.monotonic()
            heads = [
                Head(**{key.removeprefix("model."): trial.params.get(key, config["model"][key[6:]]) for key in STACKED})
                for trial in members
            ]
            kept = [head for trial, head in zip(members, heads, strict=True) if trial.params == search.present]

            def give_up(epoch: int, training: Sequence[Head], kept: Sequence[Head] = kept) -> list[bool]:
                behind = search.behind(epoch, training)
                return [
                    poor and not any(head is one for one in kept) for poor, head in zip(behind, training, strict=True)
                ]

            epochs = config["trainer"]["max_epochs"]
            trainer.train(heads, batch_size=batch_size, epochs=epochs, give_up=give_up)
            seconds = (time.monotonic() - started) / len(members)
            for trial, head in zip(members, heads, strict=True):
                search.curves.append([row["val_loss"] for row in head.history])
                ended[trial.number] = (head, seconds)
        # All at once, so that an interrupted round begins anew: what comes next depends on what has been recorded.
        for trial in trials:
            head, seconds = ended[trial.number]
            search.tell(trial, head.history, head.stopped, seconds)

    return train_round


# One by one


def _one_by_one(search: Search) -> Callable[[Sequence[Any]], None]:
    def train_round(trials: Sequence[Any]) -> None:
        for trial in trials:
            started = time.monotonic()
            config = _with(search.config, trial.params)
            folder = search.folder / "trials" / f"{trial.number:03d}"
            config |= {"output_dir": str(folder), "resume": "auto", "test": False, "progress": "none", "loggers": {}}
            with redirect_stdout(io.StringIO()), suppress(NonFiniteLoss):
                train(config)
            written = folder / "metrics.csv"
            rows = list(csv.DictReader(written.read_text().splitlines())) if written.exists() else []
            curve = [{name: float(row[name]) for name in ("train_loss", "val_loss", "val_acc")} for row in rows]
            search.tell(trial, curve, stopped=False, seconds=time.monotonic() - started)
            if search.config["progress"] != "none":
                _say(_so_far(search))

    return train_round


def _with(config: Mapping[str, Any], parameters: Parameters) -> dict[str, Any]:
    """The configuration with other values for dotted keys."""
    changed: dict[str, Any] = json.loads(json.dumps(config))
    for key, value in parameters.items():
        *groups, name = key.split(".")
        place = changed
        for group in groups:
            place = place[group]
        place[name] = value
    return changed


# Words and pictures


def _so_far(search: Search) -> str:
    done = search.finished()
    pruned = sum(trial.state.name == "PRUNED" for trial in done)
    told = f"{len(done)} of {search.wanted['trials']} trials, {pruned} stopped early"
    best = search.best()
    if best is None:
        return told
    return f"{told}; best {search.wanted['objective']}={best.value:.6f} with {_parameters(best)}"


def _summary(search: Search) -> str:
    best = search.best()
    seconds = time.monotonic() - search.started
    lines = ["", f"{len(search.finished())} trials in {seconds:.0f} s."]
    if best is None:
        lines += ["None of them came to an end with a finite loss; try smaller learning rates."]
    else:
        told = best.user_attrs
        lines += [
            f"Best: val_loss={told['val_loss']:.6f} val_acc={told['val_acc']:.4f} with {_parameters(best)}",
            "",
            f"{search.folder}/",
            "  trials.csv   every trial",
            "  search.png   the objective over each parameter, and the history",
            "  best.yaml    the winner",
            "  study.db     the study, for Optuna's own tools",
            "",
            f"Train with it: {search.command()}",
        ]
    return "\n".join(lines)


def _parameters(trial: Any) -> str:
    return " ".join(
        f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}" for key, value in trial.params.items()
    )


def _say(text: str) -> None:
    print(text, flush=True)


def _plot(search: Search) -> None:
    """One picture: the objective in the order of the trials, and over each parameter."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    objective = search.wanted["objective"]
    trials = [trial for trial in search.finished() if objective in trial.user_attrs]
    values = [trial.user_attrs[objective] for trial in trials]
    complete = [trial.state.name == "COMPLETE" for trial in trials]
    colours = ["#2563eb" if whole else "#9ca3af" for whole in complete]
    figure, axes = pyplot.subplots(
        1, 1 + len(search.space), figsize=(4.2 * (1 + len(search.space)), 3.6), sharey=True, squeeze=False
    )
    history, *others = axes[0]
    best_so_far, best = [], math.nan
    better: Callable[[float, float], float] = min if search.wanted["direction"] == "minimize" else max
    for value, whole in zip(values, complete, strict=True):
        if whole:
            best = value if math.isnan(best) else better(best, value)
        best_so_far.append(best)
    history.step(range(len(values)), best_so_far, where="post", color="#2563eb", label="best so far")
    history.scatter(range(len(values)), values, c=colours, s=18)
    history.set(xlabel="trial", ylabel=objective, title="history")
    history.legend(frameon=False)
    for axis, (key, bounds) in zip(others, search.space.items(), strict=True):
        positions = [trial.params[key] for trial in trials]
        if "choices" in bounds:
            axis.set_xticks(range(len(bounds["choices"])), [str(choice) for choice in bounds["choices"]])
            positions = [bounds["choices"].index(position) for position in positions]
        elif bounds.get("log"):
            axis.set_xscale("log")
        axis.scatter(positions, values, c=colours, s=18)
        axis.set(xlabel=key, title=key)
    # A few trials may have come out far worse than most.
    best, usual = (min if better is min else max)(values), statistics.median(values)
    reach = usual - best or 1e-9
    history.set_ylim(*sorted((best - 0.15 * reach, usual + 1.5 * reach)))
    figure.text(0.995, 0.01, "grey: stopped early", ha="right", fontsize=8, color="#6b7280")
    figure.tight_layout()
    with atomic_write(search.folder / "search.png") as file:
        figure.savefig(file, format="png", dpi=110)
    pyplot.close(figure)


_MAY_DIFFER = (
    "sagemaker.",
    "output_dir",
    "resume",
    "progress",
    "loggers",
    "search.trials",
    "search.parallel",
    "data.num_workers",
    "cache.mode",
    "cache.dir",
    "cache.max_gb",
)


def _check(config: Mapping[str, Any], space: Mapping[str, Any]) -> None:
    wanted, epochs = config["search"], config["trainer"]["max_epochs"]
    if not isinstance(epochs, int) or epochs < 1:
        raise DogbreedError(f"trainer.max_epochs={epochs} gives a trial no end; it is a whole number from 1.")
    if not space:
        raise DogbreedError("search.space is empty; give at least one range, such as search.space.model.lr.")
    for key in ("trials", "parallel"):
        if wanted[key] < 1:
            raise DogbreedError(f"search.{key}={wanted[key]} is out of range; it is a whole number from 1.")
    if wanted["objective"] not in OBJECTIVES:
        raise DogbreedError(
            f"search.objective={wanted['objective']} is unknown; it is one of {', '.join(OBJECTIVES)}. The test split "
            "is not for choosing."
        )
    if wanted["direction"] not in ("minimize", "maximize"):
        raise DogbreedError(f"search.direction={wanted['direction']} is unknown; it is minimize or maximize.")
    if (wanted["objective"] == "val_acc") != (wanted["direction"] == "maximize"):
        raise DogbreedError(
            f"search.direction={wanted['direction']} does not fit search.objective={wanted['objective']}: a loss is "
            "minimized, an accuracy maximized."
        )


def _check_values(config: Mapping[str, Any], space: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses ranges with a value that a run would refuse, before a trial meets it."""
    for key, bounds in space.items():
        for value in bounds.get("choices") or (bounds["low"], bounds["high"]):
            changed = _with(config, {key: value})
            try:
                check(changed)
                build_data(changed, quiet=True)
                check_training(2, **{name: changed["model"][name] for name in _OF_TRAINING})
            except DogbreedError as error:
                raise DogbreedError(f"search.space.{key} reaches {value}: {error}") from error


_OF_TRAINING = ("lr", "backbone_lr", "weight_decay", "label_smoothing", "optimizer", "schedule")


def _present(config: Mapping[str, Any], space: Mapping[str, Any]) -> Parameters | None:
    """The configuration's own values of what is searched; None where one of them lies outside its range."""
    now = flatten(config)
    found = {key: now.get(key) for key in space}
    for key, value in found.items():
        bounds = space[key]
        if "choices" in bounds:
            inside = value in bounds["choices"]
        else:
            inside = isinstance(value, int | float) and bounds["low"] <= value <= bounds["high"]
        if not inside:
            return None
    return found


def _distribution(optuna: Any, bounds: Mapping[str, Any]) -> Any:
    if "choices" in bounds:
        return optuna.distributions.CategoricalDistribution(bounds["choices"])
    low, high, log = bounds["low"], bounds["high"], bool(bounds.get("log"))
    if isinstance(low, int) and isinstance(high, int):
        return optuna.distributions.IntDistribution(low, high, log=log)
    return optuna.distributions.FloatDistribution(low, high, log=log)


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise DogbreedError("The search needs Optuna: pip install 'dogbreed[search]'.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Trials of one round should not all be the same; the option that sees to it is marked experimental.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def task(config: dict[str, Any]) -> None:
        tune(config)

    return cli.run(task, prog="python -m dogbreed.tune", help=TUNE_HELP, argv=argv)
