"""Going on with a run: which checkpoint is meant, and whether it belongs to the same run."""

import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dogbreed.config.compose import changed, diff, flatten, has_default_batch
from dogbreed.config.resumed import find_run, last_checkpoint
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.models.checkpoints import changed_state
from dogbreed.monitor.history import BEST

# A resumed run may differ in these: where it runs and what it says, not what it computes.
MAY_DIFFER = (
    "output_dir",
    "overwrite",
    "resume",
    "progress",
    "callbacks",
    "loggers",
    "refit",
    "abstain_above",
    "export.",
    "test",
    "early_stopping",
    "data.folds",
    "data.min_steps",
    "data.num_workers",
    "data.root",
    "data.download",
    "data.url",
    "model.weights",
    "model.prior",
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
    run = find_run(config.resume, config.output_dir)
    if run is None:
        if config.resume == "last":
            folder = config.output_dir or "outputs/"
            raise DogbreedError(
                f"resume=last: there is no checkpoint in {folder}; resume=auto starts from scratch then."
            )
        return None
    named = config.resume not in ("last", "auto") and Path(str(config.resume)).is_file()
    path = Path(str(config.resume)) if named else last_checkpoint(run)
    if not path.is_file():
        raise DogbreedError(f"resume={config.resume} is no checkpoint and no run's folder.")
    return path


def check_folder(config: Config) -> None:
    """Refuse to write over a finished run, or where nothing can be written.

    Raises:
        DogbreedError: `output_dir` holds a run, and neither `resume` nor `overwrite` is set; it or what is above it is
            a file, or may not be written to.
    """
    if not config.output_dir:
        return
    folder = Path(config.output_dir)
    there = next((path for path in (folder, *folder.parents) if os.access(path, os.F_OK)), Path())
    if not there.is_dir():
        raise DogbreedError(f"output_dir={config.output_dir}: {there} is a file; give a folder.")
    if not os.access(there, os.W_OK):
        raise DogbreedError(f"output_dir={config.output_dir}: {there} may not be written to; give another folder.")
    if config.resume or config.overwrite:
        return
    if (Path(config.output_dir) / "metrics.json").is_file():
        raise DogbreedError(
            f"output_dir={config.output_dir} holds a finished run; choose another folder, go on with it by "
            f"resume={config.output_dir}, or replace it with overwrite=true."
        )


def check_epochs_left(checkpoint: Mapping[str, Any], config: Config, path: Path) -> None:
    """Refuse to go on with a run that has had all its epochs.

    Args:
        checkpoint: What `path` holds.
        config: Of the run that is to go on.
        path: Whose run may be finished, or have been killed before its results were written.

    Raises:
        DogbreedError: Says which number of epochs to give.
    """
    done, epochs = int(checkpoint.get("epoch", -1)) + 1, config.trainer["max_epochs"]
    if config.trainer["max_steps"] != -1 or epochs in (None, -1) or done < epochs:
        return
    finished = (path.parent.parent / "metrics.json").is_file() and config.resume != "auto"
    if done > epochs or finished:
        raise DogbreedError(
            f"{path.parent.parent} has had its {done} epochs; to go on, give trainer.max_epochs={done + 1} or more."
        )


def with_batch_size_of(checkpoint: Mapping[str, Any], config: Config) -> Config:
    """Return the settings with the batch size that a resumed run began with, unless another one is given."""
    kept = checkpoint.get("callbacks", {}).get("History", {}).get("config")
    if kept is None or not has_default_batch(vars(config.data)):
        return config
    return replace(config, data=replace(config.data, batch_size=kept["data"]["batch_size"]))


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
    old, new = flatten(kept), flatten(settings)
    keys = [key for key in changed(kept, settings) if not key.startswith(MAY_DIFFER)]
    if config.data.augment != "crop" and "cache.views" in keys:
        keys.remove("cache.views")  # only crops look at it
    if config.model.schedule != "constant" and "trainer.max_epochs" in diff(kept, settings):
        keys.append("trainer.max_epochs")  # the schedule is spread over all epochs
    if keys:
        differences = ", ".join(f"{key} (was {old.get(key)}, is {new.get(key)})" for key in keys[:5])
        raise DogbreedError(
            f"{path} belongs to another configuration: {differences}. Resume with the same, or start a "
            f"new run from its weights with {shlex.quote(f'model.weights={path.parent.parent}')} "
            f"{shlex.quote(f'data.root={config.data.root}')} and the settings that differ."
        )


def best_before(checkpoint: Mapping[str, Any], path: Path) -> Path | None:
    """Return the checkpoint of the best epoch so far of a resumed run; None where it has none.

    Args:
        checkpoint: What `path` holds.
        path: The best lies beside it, where the last epoch is not the best.

    Raises:
        DogbreedError: It is gone or damaged, and could not be exported if it stays the best.
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
    changed_state(beside)  # damage shows now, not when the epochs have been trained
    return beside
