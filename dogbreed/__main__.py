"""`python -m dogbreed`: which commands there are."""

import sys
from collections.abc import Sequence

from dogbreed.core.cli import parser

COMMANDS = {
    "inspect": "look at a folder of images before training: copies, wrong labels, bad files",
    "train": "fine-tune, evaluate, export and report",
    "tune": "search hyperparameters on this machine",
    "evaluate": "measure an exported model on folders of photographs",
    "compare": "put runs side by side, and test whether one is better",
    "study": "find labels that look wrong, and see whether more images would help",
    "predict": "name what is on photographs",
    "serve": "serve an exported model over HTTP, with a page to drop a photograph on",
    "export": "write an exported model as ONNX or for torch.export",
    "certify": "prove that what was trained is what is served",
    "debug": "read what smdebug saved of a run",
    "cache": "list, verify and delete the features kept on disk",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Print the commands; return the exit code."""
    rows = [f"  python -m dogbreed.{name:<9} {purpose}" for name, purpose in COMMANDS.items()]
    frame = parser(
        "python -m dogbreed",
        "Fine-tune image classifiers; the frozen part of the network runs once per image.",
        "\n".join(["commands:", *rows, "", "Each explains itself with --help."]),
    )
    frame.parse_args(argv)
    frame.print_help()
    return 0


if __name__ == "__main__":
    sys.exit(main())
