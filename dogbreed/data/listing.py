"""Which images there are, with the class and the split of each: from folders, or from a table of labels."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count
from dogbreed.data.archives import is_archive
from dogbreed.data.columns import Entries, Paths
from dogbreed.data.labels import read_labels
from dogbreed.data.layout import (
    SPLIT_OF,
    SPLITS,
    class_folders,
    find_splits,
    holds_files,
    holds_images,
    holds_photographs,
    inner_class_folders,
    is_noise,
    list_files,
    plain_name,
)

MOST_NAMED = 5


@dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
        names: Class names as folders or the table have them, by index.
        entries: Every file; those of a split in the order of classes and paths.
        splits: Those that there are, in the order train, valid, test; none where nobody has split the images.
        notes: What was left out, a sentence each.
    """

    names: list[str]
    entries: Entries
    splits: list[str]
    notes: list[str] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """Class names without the number in front."""
        return [plain_name(name) for name in self.names]


def list_data(root: Path, labels: Path | None = None, class_mismatch: str = "error") -> Listing:
    """Return the files below a folder with their classes and splits.

    Args:
        root: Holds folders of splits, or of classes, or the files that `labels` names.
        labels: A CSV file; None takes the classes from the folders.
        class_mismatch: What becomes of classes that are not in every split: `error` or `drop`; or `keep`, which also
            takes splits without `train` or `valid`.

    Raises:
        DogbreedError: The folder is none of these, or the splits have different classes.
    """
    listing = _of_table(root, labels, class_mismatch) if labels else _of_folders(root, class_mismatch)
    for name in listing.names:  # it travels in JSON
        if name.encode("utf-8", "replace").decode() != name:
            shown = name.encode("utf-8", "backslashreplace").decode()
            where = labels or root
            way_out = "save the table as UTF-8" if labels else "rename it"
            raise DogbreedError(f"{where} has a class whose name is not UTF-8, {shown}; {way_out}.")
    classes = listing.classes
    if len(set(classes)) < len(classes):
        twice = Counter(classes).most_common(1)[0][0]
        raise DogbreedError(f"{root} has two classes that are both named {twice} but for their number; rename one.")
    listing.notes.extend(_odd_classes(classes))
    return listing


def _odd_classes(classes: Sequence[str]) -> Iterator[str]:
    """Yield a sentence on classes that a model can learn, but that nobody wants."""
    if len(classes) == 1:
        yield f"There is one class alone, {classes[0]}: nothing to tell apart, and every prediction is right."
    spellings: dict[str, list[str]] = {}
    for name in classes:
        spellings.setdefault(" ".join(re.split(r"[\s_-]+", name.casefold())).strip(), []).append(name)
    for alike in [names for names in spellings.values() if len(names) > 1][:MOST_NAMED]:
        yield f"Classes that differ only in how they are written, and count as {len(alike)}: {', '.join(alike)}."


def _of_folders(root: Path, class_mismatch: str) -> Listing:
    splits, notes = find_splits(root), list[str]()
    folders: dict[str | None, dict[str, Path]]
    if not splits:
        folders = {None: _unsplit_classes(root)}
        names = sorted(folders[None])
    else:
        for missing in ("train", "valid"):
            if missing not in splits and class_mismatch != "keep":
                alone = f": data.root={splits['train']} is split by data.split" if "train" in splits else ""
                raise DogbreedError(
                    f"{root} has no folder {missing}/; it should hold train/, valid/ and test/, or only class folders"
                    f"{alone}."
                )
        folders = {split: class_folders(splits[split]) for split in SPLITS if split in splits}
        if all(len(by_name) == 1 for by_name in folders.values()):  # one class would be nothing to learn
            folders = {split: inner_class_folders(splits[split]) for split in SPLITS if split in splits}
        if not any(folders.values()):
            raise DogbreedError(f"{root} is empty: train/, valid/ and test/ should hold one folder per class.")
        where = {str(splits[split]): by_name.keys() for split, by_name in folders.items() if split}
        need = f"every class needs a folder in {', '.join(f'{path.name}/' for path in splits.values())}"
        names, notes = _common(where, need, class_mismatch)
    files: list[str] = []
    rows: list[tuple[int, int, int]] = []  # class, split and number of files of each folder
    for split, by_name in folders.items():
        for label, name in enumerate(names):
            if name in by_name:
                inside = list_files(by_name[name])
                files += inside
                rows.append((label, SPLITS.index(split) if split else -1, len(inside)))
    labels, sides, numbers = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    entries = Entries(Paths(files), labels.repeat(numbers), sides.repeat(numbers).astype(np.int8))
    return Listing(names, entries, [split for split in SPLITS if split in splits], notes)


