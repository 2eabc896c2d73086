"""Plays the part of AWS in a rehearsed deployment: fetches the model from S3 and runs the container that answers."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.data.edge_cases import drawn, oddities
from dogbreed.serving.client import Endpoint, PredictionError
from launch.aws.account import Account
from launch.deploy import Asks
from launch.rehearsal import serving_container
from launch.rehearsal.s3 import LocalS3
from launch.serving.request import Deployment
from launch.serving.smoke_test import check_answer

LOCAL = {"role": "rehearsal", "bucket": None, "kms_key": None}
SAME = 1e-3  # probabilities on this machine, from logits that may differ by 1e-4


class Rehearses(Asks):
    """Tests with all photographs and the odd files of the certificate, against the real container on loopback."""

    poll = 0.1

    def __init__(
        self,
        config: Mapping[str, Any],
        account: Account,
        deployment: Deployment,
        photographs: Mapping[str, bytes],
        certificate: Mapping[str, Any],
        s3: LocalS3,
    ) -> None:
        super().__init__(config, account, deployment, photographs, certificate)
        self.s3 = s3

    def __call__(self, name: str) -> None:
        """Starts the container as the service would, and asks it.

        Raises:
            DogbreedError: It does not start, or does not answer as certified.
        """
        with TemporaryDirectory(prefix="dogbreed-deploy-") as temporary:
            place = Path(temporary)
            self.s3.get(self._model_address(name), place)
            start = time.monotonic()
            variables = self.deployment.request("CreateModel")["PrimaryContainer"]["Environment"]
            with serving_container.running(place / "model.tar.gz", variables=variables) as address:
                print(f"The container took {time.monotonic() - start:.1f} s to load the model: {address}/invocations")
                self._ask(Endpoint(address))
                if self.deployment.kind == "batch":
                    self._answer_batch(Endpoint(address), place / "batch")

    def done(self) -> None:
        """Says what was asked first."""
        answer = self.expected(next(iter(self.photographs.values())))
        if "refused" not in answer:
            print(f"{answer['file']} is {answer['label']}, index {answer['index']} ({answer['probability']:.1%}).")

    def _model_address(self, name: str) -> str:
        """As the service finds it: from the endpoint over its settings to the model."""
        sagemaker = self.account.client("sagemaker")
        if self.deployment.kind == "batch":
            model = self.deployment.request("CreateModel")
            return str(model["PrimaryContainer"]["ModelDataUrl"])
        settings = sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
        (variant,) = sagemaker.describe_endpoint_config(EndpointConfigName=settings)["ProductionVariants"]
        model = sagemaker.describe_model(ModelName=variant["ModelName"])
        return str(model["PrimaryContainer"]["ModelDataUrl"])

    def _answer_batch(self, endpoint: Endpoint, place: Path) -> None:
        """As a transform job does: an answer beside each photograph's name, in S3."""
        job = self.deployment.request("CreateTransformJob")
        output = job["TransformOutput"]["S3OutputPath"]
        self.s3.get(job["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"], place)
        endpoint.most_bytes = job["MaxPayloadInMB"] * 2**20
        failed = []
        files = [file for file in sorted(place.rglob("*")) if file.is_file()]
        for file in files:
            try:
                reply = endpoint.predict(file)
            except PredictionError as error:
                failed.append(f"{file.relative_to(place)}: {error}")
                continue
            finally:
                file.unlink()
            answer = file.with_name(f"{file.name}.out")
            answer.write_text(json.dumps({"predictions": [asdict(guess) for guess in reply.predictions]}))
            self.s3.put(answer, f"{output}/{answer.relative_to(place).as_posix()}")
            print(f"{file.relative_to(place)}: {reply.label} {reply.predictions[0].probability:.1%}")
        if failed:  # SageMaker fails the whole job for one record that it got no answer for
            raise DogbreedError(f"The transform job would fail: {failed[0]}")
        print(f"{len(self.s3.names(output))} answers lie in {output}")

    def _ask(self, endpoint: Endpoint) -> None:
        files = {**self.photographs, "odd/drawn.jpg": drawn()}
        first = next(iter(self.photographs.values()))
        files |= {f"odd/{name}": data for name, data in oddities(first).items()}
        start = time.monotonic()
        refused = asked = 0
        for data in files.values():
            try:
                expected = self.expected(data)
            except AssertionError:
                continue  # the odd files of the certificate were made from another photograph
            check_answer(endpoint, data, expected, SAME)
            asked += 1
            refused += "refused" in expected
        seconds = time.monotonic() - start
        print(
            f"It answers {asked} files as certified, {refused} of them with the reason why not; "
            f"{1000 * seconds / asked:.0f} ms each."
        )


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables of this process for as long as the context lasts."""
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
