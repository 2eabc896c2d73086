"""Plan, rehearse, submit: what the commands do with a training job, a search, or a deployment."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.config.overrides import split_argv
from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.inference import archive
from dogbreed.inference.archive import Archive
from launch import forms, render
from launch.aws.account import Account, offline_target
from launch.aws.errors import explained
from launch.aws.naming import parse_s3_uri
from launch.aws.pricing import Prices
from launch.jobs import choose, submit
from launch.jobs.estimate import resolved
from launch.jobs.request import describe, in_one_job
from launch.serving import certificates, deploy


def run_job(mode: str, kind: str, config: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Plan, rehearse or submit a job.

    Args:
        mode: `plan`, `rehearse` or `submit`.
        kind: `train` or `tune`.
        config: A composed configuration.
        argv: That it was composed from.
    """
    if limits := choose.limits_of(config):
        choose.show(config, kind, experiment_of(argv), limits)
        return
    modes = {"plan": _plan, "rehearse": _rehearse, "submit": _submit}
    modes[mode](resolved(config, kind), kind, experiment_of(argv))


def experiment_of(argv: Sequence[str]) -> str | None:
    """Return the experiment that a command line names."""
    names = [word.partition("=")[2] for word in split_argv(argv)[1] if word.startswith(("experiment=", "+experiment="))]
    return names[-1] if names else None


def _plan(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    job = describe(config, kind, offline_target(config), experiment)
    if config["sagemaker"]["as"] is not None:
        forms.show_job(config, job)
        return
    print(render.describe(config, job, Prices(config)))


def _rehearse(config: Mapping[str, Any], kind: str, experiment: str | None) -> None:
    try:
        from launch.rehearsal.training import rehearse
    except ModuleNotFoundError as error:
        raise DogbreedError(f"mode=rehearse needs {error.name}: {install('rehearse')}.") from error
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


# A deployment


def run_deployment(mode: str, config: Mapping[str, Any], names: Sequence[str]) -> None:
    """Plan, rehearse or submit the deployment of the model that is named."""
    modes = {"plan": _plan_deployment, "rehearse": _rehearse_deployment, "submit": deploy.submit}
    with _model(config, names) as model, archive.assemble(model) as packed:
        modes[mode](config, model, packed)


@contextmanager
def _model(config: Mapping[str, Any], names: Sequence[str]) -> Iterator[Path]:
    """Yield the path of the model: the one that is named, or what a training job has left in S3."""
    if len(names) + bool(config["job"]) != 1:
        raise DogbreedError("Give one model: python launch/sagemaker_deploy.py MODEL, or job=NAME; see --help.")
    if names:
        yield Path(names[0])
        return
    account = Account(config)
    with explained(f"looking for the training job {config['job']}"):
        job = account.client("sagemaker").describe_training_job(TrainingJobName=config["job"])
    address = job.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if not address:
        raise DogbreedError(f"The training job {config['job']} has left no model; it is {job['TrainingJobStatus']}.")
    bucket, key = parse_s3_uri(address, "job")
    with TemporaryDirectory(prefix="dogbreed-deploy-") as folder:
        file = Path(folder) / "model.tar.gz"
        with explained(f"fetching {address}"):
            account.client("s3").download_file(bucket, key, str(file))
        yield file


def _plan_deployment(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    deployment = deploy.describe_model(config, packed, offline_target(config))
    if config["sagemaker"]["as"] is not None:
        forms.show_deployment(config, deployment)
        return
    certificate = certificates.describe(certificates.path_of(model, packed), packed)
    print(render.describe_deployment(config, deployment, Prices(config), certificate))


def _rehearse_deployment(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    from launch.rehearsal.serving import rehearse

    rehearse(config, model, packed)
