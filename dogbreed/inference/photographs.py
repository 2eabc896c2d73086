"""`python -m dogbreed.predict`: breeds of photographs, of folders of them, or of one that comes through a pipe."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import track
from dogbreed.data.images import IMAGE_SUFFIXES, BadImage
from dogbreed.data.layout import list_images
from dogbreed.inference.manifest import find_model
from dogbreed.inference.predictor import Prediction, Predictor, Source

STDIN = "-"
SHOW_PROGRESS_ABOVE = 50
MUTED = "bright_black"

_DESCRIPTION = "Says which breed is on photographs, with a model that a run has exported."
_EPILOG = """\
examples:
  python -m dogbreed.predict outputs/2026-05-01/10-30-00/model rex.jpg
  python -m dogbreed.predict model/ holiday/ --json --top-k 3 > answers.jsonl
  curl -s https://example.org/dog.jpg | python -m dogbreed.predict model/ -

exit codes:
  0    every photograph was answered
  1    some could not be used: their lines give the reason, all others are answered
  2    nothing was done: a path does not exist, a folder holds no image, the model cannot be read
  130  stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    given = _parser().parse_args(argv)
    return guard(lambda: _run(given))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m dogbreed.predict",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL_DIR", type=Path, help="an exported model, or the folder of its run")
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="a photograph, a folder (searched to its depth), or - for stdin"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line in place of the table")
    parser.add_argument("--top-k", type=int, default=5, metavar="K", help="breeds in each answer (default 5)")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="images in one pass (default 32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    return parser


def _run(given: argparse.Namespace) -> int:
    names = find_photographs(given.paths)
    predictor = Predictor(find_model(given.model), device=find_device(given.device))
    sources: Iterator[Source] = (sys.stdin.buffer.read() if name == STDIN else name for name in names)
    answers = predictor.try_predict(sources, top_k=given.top_k, batch_size=given.batch_size)
    lines = _JsonLines() if given.json else _Table(names, predictor.class_names)
    failed = 0
    # Lines that run over a terminal show how far it has come; a bar among them would only tear.
    quiet = len(names) <= SHOW_PROGRESS_ABOVE or sys.stdout.isatty()
    with track(len(names), "Looking at photographs", quiet=quiet) as progress:
        for name, answer in zip(names, answers, strict=True):
            failed += isinstance(answer, BadImage)
            lines.write(name, answer)
            progress.advance()
    return 1 if failed else 0


def find_device(name: str | None) -> torch.device | None:
    """The device of a name, None for the best.

    Raises:
        DogbreedError: There is no such device.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DogbreedError(f"The device {name} cannot be used on this machine; leave it out, or take cpu.") from error
    return device


def find_photographs(paths: Sequence[str]) -> list[str]:
    """Names of the files to look at: files as they were given, folders replaced by the images in them, sorted.

    Raises:
        DogbreedError: A path does not exist, a folder holds no image, or `-` was given twice.
    """
    if list(paths).count(STDIN) > 1:
        raise DogbreedError("Standard input can be read once; give - once.")
    found: list[str] = []
    for path in paths:
        if path == STDIN or not os.path.isdir(path):
            if path != STDIN and not os.path.exists(path):
                raise DogbreedError(f"{path} does not exist; give photographs, folders, or - for standard input.")
            found.append(path)
            continue
        inside = [str(file) for file in list_images(Path(path)) if file.suffix.lower() in IMAGE_SUFFIXES]
        if not inside:
            raise DogbreedError(f"{path} holds no image; known are {' '.join(sorted(IMAGE_SUFFIXES))}.")
        found += inside
    return found


class _JsonLines:
    """One object a line; a name that is not UTF-8 keeps its bytes as escapes, as Python itself writes them."""

    def write(self, name: str, answer: Prediction | BadImage) -> None:
        told = {"error": str(answer)} if isinstance(answer, BadImage) else answer.to_dict()
        print(json.dumps({"path": name, **told}), flush=True)


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
        self.label_width = max(len("breed"), *(len(name) for name in class_names))
        head = f"{'file':<{self.file_width}}  {'breed':<{self.label_width}}  probability  next"
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
        self._print(row)

    def _print(self, row: Text) -> None:
        row.rstrip()
        self.console.print(row, no_wrap=True, overflow="ellipsis" if sys.stdout.isatty() else "ignore")
        sys.stdout.flush()


def _printable(name: str) -> str:
    """A file name without what would move a terminal's cursor or could not be encoded."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in name)
