"""`python -m dogbreed.evaluate`: measures an exported model on folders of photographs."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.training.evaluate import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
