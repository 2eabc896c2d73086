"""`python -m dogbreed.export`: an exported model for other runtimes."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.inference.model_folder import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
