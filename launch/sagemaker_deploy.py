"""`python launch/sagemaker_deploy.py`: from a model to an endpoint that is proven to answer as the model does."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.config import cli
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.inference import archive
from dogbreed.inference.archive import Archive
from launch import render
from launch.aws.account import Account, offline_target
from launch.aws.errors import explained
from launch.aws.naming import parse_s3_uri
from launch.aws.pricing import Prices
from launch.aws.validate import check_kinds
from launch.serving import certificates, deploy
from launch.serving.request import split_arguments

HELP = """
Deploys a model to SageMaker: packs it, proves that what was trained is what will be served, makes the endpoint, sends
it an image whose answer is known, and takes everything back if the answer is wrong.

  MODEL            an exported model, the folder of a run, or the model.tar.gz of a training job
  job=NAME         instead of MODEL: a training job on SageMaker, whose model is fetched

  mode=plan        show the exact requests and what they cost; needs no account and no network
  mode=rehearse    carry it out on this machine: S3, SageMaker's own container code, HTTP; needs Java
  mode=submit      send it (default)

What people change most, with the defaults:
  kind=realtime               serverless, async (answers land in S3), or batch input=FOLDER (no endpoint)
  name=...                    of the endpoint: the prefix and the backbone
  update=false                true puts the new model behind the endpoint of that name, without a pause
  expires=...                 2h, 30m, 7d: a tag that python launch/sagemaker_delete.py expired=true goes by
  instance_type=ml.m5.large   instance_count=1, max_count=... for auto scaling
  photo=...                   an image, or a folder of them, to prove and to test it with
  capture=0                   percent of requests and answers to keep

Examples:
  python launch/sagemaker_deploy.py outputs/2026-05-01/10-30-00 mode=plan
  python launch/sagemaker_deploy.py outputs/2026-05-01/10-30-00 mode=rehearse photo=rex.jpg
  python launch/sagemaker_deploy.py model.tar.gz kind=serverless expires=2h sagemaker.role=SageMakerRole

All keys are in conf/sagemaker/default.yaml under endpoint; those of the group sagemaker (role, bucket, region, tags,
encryption, subnets, max_cost) hold too.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return guard(lambda: _main(sys.argv[1:] if argv is None else argv))


def _main(argv: Sequence[str]) -> int:
    names, words = split_arguments(argv)
    modes = {"plan": _plan, "rehearse": _rehearse, "submit": deploy.submit}

    def task(config: dict[str, Any]) -> None:
        check_kinds(config)
        if config["mode"] not in modes:
            raise DogbreedError(f"mode={config['mode']} is unknown; it is one of {', '.join(modes)}.")
        with _model(config, names) as model, archive.assemble(model) as packed:
            modes[config["mode"]](config, model, packed)

    return cli.run(task, prog="python launch/sagemaker_deploy.py MODEL", help=HELP, argv=words)


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


def _plan(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    deployment = deploy.describe_model(config, packed, offline_target(config))
    certificate = certificates.describe(certificates.path_of(model, packed), packed)
    print(render.describe_deployment(config, deployment, Prices(config), certificate))


def _rehearse(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    from launch.rehearsal.serving import rehearse

    rehearse(config, model, packed)


if __name__ == "__main__":
    sys.exit(main())
