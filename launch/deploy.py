"""`sagemaker_deploy.py`: from a model to an endpoint that is proven to answer as the model does."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.config import cli
from dogbreed.config.compose import known_keys
from dogbreed.config.overrides import split
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.data.edge_cases import drawn
from dogbreed.inference import archive
from dogbreed.inference.archive import Archive
from dogbreed.inference.manifest import read_manifest
from dogbreed.serving.client import Endpoint
from launch import render_deployment as plan
from launch.aws.account import Account, elsewhere, environment_region, inference_image
from launch.aws.errors import explained
from launch.aws.naming import Place, place, prefix, split_s3
from launch.aws.pricing import Prices
from launch.aws.settings import check_kinds
from launch.serving import certificates, delete
from launch.serving.endpoints import PHOTOGRAPHS, POLL_SECONDS, Deployer
from launch.serving.request import Deployment, describe
from launch.serving.smoke_test import Queue, check_answer

MODES = ("plan", "rehearse", "submit")

HELP = """
Deploys a model to SageMaker: packs it, proves that what was trained is what will be served, makes the endpoint, asks it
for a photograph whose answer is known, and takes everything back if it answers wrongly.

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
  photo=...                   a photograph, or a folder of them, to prove and to test it with
  capture=0                   percent of requests and answers to keep

Examples:
  python launch/sagemaker_deploy.py outputs/2026-05-01/10-30-00 mode=plan
  python launch/sagemaker_deploy.py outputs/2026-05-01/10-30-00 mode=rehearse photo=rex.jpg
  python launch/sagemaker_deploy.py model.tar.gz kind=serverless expires=2h sagemaker.role=SageMakerRole

