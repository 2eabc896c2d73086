"""Describes a deployment, from the configuration and a model: the exact requests, in their order.

`mode=plan` prints them, `mode=rehearse` carries them out here, `mode=submit` sends them. Names come from the content:
the same model on the same machines has the same names, so that what is there is neither uploaded nor made twice.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from dogbreed.config.compose import default_config, known_keys
from dogbreed.config.overrides import split_argv
from dogbreed.core.errors import DogbreedError
from dogbreed.core.version import __version__
from dogbreed.inference.archive import CODE, HANDLERS, Archive
from dogbreed.models.manifest import WEIGHTS
from launch.aws.account import Target, arn_of_role
from launch.aws.naming import parse_s3_uri, prefix, tags
from launch.aws.validate import check_disks, check_request, parse_span
from launch.serving import guardrails, wheels

KINDS = ("realtime", "serverless", "async", "batch")
VARIANT = "AllTraffic"
EXPIRES = "expires"  # the tag
SCALING = "application-autoscaling"
ALARM = "-backlog"  # ends the name of the alarm that wakes an endpoint which is scaled to zero
POLICY_ARN = "arn:of-the-step-policy"  # in a plan: AWS gives it when it makes the policy
# The kinds that read a key; the others refuse it, since they would ignore it.
READ_BY = {
    "workers": ("realtime", "async", "batch"),
    "instance_type": ("realtime", "async", "batch"),
    "instance_count": ("realtime", "async", "batch"),
    "min_count": ("async",),
    "max_count": ("realtime", "async"),
    "target": ("realtime", "async"),
    "capture": ("realtime",),
    "memory_mb": ("serverless",),
    "concurrency": ("serverless", "async", "batch"),
    "input": ("batch",),
    "output": ("async", "batch"),
    "expires": ("realtime", "serverless", "async"),
    "update": ("realtime", "serverless", "async"),
    "scheduler_role": ("realtime", "serverless", "async"),
    **dict.fromkeys(("watch", "canary", "max_errors", "max_latency"), ("realtime",)),
}
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
# TorchServe takes 6.5 MB at most unless set otherwise (its max_request_size), as InvokeEndpoint does; the others take
# more.
LARGE = {"TS_MAX_REQUEST_SIZE": "100000000", "TS_MAX_RESPONSE_SIZE": "100000000"}
PAYLOADS_MB = 100  # of a transform job: MaxPayloadInMB times MaxConcurrentTransforms may be so much


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
        archive: Is uploaded to `model_uri`.
        model_uri: Address of the model's archive.
        steps: The calls, in their order; with `update=true` UpdateEndpoint takes the place of CreateEndpoint where
            there is an endpoint of this name already.
        target: Where it runs.
        images: Local folder that is uploaded as the input of a batch; None where it is in S3 already.
    """

    kind: str
    name: str
    archive: Archive
    model_uri: str
    steps: tuple[Step, ...]
    target: Target
    images: Path | None = None

    @property
    def expires(self) -> bool:
        """Whether the endpoint is to end at a time."""
        return any(tag["Key"] == EXPIRES for tag in self.request("CreateEndpoint")["Tags"])

    def request(self, operation: str) -> dict[str, Any]:
        """Return the parameters of one of the calls."""
        return self.requests(operation)[0]

    def requests(self, operation: str) -> list[dict[str, Any]]:
        """Return the parameters of all calls of one kind."""
        return [step.request for step in self.steps if step.operation == operation]


def describe(
    config: Mapping[str, Any], archive: Archive, backbone: str, target: Target, image: str, now: datetime
) -> Deployment:
    """Describe the deployment that a configuration asks for, checked against the service's own model.

    Args:
        config: A composed configuration.
        archive: Of the model.
        backbone: Of the model, for the name.
        target: Where it runs.
        image: Address of the inference image.
        now: In UTC; what expires counts from it.

    Raises:
        DogbreedError: Something in it cannot be.
    """
    kind = config["sagemaker"]["endpoint"]["kind"]
    _check_kind(config["sagemaker"], kind, target.region)
    if config["sagemaker"]["isolate"] and not config["sagemaker"]["endpoint"]["image"]:
        archive = wheels.carried(archive, image)  # without network nothing can be fetched at the start
    builder = _Builder(config, archive, backbone, target, image, now)
    steps = builder.batch() if kind == "batch" else builder.endpoint()
    for step in steps:
        check_request(step.operation, step.request, step.service)
    return Deployment(kind, builder.name, archive, builder.model_uri, steps, target, builder.images)


