"""`python -m dogbreed.debug`: what smdebug saved of a run: its losses as a picture, and what the rules find in it."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.core.cli import guard, parser, path
from dogbreed.core.extras import install

_DESCRIPTION = "Read the tensors that a run saved with smdebug (debugger.enabled=true, or a SageMaker job)."
_EPILOG = """\
examples:
  python -m dogbreed.train debugger.enabled=true output_dir=outputs/seen
  python -m dogbreed.debug outputs/seen/tensors
  aws s3 cp --recursive s3://BUCKET/JOB/debug-output tensors && python -m dogbreed.debug tensors --output losses.svg

Needs smdebug: {install}
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    frame = parser("python -m dogbreed.debug", _DESCRIPTION, _EPILOG.format(install=install("debugger")))
    frame.add_argument("tensors", metavar="TENSOR_DIR", type=path, help="by default RUN/tensors")
    frame.add_argument("--output", metavar="FILE", type=path, help="the picture; default: losses.png beside TENSOR_DIR")
    arguments = frame.parse_args(argv)
    return guard(lambda: _debug(arguments.tensors, arguments.output))


def _debug(tensors: Path, output: Path | None) -> None:
    from dogbreed.monitor.debug import run

    run(tensors, output)


if __name__ == "__main__":
    sys.exit(main())