All keys are in conf/sagemaker/default.yaml under endpoint; those of the group sagemaker (role, bucket, region, tags,
encryption, subnets, max_cost) hold too.
"""


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return guard(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    positional, words = arguments(argv)

    def task(config: dict[str, Any]) -> None:
        check_kinds(config)
        if config["mode"] not in MODES:
            raise DogbreedError(f"mode={config['mode']} is unknown; it is one of {', '.join(MODES)}.")
        way = {"plan": _plan, "rehearse": _rehearse, "submit": _submit}[config["mode"]]
        with _model(config, positional) as model, archive.assemble(model) as packed:
            way(config, model, packed)

    return cli.run(task, prog="python launch/sagemaker_deploy.py MODEL", help=HELP, argv=words)


def arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """What names a thing, and the rest with the short keys of `sagemaker.endpoint` written in full."""
    group = "sagemaker.endpoint."
    short = {key.removeprefix(group) for key in known_keys() if key.startswith(group)}
    flags, overrides = split([word for word in argv if "=" in word or word.startswith("-")])
    positional = [word for word in argv if "=" not in word and not word.startswith("-")]
    return positional, [*flags, *(f"{group}{w}" if w.partition("=")[0] in short else w for w in overrides)]


@contextmanager
def _model(config: Mapping[str, Any], positional: Sequence[str]) -> Iterator[Path]:
    """The model that is meant: a path, or what a training job has left in S3."""
    if len(positional) + bool(config["job"]) != 1:
        raise DogbreedError("Give one model: python launch/sagemaker_deploy.py MODEL, or job=NAME; see --help.")
    if positional:
        yield Path(positional[0])
        return
    account = Account(config)
    with explained(f"looking for the training job {config['job']}"):
        told = account.client("sagemaker").describe_training_job(TrainingJobName=config["job"])
    address = told.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    if not address:
        raise DogbreedError(f"The training job {config['job']} has left no model; it is {told['TrainingJobStatus']}.")
    bucket, key = split_s3(address, "job")
    with TemporaryDirectory(prefix="dogbreed-deploy-") as folder:
        file = Path(folder) / "model.tar.gz"
        with explained(f"fetching {address}"):
            account.client("s3").download_file(bucket, key, str(file))
        yield file


def _plan(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    where = place(config, environment_region(), None, None)
    deployment = _described(config, packed, where)
    certificate = certificates.told(packed, certificates.place(model, packed))
    print(plan.describe(config, deployment, Prices(config), certificate))


def _submit(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    photographs, paths = _photographs(config)
    account = Account(config)
    deployment = _described(config, packed, account.with_role())
    plan.check_cost(config, deployment, Prices(config))
    certificate = certificates.certify(model, packed, photographs, paths)
    _carry_out(config, deployment, account, Asks(config, account, deployment, photographs, certificate))


def _rehearse(config: Mapping[str, Any], model: Path, packed: Archive) -> None:
    from launch.rehearsal import s3, serving_container
    from launch.rehearsal.serving import LOCAL, Rehearses, environment

    serving_container.check_java()
    photographs, paths = _photographs(config)
    certificate = certificates.certify(model, packed, photographs, paths)
    region = config["sagemaker"]["region"] or environment_region() or "us-east-1"
    here = {**config, "sagemaker": {**config["sagemaker"], **LOCAL, "region": region}}
    with s3.serve(region) as store, environment(store.variables()):
        account = Account(here)
        store.make_bucket(account.place.bucket)
        deployment = _described(here, packed, account.with_role())
        _carry_out(here, deployment, account, Rehearses(here, account, deployment, photographs, certificate, store))
        if deployment.kind != "batch":
            delete.delete(account, deployment.name)
    print("Rehearsed: nothing of it is left.")


def _described(config: Mapping[str, Any], packed: Archive, where: Place) -> Deployment:
    backbone = str(read_manifest(packed.folder)["backbone"])
    return describe(config, packed, backbone, where, inference_image(config, where.region), datetime.now(UTC))


def _carry_out(config: Mapping[str, Any], deployment: Deployment, account: Account, test: "Asks") -> None:
    deployer = Deployer(account, test, kms_key=config["sagemaker"]["kms_key"], poll=test.poll)
    if deployment.kind == "batch":
        deployer.batch(deployment)
        test(deployment.name)
        return
    replaced = deployer.deploy(deployment, update=config["sagemaker"]["endpoint"]["update"])
    if replaced:
        delete.delete_unused(account, replaced)
    test.done()


def _photographs(config: Mapping[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """What to test with, by name, and the paths among them."""
    given = config["sagemaker"]["endpoint"]["photo"]
    if given is None:
        return {"odd/drawn.jpg": drawn()}, []
    path = Path(str(given))
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [file for file in files if file.is_file() and file.suffix.lower() in PHOTOGRAPHS]
    if not found:
        raise DogbreedError(f"photo={given} is no photograph, nor a folder of them.")
    return {str(file): file.read_bytes() for file in found}, [str(file) for file in found]


class Asks:
    """Tests an endpoint with a photograph whose answer is known.

    Args:
        config: A composed configuration.
        account: Where it is.
        deployment: That it came from.
        photographs: By name.
        certificate: That knows them.
    """

    poll = POLL_SECONDS

    def __init__(
        self,
        config: Mapping[str, Any],
        account: Account,
        deployment: Deployment,
        photographs: Mapping[str, bytes],
        certificate: Mapping[str, Any],
    ) -> None:
        self.config, self.account, self.deployment = config, account, deployment
        self.photographs, self.certificate = photographs, certificate

    def __call__(self, name: str) -> None:
        """Asks the endpoint of this name.

        Raises:
            DogbreedError: It does not answer as certified.
        """
        if self.deployment.kind == "batch":
            output = self.deployment.request("CreateTransformJob")["TransformOutput"]["S3OutputPath"]
            print(f"Done: an answer for each photograph lies in {output}")
            return
        runtime = self.account.client("sagemaker-runtime")
        if self.deployment.kind == "async":
            bucket = self.account.place.bucket
            runtime = Queue(runtime, self.account.client("s3"), bucket, f"{prefix(self.config)}/queue")
        data = next(iter(self.photographs.values()))
        check_answer(Endpoint(name, runtime), data, self.expected(data))

    def expected(self, photograph: bytes) -> dict[str, Any]:
        """What the certificate says."""
        answer = certificates.expected(self.certificate, photograph)
        assert answer is not None, "the certificate was made with it"
        return answer

    def done(self) -> None:
        """Says what was tested, and what to do next."""
        answer = self.expected(next(iter(self.photographs.values())))
        told = f"is {answer['label']} ({answer['probability']:.1%})" if "label" in answer else "cannot be read"
        hour = plan.hourly(self.config, self.deployment.kind, Prices(self.config))
        print(f"It answers as certified: {answer['file']} {told}.")
        region = self.account.place.region
        asked, deleted = (f" --region {region}", f" sagemaker.region={region}") if elsewhere(region) else ("", "")
        print(f"Ask it:     python launch/sagemaker_invoke.py {self.deployment.name} PHOTO...{asked}")
        cost = "" if hour is None else f"   (${hour:.3f} an hour until then)"
        print(f"Delete it:  python launch/sagemaker_delete.py {self.deployment.name}{deleted}{cost}")
