"""`python -m dogbreed.compare`: runs side by side, with a test of whether one is better."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.core.cli import guard, parser, path

_DESCRIPTION = (
    "Compare finished runs: the settings that differ, the figures, and whether chance explains the difference."
)
_EPILOG = """\
Two runs on the same images are tested by McNemar's exact test; of more, each against the best, corrected by Holm's
method. The page shows the images on which they disagree. Runs on different images get no test.

examples:
  python -m dogbreed.compare outputs/head outputs/block
  python -m dogbreed.compare outputs/sweep --output comparison/sweep
  python -m dogbreed.compare outputs/sweep/* --json > comparison.json

exit codes:
  0    the runs were compared, whatever came out
  2    fewer than two runs, or one that has not finished
  130  stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.compare", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("runs", metavar="RUN", nargs="+", help="folder of a run or an evaluation, or of several of them")
    add("--output", metavar="DIR", type=path, help="folder to write to (default: comparison/<date>/<time>)")
    add("--json", action="store_true", help="print the JSON; without --output, write nothing")
    arguments = frame.parse_args(argv)
    return guard(lambda: _compare(arguments))


def _compare(arguments: argparse.Namespace) -> None:
    import json

    from dogbreed.core.files import new_folder, write_json
    from dogbreed.report.comparison import compare

    comparison = compare(arguments.runs)
    content = comparison.to_json()
    if arguments.json:
        print(json.dumps(content, indent=2))
    if arguments.json and not arguments.output:
        return
    from dogbreed.report import comparison_page

    folder = arguments.output or new_folder(Path("comparison"))
    write_json(folder / "comparison.json", content)
    comparison_page.write(folder / "comparison.html", comparison)
    if not arguments.json:
        print("\n".join([*comparison.lines(), f"Wrote {folder}/comparison.html and comparison.json"]))


if __name__ == "__main__":
    sys.exit(main())
