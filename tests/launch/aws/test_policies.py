"""The least policies: what the commands really call is allowed, and nothing wide."""

import json
from functools import cache

import pytest
from support import policies

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from launch.aws.account import offline_target
from launch.aws.iam import policy
from launch.policies import main

ROLE = "arn:aws:iam::123456789012:role/DogbreedExecution"
WORDS = ("sagemaker.bucket=mine", f"sagemaker.role={ROLE}", "sagemaker.region=us-east-1")
COMMANDS = ("upload", "train", "tune", "deploy", "delete", "invoke", "logs", "execution", "scheduler")
# Actions for which AWS knows no resource to name.
OF_THE_ACCOUNT = {
    "cloudwatch:GetMetricData",
    *("pricing:GetProducts", "ecr:GetAuthorizationToken", "cloudwatch:PutMetricData"),
    *("sagemaker:ListEndpoints", "sagemaker:ListEndpointConfigs", "sagemaker:ListModels"),
    *("application-autoscaling:RegisterScalableTarget", "application-autoscaling:DeregisterScalableTarget"),
    *("application-autoscaling:DescribeScalableTargets", "application-autoscaling:PutScalingPolicy"),
}


@cache
def statements(command: str, *words: str) -> list[dict]:
    config = compose([*WORDS, *words])
    return policy(command, config, offline_target(config))["Statement"]


def allows(command: str, action: str, resource: str, *words: str) -> bool:
    return policies.allows(statements(command, *words), action, resource)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.slow
def test_nothing_wide(command):
    for statement in statements(command):
        assert statement["Effect"] == "Allow"
        assert not [action for action in statement["Action"] if "*" in action], "each action by its name"
        if statement["Resource"] == "*":
            assert set(statement["Action"]) <= OF_THE_ACCOUNT
    text = json.dumps(statements(command))
    assert "DeleteBucket" not in text
    assert "s3:DeleteObject" not in text
    assert "PutObjectAcl" not in text


def test_the_role_is_handed_to_sagemaker_alone():
    for command in ("train", "tune", "deploy"):
        (statement,) = [s for s in statements(command) if "iam:PassRole" in s["Action"]]
        assert statement["Resource"] == [ROLE]
        assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    assert "iam:PassRole" not in json.dumps([statements(command) for command in ("upload", "invoke", "execution")])


def test_what_jobs_need_they_may():
    job = "arn:aws:sagemaker:us-east-1:123456789012:training-job/dogbreed-train-20261125-120000"
    for action in ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob", "AddTags"):
        assert allows("train", f"sagemaker:{action}", job)
    assert not allows("train", "sagemaker:CreateTrainingJob", job.replace("dogbreed-", "other-"))
    assert allows("train", "s3:PutObject", "arn:aws:s3:::mine/dogbreed/code/dogbreed-abc.tar.gz")
    assert not allows("train", "s3:PutObject", "arn:aws:s3:::mine/dogbreed/data/dogs/train/a.jpg")
    assert allows("upload", "s3:PutObject", "arn:aws:s3:::mine/dogbreed/data/dogs/train/a.jpg")
    assert not allows("upload", "s3:PutObject", "arn:aws:s3:::mine/other/a.jpg")
    assert allows("execution", "s3:GetObject", "arn:aws:s3:::mine/dogbreed/data/dogs/train/a.jpg")
    assert not allows("execution", "s3:PutObject", "arn:aws:s3:::mine/dogbreed/data/dogs/train/a.jpg")
    for folder in ("jobs/x/output/model.tar.gz", "checkpoints/x/last.ckpt", "debugger/x"):
        assert allows("execution", "s3:PutObject", f"arn:aws:s3:::mine/dogbreed/{folder}")
    made = [s for s in statements("train") if "sagemaker:CreateTrainingJob" in s["Action"]]
    assert made[0]["Condition"] == {"StringEquals": {"aws:RequestTag/created-by": "dogbreed"}}


def test_the_role_pulls_the_images_that_are_used_and_no_others():
    host = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
    words = (f"sagemaker.endpoint.image={host}/dogs/serve:1", f"sagemaker.image={host}/dogs-train@sha256:{'a' * 64}")
    ours = "arn:aws:ecr:us-east-1:123456789012:repository"
    for action in ("BatchCheckLayerAvailability", "GetDownloadUrlForLayer", "BatchGetImage"):
        for name in ("dogs/serve", "dogs-train"):
            assert allows("execution", f"ecr:{action}", f"{ours}/{name}", *words)
            assert not allows("execution", f"ecr:{action}", f"{ours}/{name}")
        assert not allows("execution", f"ecr:{action}", f"{ours}/secrets", *words)
        for name in ("pytorch", "pytorch-training", "pytorch-inference", "sagemaker-debugger-rules"):
            assert allows("execution", f"ecr:{action}", f"arn:aws:ecr:us-east-1:763104351884:repository/{name}")


