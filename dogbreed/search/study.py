"""The study of a search: Optuna proposes and records, and poor trials stop early."""

import math
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.config.compose import changed, to_yaml
from dogbreed.config.search_space import ranges
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.core.files import atomic_write
from dogbreed.search.proposals import combinations, distribution, pruner, sampler
from dogbreed.search.space import check_search, current_values
from dogbreed.search.storage import Workers, open_storage
from dogbreed.training.build import run_folder
from dogbreed.training.preflight import check_settings
from dogbreed.training.stacked_heads import Head

MIN_EPOCHS_BEFORE_PRUNING = 2
MIN_TRIALS_TO_COMPARE = 5
# What may differ where a search is continued.
_MAY_DIFFER = (
    "sagemaker.",
    "output_dir",
    "resume",
    "progress",
    "loggers",
    "search.trials",
    "search.parallel",
    "search.seeds",
    "search.storage",
    "data.num_workers",
    "cache.mode",
    "cache.dir",
    "cache.max_gb",
)
_ROUND = "round"  # the attribute of the study with the results of the last round


class Search:
    """One study and its folder.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: The search group is not sensible, Optuna is not installed, or the storage cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self.optuna = _optuna()
        self.config = config
        self.settings = config.search
        self.space = ranges(self.settings.space)
        check_settings(config)
        check_search(config, self.space)
        self.pruner = pruner(self.optuna, self.settings.prune)
        self.reported = "val_loss" if self.pruner is None else self.settings.objective
        is_grid = sampler(self.optuna, self.settings.sampler, 0, 0) is None
        self.grid = combinations(self.space) if is_grid else None
        self.trials = min(self.settings.trials, len(self.grid)) if self.grid else self.settings.trials
        shared = self.settings.storage
        self.storage = open_storage(self.optuna, shared) if shared else None
        self.workers: Workers | None = None  # of a shared storage
        self.folder = run_folder(config, None)
        self.started = time.monotonic()
        self.curves: list[list[float]] = []  # val_loss by epoch of every trial so far, for the median
        self.current = current_values(config, self.space)
        self.chosen: Any | None = None  # the trial that is best when the best ones are trained again

    def open(self) -> None:
        """Create the study, or continue one that was interrupted.

        Raises:
            DogbreedError: The folder holds a search with another configuration.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = self.optuna.create_study(
            storage=self.storage or f"sqlite:///{(self.folder / 'study.db').resolve()}",
            study_name="search",
            direction=self.settings.direction,
            load_if_exists=True,
        )
        if self.pruner is not None:
            self.study.pruner = self.pruner
        self._check_configuration()
        if self.storage is None:
            self._settle_interrupted()
        else:
            self.workers = Workers(self.study)

    def close(self) -> None:
        """Leave a shared study to the others; what this process has not finished is theirs."""
        if self.workers is not None:
            for trial in self._running():
                if trial.user_attrs.get("worker") == self.workers.own:
                    self._hand_back(trial)
            self.workers.close()

    def _check_configuration(self) -> None:
        config, kept = self.config.to_dict(), self.study.user_attrs.get("config")
        if kept is None:
            self.study.set_user_attr("config", config)
            with atomic_write(self.folder / "config.yaml") as file:
                file.write_text(to_yaml(config))
        else:
            shared = self.settings.storage
            may_differ = (*_MAY_DIFFER, "data.root") if shared else _MAY_DIFFER  # each machine has its own place
            other = [key for key in changed(kept, config) if not key.startswith(may_differ)]
            if other:
                where, key = ("search.storage", "search.storage") if shared else (self.folder, "output_dir")
                raise DogbreedError(
                    f"{where} holds a search with another configuration: {', '.join(other[:5])} differ. Continue "
                    f"with the same, or choose another {key}."
                )

    def _settle_interrupted(self) -> None:
        """Record what a process that was killed between two trials of a round has left; other trials it lost."""
        optuna = self.optuna
        results = self.study.user_attrs.get(_ROUND, {})
        for interrupted in self._running():
            if str(interrupted.number) in results:
                trial = optuna.trial.Trial(self.study, interrupted._trial_id)
                self.tell(trial, **results[str(interrupted.number)])
            else:
                self._hand_back(interrupted)

    def _running(self) -> list[Any]:
        return list(self.study.get_trials(states=(self.optuna.trial.TrialState.RUNNING,)))

    def _hand_back(self, trial: Any) -> None:
        """Let a trial be proposed again."""
        self.study.tell(trial.number, state=self.optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def finished(self) -> list[Any]:
        """Return the trials that have a result, in their order."""
        states = self.optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def number_of(self, trial: Any) -> int:
        """Return a finished trial's number in `trials.csv`, which counts none that was interrupted, as Optuna does."""
        return [finished.number for finished in self.finished()].index(trial.number)

    def ask(self) -> list[Any]:
        """Propose the trials of a round; none where other processes work at all that are left.

        What is proposed depends on the seed and on what has finished, not on interruptions; where processes share a
        study, it also depends on which of them is first. The first is the configuration as it is, so that the best
        trial is never worse by the objective.
        """
        optuna, finished = self.optuna, self.finished()
        running = self._running() if self.workers else []
        count = min(self.settings.parallel, self.trials - len(finished) - len(running))
        if count <= 0:
            return []
        self.curves = [[value for _, value in sorted(trial.intermediate_values.items())] for trial in finished]
        self._enqueue([*finished, *running], count)
        round_seed = self.config.seed * 100_003 + len(finished)
        if self.workers:  # two that begin together should not propose the same
            round_seed = (round_seed + int(self.workers.own, 16)) % 2**32
        proposes = sampler(optuna, self.settings.sampler, self.config.seed, round_seed)
        self.study.sampler = proposes or optuna.samplers.RandomSampler(round_seed)  # of a grid, all are enqueued
        distributions = {key: distribution(optuna, bounds) for key, bounds in self.space.items()}
        trials = [self.study.ask(distributions) for _ in range(count)]
        return self._mine(trials) if self.workers else trials

    def _enqueue(self, tried: Sequence[Any], count: int) -> None:
        """Put what has to be tried in front: the configuration as it is, and the combinations of a grid."""
        fixed = [self.current] if self.current else []
        if self.grid:
            fixed += [params for params in self.grid if params != self.current]
        waiting = self.study.get_trials(deepcopy=False, states=(self.optuna.trial.TrialState.WAITING,))
        known = [trial.params for trial in tried] + [trial.system_attrs.get("fixed_params") for trial in waiting]
        for params in [params for params in fixed if params not in known][: count - len(waiting)]:
            self.study.enqueue_trial(params)

    def _mine(self, trials: Sequence[Any]) -> list[Any]:
        """Return the trials that this process works at, without those beyond the number that all together make."""
        assert self.workers is not None
        states = self.optuna.trial.TrialState
        for trial in trials:
            trial.set_user_attr("worker", self.workers.own)
        counted = self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED, states.RUNNING))
        first = {trial.number for trial in sorted(counted, key=lambda trial: trial.number)[: self.trials]}
        for trial in trials:
            if trial.number not in first:
                self._hand_back(trial)
        return [trial for trial in trials if trial.number in first]

    def wait(self) -> None:
        """Wait for a moment for other processes; trials of one that is gone are proposed again."""
        assert self.workers is not None
        for trial in self.workers.abandoned(self._running()):
            self._hand_back(trial)
        time.sleep(1)

    def tell_round(self, results: Sequence[tuple[Any, dict[str, Any]]]) -> None:
        """Record the trials of a round, all or none: what is proposed next depends on all that are recorded.

        Optuna records trials one by one, so the results are first written in one piece; `open` records what a process
        that was killed between two trials has left.

        Args:
            results: Each trial with the further arguments of `tell`.
        """
        if self.workers is None:  # the only process: another's round would be overwritten
            self.study.set_user_attr(_ROUND, {str(trial.number): result for trial, result in results})
        for trial, result in results:
            self.tell(trial, **result)

    def tell(self, trial: Any, curve: Sequence[Mapping[str, float]], stopped: bool, seconds: float) -> None:
        """Record a trial.

        Args:
            trial: As `ask` gave it.
            curve: One row per epoch with `train_loss`, `val_loss` and `val_acc`.
            stopped: Whether it was stopped early.
            seconds: Its share of the time.
        """
        states = self.optuna.trial.TrialState
        if self.workers and trial.number not in {running.number for running in self._running()}:
            return  # the others took this process for gone, and the trial is theirs
        self._report(trial, curve)
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
            self.study.tell(trial, best[self.settings.objective])

    def _report(self, trial: Any, curve: Sequence[Mapping[str, float]]) -> None:
        """Record each epoch of a trial; of those that are recorded already, nothing changes."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already reported")
            for epoch, row in enumerate(curve):
                trial.report(row[self.reported], epoch)

    def best(self) -> Any | None:
        """Return the winner, which is the best complete trial or the one chosen since; None before there is one."""
        if self.chosen is not None:
            return self.chosen
        try:
            return self.study.best_trial
        except ValueError:
            return None

    def should_prune(self, epoch: int, heads: Sequence[Head], trials: Sequence[Any]) -> list[bool]:
        """Say which trials are stopped: by Optuna's pruner, or by the median rule.

        Args:
            epoch: Epochs done.
            heads: Those that are still training.
            trials: Whose heads they are.

        Returns:
            For each whether it stops. By the median rule (Golovin et al., 2017, "Google Vizier", section 3.2.2), it
            does if its best val_loss is above the median of all trials that have come this far.
        """
        if self.pruner is not None:
            for trial, head in zip(trials, heads, strict=True):
                self._report(trial, head.history)
            return [trial.should_prune() for trial in trials]
        ours = [head.best["val_loss"] for head in heads]
        earlier = [min(curve[:epoch]) for curve in self.curves if len(curve) >= epoch]
        everyone = [value for value in ours + earlier if math.isfinite(value)]
        if not self.settings.prune or epoch < MIN_EPOCHS_BEFORE_PRUNING or len(everyone) < MIN_TRIALS_TO_COMPARE:
            return [False] * len(heads)
        median = statistics.median(everyone)
        return [value > median for value in ours]


def _optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise DogbreedError(f"The search needs Optuna: {install('search')}.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Trials of one round should not all be the same; the option that sees to it is marked experimental.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
