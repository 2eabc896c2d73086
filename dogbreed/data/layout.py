"""What lies where in a folder of images: class folders, their names, and what is no data at all."""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import is_special

STDIN = "-"
SPLITS = ("train", "valid", "test")
SPLIT_OF = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "val", "validation", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
_PHOTOGRAPHS = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".ppm"}
# Left behind by macOS, Windows, Synology and QNAP storage, file systems, version control and notebooks.
_NOISE = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "#recycle", "@recycle", "@recently-snapshot",
    "#snapshot", "$recycle.bin", "recycler", "system volume information", "lost+found", "network trash folder",
    "temporary items", "__pycache__",
}  # fmt: skip


def check_photographs(paths: Iterable[str]) -> None:
    """Refuse a photograph or folder that does not exist or is no regular file.

    Raises:
        DogbreedError: There is one.
    """
    for path in paths:
        if path != STDIN and not os.path.isdir(path):
            if not os.path.exists(path):
                raise DogbreedError(f"{path} does not exist; give photographs, folders, or - for standard input.")
            if is_special(path):
                raise DogbreedError(f"{path} is no regular file; give photographs, folders, or - for standard input.")


def is_noise(name: str) -> bool:
    """Tell whether a file or folder of this name is none of the user's: hidden, or left behind by a system."""
    return name.startswith(".") or name.lower() in _NOISE


def list_images(folder: Path) -> list[Path]:
    """Return the files of `list_files` as paths."""
    return [Path(file) for file in list_files(folder)]


def list_files(folder: Path) -> list[str]:
    """Return every file under a class folder, linked folders included, without what systems leave behind; sorted.

    Files that do not look like images are in the list too, so that `scan` can say so. The order is that of paths, part
    by part: `a/b` comes before `a-b`.
    """
    files = [os.path.join(parent, name) for parent, names in _walk(folder) for name in names]
    return sorted(files, key=lambda file: os.path.normcase(file).replace(os.sep, "\0"))


def holds_files(folder: Path) -> bool:
    """Tell whether `list_files` would return any."""
    return any(names for _, names in _walk(folder))


def holds_photographs(folder: Path) -> bool:
    """Tell whether a file below a folder is called as photographs are."""
    return any(os.path.splitext(name)[1].lower() in _PHOTOGRAPHS for _, names in _walk(folder) for name in names)


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every folder with the names of its files."""
    seen = {Path(folder).resolve()}
    for parent, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        folders[:] = [name for name in folders if not is_noise(name) and _is_new(Path(parent, name), seen)]
        yield parent, [name for name in names if not is_noise(name)]


def _fail(error: OSError) -> None:
    """Refuse a folder that cannot be listed, whose images would be missed in silence."""
    raise DogbreedError(f"{error.filename} cannot be listed: {error.strerror}.")


def _is_new(folder: Path, seen: set[Path]) -> bool:
    """Tell whether a folder was not walked yet; a link to one that holds these would lead around in circles."""
    if not folder.is_symlink():
        return True
    real = folder.resolve()
    if any(other.is_relative_to(real) or real.is_relative_to(other) for other in seen):
        return False
    seen.add(real)
    return True


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


def inner_class_folders(folder: Path) -> dict[str, Path]:
    """Return `class_folders`; a folder around all classes, as in train/train, is no class."""
    folders = class_folders(folder)
    while len(folders) == 1 and not holds_images(only := next(iter(folders.values()))) and class_folders(only):
        folders = class_folders(only)
    return folders


def plain_name(name: str) -> str:
    """Return the class name without the number in front: `001.Affenpinscher` is Affenpinscher, 2.75 is 2.75."""
    return re.sub(r"^\d+\.(?=[^\W\d])", "", name)


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folders of the splits by their names here: train, valid and test.

    A folder with photographs directly in it is a class that happens to be called so, unless it has class folders, too,
    and another split is beside it.

    Raises:
        DogbreedError: Two folders stand for the same split.
    """
    folders = sorted(root.iterdir())
    splits = _named_splits(root, {path: path.name.lower() for path in folders})
    if "train" in splits:
        return splits
    loosely = _named_splits(root, {path: _loosely(path.name) for path in folders})
    return loosely if "train" in loosely else splits


def _loosely(name: str) -> str:
    """Return what is left of a name such as `0_train`, `train_set` or `Images (train)`."""
    return re.sub(r"[\W\d_]+|images?|data|set|split", "", name.lower())


def _named_splits(root: Path, names: Mapping[Path, str]) -> dict[str, Path]:
    called = {path: SPLIT_OF[name] for path, name in names.items() if name in SPLIT_OF and path.is_dir()}
    plain = {split for path, split in called.items() if not holds_images(path)}
    splits: dict[str, Path] = {}
    for path, split in called.items():
        if holds_images(path) and not (plain - {split} and class_folders(path)):
            continue
        if split in splits:
            raise DogbreedError(
                f"{root} has two folders for one split, {splits[split].name}/ and {path.name}/; merge them, or rename "
                "one."
            )
        splits[split] = path
    return splits


def holds_images(folder: Path) -> bool:
    """Tell whether photographs lie directly in a folder."""
    return any(path.suffix.lower() in _PHOTOGRAPHS and not is_noise(path.name) for path in folder.iterdir())
