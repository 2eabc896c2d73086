"""The least that each command needs to be allowed, as IAM policies; `launch/policies.py` prints them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws import tracking
from launch.aws.account import Target, arn_of_role
from launch.aws.images import in_ecr
from launch.aws.naming import MARK, features_uri, parse_s3_uri, partition, prefix

Statement = dict[str, Any]

# Of the execution role where jobs run in a VPC; EC2 has no narrower resources for these.
VPC = (
    *("CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface"),
    *("DeleteNetworkInterfacePermission", "DescribeNetworkInterfaces", "DescribeVpcs", "DescribeDhcpOptions"),
    *("DescribeSubnets", "DescribeSecurityGroups"),
)
AWS_IMAGES = ("pytorch", "pytorch-training", "pytorch-inference", "sagemaker-debugger-rules")


class _Names:
    """The ARNs that the policies name."""

    def __init__(self, config: Mapping[str, Any], target: Target) -> None:
        cloud, endpoint = config["sagemaker"], config["sagemaker"]["endpoint"]
        self.partition = partition(target.region)
        self.account = "*" if "account" in target.assumed else target.account
        self.region = "*" if "region" in target.assumed else target.region  # not one that nobody has chosen
        self.prefix = prefix(config)
        self.own = [f"{self.prefix.replace('/', '-')}-*"]  # what names of ours begin with
        self.own += [f"{name}{end}" for name in (cloud["job_name"], endpoint["name"]) if name for end in ("", "-*")]
        bucket = cloud["bucket"] or f"sagemaker-{self.region}-{self.account}"
        self.bucket = f"arn:{self.partition}:s3:::{bucket}"
        self.role = self._arn("iam", "role/*" if "role" in target.assumed else target.role.split(":")[5], region="")
        self.logs = self._arn("logs", "log-group:/aws/sagemaker")
        self.images = [
            f"arn:{self.partition}:ecr:{image.region}:{image.account}:repository/{image.repository}"
            for image in (in_ecr(cloud["image"]), in_ecr(endpoint["image"]))
            if image
        ]
        self.alarms = self._arn("cloudwatch", "alarm:*")
        self.scales = any(endpoint[key] is not None for key in ("min_count", "max_count"))
        self.queues = endpoint["kind"] == "async"
        self.watches = bool(endpoint["watch"])
        role = endpoint["scheduler_role"]
        self.scheduler = arn_of_role(target.region, self.account, role, "scheduler_role") if role else None
        self.vpc = bool(cloud["subnets"])
        self.kms = [self._key(key) for key in dict.fromkeys((cloud["kms_key"], cloud["volume_kms_key"])) if key]
        self.disks = [self._key(cloud["volume_kms_key"])] if cloud["volume_kms_key"] else []
        # Addresses of the configuration that are in S3 and not below the prefix, where the policies allow them anyway.
        uris = {key: cloud[key] for key in ("data", "weights", "packages", "features")}
        uris |= {key: endpoint[key] for key in ("input", "output")}
        own = f"s3://{target.bucket}/{self.prefix}/"
        self.features = features_uri(config, target.bucket)
        self.mlflow = tracking.managed(config)
        self.addresses = {
            key: parse_s3_uri(uri, key)
            for key, uri in uris.items()
            if str(uri).startswith("s3://") and not f"{uri}/".startswith(own)
        }

    def _arn(self, service: str, resource: str, region: str | None = None) -> str:
        return f"arn:{self.partition}:{service}:{self.region if region is None else region}:{self.account}:{resource}"

    def _key(self, key: str) -> str:
        """Return the ARN of a KMS key that is given by its ARN or its ID."""
        if key.startswith("arn:"):
            return key
        if "/" in key:
            raise DogbreedError(f"A policy cannot name a KMS key by its alias, {key}; give the key's ARN or ID.")
        return self._arn("kms", f"key/{key}")

    def objects(self, *folders: str) -> list[str]:
        return [f"{self.bucket}/{self.prefix}/{folder}/*" for folder in folders]

    def watched(self) -> list[str]:
        """Return the alarms of updates."""
        return [self._arn("cloudwatch", f"alarm:{name}") for name in self.own]

    def schedules(self) -> list[str]:
        return [self._arn("scheduler", f"schedule/default/{name}") for name in self.own]

    def named(self, *kinds: str) -> list[str]:
        """Return what SageMaker makes under the prefix and the names that the configuration gives."""
        return [self._arn("sagemaker", f"{kind}/{name}") for kind in kinds for name in self.own]


def policy(command: str, config: Mapping[str, Any], target: Target) -> dict[str, Any]:
    """Return the policy document for a command.

    Args:
        command: `upload`, `train`, `tune`, `deploy`, `delete`, `invoke`, `logs`, `execution`, `trust`, `scheduler` or
            `scheduler-trust`.
        config: A composed configuration.
        target: Where it runs.

    Raises:
        DogbreedError: There is no such command.
    """
    if command not in _STATEMENTS:
        raise DogbreedError(f"There is no policy for {command}; there is one for each of {', '.join(_STATEMENTS)}.")
    return {"Version": "2012-10-17", "Statement": _STATEMENTS[command](_Names(config, target))}


def _allow(actions: Sequence[str], resources: Sequence[str] | str, **conditions: Any) -> Statement:
    statement: Statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return statement | ({"Condition": conditions} if conditions else {})


def _bucket(names: _Names, *actions: str) -> Statement:
    return _allow(["s3:ListBucket", "s3:GetBucketLocation", "s3:GetBucketPolicyStatus", *actions], [names.bucket])


def _keys(names: _Names) -> list[Statement]:
    return [_allow(["kms:GenerateDataKey", "kms:Decrypt"], names.kms)] if names.kms else []


def _disks(names: _Names) -> list[Statement]:
    """Allow EC2, which encrypts the disks, a grant for the key."""
    return [_allow(["kms:CreateGrant", "kms:DescribeKey"], names.disks)] if names.disks else []


def _addresses(names: _Names, keys: Sequence[str], *actions: str) -> list[Statement]:
    """Allow actions on the addresses that the configuration names itself."""
    statements: list[Statement] = []
    for bucket, folder in (names.addresses[key] for key in keys if key in names.addresses):
        arn = f"arn:{names.partition}:s3:::{bucket}"
        statements.append(_allow(["s3:ListBucket", "s3:GetBucketLocation"], [arn]))
        whole = folder.rstrip("/")
        statements.append(_allow(actions, [f"{arn}/{whole}", f"{arn}/{whole}/*"] if whole else [f"{arn}/*"]))
    return statements


def _upload(names: _Names) -> list[Statement]:
    return [
        _bucket(names, "s3:CreateBucket", "s3:PutBucketPublicAccessBlock"),
        _allow(["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], names.objects("data")),
        *_addresses(names, ["data"], "s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"),
        *_keys(names),
    ]


def _pass_role(names: _Names) -> Statement:
    return _allow(["iam:PassRole"], [names.role], StringEquals={"iam:PassedToService": "sagemaker.amazonaws.com"})


def _marked(names: _Names, actions: Sequence[str], *kinds: str) -> list[Statement]:
    """Allow making resources under this project's name and mark, and nothing else."""
    marked = {f"aws:RequestTag/{MARK['Key']}": MARK["Value"]}
    return [
        _allow(actions, names.named(*kinds), StringEquals=marked),
        _allow(["sagemaker:AddTags"], names.named(*kinds)),
    ]