def _check_kind(cloud: Mapping[str, Any], kind: str, region: str) -> None:
    """Refuse what a kind of deployment cannot do, or would ignore."""
    if kind not in KINDS:
        raise DogbreedError(f"kind={kind} is unknown; it is one of {', '.join(KINDS)}.")
    defaults = default_config()["sagemaker"]["endpoint"]
    for key, kinds in READ_BY.items():
        if kind not in kinds and cloud["endpoint"][key] != defaults[key]:
            value = cloud["endpoint"][key]
            raise DogbreedError(f"{key}={value} cannot go with kind={kind}; it is for {', '.join(kinds)}.")
    if kind != "serverless":
        check_disks(cloud, cloud["endpoint"]["instance_type"])
    else:
        for key in ("subnets", "volume_kms_key"):
            if cloud[key]:
                raise DogbreedError(
                    f"sagemaker.{key} cannot go with kind=serverless, which SageMaker runs on machines of its own."
                )
        if region.startswith("cn-"):
            raise DogbreedError(f"kind=serverless is not in China's regions ({region}); choose another kind.")


def split_arguments(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into names, and the rest with the short keys of `sagemaker.endpoint` written in full."""
    group = "sagemaker.endpoint."
    short = {key.removeprefix(group) for key in known_keys() if key.startswith(group)}
    flags, overrides = split_argv([word for word in argv if "=" in word or word.startswith("-")])
    names = [word for word in argv if "=" not in word and not word.startswith("-")]
    return names, [*flags, *(f"{group}{w}" if w.partition("=")[0] in short else w for w in overrides)]


def container(options: Mapping[str, Any], image: str, model_uri: Any, region: str) -> dict[str, Any]:
    """Return the container that serves a model.

    Args:
        options: The group `sagemaker.endpoint`.
        image: Address of the inference image.
        model_uri: Address of the model's archive, or what stands for it in a pipeline.
        region: Where it runs.
    """
    return {
        "Image": image,
        "ModelDataUrl": model_uri,
        "Environment": {
            "SAGEMAKER_PROGRAM": HANDLERS,
            "SAGEMAKER_SUBMIT_DIRECTORY": f"/opt/ml/model/{CODE}",
            "SAGEMAKER_CONTAINER_LOG_LEVEL": "20",
            "SAGEMAKER_REGION": region,
            "SAGEMAKER_MODEL_SERVER_WORKERS": str(_whole("workers", options["workers"], 1, 64)),
            **(LARGE if options["kind"] in ("async", "batch") else {}),
        },
    }


class _Builder:
    """Puts the requests together."""

    def __init__(
        self, config: Mapping[str, Any], archive: Archive, backbone: str, target: Target, image: str, now: datetime
    ) -> None:
        self.cloud = config["sagemaker"]
        self.options = self.cloud["endpoint"]
        self.archive, self.target, self.image, self.now = archive, target, image, now
        self.folder = f"s3://{target.bucket}/{prefix(config)}"
        self.model_uri = f"{self.folder}/models/{archive.digest[:16]}/model.tar.gz"
        self.base = self.options["name"] or re.sub(r"[^a-zA-Z0-9]+", "-", f"{prefix(config)}-{backbone}").strip("-")
        # A batch is a job, whose name has to be new.
        self.name = f"{self.base[:47]}-{now:%Y%m%d-%H%M%S}" if self.options["kind"] == "batch" else self.base
        self.images: Path | None = None
        self.tags = [
            *tags(config),
            {"Key": "dogbreed-version", "Value": __version__},
            {"Key": "dogbreed-weights", "Value": archive.digests[WEIGHTS][:16]},
        ]
        if self.options["expires"]:
            self.tags.append({"Key": EXPIRES, "Value": stamp(now + parse_span(self.options["expires"]))})
        if self.options["scheduler_role"]:
            self.tags.append(guardrails.BY_SCHEDULER)

    def endpoint(self) -> tuple[Step, ...]:
        model = self._model()
        settings = self._settings(str(model.request["ModelName"]))
        name = settings.request["EndpointConfigName"]
        create = {"EndpointName": self.name, "EndpointConfigName": name, "Tags": self.tags}
        steps = (model, settings, Step("sagemaker", "CreateEndpoint", create), *self._update(name), *self._scaling())
        return (*steps, *self._schedule())

    def _update(self, settings: str) -> tuple[Step, ...]:
        """Return what is sent in place of CreateEndpoint where there is an endpoint, and the alarms before it."""
        options = self.options
        watch = int(parse_span(options["watch"], "watch").total_seconds()) if options["watch"] else 0
        guardrails.check(options, watch)
        update = {"EndpointName": self.name, "EndpointConfigName": settings}
        if not watch:
            return (Step("sagemaker", "UpdateEndpoint", update),) if options["update"] else ()
        alarms = guardrails.alarms(self.name, VARIANT, options)
        names = [alarm["AlarmName"] for alarm in alarms]
        update["DeploymentConfig"] = guardrails.deployment_config(watch, options["canary"], names)
        return (
            *(Step("cloudwatch", "PutMetricAlarm", alarm) for alarm in alarms),
            Step("sagemaker", "UpdateEndpoint", update),
        )

    def _schedule(self) -> tuple[Step, ...]:
        """Return the schedule that deletes the endpoint when it expires, where that is wanted."""
        role, expires = self.options["scheduler_role"], self.options["expires"]
        if not role:
            return ()
        if not expires:
            raise DogbreedError("scheduler_role says who deletes the endpoint when it expires; give expires=2h too.")
        role = arn_of_role(self.target.region, self.target.account, role, "scheduler_role")
        end = self.now + parse_span(expires)
        return (Step("scheduler", "CreateSchedule", guardrails.schedule(self.name, end, role, self.target.region)),)

    def batch(self) -> tuple[Step, ...]:
        model = self._model()
        return (model, self._transform(str(model.request["ModelName"])))

    def _model(self) -> Step:
        primary = container(self.options, self.image, self.model_uri, self.target.region)
        request: dict[str, Any] = {"PrimaryContainer": primary, "ExecutionRoleArn": self.target.role}
        if self.cloud["isolate"]:
            request["EnableNetworkIsolation"] = True
        if self.cloud["subnets"]:
            groups = {"Subnets": self.cloud["subnets"], "SecurityGroupIds": self.cloud["security_groups"]}
            request["VpcConfig"] = groups
        return Step("sagemaker", "CreateModel", {**self._named("ModelName", request), "Tags": self.tags})

    def _settings(self, model: str) -> Step:
        kind, options = self.options["kind"], self.options
        variant: dict[str, Any] = {"VariantName": VARIANT, "ModelName": model}
        if kind == "serverless":
            memory = options["memory_mb"]
            if memory not in range(1024, 6145, 1024):
                raise DogbreedError(f"memory_mb={memory} is out of range; it is 1024 to 6144 in steps of 1024.")
            variant["ServerlessConfig"] = {"MemorySizeInMB": memory, "MaxConcurrency": options["concurrency"]}
        else:
            variant |= {
                "InstanceType": options["instance_type"],
                "InitialInstanceCount": _whole("instance_count", options["instance_count"], 1, 100),
                "InitialVariantWeight": 1.0,
                # The packages of code/requirements.txt are fetched and the weights read before it is healthy.
                "ContainerStartupHealthCheckTimeoutInSeconds": 600,
            }
        request: dict[str, Any] = {"ProductionVariants": [variant]}
        if kind == "async":
            answers = str(options["output"] or f"{self.folder}/answers/{self.name}").rstrip("/")
            # Without a place for them failures are lost, and whoever asked waits for an answer that never comes.
            output = {"S3OutputPath": answers, "S3FailurePath": f"{answers}/failed", **self._key("KmsKeyId", "kms_key")}
            parallel = {"MaxConcurrentInvocationsPerInstance": options["concurrency"]}
            request["AsyncInferenceConfig"] = {"ClientConfig": parallel, "OutputConfig": output}
        if percent := _whole("capture", options["capture"], 0, 100):
            request["DataCaptureConfig"] = {
                "EnableCapture": True,
                "InitialSamplingPercentage": percent,
                "DestinationS3Uri": f"{self.folder}/captured/{self.name}",
                "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
                **self._key("KmsKeyId", "kms_key"),
            }
        request |= self._key("KmsKeyId", "volume_kms_key")
        return Step(
            "sagemaker", "CreateEndpointConfig", {**self._named("EndpointConfigName", request), "Tags": self.tags}
        )

    def _scaling(self) -> tuple[Step, ...]:
        options, queued = self.options, self.options["kind"] == "async"
        if options["max_count"] is None and options["min_count"] is None:
            return ()
        least = options["instance_count"] if options["min_count"] is None else options["min_count"]
        _whole("min_count", least, 0, options["instance_count"])
        most = options["instance_count"] if options["max_count"] is None else options["max_count"]
        _whole("max_count", most, max(least, 1), 1000)
        scope = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{self.name}/variant/{VARIANT}",
            "ScalableDimension": DIMENSION,
        }
        # Requests per minute, averaged; a queue has its own measure.
        metric: dict[str, Any] = {
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
        }
        if queued:
            backlog = {"MetricName": "ApproximateBacklogSizePerInstance", "Statistic": "Average"}
            metric = {"CustomizedMetricSpecification": {**backlog, **self._endpoint_metric()}}
        policy = {
            **scope,
            "PolicyName": f"{self.name}-requests",
            "PolicyType": "TargetTrackingScaling",
            "TargetTrackingScalingPolicyConfiguration": {
                "TargetValue": float(_whole("target", options["target"], 1, 100_000)),
                "ScaleInCooldown": 300,
                "ScaleOutCooldown": 60,
                **metric,
            },
        }
        limits = {**scope, "MinCapacity": least, "MaxCapacity": most}
        steps = Step(SCALING, "RegisterScalableTarget", limits), Step(SCALING, "PutScalingPolicy", policy)
        return steps if least else (*steps, *self._wake_up(scope))

    def _endpoint_metric(self) -> dict[str, Any]:
        return {"Namespace": "AWS/SageMaker", "Dimensions": [{"Name": "EndpointName", "Value": self.name}]}

    def _wake_up(self, scope: Mapping[str, Any]) -> tuple[Step, Step]:
        """Start an instance where there is none and a request waits: a backlog per instance is then not defined.

        https://docs.aws.amazon.com/sagemaker/latest/dg/async-inference-autoscale.html
        """
        policy = {
            **scope,
            "PolicyName": f"{self.name}-wake-up",
            "PolicyType": "StepScaling",
            "StepScalingPolicyConfiguration": {
                "AdjustmentType": "ChangeInCapacity",
                "MetricAggregationType": "Average",
                "Cooldown": 300,
                "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
            },
        }
        alarm = {
            "AlarmName": f"{self.name}{ALARM}",
            "MetricName": "HasBacklogWithoutCapacity",
            **self._endpoint_metric(),
            "Statistic": "Average",
            "Period": 60,
            "EvaluationPeriods": 2,
            "DatapointsToAlarm": 2,
            "Threshold": 1.0,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            "TreatMissingData": "missing",
            "AlarmActions": [POLICY_ARN],
            "Tags": self.tags,
        }
        return Step(SCALING, "PutScalingPolicy", policy), Step("cloudwatch", "PutMetricAlarm", alarm)

    def _transform(self, model: str) -> Step:
        options = self.options
        if not options["input"]:
            raise DogbreedError("kind=batch needs input=FOLDER, with images, here or s3://.")
        source = str(options["input"])
        if not source.startswith("s3://"):
            self.images = Path(source)
            if not self.images.is_dir():
                raise DogbreedError(f"input={source} is no folder; give one with images, here or s3://.")
            source = f"{self.folder}/batches/{self.name}/images"
        parse_s3_uri(source, "input")
        parallel = _whole("concurrency", options["concurrency"], 1, 100)
        output: dict[str, Any] = {
            "S3OutputPath": options["output"] or f"{self.folder}/batches/{self.name}/answers",
            "Accept": "application/json",
            "AssembleWith": "None",
            **self._key("KmsKeyId", "kms_key"),
        }
        resources = {
            "InstanceType": options["instance_type"],
            "InstanceCount": options["instance_count"],
            **self._key("VolumeKmsKeyId", "volume_kms_key"),
        }
        request = {
            "TransformJobName": self.name,
            "ModelName": model,
            "MaxConcurrentTransforms": parallel,
            "MaxPayloadInMB": min(PAYLOADS_MB // parallel, 20),
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

    def _key(self, field: str, name: str) -> dict[str, str]:
        """Return a field with a KMS key of the configuration, where there is one."""
        return {field: self.cloud[name]} if self.cloud[name] else {}

    def _named(self, key: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the request with a name that says what is in it."""
        digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:8]
        return {key: f"{self.base[:54]}-{digest}", **request}


def stamp(moment: datetime) -> str:
    """Format a moment as a tag's value."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def _whole(name: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise DogbreedError(f"{name}={value} is out of range; it is a whole number from {least} to {most}.")
    return value
