"""A few photographs of every breed, so that a rehearsal goes the whole way in about a minute."""

import os
from pathlib import Path


def sample(source: Path, into: Path, images: int | None) -> list[str]:
    """Links the first files of every folder below `source` into a tree of the same shape.

    The choice depends on the names alone, so that a run on the linked tree can be compared with another.

    Args:
        source: Such as `train/<breed>/<photograph>`, or a folder of such splits.
        into: Must not exist.
        images: At most so many of each folder; None for all.

    Returns:
        The links' names, relative to `into`.
    """
    names = []
    for name, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        below = into / Path(name).relative_to(source)
        below.mkdir(parents=True)
        for file in sorted(each for each in files if not each.startswith("."))[:images]:
            (below / file).symlink_to((Path(name) / file).resolve())
            names.append((below / file).relative_to(into).as_posix())
    return names
