"""`python -m dogbreed.debug`: what smdebug saved of a run."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.monitor.debug import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
