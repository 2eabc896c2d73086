"""Plays the part of AWS in a rehearsed deployment: fetches the model from S3 and runs the container that answers."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.data.edge_cases import drawn, edge_case_files
from dogbreed.inference.archive import Archive
from dogbreed.inference.schema import certainty_fields
from dogbreed.serving.client import Endpoint, PredictionError
from launch.aws.account import Account, environment_region
from launch.aws.images import has_toolkit
from launch.rehearsal import s3, serving_container
from launch.rehearsal.s3 import LocalS3
from launch.serving import certificates, deploy
from launch.serving.delete import delete_endpoint
from launch.serving.smoke_test import EndpointProbe, check_answer

LOCAL = {"role": "rehearsal", "bucket": None, "kms_key": None}
TOLERANCE = 1e-3  # of probabilities on this machine, from logits that may differ by 1e-4


def rehearse(config: Mapping[str, Any], model: Path, archive: Archive) -> None:
    """Carry a deployment out on this machine.

    Args:
        config: A composed configuration.
        model: As the person gave it.
        archive: Of the model.

    Raises:
        DogbreedError: No Java; the model is not certified, or the container does not answer as certified.
    """
    if not config["sagemaker"]["endpoint"]["image"] or has_toolkit(config["sagemaker"]["endpoint"]["image"]):
        serving_container.check_java()
    images, paths = deploy.read_images(config)
    region = config["sagemaker"]["region"] or environment_region() or "us-east-1"
    here = {**config, "sagemaker": {**config["sagemaker"], **LOCAL, "region": region}}
    with s3.serve(region) as store, _environment(store.variables()):
        account = Account(here)
        store.make_bucket(account.target.bucket)
        deployment = deploy.describe_model(here, archive, account.with_role())
        certificate = certificates.certify(model, archive, images, paths, deployment.archive)
        probe = RehearsalProbe(here, account, deployment, images, certificate)
        probe.store = store
        deploy.carry_out(here, deployment, account, probe)
        if deployment.kind != "batch":
            delete_endpoint(account, deployment.name)
    print("Rehearsed and cleaned up.")


class RehearsalProbe(EndpointProbe):
    """Tests with all images and the edge cases of the certificate, against the real container on loopback.

    Attributes:
        store: Where the requests' addresses lead; to be set before it is called.
    """

    store: LocalS3

    def __call__(self, name: str) -> None:
        """Start the container as the service would, and test it.

        Raises:
            DogbreedError: It does not start, or does not answer as certified.
        """
        with TemporaryDirectory(prefix="dogbreed-deploy-") as temporary:
            folder = Path(temporary)
            self.store.get(self._model_address(name), folder)
            start = time.monotonic()
            with self._container(folder / "model.tar.gz") as address:
                print(f"The container took {time.monotonic() - start:.1f} s to load the model: {address}/invocations")
                self._check_all(Endpoint(address))
                if self.deployment.kind == "batch":
                    self._answer_batch(Endpoint(address), folder / "batch")

    def _container(self, archive: Path) -> AbstractContextManager[str]:
        """Return what the deployment's image starts: AWS's toolkit, or the server of launch/Dockerfile."""
        container = self.deployment.request("CreateModel")["PrimaryContainer"]
        if has_toolkit(container["Image"]):
            return serving_container.running(archive, variables=container["Environment"])
        print("An image that is not AWS's: python -m dogbreed.serve plays its part, as in that of launch/Dockerfile.")
        return serving_container.running_own(archive)

    def report(self) -> None:
        """Say what the first answer was."""
        answer = self.expected(self.image)
        if "refused" not in answer:
            print(f"{answer['file']} is {answer['label']}, index {answer['index']} ({answer['probability']:.1%}).")

    def _model_address(self, name: str) -> str:
        """Find it as the service does: from the endpoint over its settings to the model."""
        model = self.deployment.request("CreateModel")
        if self.deployment.kind != "batch":
            sagemaker = self.account.client("sagemaker")
            settings = sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
            (variant,) = sagemaker.describe_endpoint_config(EndpointConfigName=settings)["ProductionVariants"]
            model = sagemaker.describe_model(ModelName=variant["ModelName"])
        return str(model["PrimaryContainer"]["ModelDataUrl"])

    def _answer_batch(self, endpoint: Endpoint, folder: Path) -> None:
        """Do as a transform job does: write an answer beside each image's name, in S3."""
        job = self.deployment.request("CreateTransformJob")
        output = job["TransformOutput"]["S3OutputPath"]
        self.store.get(job["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"], folder)
        endpoint.max_bytes = job["MaxPayloadInMB"] * 2**20
        for file in [file for file in sorted(folder.rglob("*")) if file.is_file()]:
            name = file.relative_to(folder).as_posix()
            try:
                reply = endpoint.predict(file)
            except PredictionError as error:  # SageMaker fails the whole job for one record that it got no answer for
                raise DogbreedError(f"The transform job would fail: {name}: {error}") from error
            answer = file.with_name(f"{file.name}.out")
            content = {"predictions": [asdict(score) for score in reply.predictions]}
            answer.write_text(json.dumps(content | certainty_fields(reply)))
            self.store.put(answer, f"{output}/{name}.out")
            print(f"{name}: {reply.label} {reply.predictions[0].probability:.1%}")
        print(f"{len(self.store.names(output))} answers lie in {output}")

    def _check_all(self, endpoint: Endpoint) -> None:
        files = {**self.images, "odd/drawn.jpg": drawn()}
        files |= {f"odd/{name}": data for name, data in edge_case_files(self.image).items()}
        # The edge cases of a certificate that was made from another image are not known to it.
        answers = [(data, certificates.expected(self.certificate, data)) for data in files.values()]
        known = [(data, answer) for data, answer in answers if answer is not None]
        start = time.monotonic()
        for data, answer in known:
            check_answer(endpoint, data, answer, TOLERANCE)
        milliseconds = 1000 * (time.monotonic() - start) / len(known)
        refused = sum("refused" in answer for _, answer in known)
        verb = "is" if refused == 1 else "are"
        print(
            f"It answers {len(known)} files as certified, {milliseconds:.0f} ms per file; {refused} of them {verb} "
            "refused, as certified."
        )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process for as long as the context lasts."""
    before = {name: os.environ.get(name) for name in (*variables, "AWS_PROFILE", "AWS_SESSION_TOKEN")}
    os.environ.pop("AWS_PROFILE", None)
    os.environ.pop("AWS_SESSION_TOKEN", None)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
