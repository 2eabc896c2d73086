"""Which run `resume` means, by what lies on disk."""

import os
from pathlib import Path

LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")
HEAD_STAGE = "head_stage"  # folder of the first of two stages in a run's own, laid out alike


def last_checkpoint(run: Path) -> Path:
    """Return the path of a run's last checkpoint: that of its first stage where the second has none."""
    last, first = run / LAST_CHECKPOINT, run / HEAD_STAGE / LAST_CHECKPOINT
    return first if first.is_file() and not last.is_file() else last


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint belongs to."""
    folder = checkpoint.parent.parent
    return folder.parent if is_of_head_stage(checkpoint) else folder


def is_of_head_stage(checkpoint: Path) -> bool:
    """Return whether a checkpoint is one of a first stage."""
    return checkpoint.parent.parent.name == HEAD_STAGE


def find_run(resume: str | None, output_dir: str | None) -> Path | None:
    """Return the folder of the run that is resumed; None where there is none.

    Args:
        resume: A run's folder, a checkpoint in it, `last`, `auto`, or nothing.
        output_dir: Of the configuration: where `last` and `auto` look, if it is given.
    """
    if resume in (None, "", "null"):
        return None
    if resume not in ("last", "auto"):
        path = Path(os.path.expanduser(str(resume)))
        return run_of(path) if path.suffix == ".ckpt" else path
    if output_dir not in (None, "", "null"):
        runs = [Path(os.path.expanduser(str(output_dir)))]
    else:  # outputs/DATE/TIME, and folders that were named, such as output_dir=outputs/dogs
        runs = [folder for depth in ("*", "*/*") for folder in Path("outputs").glob(depth)]
    runs = [folder for folder in runs if folder.name != HEAD_STAGE and last_checkpoint(folder).is_file()]
    return max(runs, key=lambda folder: last_checkpoint(folder).stat().st_mtime, default=None)
