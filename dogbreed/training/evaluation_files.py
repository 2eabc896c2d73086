"""Which files an evaluation looks at, with the classes that the model knows them by."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count
from dogbreed.data.datamodule import DogImages
from dogbreed.data.labels import read_labels
from dogbreed.data.layout import class_folders, find_splits, inner_class_folders, list_images, plain_name
from dogbreed.data.locate import find_folder, find_root

Files = list[tuple[Path, int]]


class _Class(NamedTuple):
    name: str
    paths: list[Path]


class Found(NamedTuple):
    """What an evaluation looks at.

    Attributes:
        folder: The folder of the images.
        files: By split, each with the model's label: that which is evaluated, and others that are there.
        unknown: Classes that were left out, since the model does not know them.
    """

    folder: Path
    files: dict[str, Files]
    unknown: list[str]


def find_files(
    root: str | Path | None,
    labels: str | Path | None,
    split: str,
    class_names: Sequence[str],
    trained: Mapping[str, Any],
    *,
    renamed: Mapping[str, str],
    skip_unknown: bool,
) -> Found:
    """Return the files to evaluate, and those of other splits, with the classes that the model knows.

    Where nobody has split the images, all are evaluated; but of the images that the model was trained on only those
    that the training has put into this split.

    Args:
        root: Folder of the images; None takes that of the training.
        labels: CSV file with their labels, None for folders; with the root of the training, None takes its table.
        split: `test`, `valid` or `train`.
        class_names: The model's.
        trained: The data group of its training configuration.
        renamed: The model's name for classes that are called otherwise here.
        skip_unknown: Leave out classes that the model does not know.

    Raises:
        DogbreedError: There is no such folder, table or split, or there are classes that the model does not know.
    """
    own = trained.get("root")
    root = _root(root, own)
    same = own is not None and Path(own).exists() and Path(root).exists() and Path(own).samefile(root)
    labels = labels or (trained.get("labels") if same else None)
    folder = find_folder(root) if labels else find_root(root)
    named = _of_table(Path(labels), folder) if labels else _of_folders(folder, class_names)
    if same and labels == trained.get("labels") and "" in named:
        named = _of_training(folder, trained)
    evaluated = named.pop(split, named.get(""))
    if evaluated is None:
        there, choices = " and ".join(filter(None, named)), " or ".join(f"split={name}" for name in named if name)
        raise DogbreedError(f"{folder} has no images of the split {split}, but {there}; give {choices}.")
    _check_renamed(renamed, [one.name for one in evaluated], class_names, folder)
    files, unknown = _labelled(evaluated, class_names, renamed)
    skip_unknown = skip_unknown or (same and trained.get("class_mismatch") == "drop")
    if unknown and not skip_unknown:
        raise DogbreedError(_unknown(unknown, [one.name for one in evaluated], class_names, folder))
    if not files:
        raise DogbreedError(f"{folder} holds no class folders with images; it should hold one folder per class.")
    others = {other: _labelled(rest, class_names, renamed) for other, rest in named.items() if other}
    complete = {other: labelled for other, (labelled, left_out) in others.items() if skip_unknown or not left_out}
    return Found(folder, {split: files, **complete}, unknown)


def _root(root: str | Path | None, own: str | None) -> str | Path:
    """Return the address of the images, by default that of the training."""
    if root is not None:
        return root
    if own is None or not Path(own).exists():
        hint = "" if own is None else f" ({own}, on which it was trained, is not here)"
        raise DogbreedError(f"Give the folder of photographs with data.root=FOLDER{hint}.")
    return own


def _of_folders(root: Path, class_names: Sequence[str]) -> dict[str, list[_Class]]:
    """Return the classes by split; by "" where there are no splits. A folder around the classes is none of them."""
    named: dict[str, list[_Class]] = {}
    for split, folder in (find_splits(root) or {"": root}).items():
        folders = class_folders(folder)
        if not {name for own in folders for name in (own, plain_name(own))} & set(class_names):
            folders = inner_class_folders(folder)
        named[split] = [_Class(name, list_images(inside)) for name, inside in sorted(folders.items())]
    return named


def _of_table(table: Path, root: Path) -> dict[str, list[_Class]]:
    classes: dict[tuple[str, str], list[Path]] = {}
    for file in read_labels(table, root):
        classes.setdefault((file.split or "", file.label), []).append(file.path)
    named: dict[str, list[_Class]] = {}
    for (split, label), paths in sorted(classes.items()):
        named.setdefault(split, []).append(_Class(label, sorted(paths)))
    return named


def _of_training(folder: Path, trained: Mapping[str, Any]) -> dict[str, list[_Class]]:
    """Return the classes by the splits that the training has made itself."""
    images = DogImages(folder, **{key: trained[key] for key in ("labels", "split") if key in trained}, quiet=True)
    images.setup()
    named: dict[str, list[_Class]] = {}
    for split, files in images.samples.items():
        paths: list[list[Path]] = [[] for _ in images.classes]
        for path, label in zip(files.paths, files.labels.tolist(), strict=True):
            paths[label].append(path)
        named[split] = [_Class(name, own) for name, own in zip(images.classes, paths, strict=True)]
    return named


def _labelled(
    classes: Sequence[_Class], class_names: Sequence[str], renamed: Mapping[str, str]
) -> tuple[Files, list[str]]:
    """Return the files with the model's label of each, and the names of the classes that it does not know."""
    label_of = {name: label for label, name in enumerate(class_names)}
    labelled: Files = []
    unknown: list[str] = []
    for name, paths in classes:
        plain = plain_name(name)
        known = next((n for n in (renamed.get(name, renamed.get(plain, name)), plain) if n in label_of), None)
        if known is None:
            unknown.append(plain)
        else:
            labelled += [(path, label_of[known]) for path in paths]
    return labelled, unknown


