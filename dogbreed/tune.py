"""`python -m dogbreed.tune`: searches hyperparameters on this machine."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.search.run import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
