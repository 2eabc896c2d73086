"""Labels in a table: which image has which class and, perhaps, which split."""

import codecs
import csv
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import is_special
from dogbreed.core.text import join
from dogbreed.data.layout import SPLIT_OF, is_noise

# In a header blanks, underscores and capitals do not count.
PATHS = ("path", "file", "filename", "image", "imageid", "id", "filepath", "imagepath", "imagename", "img")
LABELS = ("label", "class", "breed", "category", "classname", "labelname", "species")
_SHOWN = {PATHS: "path, file, filename, image, image_id or id", LABELS: "label, class or breed"}
MOST_COLUMNS = 8  # that a sentence lists
SPLIT = "split"
_LIKE_SPLIT = (SPLIT, "subset", "set", "partition", "phase")  # the others only where they name splits alone


class LabelledFile(NamedTuple):
    """An image file with the name of its class, and its split where the table says one."""

    path: Path
    label: str
    split: str | None


class _Row(NamedTuple):
    line: int
    name: str
    label: str
    split: str


def read_labels(table: Path, root: Path) -> list[LabelledFile]:
    """Return the images that a CSV file names, in its order, each once.

    Args:
        table: The file: a column `path` (or file, image, id), a column `label` (or class, breed), perhaps `split`.
        root: Folder that the paths are relative to; a name without its suffix means the file of that name.

    Raises:
        DogbreedError: The table cannot be read, lacks a column or a label, names no file, or contradicts itself.
    """
    table = Path(os.path.expanduser(table))
    if not table.is_file() and not table.is_absolute() and (root / table).is_file():
        table = root / table
    files: dict[Path, tuple[LabelledFile, int]] = {}
    missing: list[_Row] = []
    folders: dict[Path, dict[str, list[Path]]] = {}
    for row in _rows(table):
        path = _find(root, row, folders, table)
        if path is None:
            missing.append(row)
            continue
        file = LabelledFile(path, row.label, SPLIT_OF[row.split] if row.split else None)
        known, line = files.setdefault(path, (file, row.line))
        if known != file:
            both = (known.label, file.label) if known.label != file.label else (str(known.split), str(file.split))
            kind = "labels" if known.label != file.label else "splits"
            raise DogbreedError(
                f"{table} gives {row.name} two {kind}, {both[0]} in line {line} and {both[1]} in line {row.line}; "
                "keep one of the two."
            )
    if missing:
        raise _missing(table, root, missing)
    if not files:
        raise DogbreedError(f"{table} has no rows below its header; it should hold one per image.")
    return [file for file, _ in files.values()]


