"""What lies in the folder of a search, and the command that trains with its winner."""

import math
import shlex
from typing import Any

from dogbreed.config.compose import overrides_of, to_yaml
from dogbreed.config.overrides import literal
from dogbreed.core.files import atomic_write, write_csv
from dogbreed.search.plot import Point, plot_trials
from dogbreed.search.space import set_dotted
from dogbreed.search.study import Search

MIN_TRIALS_FOR_IMPORTANCE = 8
_COLUMNS = ("val_loss", "val_acc", "best_epoch", "epochs", "seconds")


def write(search: Search) -> None:
    """Write `trials.csv`, `best.yaml` and `search.png`."""
    _write_trials(search)
    best = search.best()
    if best is None:
        return
    objective = search.settings.objective
    overrides: dict[str, Any] = {}
    for key, value in best.params.items():
        set_dotted(overrides, key, value)
    with atomic_write(search.folder / "best.yaml") as file:
        head = f"# {objective} {best.value:.6f}, trial {search.number_of(best)}\n# {command(search)}\n"
        file.write_text(head + to_yaml(overrides))
    points = [
        Point(trial.params, trial.user_attrs[objective], trial.state.name == "COMPLETE")
        for trial in search.finished()
        if objective in trial.user_attrs
    ]
    plot_trials(points, search.space, objective, importances(search), search.folder / "search.png")


def _write_trials(search: Search) -> None:
    keys = list(search.space)
    rows = []
    for number, trial in enumerate(search.finished()):
        results = trial.user_attrs
        state = "diverged" if results.get("diverged") else trial.state.name.lower()
        columns = (results.get(name, "") for name in _COLUMNS)
        rows.append([number, state, *(trial.params[key] for key in keys), *columns])
    write_csv(search.folder / "trials.csv", ["number", "state", *keys, *_COLUMNS], rows)


def command(search: Search) -> str:
    """Return the line that trains with the winner."""
    best = search.best()
    values = best.params if best else {}
    kept = [part for part in overrides_of(search.config.to_dict()) if part.split("=")[0] not in values]
    kept = [part for part in kept if not part.startswith("search.")]
    winner = [f"{key}={literal(value)}" for key, value in values.items()]
    return shlex.join(["python", "-m", "dogbreed.train", *kept, *winner])


def importances(search: Search) -> dict[str, float]:
    """Return how much each parameter decides whether a trial is among the best quarter; shares, largest first.

    By PED-ANOVA (Watanabe et al., 2023, arXiv:2304.10255). Empty for one parameter, and for few trials.
    """
    complete = [trial for trial in search.finished() if trial.state.name == "COMPLETE"]
    if len(search.space) < 2 or len(complete) < MIN_TRIALS_FOR_IMPORTANCE:
        return {}
    importance = search.optuna.importance
    evaluator = importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    shares = importance.get_param_importances(search.study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()} if all(map(math.isfinite, shares.values())) else {}
