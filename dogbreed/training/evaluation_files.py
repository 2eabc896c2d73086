"""Which files an evaluation looks at, with the classes that the model knows them by."""

import difflib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.labels import read_labels
from dogbreed.data.layout import class_folders, find_splits, list_images, plain_name
from dogbreed.data.locate import find_folder, find_root

Files = list[tuple[Path, int]]


class _Class(NamedTuple):
    """The files of a class, and what gave it its name."""

    name: str
    source: str
    paths: list[Path]


def find_files(
    root: str | Path | None,
    labels: str | Path | None,
    split: str,
    class_names: Sequence[str],
    trained: Mapping[str, Any],
) -> tuple[Path, dict[str, Files]]:
    """Return the folder, and its files by split: first the one that is evaluated, then others that the model knows.

    Where nobody has split the images, all are evaluated; but of the images that the model was trained on only those
    that the training has put into this split.

    Args:
        root: Folder of the images; None takes that of the training.
        labels: CSV file with their labels, None for folders; with the root of the training, None takes its table.
        split: `test`, `valid` or `train`.
        class_names: The model's.
        trained: The data group of its training configuration.

    Raises:
        DogbreedError: There is no such folder, table or split, or a class that the model does not know.
    """
    own = trained.get("root")
    root = _root(root, own)
    same = own is not None and Path(own).exists() and Path(root).exists() and Path(own).samefile(root)
    labels = labels or (trained.get("labels") if same else None)
    folder = find_folder(root) if labels else find_root(root)
    named = _of_table(Path(labels), folder) if labels else _of_folders(folder)
    if same and labels == trained.get("labels") and "" in named:
        named = _of_training(folder, trained)
    evaluated = named.pop(split, named.get(""))
    if evaluated is None:
        there = ", ".join(named)
        raise DogbreedError(f"{folder} has no folder {split}/; it has {there}: choose one with split=.")
    drop = trained.get("class_mismatch") == "drop"
    files = {split: _labelled(evaluated, class_names, drop)}
    if not files[split]:
        raise DogbreedError(f"{folder} holds no class folders with images; it should hold one folder per class.")
    for other, rest in named.items():
        with suppress(DogbreedError):  # it was not asked for
            if other:
                files[other] = _labelled(rest, class_names, drop)
    return folder, files


def _root(root: str | Path | None, own: str | None) -> str | Path:
    """Return the address of the images, by default that of the training."""
    if root is not None:
        return root
    if own is None or not Path(own).exists():
        hint = "" if own is None else f" ({own}, on which it was trained, is not here)"
        raise DogbreedError(f"Give the folder of photographs with data.root=FOLDER{hint}.")
    return own


def _of_folders(root: Path) -> dict[str, list[_Class]]:
    """Return the classes by split; by "" where there are no splits."""
    return {
        split: [
            _Class(name, str(inside), list_images(inside)) for name, inside in sorted(class_folders(folder).items())
        ]
        for split, folder in (find_splits(root) or {"": root}).items()
    }


def _of_table(table: Path, root: Path) -> dict[str, list[_Class]]:
    classes: dict[tuple[str, str], list[Path]] = {}
    for file in read_labels(table, root):
        classes.setdefault((file.split or "", file.label), []).append(file.path)
    named: dict[str, list[_Class]] = {}
    for (split, label), paths in sorted(classes.items()):
        named.setdefault(split, []).append(_Class(label, f"{label} in {table}", sorted(paths)))
    return named


def _of_training(folder: Path, trained: Mapping[str, Any]) -> dict[str, list[_Class]]:
    """Return the classes by the splits that the training has made itself."""
    images = DogImages(folder, **{key: trained[key] for key in ("labels", "split") if key in trained}, quiet=True)
    images.setup()
    return {
        split: [
            _Class(name, name, [files.paths[index] for index in (files.labels == label).nonzero()[0]])
            for label, name in enumerate(images.classes)
        ]
        for split, files in images.samples.items()
    }


def _labelled(classes: Sequence[_Class], class_names: Sequence[str], drop: bool) -> Files:
    """Return the files with the model's label of each; those of unknown classes are dropped, or an error."""
    label_of = {name: label for label, name in enumerate(class_names)}
    labelled: Files = []
    for name, source, paths in classes:
        plain = name if name in label_of else plain_name(name)
        if plain in label_of:
            labelled += [(path, label_of[plain]) for path in paths]
        elif not drop:
            near = difflib.get_close_matches(plain, class_names, 1)
            hint = f"; is it {near[0]}?" if near else "."
            raise DogbreedError(
                f"{source} is a breed that the model does not know (it knows {len(class_names)}){hint} "
                "Rename the folder, or move it away."
            )
    return labelled
