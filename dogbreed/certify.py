"""`python -m dogbreed.certify`: proves that what was trained is what is served."""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    from dogbreed.serving.certify import main as run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
