"""What the commands for jobs share: reading the arguments, describing the job, and the three modes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dogbreed.config import cli
from dogbreed.config.overrides import split_argv
from dogbreed.core.errors import DogbreedError
from launch import render
from launch.aws.account import Account, offline_target
from launch.aws.pricing import Prices
from launch.aws.validate import check_kinds
from launch.jobs import submit
from launch.jobs.estimate import with_max_run
from launch.jobs.request import describe, in_one_job

MODES_HELP = """
  mode=submit     sends it (the default)
  mode=plan       prints the exact request, what is sent along, time and cost; needs no AWS account and no network
  mode=rehearse   carries the very request out on this machine, without Docker and without AWS
"""


def main(kind: str, prog: str, help: str, argv: Sequence[str]) -> int:
    """Run a command for jobs; return the exit code.

    Args:
        kind: `train` or `tune`.
        prog: How it is called.
        help: Its page.
        argv: Its arguments.
    """

    def task(config: dict[str, Any]) -> None:
        check_kinds(config)
        modes: dict[str, Callable[..., None]] = {"plan": _plan, "rehearse": _rehearse, "submit": _submit}
        if config["mode"] not in modes:
            raise DogbreedError(f"mode={config['mode']} is unknown; it is one of {', '.join(modes)}.")
        modes[config["mode"]](with_max_run(config, kind), kind, _experiment(argv))

    return cli.run(task, prog=prog, help=help, argv=argv)


def _experiment(argv: Sequence[str]) -> str | None:
    """Return the experiment that a command line names."""
    names = [word.partition("=")[2] for word in split_argv(argv)[1] if word.startswith(("experiment=", "+experiment="))]
    return names[-1] if names else None


def _plan(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    job = describe(config, kind, offline_target(config), experiment)
    print(render.describe(config, job, Prices(config)))


def _rehearse(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    try:
        from launch.rehearsal.training import rehearse
    except ModuleNotFoundError as error:
        raise DogbreedError(f"mode=rehearse needs {error.name}: pip install -e '.[rehearse]'.") from error
    rehearse(config, describe(config, kind, offline_target(config), experiment))


def _submit(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    if config["job"]:
        tuning = kind == "tune" and not in_one_job(config)
        config = submit.sent_config(config)
        account = Account(config)
        submit.follow(config, config["job"], account, submit.current_prices(config, account), tuning=tuning)
        return
    describe(config, kind, offline_target(config), experiment)  # an error here needs no account
    account = Account(config)
    job = describe(config, kind, account.with_role(), experiment)
    prices = submit.current_prices(config, account)
    for line in render.summary(config, job, prices):
        print(line, flush=True)
    submit.submit(config, job, account, prices)
