"""Photographs by name, in folders or through a pipe, and their classes as a table, as JSON or in files."""

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import is_special, write_csv
from dogbreed.core.progress import track
from dogbreed.core.text import count
from dogbreed.data.images import IMAGE_SUFFIXES, BadImage
from dogbreed.data.layout import STDIN, check_photographs, list_images
from dogbreed.data.vocabulary import noun_of
from dogbreed.inference.predictor import Prediction, Predictor, Source, find_device
from dogbreed.models.manifest import find_model

SHOW_PROGRESS_ABOVE = 50
MUTED = "bright_black"
UNLIKE = "unlike the training images"


def answer(
    model: Path,
    paths: Sequence[str],
    *,
    as_json: bool,
    csv: Path | None,
    submission: Path | None,
    top_k: int,
    batch_size: int,
    device: str | None,
    runtime: str = "auto",
    similar: int = 0,
) -> int:
    """Print the classes of photographs or write them to files; return 1 where some could not be used, else 0."""
    names = find_photographs(paths)
    if submission:
        _check_submission(submission, names)
    predictor = Predictor(find_model(model), device=find_device(device), runtime=runtime)
    sources: Iterator[Source] = (sys.stdin.buffer.read() if name == STDIN else name for name in names)
    more = (["in_domain"] if predictor.model.neighbours else []) + (["similar"] if similar else [])
    files: list[_Csv | _Submission] = [_Csv(csv, top_k, more)] if csv else []
    if submission:
        files.append(_Submission(submission, predictor.class_names))
    scores = max(top_k, len(predictor.class_names)) if submission and top_k > 0 else top_k
    answers = predictor.try_predict(sources, top_k=scores, batch_size=batch_size, similar=similar)
    lines: list[_JsonLines | _Table] = [_JsonLines(top_k, predictor.runtime)] if as_json else []
    if not as_json and not files:
        lines.append(_Table(names, predictor.class_names))
    failed = 0
    # Lines that run over a terminal show how far it has come; a bar among them would only tear.
    quiet = len(names) <= SHOW_PROGRESS_ABOVE or (bool(lines) and sys.stdout.isatty())
    with track(len(names), "Looking at photographs", quiet=quiet) as progress:
        for name, answer in zip(names, answers, strict=True):
            failed += isinstance(answer, BadImage)
            for output in (*lines, *files):
                output.write(name, answer)
            progress.advance()
    for file in files:
        print(file.close(), file=sys.stderr if as_json else sys.stdout, flush=True)
    return 1 if failed else 0


def _check_submission(file: Path, names: Sequence[str]) -> None:
    """Refuse rows that a competition does not know, two of one id, and to write over its own sample."""
    if file.name.lower().startswith("sample") and file.exists():
        raise DogbreedError(f"{file} is the sample of the competition; give --submission another name.")
    first: dict[str, str] = {}
    for name in names:
        if Path(name).suffix.lower() not in IMAGE_SUFFIXES:
            raise DogbreedError(f"{name} is no file of an image; a submission has one row per image.")
        stem = Path(name).stem
        if stem in first:
            raise DogbreedError(f"{first[stem]} and {name} have the same id, {stem}; a submission has one row each.")
        first[stem] = name


def find_photographs(paths: Sequence[str]) -> list[str]:
    """Return the names of the files to look at: files as they are named, folders replaced by their images, sorted.

    Raises:
        DogbreedError: A path does not exist, a folder holds no image, or `-` was given twice.
    """
    if list(paths).count(STDIN) > 1:
        raise DogbreedError("Standard input can be read once; give - once.")
    check_photographs(paths)
    names: list[str] = []
    for path in paths:
        if path == STDIN or not os.path.isdir(path):
            names.append(path)
            continue
        inside = [str(file) for file in list_images(Path(path)) if file.suffix.lower() in IMAGE_SUFFIXES]
        inside = [file for file in inside if not is_special(file)]
        if not inside:
            raise DogbreedError(f"{path} holds no image; known are {' '.join(sorted(IMAGE_SUFFIXES))}.")
        names += inside
    return names


class _Csv:
    """A table of the answers, one row per photograph."""

    def __init__(self, file: Path, top_k: int, more: Sequence[str]) -> None:
        self.file, self.top_k = file, top_k
        self.header = ("path", "label", "probability", "top", "error", *more)
        self.rows: list[tuple[str, ...]] = []

    def write(self, name: str, answer: Prediction | BadImage) -> None:
        if isinstance(answer, BadImage):
            row = (name, "", "", "", answer.reason, "", "")
        else:
            top = " ".join(f"{score.label}={score.probability:.4f}" for score in answer.top[: self.top_k])
            in_domain = str(answer.in_domain).lower()
            similar = " ".join(f"{one.path}={one.cosine:.4f}" for one in answer.similar or ())
            row = (name, answer.label, f"{answer.probability:.6f}", top, "", in_domain, similar)
        self.rows.append(row[: len(self.header)])

    def close(self) -> str:
        write_csv(self.file, self.header, self.rows)
        return f"Wrote {self.file}: {count(len(self.rows), 'image')}."


