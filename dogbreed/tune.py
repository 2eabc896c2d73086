"""`python -m dogbreed.tune`: search hyperparameters on this machine."""

import sys
from collections.abc import Sequence
from typing import Any

from dogbreed.config import cli
from dogbreed.config.help import TUNE_HELP


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return cli.run(_tune, prog="python -m dogbreed.tune", help=TUNE_HELP, argv=argv)


def _tune(config: dict[str, Any]) -> None:
    from dogbreed.data.locate import check_address

    check_address(config["data"])  # a wrong path needs no torch to be named
    if config["search"]["backbones"] is not None:
        from dogbreed.search.leaderboard import leaderboard

        leaderboard(config)
        return
    from dogbreed.search.run import tune

    tune(config)


if __name__ == "__main__":
    sys.exit(main())