def _unsplit_classes(root: Path) -> dict[str, Path]:
    """Return the class folders of a folder without splits, without those that hold nothing."""
    folders = inner_class_folders(root)
    for path in folders.values():
        if "train" in find_splits(path):
            raise DogbreedError(f"{root} has no folder train/, but {path} has: give data.root={path}.")
    folders = {name: path for name, path in folders.items() if holds_files(path)}
    if not folders:
        packed = next((path for path in sorted(root.iterdir()) if not is_noise(path.name) and is_archive(path)), None)
        if packed is not None:
            raise DogbreedError(f"{root} holds no photographs but an archive; give data.root={packed}.")
        loose = holds_images(root)
        way_out = (
            "give their labels with data.labels=FILE.csv, or sort them into one folder per class"
            if loose
            else ("it should hold train/, valid/ and test/, or one folder per class")
        )
        fact = "no folder train/ and no class folders" if not loose else "images, but no class folders"
        raise DogbreedError(f"{root} has {fact}; {way_out}.")
    alone = [path for path in folders.values() if holds_photographs(path)] if len(folders) > 1 else []
    if len(alone) == 1:  # as Images/ beside Annotation/ and lists/
        table = " and their labels with data.labels=FILE.csv" if holds_images(alone[0]) else ""
        raise DogbreedError(f"Of the folders in {root} one alone has photographs: give data.root={alone[0]}{table}.")
    if len(folders) > 1 and all(name.lower() in SPLIT_OF for name in folders):  # as a competition is unpacked
        train = next((path for name, path in folders.items() if SPLIT_OF[name.lower()] == "train"), root)
        tables = [path for path in sorted(root.glob("*.csv")) if not path.name.lower().startswith("sample")]
        labels = tables[0] if len(tables) == 1 else "FILE.csv"
        raise DogbreedError(
            f"{root} holds {' and '.join(f'{path.name}/' for path in folders.values())} with images, but no class "
            f"folders; give data.root={train} and their labels with data.labels={labels}."
        )
    return folders


def _of_table(root: Path, labels: Path, class_mismatch: str) -> Listing:
    files = read_labels(labels, root)
    names, notes = sorted({file.label for file in files}), list[str]()
    splits = {file.split for file in files}
    if splits != {None}:
        for missing in ("train", "valid"):
            if missing not in splits and class_mismatch != "keep":
                raise DogbreedError(
                    f"{labels} has no row of the split {missing}; without its column split, the images are split by "
                    "data.split."
                )
        # A class that nothing is validated or tested on is a warning, as in what data.split makes of a small class.
        where = {str(labels): set(names), "its training rows": {file.label for file in files if file.split == "train"}}
        names, notes = _common(where, "every class needs an image to train", class_mismatch)
    label_of = {name: label for label, name in enumerate(names)}
    files = [file for file in files if file.label in label_of]
    files.sort(key=lambda file: (label_of[file.label], file.path))
    entries = Entries(
        Paths.of(file.path for file in files),
        np.array([label_of[file.label] for file in files], dtype=np.int64),
        np.array([SPLITS.index(file.split) if file.split else -1 for file in files], dtype=np.int8),
    )
    return Listing(names, entries, [split for split in SPLITS if split in splits], notes)


def _loosely(name: str) -> str:
    """Return a name without what is overlooked: capitals, blanks, dashes."""
    return re.sub(r"[\s_-]", "", name).casefold()


def _common(where: Mapping[str, Iterable[str]], need: str, class_mismatch: str) -> tuple[list[str], list[str]]:
    """Return the classes that every source has, and a sentence on the others, which are an error unless dropped."""
    classes = {source: set(names) for source, names in where.items()}
    everywhere, anywhere = set.intersection(*classes.values()), set().union(*classes.values())
    others = sorted(anywhere - everywhere)
    if others and (class_mismatch == "error" or not everywhere) and class_mismatch != "keep":
        lacking = next(source for source, names in classes.items() if names != anywhere)
        absent = sorted(anywhere - classes[lacking])
        there = next(source for source, names in classes.items() if absent[0] in names)
        alike = next((name for name in classes[lacking] if _loosely(name) == _loosely(absent[0])), None)
        if alike is not None:
            raise DogbreedError(
                f"The splits have different classes: {absent[0]!r} is in {there}, {alike!r} in {lacking}; give both "
                "the same name."
            )
        more = f" and {len(absent) - 1} more are in" if len(absent) > 1 else " is in"
        drop = "; data.class_mismatch=drop leaves such classes out" if everywhere else ""
        raise DogbreedError(
            f"The splits have different classes: {absent[0]}{more} {there} but not in {lacking}; {need}{drop}."
        )
    some = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    note = f"Left out {count(len(others), 'class')} not in every split (data.class_mismatch=drop): {some}."
    if class_mismatch == "keep":
        everywhere, note = anywhere, f"{count(len(others), 'class')} not in every split: {some}."
    return sorted(everywhere), [note] if others else []
