"""`python -m dogbreed.train`: fine-tune an image classifier, evaluate, export and report it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dogbreed.config import cli
from dogbreed.config.help import TRAIN_HELP


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    folders: list[Path] = []

    def train(config: dict[str, Any]) -> float | None:
        from dogbreed.cache.folders import scan_memory
        from dogbreed.data.locate import check_address
        from dogbreed.data.scan_ahead import scanning_ahead

        check_address(config["data"])  # a wrong path needs no torch to be named
        with scanning_ahead(config["data"], scan_memory(config["cache"]["dir"])):
            from dogbreed.training.run import train

        result = train(config)
        if result.metrics:  # in the first process alone
            folders.append(result.output_dir)
        objective: float | None = result.metrics.get(config["search"]["objective"])  # for Hydra's sweepers
        return objective

    def compare() -> None:
        if len(folders) > 1:
            from dogbreed.report.comparison import compare

            command = shlex.join(["python", "-m", "dogbreed.compare", *map(str, folders)])
            print("", *compare(folders).lines(), "", f"As a page: {command}", sep="\n", flush=True)

    return cli.run(train, prog="python -m dogbreed.train", help=TRAIN_HELP, argv=argv, at_end=compare)


if __name__ == "__main__":
    sys.exit(main())
