"""`python -m dogbreed.train`: fine-tune an image classifier, evaluate, export and report it."""

import sys
from collections.abc import Sequence
from typing import Any

from dogbreed.config import cli
from dogbreed.config.help import TRAIN_HELP


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return cli.run(_train, prog="python -m dogbreed.train", help=TRAIN_HELP, argv=argv)


def _train(config: dict[str, Any]) -> float | None:
    from dogbreed.training.run import train

    objective: float | None = train(config).metrics.get(config["search"]["objective"])  # for Hydra's sweepers
    return objective


if __name__ == "__main__":
    sys.exit(main())
