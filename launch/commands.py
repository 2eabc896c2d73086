"""What the commands for jobs share: reading the arguments, describing the job, and going the way that `mode` names."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from dogbreed.config import cli
from dogbreed.config.overrides import split
from dogbreed.core.errors import DogbreedError
from launch import render, submit
from launch.aws import validate
from launch.aws.account import Account, environment_region, rules_image, training_image
from launch.aws.naming import Place, place
from launch.aws.pricing import Prices
from launch.aws.settings import check_kinds
from launch.jobs.request import Job, training_job, tuning_job

MODES = ("plan", "rehearse", "submit")


def describe(config: Mapping[str, Any], kind: str, where: Place, experiment: str | None) -> Job:
    """The job that a configuration asks for, checked.

    Args:
        config: A composed configuration.
        kind: `train` or `tune`.
        where: It runs.
        experiment: That the configuration was composed with.

    Raises:
        DogbreedError: It cannot be.
    """
    _check_backbone(config["model"]["backbone"])
    image, now = training_image(config, where.region), datetime.now()
    one_job = kind == "tune" and _way(config) == "one_job"
    if kind == "train" or one_job:
        rules = rules_image(config, where.region)
        job = training_job(config, where, image, now, experiment=experiment, searches=one_job, rules_image=rules)
    else:
        job = tuning_job(config, where, image, now, experiment=experiment)
    validate.check_request(job.operation, job.request)
    return job


def _check_backbone(name: str) -> None:
    """Where torchvision is here to be asked; a plan needs none, and the default is one of its networks."""
    if name == "vgg16":
        return
    try:
        from dogbreed.models.backbones import check_name
    except ModuleNotFoundError:
        return
    check_name(name)


def _way(config: Mapping[str, Any]) -> str:
    way = str(config["search"]["where"])
    if way not in ("trials", "one_job"):
        raise DogbreedError(f"search.where={way} is unknown; it is trials or one_job.")
    return way


def main(kind: str, prog: str, help: str, argv: Sequence[str]) -> int:
    """A command for jobs; returns the exit code.

    Args:
        kind: `train` or `tune`.
        prog: How it is called.
        help: Its page.
        argv: Its arguments.
    """

    def task(config: dict[str, Any]) -> int | None:
        check_kinds(config)
        ways: dict[str, Callable[..., int | None]] = {"plan": _plan, "rehearse": _rehearse, "submit": _submit}
        if config["mode"] not in ways:
            raise DogbreedError(f"mode={config['mode']} is unknown; it is one of {', '.join(MODES)}.")
        return ways[config["mode"]](config, kind, experiment_of(argv))

    return cli.run(task, prog=prog, help=help, argv=argv)


def experiment_of(argv: Sequence[str]) -> str | None:
    """The experiment that a command line names."""
    found = [word.partition("=")[2] for word in split(argv)[1] if word.startswith(("experiment=", "+experiment="))]
    return found[-1] if found else None


def offline(config: Mapping[str, Any]) -> Place:
    """The place as far as it is known without an account."""
    return place(config, environment_region(), None, None)


def _plan(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    job = describe(config, kind, offline(config), experiment)
    print(render.describe(config, job, Prices(config)))


def _rehearse(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    try:
        from launch.rehearsal.training import rehearse
    except ModuleNotFoundError as error:
        raise DogbreedError(f"mode=rehearse needs {error.name}: pip install -e '.[rehearse]'.") from error
    rehearse(config, describe(config, kind, offline(config), experiment))


def _submit(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    if config["job"]:
        tuning = kind == "tune" and _way(config) == "trials"
        submit.follow(submit.kept(config), config["job"], Account(config), tuning=tuning)
        return
    describe(config, kind, offline(config), experiment)  # what is wrong here is said before anybody is asked
    account = Account(config)
    submit.submit(config, describe(config, kind, account.with_role(), experiment), account)
