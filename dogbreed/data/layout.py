"""What lies where in a folder of images: class folders, their names, and what is no data at all."""

import os
import re
import unicodedata
from pathlib import Path

from dogbreed.core.errors import DogbreedError

SPLITS = ("train", "valid", "test")
_SPLIT_OF = {
    "train": "train",
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "eval"), "test"),
}
_PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm"}
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
    """Return the class folders of one split by name, in Unicode's composed form: macOS decomposes names.

    Raises:
        DogbreedError: Two folders have the same name but for that form.
    """
    folders: dict[str, Path] = {}
    for path in folder.iterdir():
        if not path.is_dir() or is_noise(path.name):
            continue
        name = unicodedata.normalize("NFC", path.name)
        if name in folders:
            raise DogbreedError(
                f"{folder} has two folders named {name}, once composed and once decomposed; merge them."
            )
        folders[name] = path
    return folders


def plain_name(name: str) -> str:
    """Return the class name without the number in front: `001.Affenpinscher` is Affenpinscher, 2.75 is 2.75."""
    return re.sub(r"^\d+\.(?=[^\W\d])", "", name)


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folders of the splits by their names here: train, valid and test.

    A folder with photographs directly in it is a class that happens to be called so.

    Raises:
        DogbreedError: Two folders stand for the same split.
    """
    splits: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        split = _SPLIT_OF.get(path.name.lower())
        if split is None or not path.is_dir() or _holds_images(path):
            continue
        if split in splits:
            raise DogbreedError(f"{root} has two folders for one split, {splits[split].name}/ and {path.name}/.")
        splits[split] = path
    return splits


def _holds_images(folder: Path) -> bool:
    return any(path.suffix.lower() in _PHOTOGRAPHS and not is_noise(path.name) for path in folder.iterdir())


def find_classes(root: Path) -> dict[str, dict[str, Path]]:
    """Return the class folders by split and by name, after checking that the splits agree; test/ may be missing.

    Raises:
        DogbreedError: A split is missing or empty, or the splits have different classes.
    """
    splits = find_splits(root)
    for missing in ("train", "valid"):
        if missing not in splits:
            raise DogbreedError(f"{root} has no folder {missing}/; it should hold train/, valid/ and test/.")
    folders = {split: class_folders(splits[split]) for split in SPLITS if split in splits}
    if not any(folders.values()):
        raise DogbreedError(f"{root} is empty: train/, valid/ and test/ should hold one folder per class.")
    for name in set().union(*folders.values()):  # it becomes a class name, which travels in JSON
        if name.encode("utf-8", "replace").decode() != name:
            shown = name.encode("utf-8", "backslashreplace").decode()
            raise DogbreedError(f"{root} has a class folder whose name is not UTF-8, {shown}; rename it.")
    everywhere = set().union(*folders.values())
    for split, by_name in folders.items():
        if lacking := sorted(everywhere - by_name.keys()):
            other = next(where for where in folders if lacking[0] in folders[where])
            more = f" and {len(lacking) - 1} more are in" if len(lacking) > 1 else " is in"
            raise DogbreedError(
                f"The splits have different classes: {lacking[0]}{more} {splits[other]} but not in {splits[split]}; "
                f"every class needs a folder in {', '.join(f'{path.name}/' for path in splits.values())}."
            )
    return folders
