"""`python launch/sagemaker_delete.py`: lists what this project has made and what it costs per hour, and deletes it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from launch import commands

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
    words = sys.argv[1:] if argv is None else list(argv)

    def run() -> int:
        expired, everything = (_switch(name, words) for name in SWITCHES)
        rest = [word for word in words if word.partition("=")[0] not in SWITCHES]

        def modes(names: list[str]) -> dict[str, commands.Mode]:
            def mode(config: dict[str, Any]) -> None:
                from launch.serving.delete import delete

                delete(config, names, expired=expired, everything=everything)

            return dict.fromkeys(("submit", "plan"), mode)

        return commands.main_with_names("python launch/sagemaker_delete.py [NAME...]", HELP, rest, modes)

    return guard(run)


def _switch(name: str, words: Sequence[str]) -> bool:
    """Return the value of a word that is no key of the configuration; the last one counts."""
    values = [word.partition("=")[2].lower() for word in words if word.partition("=")[0] == name]
    if values and values[-1] not in ("true", "false"):
        raise DogbreedError(f"{name}={values[-1]} is neither true nor false.")
    return values[-1:] == ["true"]


if __name__ == "__main__":
    sys.exit(main())