def _rows(table: Path) -> Iterator[_Row]:
    """Yield the rows that are not empty, with their line; every one has a name and one label."""
    if is_special(table):
        raise DogbreedError(f"data.labels={table} is no regular file; write the table to one.")
    try:  # a class name that is not UTF-8 is refused later, with its name
        content = table.read_bytes()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # as Excel writes "Unicode text"
        text = content.decode("utf-16" if wide else "utf-8-sig", errors="replace" if wide else "surrogateescape")
    except OSError as error:
        raise DogbreedError(f"data.labels={table} cannot be read: {error.strerror or error}.") from error
    if "\0" in text:  # a workbook, a packed file, or UTF-16 that does not say so
        raise DogbreedError(f"{table} is not plain text; save it as CSV in UTF-8.")
    first = re.match(r"(?:sep=.[ ]*[\r\n]|[ \t]*[\r\n])*", text)  # Excel's own line, and empty ones
    text, skipped = text[first.end() :] if first else text, first[0].count("\n") if first else 0
    head = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=head.count))
    try:
        header = [re.sub(r"[\s_-]", "", cell.lower()) for cell in next(reader, [])]
        rows = [(skipped + reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except csv.Error as error:
        raise DogbreedError(f"{table}, line {reader.line_num}, is not CSV: {error}.") from error
    for line, cells in rows:
        while len(cells) > len(header) and not cells[-1].strip():
            cells.pop()
        if len(cells) != len(header):
            raise DogbreedError(f"{table}, line {line}, has {len(cells)} cells where its header has {len(header)}.")
    stripped = [[cell.strip() for cell in cells] for _, cells in rows]
    name, label, split = _columns(table, header, stripped)
    splits = split is not None and any(cells[split] for cells in stripped)
    for (line, exact), cells in zip(rows, stripped, strict=True):
        of_folder = exact[label] in exact[name].split("/")  # which may be called anything
        row = _Row(line, cells[name], unicodedata.normalize("NFC", (exact if of_folder else cells)[label]), "")
        if not row.name or not row.label:
            lacks = f"{row.name} has no label" if row.name else "no image is named"
            raise DogbreedError(f"{table}, line {line}: {lacks}; fill it in, or remove the line.")
        if not of_folder and (";" in row.label or "|" in row.label):
            raise _several_labels(f"{table}, line {line}: {row.name} has several labels, {row.label}")
        if splits and split is not None:
            row = row._replace(split=cells[split].lower())
            if row.split not in SPLIT_OF:
                raise DogbreedError(
                    f"{table}, line {line}: the split {cells[split]!r} is unknown; it is one of train, valid, test. "
                    "Without the column the images are split by data.split."
                )
        yield row


def _columns(table: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[int, int, int | None]:
    """Return where the names, the labels and (None where there is none) the splits stand."""
    positions = [next((header.index(name) for name in names if name in header), None) for names in (PATHS, LABELS)]
    name, label = positions
    for position in positions:
        if position is not None and any(len({row[at] for at in _same(header, header[position])}) > 1 for row in rows):
            raise DogbreedError(f"{table} has several columns {header[position]} that differ; remove all but one.")
    if label is None and name is not None:
        others = [at for at, title in enumerate(header) if at != name and title != SPLIT]
        if len(others) > 1 and rows and all(row[at] in ("0", "1", "0.0", "1.0") for row in rows for at in others):
            raise _several_labels(f"{table} has a column of 0 and 1 for each of {len(others)} labels")
    if not any(header):
        raise DogbreedError(f"{table} is empty: no column for the image; its first line is a header, as path,label.")
    some = [title[:40] for title in header[:MOST_COLUMNS]]
    shown = ", ".join([*some, "..."] if len(header) > len(some) else some)
    for position, what, names in ((name, "image", PATHS), (label, "class", LABELS)):
        if position is None:
            raise DogbreedError(
                f"{table} has no column for the {what}: name one of its columns ({shown}) {_SHOWN[names]}; its first "
                "line is the header."
            )
    assert name is not None
    assert label is not None
    splits = (at for title in _LIKE_SPLIT for at in _same(header, title) if title == SPLIT or _are_splits(rows, at))
    return name, label, next(splits, None)


def _same(header: Sequence[str], title: str) -> list[int]:
    """Return where the columns of a title stand."""
    return [at for at, other in enumerate(header) if other == title]


def _are_splits(rows: Sequence[Sequence[str]], at: int) -> bool:
    return {row[at].lower() for row in rows} <= SPLIT_OF.keys()


def _several_labels(fact: str) -> DogbreedError:
    return DogbreedError(
        f"{fact}; classifying an image into several classes (multi-label) is out of scope: give each image one label."
    )


def _find(root: Path, row: _Row, folders: dict[Path, dict[str, list[Path]]], table: Path) -> Path | None:
    """Return the file that a row names, in whichever Unicode form, with or without its suffix."""
    path = root / row.name
    if path.is_file():
        return path
    path = root / row.name.replace("\\", "/")
    if path.parent not in folders:
        names: dict[str, list[Path]] = {}
        for file in path.parent.iterdir() if path.parent.is_dir() else ():
            if file.is_file() and not is_noise(file.name):
                for name in {unicodedata.normalize("NFC", spelling) for spelling in (file.name, file.stem)}:
                    names.setdefault(name, []).append(file)
        folders[path.parent] = names
    files = folders[path.parent].get(unicodedata.normalize("NFC", path.name), [])
    if len(files) > 1:
        raise DogbreedError(
            f"{table}, line {row.line}: {row.name} may be {join([file.name for file in files[:2]], 'or')}; "
            "give the name with its suffix."
        )
    return files[0] if files else None


def _missing(table: Path, root: Path, rows: Sequence[_Row]) -> DogbreedError:
    first = rows[0]
    more = f" ({len(rows) - 1} more are missing, too)" if len(rows) > 1 else ""
    parts = first.name.replace("\\", "/").split("/")
    whole = next((folder for folder in (root.parent, table.parent) if (folder / first.name).is_file()), None)
    stem = Path(parts[-1]).stem.lower()
    alike = [file for file in root.rglob("*") if file.stem.lower() == stem and file.is_file()]
    elsewhere = min(alike, key=lambda file: (file.name != parts[-1], len(file.parts), file), default=None)
    if whole is not None:
        way_out = f"paths are relative to data.root={root}; give data.root={whole}"
    elif elsewhere is None:
        way_out = f"paths are relative to data.root={root}; correct the path, or remove the line"
    else:
        way_out = f"there is {elsewhere}: write {elsewhere.relative_to(root)}"
        if len(parts) == 1 and elsewhere.parent != root:
            way_out += f", or give data.root={elsewhere.parent}"
    return DogbreedError(f"{table}, line {first.line}: {first.name} does not exist{more}; {way_out}.")
