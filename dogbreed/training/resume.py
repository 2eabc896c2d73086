"""Going on with a run: which checkpoint is meant, and whether it belongs to the same run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreed.config.compose import compose, diff, flatten
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.monitor.history import BEST, LAST

# A resumed run may differ in these: where it runs and what it says, not what it computes.
MAY_DIFFER = (
    "output_dir",
    "resume",
    "progress",
    "loggers",
    "test",
    "early_stopping",
    "data.num_workers",
    "data.root",
    "data.download",
    "data.url",
    "model.weights",
    "cache.mode",
    "cache.dir",
    "cache.max_gb",
    "search.",
    "sagemaker.",
    "profile",
    "rules.",
    "debugger.",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)


def find_checkpoint(config: Config) -> Path | None:
    """Return the checkpoint that `resume` means: a file, a run's folder, `last` or `auto`; None to start from scratch.

    Raises:
        DogbreedError: There is none where it should be.
    """
    if not config.resume:
        return None
    if config.resume in ("last", "auto"):
        return _newest(config)
    path = Path(config.resume)
    if path.is_dir():
        path = path / "checkpoints" / LAST
    if not path.is_file():
        raise DogbreedError(f"resume={config.resume} is no checkpoint and no run's folder.")
    return path


def _newest(config: Config) -> Path | None:
    if config.output_dir:
        checkpoints = [Path(config.output_dir) / "checkpoints" / LAST]
    else:
        # outputs/DATE/TIME, and folders that were named, such as output_dir=outputs/dogs
        checkpoints = [path for depth in ("*", "*/*") for path in Path("outputs").glob(f"{depth}/checkpoints/{LAST}")]
    checkpoints = [path for path in checkpoints if path.is_file()]
    if checkpoints:
        return max(checkpoints, key=lambda path: path.stat().st_mtime)
    if config.resume == "auto":
        return None
    folder = config.output_dir or "outputs/"
    raise DogbreedError(f"resume=last: there is no checkpoint in {folder}; resume=auto starts from scratch then.")


def check_same_run(checkpoint: Mapping[str, Any], config: Config, path: Path) -> None:
    """Refuse to go on with a checkpoint of another configuration.

    Args:
        checkpoint: What `path` holds.
        config: Of the run that is to go on.
        path: Named in the error.

    Raises:
        DogbreedError: Names the keys that differ.
    """
    kept = checkpoint.get("callbacks", {}).get("History", {}).get("config")
    if kept is None:
        raise DogbreedError(f"{path} was not written by a run of dogbreed.train, so it cannot be resumed.")
    settings = config.to_dict()
    old, new, defaults = flatten(kept), flatten(settings), flatten(compose(()))
    keys = [
        key
        for key in diff(kept, settings)
        if not key.startswith(MAY_DIFFER) and (key in old or new.get(key) != defaults.get(key))  # a key of today
    ]
    if config.data.augment != "crop" and "cache.views" in keys:
        keys.remove("cache.views")  # only crops look at it
    if config.model.schedule != "constant" and "trainer.max_epochs" in diff(kept, settings):
        keys.append("trainer.max_epochs")  # the schedule is spread over all epochs
    if keys:
        differences = ", ".join(f"{key} (was {old.get(key)}, is {new.get(key)})" for key in keys[:5])
        raise DogbreedError(
            f"{path} belongs to another configuration: {differences}. Resume with the same, or start from scratch."
        )


def best_before(checkpoint: Mapping[str, Any], path: Path) -> Path | None:
    """Return the checkpoint of the best epoch so far of a resumed run; None where it has none.

    Args:
        checkpoint: What `path` holds.
        path: The best lies beside it, where the last epoch is not the best.

    Raises:
        DogbreedError: It is gone, and could not be exported if it stays the best.
    """
    history = checkpoint["callbacks"]["History"]
    best = history["best"]
    if best is None:
        return None
    if best["epoch"] == history["rows"][-1]["epoch"]:
        return path
    beside = path.with_name(BEST)
    if not beside.is_file():
        raise DogbreedError(
            f"{path} needs {BEST} beside it, which has the weights of epoch {best['epoch']:.0f}, the best so far; move "
            "the whole folder."
        )
    return beside