class _Submission:
    """A table as Kaggle takes it: the id of each photograph, then the probability of every class."""

    def __init__(self, file: Path, class_names: Sequence[str]) -> None:
        self.file, self.class_names = file, class_names
        self.rows: list[tuple[str, ...]] = []
        self.unusable: list[str] = []

    def write(self, name: str, answer: Prediction | BadImage) -> None:
        probabilities = [1 / len(self.class_names)] * len(self.class_names)
        if isinstance(answer, BadImage):
            self.unusable.append(name)
        else:
            for score in answer.top:
                probabilities[score.index] = score.probability
        self.rows.append((Path(name).stem, *(f"{probability:.8f}" for probability in probabilities)))

    def close(self) -> str:
        write_csv(self.file, ("id", *self.class_names), self.rows)
        some = ", ".join(self.unusable[:3]) + (f" and {len(self.unusable) - 3} more" if len(self.unusable) > 3 else "")
        note = f" Equal probabilities, since they could not be used: {some}." if self.unusable else ""
        return f"Wrote {self.file}: {count(len(self.rows), 'image')}.{note}"


class _JsonLines:
    """One object a line; a name that is not UTF-8 keeps its bytes as escapes, as Python itself writes them.

    A runtime whose answers are others is named in each.
    """

    def __init__(self, top_k: int, runtime: str) -> None:
        self.top_k = top_k
        self.runtime = {"runtime": runtime} if runtime == "int8" else {}

    def write(self, name: str, answer: Prediction | BadImage) -> None:
        result = {"error": str(answer)} if isinstance(answer, BadImage) else answer.to_dict(self.top_k)
        print(json.dumps({"path": name, **result, **self.runtime}), flush=True)


class _Table:
    """Aligned columns, written row by row: their widths are known before the first answer.

    On a terminal a row is cut where the terminal ends; in a pipe it has its whole length.
    """

    def __init__(self, names: Sequence[str], class_names: Sequence[str]) -> None:
        self.console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
        widest = max(len("file"), *(len(_printable(name)) for name in names))
        # Three fifths of a terminal belong to the answer.
        room = shutil.get_terminal_size().columns * 2 // 5
        self.file_width = min(widest, max(room, 20)) if sys.stdout.isatty() else widest
        noun = noun_of(class_names)
        self.label_width = max(len(noun), *(len(name) for name in class_names))
        head = f"{'file':<{self.file_width}}  {noun:<{self.label_width}}  probability  next"
        self._print(Text(head, style=MUTED))

    def write(self, name: str, answer: Prediction | BadImage) -> None:
        shown = _printable(name)
        if len(shown) > self.file_width:
            shown = "…" + shown[-self.file_width + 1 :]  # the end of a path tells more than its beginning
        row = Text(f"{shown:<{self.file_width}}  ")
        if isinstance(answer, BadImage):
            row.append(f"cannot be used: {answer.reason}", style="red")
        else:
            row.append(f"{answer.label:<{self.label_width}}", style="bold")
            row.append(f"  {answer.probability:>11.1%}  ")
            row.append(", ".join(f"{guess.label} {guess.probability:.1%}" for guess in answer.top[1:]), style=MUTED)
            row.append(_in_words(answer))
        self._print(row)
        for one in () if isinstance(answer, BadImage) else answer.similar or ():
            self._print(
                Text(f"  {one.cosine:.2f}  {one.label:<{self.label_width}}  {_printable(one.path)}", style=MUTED)
            )

    def _print(self, row: Text) -> None:
        row.rstrip()
        self.console.print(row, no_wrap=True, overflow="ellipsis" if sys.stdout.isatty() else "ignore")
        sys.stdout.flush()


def _in_words(answer: Prediction) -> str:
    """Return what an answer says beyond the most probable classes."""
    if answer.in_domain is False:
        return f"; {UNLIKE}"
    if answer.set is None or (len(answer.set) == 1 and not answer.abstain):
        return ""
    return f"; not sure, {len(answer.set)} are possible" if answer.abstain else f"; one of: {', '.join(answer.set)}"


def _printable(name: str) -> str:
    """Return a file name without what would move a terminal's cursor or could not be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
