"""The study of a search: Optuna proposes and records, poor trials stop early, and the results go into files."""

import math
import shlex
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from dogbreed.config.compose import changed, overrides_of, to_yaml
from dogbreed.config.overrides import literal
from dogbreed.config.search_space import ranges
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.core.files import atomic_write, write_csv
from dogbreed.search.plot import Point, plot_trials
from dogbreed.search.space import check_search, current_values, set_dotted
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
    "data.num_workers",
    "cache.mode",
    "cache.dir",
    "cache.max_gb",
)
_ROUND = "round"  # the attribute of the study with the results of the last round
_COLUMNS = ("val_loss", "val_acc", "best_epoch", "epochs", "seconds")


class Search:
    """One study and its folder.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: The search group is not sensible, Optuna is not installed, or the folder holds another search.
    """

    def __init__(self, config: Config) -> None:
        self.optuna = _optuna()
        self.config = config
        self.settings = config.search
        self.space = ranges(self.settings.space)
        check_settings(config)
        check_search(config, self.space)
        self.folder = run_folder(config, None)
        self.started = time.monotonic()
        self.curves: list[list[float]] = []  # val_loss by epoch of every trial so far, for the median
        self.current = current_values(config, self.space)

    def open(self) -> None:
        """Create the study, or continue one that was interrupted.

        Raises:
            DogbreedError: The folder holds a search with another configuration.
        """
        optuna, config = self.optuna, self.config.to_dict()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.study = optuna.create_study(
            storage=f"sqlite:///{(self.folder / 'study.db').resolve()}",
            study_name="search",
            direction=self.settings.direction,
            load_if_exists=True,
        )
        kept = self.study.user_attrs.get("config")
        if kept is None:
            self.study.set_user_attr("config", config)
            with atomic_write(self.folder / "config.yaml") as file:
                file.write_text(to_yaml(config))
        else:
            other = [key for key in changed(kept, config) if not key.startswith(_MAY_DIFFER)]
            if other:
                raise DogbreedError(
                    f"{self.folder} holds a search with another configuration: {', '.join(other[:5])} differ. Continue "
                    "with the same, or choose another output_dir."
                )
        results = self.study.user_attrs.get(_ROUND, {})
        for interrupted in self.study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
            if str(interrupted.number) in results:
                trial = optuna.trial.Trial(self.study, interrupted._trial_id)
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*already reported")
                    self.tell(trial, **results[str(interrupted.number)])
            else:
                self.study.tell(interrupted.number, state=optuna.trial.TrialState.FAIL)  # will be proposed again
        self.curves = [[value for _, value in sorted(trial.intermediate_values.items())] for trial in self.finished()]

    def finished(self) -> list[Any]:
        """Return the trials that have a result, in their order."""
        states = self.optuna.trial.TrialState
        return self.study.get_trials(deepcopy=False, states=(states.COMPLETE, states.PRUNED))

    def ask(self, count: int) -> list[Any]:
        """Propose trials. What is proposed depends on the seed and on what has finished, not on interruptions.

        The first is the configuration as it is, so that the winner is never worse by the objective.
        """
        optuna = self.optuna
        finished = self.finished()
        waiting = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.WAITING,))
        if self.current and not waiting and all(trial.params != self.current for trial in finished):
            self.study.enqueue_trial(self.current)
        seed = self.config.seed * 100_003 + len(finished)
        self.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        distributions = {key: _distribution(optuna, bounds) for key, bounds in self.space.items()}
        return [self.study.ask(distributions) for _ in range(count)]

    def tell_round(self, results: Sequence[tuple[Any, dict[str, Any]]]) -> None:
        """Record the trials of a round, all or none: what is proposed next depends on all that are recorded.

        Optuna records trials one by one, so the results are first written in one piece; `open` records what a process
        that was killed between two trials has left.

        Args:
            results: Each trial with the further arguments of `tell`.
        """
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
            self.study.tell(trial, best[self.settings.objective])

    def best(self) -> Any | None:
        """Return the best complete trial; None before there is one."""
        try:
            return self.study.best_trial
        except ValueError:
            return None

    def should_prune(self, epoch: int, heads: Sequence[Head]) -> list[bool]:
        """Say which trials the median rule stops (Golovin et al., 2017, "Google Vizier", section 3.2.2).

        Args:
            epoch: Epochs done.
            heads: The trials that are still training.

        Returns:
            For each whether its best val_loss is above the median of all trials that have come this far.
        """
        ours = [head.best["val_loss"] for head in heads]
        earlier = [min(curve[:epoch]) for curve in self.curves if len(curve) >= epoch]
        everyone = [value for value in ours + earlier if math.isfinite(value)]
        if not self.settings.prune or epoch < MIN_EPOCHS_BEFORE_PRUNING or len(everyone) < MIN_TRIALS_TO_COMPARE:
            return [False] * len(heads)
        median = statistics.median(everyone)
        return [value > median for value in ours]

    def write(self) -> None:
        """Write `trials.csv`, `best.yaml` and `search.png`."""
        self._write_trials()
        best = self.best()
        if best is None:
            return
        objective = self.settings.objective
        overrides: dict[str, Any] = {}
        for key, value in best.params.items():
            set_dotted(overrides, key, value)
        with atomic_write(self.folder / "best.yaml") as file:
            file.write_text(
                f"# {objective} {best.value:.6f}, trial {best.number}\n# {self.command()}\n{to_yaml(overrides)}"
            )
        points = [
            Point(trial.params, trial.user_attrs[objective], trial.state.name == "COMPLETE")
            for trial in self.finished()
            if objective in trial.user_attrs
        ]
        plot_trials(points, self.space, objective, self.folder / "search.png")

    def command(self) -> str:
        """Return the line that trains with the winner."""
        best = self.best()
        values = best.params if best else {}
        kept = [part for part in overrides_of(self.config.to_dict()) if part.split("=")[0] not in values]
        kept = [part for part in kept if not part.startswith("search.")]
        winner = [f"{key}={literal(value)}" for key, value in values.items()]
        return shlex.join(["python", "-m", "dogbreed.train", *kept, *winner])

    def _write_trials(self) -> None:
        keys = list(self.space)
        rows = []
        for number, trial in enumerate(self.finished()):
            results = trial.user_attrs
            state = "diverged" if results.get("diverged") else trial.state.name.lower()
            columns = (results.get(name, "") for name in _COLUMNS)
            rows.append([number, state, *(trial.params[key] for key in keys), *columns])
        write_csv(self.folder / "trials.csv", ["number", "state", *keys, *_COLUMNS], rows)


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
        raise DogbreedError(f"The search needs Optuna: {install('search')}.") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Trials of one round should not all be the same; the option that sees to it is marked experimental.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna
