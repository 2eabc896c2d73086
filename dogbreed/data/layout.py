"""What lies where in a folder of images: class folders, their names, and what is no data at all."""

import os
import re
from pathlib import Path

SPLITS = ("train", "valid", "test")
# Left behind by macOS, Windows, Synology and QNAP storage, file systems, version control and notebooks.
_NOISE = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "@recently-snapshot",
    "#snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder",
    "temporary items", "__pycache__",
}  # fmt: skip


def is_noise(name: str) -> bool:
    """Tell whether a file or folder of this name is none of the user's: hidden, or left behind by a system."""
    return name.startswith(".") or name.lower() in _NOISE


def list_images(folder: Path) -> list[Path]:
    """Return every file under a class folder, sorted, without hidden files and what systems leave behind.

    Files that do not look like images are in the list too, so that `scan` can say so.
    """
    files: list[Path] = []
    for parent, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not is_noise(name)]
        files += [Path(parent, name) for name in names if not is_noise(name)]
    return sorted(files)


def class_folders(folder: Path) -> dict[str, Path]:
    """Return the class folders of one split by name."""
    return {path.name: path for path in folder.iterdir() if path.is_dir() and not is_noise(path.name)}


def plain_name(name: str) -> str:
    """Return the class name without the number in front: `001.Affenpinscher` is Affenpinscher, 2.75 is 2.75."""
    return re.sub(r"^\d+\.(?=[^\W\d])", "", name)
