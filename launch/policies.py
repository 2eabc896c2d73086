"""`python launch/policies.py COMMAND`: the least that a command needs to be allowed, as IAM policies to paste.

`upload`, `train`, `tune`, `deploy` and `invoke` are for the person who runs the command; `execution` is for the role
that SageMaker runs the job or the endpoint under, and `trust` is who may take that role: SageMaker alone.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.config.compose import compose
from dogbreed.config.overrides import to_overrides
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from launch import commands
from launch.aws.naming import MARK, Place, partition, prefix, split_s3
from launch.aws.settings import check_kinds

HELP = """usage: python launch/policies.py COMMAND [key=value ...]

Prints the least IAM policy for a command, for the names in the configuration.

  upload train tune deploy invoke   for whoever runs launch/sagemaker_COMMAND.py
  execution                         for the role that jobs and endpoints run under (sagemaker.role)
  trust                             the trust policy of that role

  sagemaker.role=NAME sagemaker.bucket=NAME sagemaker.region=us-east-1 sagemaker.prefix=dogbreed

From nothing to a role:
  python launch/policies.py trust > trust.json
  python launch/policies.py execution sagemaker.bucket=MY-BUCKET > execution.json
  aws iam create-role --role-name DogbreedExecution --assume-role-policy-document file://trust.json
  aws iam put-role-policy --role-name DogbreedExecution --policy-name dogbreed --policy-document file://execution.json
"""

Statement = dict[str, Any]

# Of the execution role where jobs run in a VPC; EC2 has no narrower resources for these.
VPC = (
    *("CreateNetworkInterface", "CreateNetworkInterfacePermission", "DeleteNetworkInterface"),
    *("DeleteNetworkInterfacePermission", "DescribeNetworkInterfaces", "DescribeVpcs", "DescribeDhcpOptions"),
    *("DescribeSubnets", "DescribeSecurityGroups"),
)


class _Names:
    """The ARNs that the policies name."""

    def __init__(self, config: Mapping[str, Any], place: Place) -> None:
        part = partition(place.region)
        account = "*" if "account" in place.assumed else place.account
        region = "*" if "region" in place.assumed else place.region  # not one that nobody has chosen
        role = "role/*" if "role" in place.assumed else place.role.split(":")[5]
        self.place, self.partition, self.account, self.region = place, part, account, region
        bucket = place.bucket
        if config["sagemaker"]["bucket"] is None:
            bucket = f"sagemaker-{region}-{account}"
        self.bucket = f"arn:{part}:s3:::{bucket}"
        self.prefix = prefix(config)
        self.role = f"arn:{part}:iam::{account}:{role}"
        self.sagemaker = f"arn:{part}:sagemaker:{region}:{account}"
        self.logs = f"arn:{part}:logs:{region}:{account}:log-group:/aws/sagemaker"
        endpoint = config["sagemaker"]["endpoint"]
        self.scales, self.queues = endpoint["max_count"] is not None, endpoint["kind"] == "async"
        self.vpc = bool(config["sagemaker"]["subnets"])
        cloud = config["sagemaker"]
        self.kms = [self._key(key) for key in dict.fromkeys((cloud["kms_key"], cloud["volume_kms_key"])) if key]
        self.disks = [self._key(cloud["volume_kms_key"])] if cloud["volume_kms_key"] else []
        given = {key: cloud[key] for key in ("data", "weights", "packages")}
        given |= {key: endpoint[key] for key in ("input", "output")}
        self.given = {key: split_s3(address, key) for key, address in given.items() if _elsewhere(address, self)}

    def _key(self, key: str) -> str:
        """The ARN of a KMS key that is given by its ARN or its ID."""
        if key.startswith("arn:"):
            return key
        if "/" in key:
            raise DogbreedError(f"A policy cannot name a KMS key by its alias, {key}; give the key's ARN or ID.")
        return f"arn:{self.partition}:kms:{self.region}:{self.account}:key/{key}"

    def objects(self, *folders: str) -> list[str]:
        return [f"{self.bucket}/{self.prefix}/{folder}/*" for folder in folders]

    def named(self, *kinds: str) -> list[str]:
        """What SageMaker makes under the prefix; a name of your own (sagemaker.job_name) has to begin like it."""
        return [f"{self.sagemaker}:{kind}/{self.prefix.replace('/', '-')}-*" for kind in kinds]


def _elsewhere(address: str | None, names: _Names) -> bool:
    """Whether an address is in S3, and not below the prefix, where the policies allow it anyway."""
    return (
        bool(address)
        and str(address).startswith("s3://")
        and not f"{address}/".startswith(f"s3://{names.place.bucket}/{names.prefix}/")
    )


def policy(command: str, config: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The policy document for a command.

    Args:
        command: `upload`, `train`, `tune`, `deploy`, `invoke`, `execution` or `trust`.
        config: A composed configuration.
        place: Where it runs.

    Raises:
        DogbreedError: There is no such command.
    """
    known = {
        "upload": _upload,
        "train": _train,
        "tune": _tune,
        "deploy": _deploy,
        "invoke": _invoke,
        "execution": _execution,
        "trust": _trust,
    }
    if command not in known:
        raise DogbreedError(f"There is no policy for {command}; there is one for each of {', '.join(known)}.")
    return {"Version": "2012-10-17", "Statement": known[command](_Names(config, place))}


def _allow(actions: Sequence[str], resources: Sequence[str] | str, **conditions: Any) -> Statement:
    found: Statement = {"Effect": "Allow", "Action": list(actions), "Resource": resources}
    return found | ({"Condition": conditions} if conditions else {})


