"""`python launch/sagemaker_delete.py`: lists what this project has made and what it costs per hour, and deletes it."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.config import cli
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from launch.aws.account import Account
from launch.aws.pricing import Prices
from launch.aws.validate import check_kinds
from launch.serving.delete import choose, table
from launch.serving.request import split_arguments
from launch.serving.resources import LABELS, delete_resource, list_resources

HELP = """
Lists the endpoints, their settings, and the models that this project has made in the account and region, with what they
cost per hour, and deletes what is named.

  NAME...           endpoints, settings or models to delete; an endpoint takes its settings and its model with it
  expired=true      delete the endpoints whose expires= is past
  all=true          delete everything that this project has made
  mode=plan         only say what would be deleted

Without any of these it lists. What this project has not made is never deleted.

Examples:
  python launch/sagemaker_delete.py
  python launch/sagemaker_delete.py dogbreed-vgg16
  python launch/sagemaker_delete.py expired=true
"""
SWITCHES = ("expired", "all")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return guard(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    names, words = split_arguments(argv)
    expired, everything = (_switch(name, words) for name in SWITCHES)
    rest = [word for word in words if word.partition("=")[0] not in SWITCHES]

    def task(config: dict[str, Any]) -> None:
        check_kinds(config)
        if config["mode"] not in ("plan", "submit"):
            raise DogbreedError(f"mode={config['mode']} is not for deleting; it is plan or submit.")
        account, prices = Account(config), Prices(config)
        resources = list(list_resources(account))
        if not (names or expired or everything):
            print(table(resources, prices, datetime.now(UTC)))
            return
        chosen = choose(resources, names, expired=expired, everything=everything)
        if not chosen:
            print("Nothing has expired." if expired else "There is nothing to delete.")
        for resource in chosen:
            label = f"the {LABELS[resource.kind]} {resource.name}"
            if config["mode"] == "plan":
                print(f"Would delete {label}")
                continue
            delete_resource(account, resource.kind, resource.name)
            saved = resource.hourly(prices)
            print(f"Deleted {label}" + (f" (${saved:.3f} per hour)" if saved else ""))

    return cli.run(task, prog="python launch/sagemaker_delete.py [NAME...]", help=HELP, argv=rest)


def _switch(name: str, words: Sequence[str]) -> bool:
    """Return the value of a word that is no key of the configuration; the last one counts."""
    values = [word.partition("=")[2].lower() for word in words if word.partition("=")[0] == name]
    if values and values[-1] not in ("true", "false"):
        raise DogbreedError(f"{name}={values[-1]} is neither true nor false.")
    return values[-1:] == ["true"]


if __name__ == "__main__":
    sys.exit(main())
