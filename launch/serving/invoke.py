"""Invokes an endpoint: through boto3, through the queue of an asynchronous one, or at an address."""

import io
import time
import uuid
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.serving.client import Endpoint, PredictionError, is_address
from launch.aws.account import environment_region
from launch.aws.errors import explained
from launch.aws.naming import parse_s3_uri
from launch.serving.request import LARGE

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
ANSWER_SECONDS = 900  # for a queue; an endpoint that is scaled to nothing has to start first


class Queue:
    """Has the `invoke_endpoint` of boto3's runtime for an endpoint that answers into S3.

    Args:
        runtime: boto3's client of `sagemaker-runtime`.
        s3: boto3's client of `s3`.
        bucket: Gets the images.
        folder: In the bucket.
        poll: Seconds between two looks for the answer.
        owner: Account that has to own the bucket; None for whoever does.
        kms_key: To encrypt the images with; None leaves it to the bucket's own encryption.
    """

    max_bytes = int(LARGE["TS_MAX_REQUEST_SIZE"])

    def __init__(
        self,
        runtime: Any,
        s3: Any,
        bucket: str,
        folder: str,
        poll: float = 1.0,
        owner: str | None = None,
        kms_key: str | None = None,
    ) -> None:
        self.runtime, self.s3, self.bucket, self.folder, self.poll = runtime, s3, bucket, folder, poll
        self.owner = {"ExpectedBucketOwner": owner} if owner else {}
        self.encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        self.exceptions = runtime.exceptions

    def invoke_endpoint(self, *, EndpointName: str, Body: bytes, ContentType: str, Accept: str) -> dict[str, Any]:
        """Put the image into S3, queue it, and wait for the answer.

        Raises:
            PredictionError: The model failed, or there was no answer in time.
        """
        key = f"{self.folder}/requests/{uuid.uuid4()}"
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=Body, **self.encryption, **self.owner)
        try:
            queued = self.runtime.invoke_endpoint_async(
                EndpointName=EndpointName,
                InputLocation=f"s3://{self.bucket}/{key}",
                ContentType=ContentType,
                Accept=Accept,
            )
            deadline = time.monotonic() + ANSWER_SECONDS
            while time.monotonic() < deadline:
                if (answer := self._read(queued["OutputLocation"])) is not None:
                    return {"Body": io.BytesIO(answer)}
                if (failure := self._read(queued.get("FailureLocation"))) is not None:
                    reason = failure.decode("utf-8", "replace")[:300]
                    raise PredictionError(f"{EndpointName} could not answer: {reason}", 500)
                time.sleep(self.poll)
        finally:
            self.s3.delete_object(Bucket=self.bucket, Key=key, **self.owner)
        raise PredictionError(f"{EndpointName} gave no answer within {ANSWER_SECONDS} s.")

    def _read(self, address: str | None) -> bytes | None:
        if not address:
            return None
        bucket, key = parse_s3_uri(address, "OutputLocation")
        try:
            return bytes(self.s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return None


def connect(
    name: str,
    *,
    region: str | None = None,
    endpoint_url: str | None = None,
    queue: str | None = None,
    kms_key: str | None = None,
    profile: str | None = None,
) -> Endpoint:
    """Return a client for an endpoint.

    Args:
        name: Of the endpoint, or the address of a server.
        region: Of the endpoint; None for the environment's.
        endpoint_url: Where boto3 finds it, instead of AWS.
        queue: For kind=async: the folder of its images, s3://...
        kms_key: To encrypt those images with; None leaves it to the bucket.
        profile: Of the AWS configuration; None for the environment's.

    Raises:
        DogbreedError: No region is set, or `queue` is no folder in S3.
    """
    if is_address(name):
        return Endpoint(name)
    import boto3

    with explained("reading the AWS configuration"):
        session = boto3.Session(region_name=region or environment_region(profile), profile_name=profile)
        if not session.region_name:
            raise DogbreedError("No AWS region is set; give --region us-east-1 (or another), or AWS_REGION.")
        runtime = session.client("sagemaker-runtime", endpoint_url=endpoint_url)
        if queue:
            bucket, folder = parse_s3_uri(queue, "--queue")
            owner = session.client("sts").get_caller_identity()["Account"]  # a bucket of another's gets no images
            folder = folder.strip("/") or "queue"
            runtime = Queue(runtime, session.client("s3"), bucket, folder, owner=owner, kms_key=kms_key)
    return Endpoint(name, runtime)
