"""Which run `resume` means, by what lies on disk."""

import os
from pathlib import Path

LAST_CHECKPOINT = Path("checkpoints", "last.ckpt")


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
        return path.parent.parent if path.suffix == ".ckpt" else path
    if output_dir not in (None, "", "null"):
        runs = [Path(os.path.expanduser(str(output_dir)))]
    else:  # outputs/DATE/TIME, and folders that were named, such as output_dir=outputs/dogs
        runs = [folder for depth in ("*", "*/*") for folder in Path("outputs").glob(depth)]
    runs = [folder for folder in runs if (folder / LAST_CHECKPOINT).is_file()]
    return max(runs, key=lambda folder: (folder / LAST_CHECKPOINT).stat().st_mtime, default=None)
