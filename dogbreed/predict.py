"""`python -m dogbreed.predict`: classes of photographs, of folders of them, or of one that comes through a pipe."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.core.cli import guard, parser, path
from dogbreed.core.errors import DogbreedError

_DESCRIPTION = "Name what is on photographs, with a model that a run has exported."
_EPILOG = """\
examples:
  python -m dogbreed.predict outputs/2026-05-01/10-30-00/model rex.jpg
  python -m dogbreed.predict model/ holiday/ --json --top-k 3 > answers.jsonl
  python -m dogbreed.predict model/ rex.jpg --similar 5
  python -m dogbreed.predict model/ test/ --submission submission.csv
  curl -s https://example.org/dog.jpg | python -m dogbreed.predict model/ -

exit codes:
  0    every photograph was answered
  1    some could not be used: their lines give the reason, all others are answered
  2    nothing was done: a path does not exist, a folder holds no image, the model cannot be read
  130  stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.predict", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("model", metavar="MODEL_DIR", type=path, help="an exported model, or the folder of its run")
    add(
        "paths",
        metavar="PATH",
        nargs="+",
        type=os.path.expanduser,
        help="a photograph, a folder (with its subfolders), or - for stdin",
    )
    add("--json", action="store_true", help="one JSON object per line in place of the table")
    add("--csv", type=path, metavar="FILE", help="write path, label, probability, top classes and errors to a CSV file")
    add(
        "--submission",
        type=path,
        metavar="FILE",
        help="write id (the file's stem) and a probability per class, for Kaggle",
    )
    add("--top-k", type=int, default=5, metavar="K", help="classes in each answer (default 5)")
    add("--similar", type=int, default=0, metavar="K", help="name the K most similar training images (default 0)")
    add("--batch-size", type=int, default=32, metavar="N", help="images in one pass (default 32)")
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU where there is one)")
    add(
        "--runtime",
        default="auto",
        help="torch, or onnx or int8 after python -m dogbreed.export --runtime (default auto: onnx where it can be)",
    )
    arguments = vars(frame.parse_args(argv))

    def predict() -> int:
        _check(arguments["model"], arguments["paths"])
        from dogbreed.inference.photographs import answer

        return answer(as_json=arguments.pop("json"), **arguments)

    return guard(predict)


def _check(model: Path, paths: Sequence[str]) -> None:
    """Refuse paths of which nothing can come; none of it needs torch."""
    from dogbreed.data.layout import STDIN, check_photographs
    from dogbreed.models.manifest import MANIFEST, find_model, read_manifest

    folder = find_model(model)
    for other in paths if not (folder / MANIFEST).is_file() else ():
        if other != STDIN and (find_model(other) / MANIFEST).is_file():
            command = shlex.join(["python", "-m", "dogbreed.predict", other, str(model)])
            raise DogbreedError(f"{other} is an exported model; the model comes first, then photographs: {command}")
    read_manifest(folder)
    check_photographs(paths)


if __name__ == "__main__":
    sys.exit(main())
