"""`python -m dogbreed.inspect`: what a folder of images holds, and what is wrong with it."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.core.cli import guard, parser, path

_DESCRIPTION = "Look at every image of a data set before training: as a page to read and as JSON for programs."
_EPILOG = """\
Shown are the images per class and split, sizes and aspect ratios, files that cannot be read, the same file or picture
within and across splits and under several labels, and images that are dark, blurred or tiny.

examples:
  python -m dogbreed.inspect my_dogs
  python -m dogbreed.inspect photographs --labels labels.csv --output inspection/photographs
  python -m dogbreed.inspect my_dogs --json > inspection.json

exit codes:
  0    the images were looked at, whatever was found
  2    there is no such folder, or no image in it
  130  stopped with Ctrl-C
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.inspect", _DESCRIPTION, _EPILOG)
    add = frame.add_argument
    add("data", metavar="DATA", type=os.path.expanduser, help="a folder, zip or tar file of images, as data.root")
    add(
        "--labels",
        metavar="FILE",
        type=os.path.expanduser,
        help="CSV file with the columns path and label, in place of class folders",
    )
    add("--output", metavar="DIR", type=path, help="folder to write to (default: inspection/<date>/<time>)")
    add("--json", action="store_true", help="print the JSON; without --output, write nothing")
    arguments = frame.parse_args(argv)
    return guard(lambda: _inspect(arguments))


def _inspect(arguments: argparse.Namespace) -> None:
    import json

    from dogbreed.data.locate import check_address

    check_address({"root": arguments.data, "source": "", "download": False})  # needs no torch
    from dogbreed.cache.folders import scan_memory
    from dogbreed.core.files import new_folder, write_json
    from dogbreed.data.inspection import inspect, summary
    from dogbreed.report import inspection_page

    inspection = inspect(arguments.data, arguments.labels, memory=scan_memory())
    content = inspection.to_json()
    if arguments.json:
        print(json.dumps(content, indent=2))
    if arguments.json and not arguments.output:
        return
    folder = arguments.output or new_folder(Path("inspection"))
    write_json(folder / "inspection.json", content)
    inspection_page.write(folder / "inspection.html", inspection)
    if not arguments.json:
        print("\n".join([*summary(inspection), f"Wrote {folder}/inspection.html and inspection.json"]))


if __name__ == "__main__":
    sys.exit(main())
