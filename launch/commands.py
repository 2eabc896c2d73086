"""What the commands of launch/ share: arguments, help and modes; nothing else is loaded for a page of help."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dogbreed.config import cli
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError

MODES = ("submit", "plan", "rehearse")
MODES_HELP = """
  mode=submit     sends it (the default)
  mode=plan       prints the exact request, what is sent along, time and cost; needs no AWS account and no network
                  as=yaml, boto3, cli, cloudformation or pipeline prints it in that form alone
  mode=rehearse   carries the very request out on this machine, without Docker and without AWS
"""

Mode = Callable[[dict[str, Any]], None]


def main(prog: str, help: str, argv: Sequence[str] | None, modes: Mapping[str, Mode]) -> int:
    """Run a command that takes settings alone; return the exit code.

    Args:
        prog: How it is called.
        help: Its page.
        argv: Its arguments; None for those of this process.
        modes: What to do with the configuration, by mode.
    """

    def task(config: dict[str, Any]) -> None:
        from launch.aws.validate import check_kinds

        check_kinds(config)
        if config["mode"] not in modes:
            raise DogbreedError(f"mode={config['mode']} is unknown; it is one of {', '.join(modes)}.")
        modes[config["mode"]](config)

    return cli.run(task, prog=prog, help=help, argv=spelled_out(sys.argv[1:] if argv is None else argv))


def spelled_out(argv: Sequence[str]) -> list[str]:
    """Return arguments in which `--profile NAME`, as AWS's own commands have it, and short keys are written in full."""
    words = list(argv)
    for number, word in enumerate(words):
        if word == "--profile" and number + 1 < len(words):
            words[number : number + 2] = [f"sagemaker.profile={words[number + 1]}"]
        elif word.startswith("--profile="):
            words[number] = f"sagemaker.profile={word.partition('=')[2]}"
        elif word.startswith(("under=", "within=", "as=")):
            words[number] = f"sagemaker.{word}"
    return words


def main_job(kind: str, help: str, argv: Sequence[str] | None) -> int:
    """Run the command for a kind of job, `train` or `tune`; return the exit code."""
    words = spelled_out(sys.argv[1:] if argv is None else argv)

    def mode(config: dict[str, Any]) -> None:
        from launch.modes import run_job

        run_job(config["mode"], kind, config, words)

    return main(f"python launch/sagemaker_{kind}.py", help, words, dict.fromkeys(MODES, mode))


def main_with_names(
    prog: str, help: str, argv: Sequence[str] | None, modes: Callable[[list[str]], Mapping[str, Mode]]
) -> int:
    """Run a command that takes names beside settings, and the keys of `sagemaker.endpoint` without the group's name.

    Args:
        prog: How it is called.
        help: Its page.
        argv: Its arguments; None for those of this process.
        modes: Gets the names; gives what to do with the configuration, by mode.
    """
    words = spelled_out(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        if {"-h", "--help", "--version"} & set(words):
            return main(prog, help, words, {})
        from launch.serving.request import split_arguments

        names, settings = split_arguments(words)
        return main(prog, help, settings, modes(names))

    return guard(run)
