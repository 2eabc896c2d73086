"""One description of a deployment, made from the configuration and a model: the exact requests, in their order.

`mode=plan` prints it, `mode=rehearse` carries it out here, `mode=submit` sends it. Names come from the content: the
same model on the same machines has the same names, so that what is there already is neither uploaded nor made twice.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.core.version import __version__
from dogbreed.inference.archive import CODE, HANDLERS, REQUIREMENTS, Archive
from dogbreed.inference.manifest import WEIGHTS
from launch.aws.naming import Place, prefix, split_s3, tags
from launch.aws.validate import check_request

KINDS = ("realtime", "serverless", "async", "batch")
VARIANT = "AllTraffic"
EXPIRES = "expires"  # the tag
SCALING = "application-autoscaling"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
# TorchServe takes 6.5 MB at most unless told otherwise (its max_request_size), as InvokeEndpoint does; the others take
# more.
LARGE = {"TS_MAX_REQUEST_SIZE": "100000000", "TS_MAX_RESPONSE_SIZE": "100000000"}
PAYLOADS_MB = 100  # of a transform job: MaxPayloadInMB times MaxConcurrentTransforms may be so much
_SPAN = re.compile(r"(\d{1,6})\s*([mhd])")


class Step(NamedTuple):
    """One call.

    Attributes:
        service: As boto3 names it.
        operation: Such as `CreateModel`.
        request: Its parameters.
    """

    service: str
    operation: str
    request: dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """What will be asked of AWS.

    Attributes:
        kind: realtime, serverless, async or batch.
        name: Of the endpoint, or of the transform job.
        archive: What is uploaded to `model_uri`.
        model_uri: Address of the model's archive.
        steps: The calls, in their order; an update sends UpdateEndpoint in place of CreateEndpoint.
        place: Where.
        photographs: Local folder that is uploaded to the input of a batch; None where it is in S3 already.
    """

    kind: str
    name: str
    archive: Archive
    model_uri: str
    steps: tuple[Step, ...]
    place: Place
    photographs: Path | None = None

    def request(self, operation: str) -> dict[str, Any]:
        """The parameters of one of the calls."""
        return next(step.request for step in self.steps if step.operation == operation)


def describe(
    config: Mapping[str, Any], archive: Archive, backbone: str, place: Place, image: str, now: datetime
) -> Deployment:
    """The deployment that a configuration asks for, checked against the service's own model.

    Args:
        config: A composed configuration.
        archive: Of the model.
        backbone: Of the model, for the name.
        place: Where it runs.
        image: Address of the inference image.
        now: In UTC; what expires counts from it.

    Raises:
        DogbreedError: Something in it cannot be.
    """
    wanted = config["sagemaker"]["endpoint"]
    if wanted["kind"] not in KINDS:
        raise DogbreedError(f"kind={wanted['kind']} is unknown; it is one of {', '.join(KINDS)}.")
    steps = _Steps(config, archive, backbone, place, image, now)
    calls = steps.batch() if wanted["kind"] == "batch" else steps.endpoint()
    for call in calls:
        check_request(call.operation, call.request, call.service)
    local = steps.photographs if wanted["kind"] == "batch" else None
    return Deployment(wanted["kind"], steps.name, archive, steps.model_uri, calls, place, local)


class _Steps:
    """Puts the requests together."""

    def __init__(
        self, config: Mapping[str, Any], archive: Archive, backbone: str, place: Place, image: str, now: datetime
    ) -> None:
        self.cloud = config["sagemaker"]
        self.wanted = self.cloud["endpoint"]
        self.archive, self.place, self.image, self.now = archive, place, image, now
        self.folder = f"s3://{place.bucket}/{prefix(config)}"
        self.model_uri = f"{self.folder}/models/{archive.digest[:16]}/model.tar.gz"
        self.base = self.wanted["name"] or re.sub(r"[^a-zA-Z0-9]+", "-", f"{prefix(config)}-{backbone}").strip("-")
        # A batch is a job, whose name has to be new.
        self.name = f"{self.base[:47]}-{now:%Y%m%d-%H%M%S}" if self.wanted["kind"] == "batch" else self.base
        self.photographs: Path | None = None
        self.tags = [
            *tags(config),
            {"Key": "dogbreed-version", "Value": __version__},
            {"Key": "dogbreed-weights", "Value": archive.digests[WEIGHTS][:16]},
        ]
        if self.wanted["expires"]:
            self.tags.append({"Key": EXPIRES, "Value": stamp(now + span(self.wanted["expires"]))})

    def endpoint(self) -> tuple[Step, ...]:
        model = self._model()
        settings = self._settings(str(model.request["ModelName"]))
        name = settings.request["EndpointConfigName"]
        create = {"EndpointName": self.name, "EndpointConfigName": name, "Tags": self.tags}
        return (model, settings, Step("sagemaker", "CreateEndpoint", create), *self._scaling())

    def batch(self) -> tuple[Step, ...]:
        model = self._model()
        return (model, self._transform(str(model.request["ModelName"])))

    def _model(self) -> Step:
        container = {
            "Image": self.image,
            "ModelDataUrl": self.model_uri,
            "Environment": {
                "SAGEMAKER_PROGRAM": HANDLERS,
                "SAGEMAKER_SUBMIT_DIRECTORY": f"/opt/ml/model/{CODE}",
                "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
                "SAGEMAKER_REGION": self.place.region,
                "SAGEMAKER_MODEL_SERVER_WORKERS": str(_whole("workers", self.wanted["workers"], 1, 64)),
                **(LARGE if self.wanted["kind"] in ("async", "batch") else {}),
            },
        }
        request: dict[str, Any] = {"PrimaryContainer": container, "ExecutionRoleArn": self.place.role}
        if self.cloud["isolate"] and not self.wanted["image"]:
            raise DogbreedError(
                f"sagemaker.isolate: AWS's inference image may lack {', '.join(REQUIREMENTS)}, which the container "
                "fetches when it starts; give image=ADDRESS of one that has them."
            )
        if self.cloud["isolate"]:
            request["EnableNetworkIsolation"] = True
        if self.cloud["subnets"]:
            if self.wanted["kind"] == "serverless":
                raise DogbreedError("sagemaker.subnets cannot go with kind=serverless, which SageMaker runs in no VPC.")
            groups = {"Subnets": self.cloud["subnets"], "SecurityGroupIds": self.cloud["security_groups"]}
            request["VpcConfig"] = groups
        return Step("sagemaker", "CreateModel", {**self._named("ModelName", request), "Tags": self.tags})

    def _settings(self, model: str) -> Step:
        kind, wanted = self.wanted["kind"], self.wanted
        variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model}
        if kind == "serverless":
            memory = wanted["memory_mb"]
            if memory not in range(1024, 6145, 1024):
                raise DogbreedError(f"memory_mb={memory} is out of range; it is 1024 to 6144 in steps of 1024.")
            variant["ServerlessConfig"] = {"MemorySizeInMB": memory, "MaxConcurrency": wanted["concurrency"]}
        else:
            variant |= {
                "InstanceType": wanted["instance_type"],
                "InitialInstanceCount": _whole("instance_count", wanted["instance_count"], 1, 100),
                "InitialVariantWeight": 1.0,
                # The packages of code/requirements.txt are fetched and the weights read before it is healthy.
                "ContainerStartupHealthCheckTimeoutInSeconds": 600,
            }
        request: dict[str, Any] = {"ProductionVariants": [variant]}
        if kind == "async":
            answers = str(wanted["output"] or f"{self.folder}/answers/{self.name}").rstrip("/")
            # Without a place for them failures are lost, and whoever asked waits for an answer that never comes.
            output: dict[str, Any] = {"S3OutputPath": answers, "S3FailurePath": f"{answers}/failed"}
            if self.cloud["kms_key"]:
                output["KmsKeyId"] = self.cloud["kms_key"]
            at_a_time = {"MaxConcurrentInvocationsPerInstance": wanted["concurrency"]}
            request["AsyncInferenceConfig"] = {"ClientConfig": at_a_time, "OutputConfig": output}
        if percent := _whole("capture", wanted["capture"], 0, 100):
            if kind in ("serverless", "async"):
                raise DogbreedError(f"capture={percent} cannot go with kind={kind}: SageMaker captures realtime alone.")
            request["DataCaptureConfig"] = {
                "EnableCapture": True,
                "InitialSamplingPercentage": percent,
                "DestinationS3Uri": f"{self.folder}/captured/{self.name}",
                "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            }
        if self.cloud["volume_kms_key"] and kind != "serverless":
            request["KmsKeyId"] = self.cloud["volume_kms_key"]
        return Step(
            "sagemaker", "CreateEndpointConfig", {**self._named("EndpointConfigName", request), "Tags": self.tags}
        )

    def _scaling(self) -> tuple[Step, ...]:
        most, least = self.wanted["max_count"], self.wanted["instance_count"]
        if most is None:
            return ()
        if self.wanted["kind"] == "serverless":
            raise DogbreedError("max_count cannot go with kind=serverless, which grows by itself up to concurrency.")
        _whole("max_count", most, least, 1000)
        what = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{self.name}/variant/{VARIANT}",
            "ScalableDimension": DIMENSION,
        }
        # Requests a minute, averaged; a queue has its own measure.
        metric: dict[str, Any] = {
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        }
        if self.wanted["kind"] == "async":
            metric = {
                "CustomizedMetricSpecification": {
                    "MetricName": "ApproximateBacklogSizePerInstance",
                    "Namespace": "AWS/SageMaker",
                    "Dimensions": [{"Name": "EndpointName", "Value": self.name}],
                    "Statistic": "Average",
                }
            }
        policy = {
            **what,
            "PolicyName": f"{self.name}-requests",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": {
                "TargetValue": float(_whole("target", self.wanted["target"], 1, 100_000)),
                "ScaleInCooldown": 300,
                "ScaleOutCooldown": 60,
                **metric,
            },
        }
        limits = {**what, "MinCapacity": least, "MaxCapacity": most}
        return Step(SCALING, "RegisterScalableTarget", limits), Step(SCALING, "PutScalingPolicy", policy)

    def _transform(self, model: str) -> Step:
        wanted = self.wanted
        if not wanted["input"]:
            raise DogbreedError("kind=batch needs input=FOLDER, with photographs, here or s3://.")
        source = str(wanted["input"])
        if not source.startswith("s3://"):
            self.photographs = Path(source)
            if not self.photographs.is_dir():
                raise DogbreedError(f"input={source} is no folder; give one with photographs, here or s3://.")
            source = f"{self.folder}/batches/{self.name}/photographs"
        split_s3(source, "input")
        at_a_time = _whole("concurrency", wanted["concurrency"], 1, 100)
        output: dict[str, Any] = {
            "S3OutputPath": wanted["output"] or f"{self.folder}/batches/{self.name}/answers",
            "Accept": "application/json",
            "AssembleWith": "None",
        }
        resources = {"InstanceType": wanted["instance_type"], "InstanceCount": wanted["instance_count"]}
        request = {
            "TransformJobName": self.name,
            "ModelName": model,
            "MaxConcurrentTransforms": at_a_time,
            "MaxPayloadInMB": min(PAYLOADS_MB // at_a_time, 20),
            "BatchStrategy": "SingleRecord",
            "TransformInput": {
                "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source}},
                "ContentType": "application/x-image",
                "CompressionType": "None",
                "SplitType": "None",
            },
            "TransformOutput": output,
            "TransformResources": resources,
            "Tags": self.tags,
        }
        return Step("sagemaker", "CreateTransformJob", request)

    def _named(self, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """With a name that says what is in it."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
        return {key: f"{self.base[:54]}-{digest}", **request}


def span(text: str) -> timedelta:
    """A span of time as people write it: 30m, 2h, 7d.

    Raises:
        DogbreedError: It is none.
    """
    found = _SPAN.fullmatch(str(text).strip().lower())
    if not found or not int(found[1]):
        raise DogbreedError(f"expires={text} is no span of time; it looks like 30m, 2h or 7d.")
    return timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[found[2]]: int(found[1])})


def stamp(moment: datetime) -> str:
    """A moment as a tag's value."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def _whole(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise DogbreedError(f"{name}={value} is out of range; it is a whole number from {least} to {most}.")
    return value
