"""Asking an endpoint: through boto3, through the queue of an asynchronous one, or at an address."""

import io
import time
import uuid
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dogbreed.core.errors import DogbreedError
from dogbreed.serving.client import Endpoint, PredictionError
from launch.aws.errors import explained
from launch.serving.request import LARGE

ANSWER_SECONDS = 900  # for a queue; an endpoint that is scaled to nothing has to start first
SAME = 0.01  # probabilities may differ by so much between machines: other processors, other versions of torch


class Queue:
    """Has the `invoke_endpoint` of boto3's runtime for an endpoint that answers into S3.

    Args:
        runtime: boto3's client of `sagemaker-runtime`.
        s3: boto3's client of `s3`.
        bucket: Where the photographs are put.
        folder: In the bucket.
        poll: Seconds between two looks for the answer.
    """

    most_bytes = int(LARGE["TS_MAX_REQUEST_SIZE"])

    def __init__(self, runtime: Any, s3: Any, bucket: str, folder: str, poll: float = 1.0) -> None:
        self.runtime, self.s3, self.bucket, self.folder, self.poll = runtime, s3, bucket, folder, poll
        self.exceptions = runtime.exceptions

    def invoke_endpoint(self, *, EndpointName: str, Body: bytes, ContentType: str, Accept: str) -> dict[str, Any]:
        """Puts the photograph into S3, queues it, and waits for the answer.

        Raises:
            PredictionError: The model failed, or there was no answer in time.
        """
        key = f"{self.folder}/asked/{uuid.uuid4()}"
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=Body)
        told = self.runtime.invoke_endpoint_async(
            EndpointName=EndpointName,
            InputLocation=f"s3://{self.bucket}/{key}",
            ContentType=ContentType,
            Accept=Accept,
        )
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            while time.monotonic() < deadline:
                if (answer := self._read(told["OutputLocation"])) is not None:
                    return {"Body": io.BytesIO(answer)}
                if (failure := self._read(told.get("FailureLocation", ""))) is not None:
                    reason = failure.decode("utf-8", "replace")[:300]
                    raise PredictionError(f"{EndpointName} could not answer: {reason}", 500)
                time.sleep(self.poll)
        finally:
            self.s3.delete_object(Bucket=self.bucket, Key=key)
        raise PredictionError(f"{EndpointName} gave no answer within {ANSWER_SECONDS} s.")

    def _read(self, address: str) -> bytes | None:
        parts = urlsplit(address)
        if not parts.netloc:
            return None
        try:
            return bytes(self.s3.get_object(Bucket=parts.netloc, Key=parts.path.lstrip("/"))["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return None


def check_answer(endpoint: Endpoint, photograph: bytes, expected: Mapping[str, Any], same: float = SAME) -> None:
    """Asks for a photograph whose answer is known from the certificate.

    Args:
        endpoint: To ask.
        photograph: The file's bytes.
        expected: The entry of the certificate.
        same: By how much the probability may differ.

    Raises:
        DogbreedError: It answers something else, or nothing.
    """
    name = expected["file"]
    try:
        with explained(f"asking {endpoint.name}"):
            best = endpoint.predict(photograph, top_k=1).predictions[0]
    except PredictionError as error:
        if "refused" in expected and error.status == 400:
            return
        raise DogbreedError(f"The endpoint did not answer for {name}: {error}") from error
    if "refused" in expected:
        raise DogbreedError(
            f"The endpoint answers {best.label} for {name}, which cannot be read ({expected['refused']})."
        )
    wanted = (expected["label"], expected["index"], expected["probability"])
    if (best.label, best.index) != wanted[:2] or abs(best.probability - wanted[2]) > same:
        raise DogbreedError(
            f"The endpoint says {best.label} ({best.index}, {best.probability:.1%}) for {name}, and the certificate "
            f"{wanted[0]} ({wanted[1]}, {wanted[2]:.1%})."
        )
