"""Tests an endpoint with images whose answers are known from the model's certificate."""

import json
import math
from collections.abc import Mapping
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.schema import certainty_fields
from dogbreed.serving.client import Endpoint, PredictionError
from launch.aws.account import Account, elsewhere
from launch.aws.errors import explained
from launch.aws.naming import prefix
from launch.aws.pricing import Prices
from launch.serving import certificates
from launch.serving.cost import hourly
from launch.serving.invoke import Queue
from launch.serving.request import Deployment

CERTAINTY = ("set", "abstain", "in_domain")
TOLERANCE = 0.01  # by which probabilities may differ between machines: other processors, other versions of torch


class EndpointProbe:
    """Tests an endpoint with an image whose answer is known.

    Args:
        config: A composed configuration.
        account: That the endpoint is in.
        deployment: That made it.
        images: Files' bytes by name.
        certificate: That knows them.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        account: Account,
        deployment: Deployment,
        images: Mapping[str, bytes],
        certificate: Mapping[str, Any],
    ) -> None:
        self.config, self.account, self.deployment = config, account, deployment
        self.images, self.certificate = images, certificate

    def __call__(self, name: str) -> None:
        """Test the endpoint of this name.

        Raises:
            DogbreedError: It does not answer as certified.
        """
        if self.deployment.kind == "batch":
            output = self.deployment.request("CreateTransformJob")["TransformOutput"]["S3OutputPath"]
            print(f"Done: an answer for each image lies in {output}")
            return
        runtime = self.account.client("sagemaker-runtime")
        if self.deployment.kind == "async":
            s3, bucket, folder = self.account.client("s3"), self.account.target.bucket, f"{prefix(self.config)}/queue"
            keys = {"owner": self.account.account, "kms_key": self.config["sagemaker"]["kms_key"]}
            runtime = Queue(runtime, s3, bucket, folder, **keys)
        check_answer(Endpoint(name, runtime), self.image, self.expected(self.image))

    @property
    def image(self) -> bytes:
        """The first image's bytes."""
        return next(iter(self.images.values()))

    def expected(self, image: bytes) -> dict[str, Any]:
        """Return what the certificate says of an image."""
        answer = certificates.expected(self.certificate, image)
        assert answer is not None, "the certificate was made with it"
        return answer

    def report(self) -> None:
        """Say what was tested, and what to do next."""
        answer, name = self.expected(self.image), self.deployment.name
        result = f"is {answer['label']} ({answer['probability']:.1%})" if "label" in answer else "cannot be read"
        print(f"It answers as certified: {answer['file']} {result}.")
        region = self.account.target.region
        flag, key = (f" --region {region}", f" sagemaker.region={region}") if elsewhere(region) else ("", "")
        hour = hourly(self.config, self.deployment.kind, Prices(self.config))
        cost = "" if hour is None else f"   (${hour:.3f} per hour until then)"
        print(f"Use it:     python launch/sagemaker_invoke.py {name} PHOTO...{flag}")
        print(f"Delete it:  python launch/sagemaker_delete.py {name}{key}{cost}")


def check_answer(endpoint: Endpoint, image: bytes, expected: Mapping[str, Any], tolerance: float = TOLERANCE) -> None:
    """Send an image whose answer is known.

    Args:
        endpoint: To test.
        image: The file's bytes.
        expected: The certificate's entry for it.
        tolerance: By how much the probability may differ; `set`, `abstain` and `in_domain` may where they hang on less.

    Raises:
        DogbreedError: The answer is another one, or there is none.
    """
    name = expected["file"]
    try:
        with explained(f"invoking {endpoint.name}"):
            reply = endpoint.predict(image, top_k=1)
    except PredictionError as error:
        if "refused" in expected and error.status == 400:
            return
        raise DogbreedError(f"The endpoint did not answer for {name}: {error}") from error
    best = reply.predictions[0]
    if "refused" in expected:
        raise DogbreedError(
            f"The endpoint answers {best.label} for {name}, which cannot be read ({expected['refused']})."
        )
    label, index, probability = expected["label"], expected["index"], expected["probability"]
    if (best.label, best.index) != (label, index) or abs(best.probability - probability) > tolerance:
        raise DogbreedError(
            f"The endpoint says {best.label} ({best.index}, {best.probability:.1%}) for {name}, and the certificate "
            f"{label} ({index}, {probability:.1%})."
        )
    said, right = certainty_fields(reply), {field: expected[field] for field in CERTAINTY if field in expected}
    if said != right and expected.get("margin", math.inf) > tolerance:
        raise DogbreedError(f"The endpoint says {_plain(said)} for {name}, and the certificate {_plain(right)}.")


def _plain(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{field}={json.dumps(value)}" for field, value in fields.items()) or "nothing of how sure it is"
