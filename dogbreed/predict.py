"""`python -m dogbreed.predict`: breeds of photographs, of folders of them, or of one that comes through a pipe."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.inference.photographs import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
