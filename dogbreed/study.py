"""`python -m dogbreed.study`: which labels of a run's images look wrong, and what more images would bring."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.core.cli import guard, parser, path

_DESCRIPTION = "Look at the labels of a finished run's images, and at what more images would bring."
_EPILOG = """\
Heads are trained on the features that the run has left. Every image, of all splits, is classified by heads that were
trained without it, on 10 to 100 % of the others: the learning curve, and at 100 % the labels that look wrong. Heads
without the most suspicious images, and with other labels of them, say what correcting them would change.

It writes a page, study.json, and labels.csv, where the least probable labels come first. Correct the column label,
delete rows, and train with data.labels=STUDY/labels.csv.

examples:
  python -m dogbreed.study outputs/my_dogs
  python -m dogbreed.study outputs/my_dogs --folds 10 --output study/my_dogs
  python -m dogbreed.study outputs/my_dogs --json > study.json

exit codes:
  0    the images were looked at, whatever was found
  2    it is no finished run, or more than its last layer trains
  130  stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.study", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("run", metavar="RUN", type=path, help="folder of a finished run of which the last layer was trained")
    add("--folds", metavar="N", type=int, default=5, help="parts into which the images are divided (default: 5)")
    add("--seeds", metavar="N", type=int, default=3, help="heads on each selection of images (default: 3)")
    add("--output", metavar="DIR", type=path, help="folder to write to (default: study/<date>/<time>)")
    add("--json", action="store_true", help="print the JSON; without --output, write nothing")
    arguments = frame.parse_args(argv)
    if arguments.folds < 2:
        frame.error("--folds is a whole number from 2")
    if arguments.seeds < 1:
        frame.error("--seeds is a whole number from 1")
    return guard(lambda: _study(arguments))


def _study(arguments: argparse.Namespace) -> None:
    import json
    from dataclasses import astuple, fields

    from dogbreed.core.files import new_folder, write_csv, write_json
    from dogbreed.report.study import Label
    from dogbreed.training.study import study

    made = study(arguments.run, folds=arguments.folds, seeds=arguments.seeds, quiet=arguments.json)
    content = made.to_json()
    if arguments.json:
        print(json.dumps(content, indent=2))
    if arguments.json and not arguments.output:
        return
    from dogbreed.report import study_page

    folder = arguments.output or new_folder(Path("study"))
    write_json(folder / "study.json", content)
    write_csv(folder / "labels.csv", [field.name for field in fields(Label)], map(astuple, made.labels))
    study_page.write(folder / "study.html", made)
    if not arguments.json:
        print(
            "\n".join(
                [
                    made.judgement(),
                    *made.effects(),
                    made.outlook(),
                    f"Wrote {folder}/study.html, study.json and labels.csv",
                ]
            )
        )


if __name__ == "__main__":
    sys.exit(main())