def _sending(names: _Names) -> list[Statement]:
    return [
        _bucket(names, "s3:CreateBucket", "s3:PutBucketPublicAccessBlock"),
        _allow(["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], names.objects("code", "weights")),
        _allow(["s3:GetObject"], names.objects("jobs")),
        *_addresses(names, ["data"], "s3:GetObject"),
        _pass_role(names),
        *_keys(names),
        *_disks(names),
    ]


def _logs(names: _Names) -> Statement:
    return _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"], [f"{names.logs}/TrainingJobs:*"])


def _read_logs(names: _Names) -> list[Statement]:
    groups = [f"{names.logs}/{group}" for group in ("TrainingJobs:*", "TransformJobs:*", "Endpoints/*")]
    return [
        _allow(["sagemaker:DescribeEndpoint"], names.named("endpoint")),
        _allow(["logs:FilterLogEvents"], groups),
        _allow(["cloudwatch:GetMetricData"], "*"),  # it has no resources to name
    ]


def _price(_: _Names) -> Statement:
    return _allow(["pricing:GetProducts"], "*")  # the list has no resources to name


def _train(names: _Names) -> list[Statement]:
    return [
        *_sending(names),
        *_marked(names, ["sagemaker:CreateTrainingJob"], "training-job"),
        _allow(["sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob"], names.named("training-job")),
        _logs(names),
        _price(names),
    ]


def _tune(names: _Names) -> list[Statement]:
    job = "hyper-parameter-tuning-job"
    verbs = ("DescribeHyperParameterTuningJob", "ListTrainingJobsForHyperParameterTuningJob")
    return [
        *_sending(names),
        *_marked(names, ["sagemaker:CreateHyperParameterTuningJob"], job),
        _allow([f"sagemaker:{verb}" for verb in (*verbs, "StopHyperParameterTuningJob")], names.named(job)),
        # A search in one job is a training job, and so is each trial.
        *_marked(names, ["sagemaker:CreateTrainingJob"], "training-job"),
        _allow(["sagemaker:DescribeTrainingJob", "sagemaker:StopTrainingJob"], names.named("training-job")),
        _logs(names),
        _price(names),
    ]


MADE = ("model", "endpoint-config", "endpoint")


def _deploy(names: _Names) -> list[Statement]:
    creates = ("CreateModel", "CreateEndpointConfig", "CreateEndpoint")
    return [
        _bucket(names, "s3:CreateBucket", "s3:PutBucketPublicAccessBlock"),
        _allow(["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], names.objects("models", "batches")),
        _allow(["s3:GetObject"], names.objects("jobs")),  # a training job's model
        _allow(["sagemaker:DescribeTrainingJob"], names.named("training-job")),
        _pass_role(names),
        *_marked(names, [f"sagemaker:{action}" for action in creates], *MADE),
        *_marked(names, ["sagemaker:CreateTransformJob"], "transform-job"),
        _allow(["sagemaker:DescribeTransformJob"], names.named("transform-job")),
        _allow(["sagemaker:UpdateEndpoint"], names.named("endpoint", "endpoint-config")),
        *_delete(names),
        *_invoke(names),
        _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"], [f"{names.logs}/Endpoints/*"]),
        *(_scaling() if names.scales else []),
        *([_allow(["cloudwatch:PutMetricAlarm", "cloudwatch:DeleteAlarms"], names.watched())] if names.watches else []),
        *_scheduling(names),
        _price(names),
        *_keys(names),
        *_disks(names),
    ]


def _delete(names: _Names) -> list[Statement]:
    uses = [
        f"sagemaker:{verb}{what}" for what in ("Model", "EndpointConfig", "Endpoint") for verb in ("Describe", "Delete")
    ]
    return [
        # Lists can only be asked of the account as a whole; of what is in them, only our own tags are read.
        _allow(["sagemaker:ListEndpoints", "sagemaker:ListEndpointConfigs", "sagemaker:ListModels"], "*"),
        _allow([*uses, "sagemaker:ListTags"], names.named(*MADE)),
        _allow(["application-autoscaling:DescribeScalableTargets"], "*"),
    ]


def _delete_all(names: _Names) -> list[Statement]:
    """Allow deleting, whatever the configuration's endpoint is like: others may scale."""
    return [
        *_delete(names),
        _allow(["application-autoscaling:DeregisterScalableTarget"], "*"),
        _allow(["cloudwatch:DeleteAlarms"], [names.alarms]),
        _allow(["scheduler:DeleteSchedule"], names.schedules()),
    ]


def _scheduling(names: _Names) -> list[Statement]:
    """Allow scheduling an endpoint's end, under the role for it."""
    if not names.scheduler:
        return []
    passed = {"iam:PassedToService": "scheduler.amazonaws.com"}
    return [
        _allow([f"scheduler:{verb}Schedule" for verb in ("Create", "Update", "Delete")], names.schedules()),
        _allow(["iam:PassRole"], [names.scheduler], StringEquals=passed),
    ]


def _scheduler(names: _Names) -> list[Statement]:
    return [_allow(["sagemaker:DeleteEndpoint"], names.named("endpoint"))]


def _scaling() -> list[Statement]:
    """Allow auto scaling, which makes alarms in the caller's name, and a role of its own the first time."""
    scaling = ("RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy")
    alarms = ("PutMetricAlarm", "DescribeAlarms", "DeleteAlarms", "TagResource")
    service = "sagemaker.application-autoscaling.amazonaws.com"
    return [
        _allow([f"application-autoscaling:{action}" for action in scaling], "*"),
        _allow([f"cloudwatch:{action}" for action in alarms], "*"),
        _allow(["iam:CreateServiceLinkedRole"], "*", StringEquals={"iam:AWSServiceName": service}),
    ]


def _invoke(names: _Names) -> list[Statement]:
    if names.queues:
        queue = _allow(["s3:PutObject", "s3:GetObject", "s3:DeleteObject"], names.objects("queue", "answers"))
        return [
            _allow(["sagemaker:InvokeEndpointAsync"], names.named("endpoint")),
            queue,
            # Without it an answer that is not there yet looks like one that is forbidden.
            _allow(["s3:ListBucket"], [names.bucket]),
            *_addresses(names, ["output"], "s3:GetObject"),
            *_keys(names),
        ]
    return [_allow(["sagemaker:InvokeEndpoint"], names.named("endpoint"))]


def _execution(names: _Names) -> list[Statement]:
    writes = names.objects("jobs", "checkpoints", "debugger", "profiler", "captured", "answers", "batches")
    return [
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], [names.bucket]),
        _allow(["s3:GetObject"], [f"{names.bucket}/{names.prefix}/*"]),
        _allow(["s3:PutObject", "s3:AbortMultipartUpload"], writes),
        *_addresses(names, ["data", "weights", "packages", "input"], "s3:GetObject"),
        *_addresses(names, ["output"], "s3:PutObject", "s3:AbortMultipartUpload"),
        *_features(names),
        *_mlflow(names),
        _allow(
            ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:DescribeLogStreams"],
            [f"{names.logs}/*"],
        ),
        _allow(
            ["cloudwatch:PutMetricData"],
            "*",
            StringLike={"cloudwatch:namespace": ["/aws/sagemaker/*", "aws/sagemaker/*"]},
        ),
        _allow(["ecr:GetAuthorizationToken"], "*"),
        _allow(
            ["ecr:BatchCheckLayerAvailability", "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"],
            # AWS's own, which are in an account of AWS's that differs by region, and those that are given.
            [f"arn:{names.partition}:ecr:{names.region}:*:repository/{name}" for name in AWS_IMAGES] + names.images,
        ),
        *_keys(names),
        *_disks(names),
        *([_allow([f"ec2:{action}" for action in VPC], "*")] if names.vpc else []),
        *([_allow(["cloudwatch:DescribeAlarms"], names.watched())] if names.watches else []),
    ]


def _features(names: _Names) -> list[Statement]:
    """Allow adding features; reading them is allowed below the prefix, and below an address that is given."""
    if "features" in names.addresses:
        return _addresses(names, ["features"], "s3:GetObject", "s3:PutObject")
    _, folder = parse_s3_uri(names.features, "features") if names.features else ("", "")
    return [_allow(["s3:PutObject"], [f"{names.bucket}/{folder}/*"])] if folder else []


def _mlflow(names: _Names) -> list[Statement]:
    """Allow logging to SageMaker's MLflow, and its artefacts where the server keeps them below the prefix."""
    if not names.mlflow:
        return []
    return [
        _allow(tracking.actions(names.mlflow), [names.mlflow]),
        _allow(["s3:PutObject", "s3:AbortMultipartUpload"], names.objects("mlflow")),
    ]


def _trust(names: _Names, service: str = "sagemaker") -> list[Statement]:
    """Trust a service, on behalf of this account alone where it is known."""
    trusted = {"Effect": "Allow", "Principal": {"Service": f"{service}.amazonaws.com"}, "Action": "sts:AssumeRole"}
    own = {"Condition": {"StringEquals": {"aws:SourceAccount": names.account}}}
    return [trusted if names.account == "*" else trusted | own]


_STATEMENTS: dict[str, Callable[[_Names], list[Statement]]] = {
    "upload": _upload,
    "train": _train,
    "tune": _tune,
    "deploy": _deploy,
    "delete": _delete_all,
    "invoke": _invoke,
    "logs": _read_logs,
    "execution": _execution,
    "trust": _trust,
    "scheduler": _scheduler,
    "scheduler-trust": lambda names: _trust(names, "scheduler"),
}