@pytest.mark.slow
def test_names_that_do_not_begin_with_the_prefix():
    words = ("sagemaker.job_name=mine", "sagemaker.endpoint.name=shop")
    arn = "arn:aws:sagemaker:us-east-1:123456789012:"
    assert allows("train", "sagemaker:CreateTrainingJob", f"{arn}training-job/mine", *words)
    assert allows("tune", "sagemaker:CreateHyperParameterTuningJob", f"{arn}hyper-parameter-tuning-job/mine", *words)
    for kind, action in (("endpoint/shop", "CreateEndpoint"), ("model/shop-0123abcd", "CreateModel")):
        assert allows("deploy", f"sagemaker:{action}", arn + kind, *words)
        assert not allows("deploy", f"sagemaker:{action}", arn + kind)
    assert allows("delete", "sagemaker:DeleteEndpoint", f"{arn}endpoint/shop", *words)
    assert allows("delete", "sagemaker:DeleteEndpoint", f"{arn}endpoint/dogbreed-vgg16")
    assert not allows("delete", "sagemaker:DeleteEndpoint", f"{arn}endpoint/other")
    assert not allows("delete", "sagemaker:CreateEndpoint", f"{arn}endpoint/dogbreed-vgg16")


@pytest.mark.slow
def test_an_update_that_is_watched_and_an_end_that_is_scheduled():
    alarm = "arn:aws:cloudwatch:us-east-1:123456789012:alarm:dogbreed-vgg16-ModelLatency"
    watch = "sagemaker.endpoint.watch=5m"
    for command, action in (("deploy", "PutMetricAlarm"), ("deploy", "DeleteAlarms"), ("execution", "DescribeAlarms")):
        assert allows(command, f"cloudwatch:{action}", alarm, watch)
        assert not allows(command, f"cloudwatch:{action}", alarm.replace("dogbreed", "other"), watch)
        assert not allows(command, f"cloudwatch:{action}", alarm)
    schedule = "arn:aws:scheduler:us-east-1:123456789012:schedule/default/dogbreed-vgg16"
    role = "sagemaker.endpoint.scheduler_role=Sweeper"
    for verb in ("Create", "Update", "Delete"):
        assert allows("deploy", f"scheduler:{verb}Schedule", schedule, role)
        assert not allows("deploy", f"scheduler:{verb}Schedule", schedule.replace("dogbreed", "other"), role)
    assert allows("delete", "scheduler:DeleteSchedule", schedule)
    passed = {s["Resource"][0]: s["Condition"] for s in statements("deploy", role) if "iam:PassRole" in s["Action"]}
    condition = {"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}}
    assert passed["arn:aws:iam::123456789012:role/Sweeper"] == condition
    assert "scheduler" not in json.dumps(statements("deploy"))
    (only,) = statements("scheduler")
    assert only["Action"] == ["sagemaker:DeleteEndpoint"]
    assert allows(
        "scheduler", "sagemaker:DeleteEndpoint", "arn:aws:sagemaker:us-east-1:123456789012:endpoint/dogbreed-x"
    )
    (trust,) = statements("scheduler-trust")
    assert trust["Principal"] == {"Service": "scheduler.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_sagemaker_is_trusted_on_behalf_of_this_account_alone():
    (statement,) = statements("trust")
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_keys_and_networks_only_where_they_are_used():
    assert "kms:" not in json.dumps(statements("execution"))
    assert "ec2:" not in json.dumps(statements("execution"))
    key = "arn:aws:kms:us-east-1:123456789012:key/1"
    assert key in json.dumps(statements("execution", f"sagemaker.kms_key={key}"))
    private = statements("execution", "sagemaker.subnets=[subnet-1]", "sagemaker.security_groups=[sg-1]")
    assert "ec2:CreateNetworkInterface" in json.dumps(private)


@pytest.mark.slow
def test_keys_by_their_id_and_disks():
    assert "kms:CreateGrant" not in json.dumps(statements("train", "sagemaker.kms_key=1234-ab"))
    for command in ("train", "tune", "deploy", "execution"):
        made = statements(command, "sagemaker.volume_kms_key=1234-ab")
        (grant,) = [statement for statement in made if "kms:CreateGrant" in statement["Action"]]
        assert grant["Resource"] == ["arn:aws:kms:us-east-1:123456789012:key/1234-ab"]
    with pytest.raises(DogbreedError, match="cannot name a KMS key by its alias, alias/dogs"):
        statements("train", "sagemaker.kms_key=alias/dogs")


@pytest.mark.slow
def test_places_that_the_configuration_names():
    words = ("sagemaker.data=s3://theirs/dogs", "sagemaker.weights=s3://models/vgg16.pth")
    assert allows("execution", "s3:GetObject", "arn:aws:s3:::theirs/dogs/train/a.jpg", *words)
    assert allows("execution", "s3:GetObject", "arn:aws:s3:::models/vgg16.pth", *words)
    assert allows("execution", "s3:ListBucket", "arn:aws:s3:::theirs", *words)
    assert not allows("execution", "s3:PutObject", "arn:aws:s3:::theirs/dogs/train/a.jpg", *words)
    for near in ("theirs/dogs2/a.jpg", "models/vgg16.pth.old"):
        assert not allows("execution", "s3:GetObject", f"arn:aws:s3:::{near}", *words)
    assert allows("train", "s3:ListBucket", "arn:aws:s3:::theirs", *words)
    assert allows("upload", "s3:PutObject", "arn:aws:s3:::theirs/dogs/train/a.jpg", *words)
    assert not allows("execution", "s3:GetObject", "arn:aws:s3:::theirs/dogs/train/a.jpg")


def test_features_are_added_and_never_replaced_elsewhere():
    block = "arn:aws:s3:::mine/dogbreed/features/key/block.safetensors"
    assert allows("execution", "s3:PutObject", block)
    assert allows("execution", "s3:GetObject", block)
    for off in ("sagemaker.features=false", "sagemaker.isolate=true", "cache.mode=off"):
        assert not allows("execution", "s3:PutObject", block, off)
    elsewhere = "sagemaker.features=s3://shared/dogs/features"
    for action in ("s3:PutObject", "s3:GetObject"):
        assert allows("execution", action, "arn:aws:s3:::shared/dogs/features/key/block", elsewhere)
        assert not allows("execution", action, "arn:aws:s3:::shared/dogs/other/key/block", elsewhere)
    assert allows("execution", "s3:ListBucket", "arn:aws:s3:::shared", elsewhere)
    assert not allows("execution", "s3:PutObject", block, elsewhere)
    own = "sagemaker.features=s3://mine/dogbreed/shared"
    assert allows("execution", "s3:PutObject", "arn:aws:s3:::mine/dogbreed/shared/key/block", own)


def test_whoever_asks_a_queue_may_see_that_the_answer_is_not_there_yet():
    """Without s3:ListBucket, S3 says AccessDenied of what does not exist, in place of NoSuchKey."""
    queue = "sagemaker.endpoint.kind=async"
    assert allows("invoke", "s3:ListBucket", "arn:aws:s3:::mine", queue)
    assert allows("invoke", "s3:GetObject", "arn:aws:s3:::mine/dogbreed/answers/x/failed/1", queue)
    assert not allows("invoke", "s3:ListBucket", "arn:aws:s3:::mine")


def test_a_region_that_nobody_has_chosen_is_none(monkeypatch):
    """Else the role could neither fetch its image nor write its log where the job then runs."""
    config = compose(["sagemaker.bucket=mine"])
    assert "us-east-1" not in json.dumps(policy("execution", config, offline_target(config)))
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = json.dumps(policy("execution", config, offline_target(config)))
    assert "arn:aws:ecr:eu-west-1:*:repository/pytorch" in text
    config = compose([f"sagemaker.role={ROLE}"])
    monkeypatch.delenv("AWS_REGION")
    assert '"arn:aws:s3:::sagemaker-*-123456789012"' in json.dumps(policy("upload", config, offline_target(config)))
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    text = json.dumps(policy("upload", config, offline_target(config)))
    assert '"arn:aws:s3:::sagemaker-eu-west-1-123456789012"' in text


def test_the_command(capsys):
    assert main(["trust"]) == 0
    trust = json.loads(capsys.readouterr().out)
    (statement,) = trust["Statement"]
    assert statement["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert statement["Action"] == "sts:AssumeRole"
    assert main([]) == 0
    assert "From nothing to a role" in capsys.readouterr().out
    assert main(["fly"]) == 2
    assert "There is no policy for fly" in capsys.readouterr().err
