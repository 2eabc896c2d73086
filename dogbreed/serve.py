"""`python -m dogbreed.serve`: an exported model behind HTTP, with a page to drop a photograph on."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.serving.serve import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