def _check_renamed(renamed: Mapping[str, str], names: Iterable[str], class_names: Sequence[str], folder: Path) -> None:
    here = {each for name in names for each in (name, plain_name(name))}
    for old, new in renamed.items():
        if old not in here:
            raise DogbreedError(f"data.names: {old} is no class in {folder}.")
        if new not in class_names:
            hint = f"; perhaps {near}" if (near := _same_but_for_writing(new, class_names)) else ""
            raise DogbreedError(f"data.names: {new} is no class of the model, which knows {len(class_names)}{hint}.")


def _unknown(unknown: Sequence[str], names: Iterable[str], class_names: Sequence[str], folder: Path) -> str:
    """Return the sentence on classes that the model does not know, with the words that help."""
    free = set(class_names) - {plain_name(name) for name in names}
    meant = {name: near for name in unknown if (near := _same_but_for_writing(name, sorted(free)))}
    hints = [f"{name} (perhaps {meant[name]})" if name in meant else name for name in unknown]
    pairs = ", ".join(f"{name}: {meant.get(name, 'NAME')}" for name in unknown[:5])
    return (
        f"{folder} has {count(len(unknown), 'class')} that the model does not know (it knows {len(class_names)}): "
        f"{', '.join(hints)}. Leave them out with data.on_unknown=skip, or give the names that it knows them by: "
        f"{shlex.quote(f'data.names={{{pairs}}}')}."
    )


def _same_but_for_writing(name: str, class_names: Iterable[str]) -> str | None:
    """Return the name that is the same but for case, blanks, marks and at most one wrong letter.

    More alike names may mean two breeds: Boston terrier and Bedlington terrier.
    """
    letters = _letters(name)
    near = [other for other in class_names if _one_letter_apart(letters, _letters(other))]
    return near[0] if len(near) == 1 else None


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", plain_name(name).casefold())


def _one_letter_apart(one: str, other: str) -> bool:
    """Tell whether two words are equal, or differ in one letter of eight or more."""
    if one == other:
        return bool(one)
    short, long = sorted((one, other), key=len)
    if len(long) < 8 or len(long) - len(short) > 1:
        return False
    first = next((i for i, (a, b) in enumerate(zip(short, long, strict=False)) if a != b), len(short))
    return short[first + (len(short) == len(long)) :] == long[first + 1 :]