def _bucket(names: _Names, *actions: str) -> Statement:
    return _allow(["s3:ListBucket", "s3:GetBucketLocation", "s3:GetBucketPolicyStatus", *actions], [names.bucket])


def _keys(names: _Names) -> list[Statement]:
    return [_allow(["kms:GenerateDataKey", "kms:Decrypt"], names.kms)] if names.kms else []


def _disks(names: _Names) -> list[Statement]:
    """Disks are encrypted by EC2, which gets a grant for the key."""
    return [_allow(["kms:CreateGrant", "kms:DescribeKey"], names.disks)] if names.disks else []


def _given(names: _Names, keys: Sequence[str], *actions: str) -> list[Statement]:
    """Places in S3 that the configuration names itself."""
    found: list[Statement] = []
    for bucket, folder in (names.given[key] for key in keys if key in names.given):
        arn = f"arn:{names.partition}:s3:::{bucket}"
        found.append(_allow(["s3:ListBucket", "s3:GetBucketLocation"], [arn]))
        whole = folder.rstrip("/")
        found.append(_allow(actions, [f"{arn}/{whole}", f"{arn}/{whole}/*"] if whole else [f"{arn}/*"]))
    return found


def _upload(names: _Names) -> list[Statement]:
    return [
        _bucket(names, "s3:CreateBucket", "s3:PutBucketPublicAccessBlock"),
        _allow(["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], names.objects("data")),
        *_given(names, ["data"], "s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"),
        *_keys(names),
    ]


def _pass_role(names: _Names) -> Statement:
    return _allow(["iam:PassRole"], [names.role], StringEquals={"iam:PassedToService": "sagemaker.amazonaws.com"})


def _marked(names: _Names, actions: Sequence[str], *kinds: str) -> list[Statement]:
    """Making things under this project's name and mark, and nothing else."""
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
        *_given(names, ["data"], "s3:GetObject"),
        _pass_role(names),
        *_keys(names),
        *_disks(names),
    ]


def _logs(names: _Names) -> Statement:
    return _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"], [f"{names.logs}/TrainingJobs:*"])


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


def _deploy(names: _Names) -> list[Statement]:
    made = ("model", "endpoint-config", "endpoint")
    creates = ("CreateModel", "CreateEndpointConfig", "CreateEndpoint")
    uses = [f"{verb}{what}" for what in ("Model", "EndpointConfig", "Endpoint") for verb in ("Describe", "Delete")]
    return [
        _bucket(names, "s3:CreateBucket", "s3:PutBucketPublicAccessBlock"),
        _allow(["s3:PutObject", "s3:GetObject", "s3:AbortMultipartUpload"], names.objects("models", "batches")),
        _allow(["s3:GetObject"], names.objects("jobs")),  # a training job's model
        _allow(["sagemaker:DescribeTrainingJob"], names.named("training-job")),
        _pass_role(names),
        *_marked(names, [f"sagemaker:{action}" for action in creates], *made),
        *_marked(names, ["sagemaker:CreateTransformJob"], "transform-job"),
        _allow(["sagemaker:DescribeTransformJob"], names.named("transform-job")),
        _allow([f"sagemaker:{action}" for action in (*uses, "UpdateEndpoint")], names.named(*made)),
        *_invoke(names),
        _allow(["logs:DescribeLogStreams", "logs:GetLogEvents"], [f"{names.logs}/Endpoints/*"]),
        _allow(["application-autoscaling:DescribeScalableTargets"], "*"),
        *(_scaling() if names.scales else []),
        # Lists and what is tagged can only be asked of the account as a whole.
        _allow(["sagemaker:ListEndpoints", "sagemaker:ListEndpointConfigs", "sagemaker:ListModels"], "*"),
        _allow(["sagemaker:ListTags"], names.named(*made)),
        _price(names),
        *_keys(names),
        *_disks(names),
    ]


def _scaling() -> list[Statement]:
    """Application Auto Scaling has alarms made in the caller's name, and a role of its own the first time."""
    scaling = ("RegisterScalableTarget", "DeregisterScalableTarget", "PutScalingPolicy")
    alarms = ("PutMetricAlarm", "DescribeAlarms", "DeleteAlarms")
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
            *_given(names, ["output"], "s3:GetObject"),
            *_keys(names),
        ]
    return [_allow(["sagemaker:InvokeEndpoint"], names.named("endpoint"))]


def _execution(names: _Names) -> list[Statement]:
    writes = names.objects("jobs", "checkpoints", "debugger", "profiler", "captured", "answers", "batches")
    return [
        _allow(["s3:ListBucket", "s3:GetBucketLocation"], [names.bucket]),
        _allow(["s3:GetObject"], [f"{names.bucket}/{names.prefix}/*"]),
        _allow(["s3:PutObject", "s3:AbortMultipartUpload"], writes),
        *_given(names, ["data", "weights", "packages", "input"], "s3:GetObject"),
        *_given(names, ["output"], "s3:PutObject", "s3:AbortMultipartUpload"),
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
            [f"arn:{names.partition}:ecr:{names.region}:*:repository/*"],
        ),
        *_keys(names),
        *_disks(names),
        *([_allow([f"ec2:{action}" for action in VPC], "*")] if names.vpc else []),
    ]


def _trust(_: _Names) -> list[Statement]:
    return [
        {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"},
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)

    def task() -> None:
        if not words or {"-h", "--help"} & set(words):
            print(HELP, end="")
            return
        config = compose(to_overrides(words[1:]))
        check_kinds(config)
        print(json.dumps(policy(words[0], config, commands.offline(config)), indent=2))

    return guard(task)


if __name__ == "__main__":
    sys.exit(main())
