"""What AWS, the network or a job may do to a person: one sentence with the way out, and nothing left behind."""

import json
import time
from pathlib import Path

import boto3
import pytest
from support.cloud import ACCOUNT, ROLE, SMALL, Cloud, put_photographs, refused, refused_s3, refused_xml, said
from werkzeug.wrappers import Response

from launch.aws import account

BUSY = "ThrottlingException"

pytestmark = pytest.mark.slow


@pytest.fixture
def words(cloud: Cloud, dog_tree) -> tuple[str, ...]:
    """Settings of a job that could be sent."""
    put_photographs("mine", "dogbreed/data/dogImages")
    cloud.requests.clear()
    return ("sagemaker.bucket=mine", f"sagemaker.role={ROLE}", *SMALL, f"data.root={dog_tree}")


def refuses(done, *says: str) -> None:
    """One sentence, exit code 2, and no trace of a job, here or there."""
    for part in says:
        assert part in done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1, done.err
    assert "Traceback" not in done.err
    assert done.code == 2
    assert not Path("outputs").exists()


def nothing_runs() -> None:
    client = boto3.client("sagemaker")
    assert client.list_training_jobs()["TrainingJobSummaries"] == []
    assert client.list_hyper_parameter_tuning_jobs()["HyperParameterTuningJobSummaries"] == []
    assert "Uploads" not in boto3.client("s3").list_multipart_uploads(Bucket="mine"), "nothing half-uploaded"


def test_no_credentials(run, monkeypatch, amazon, dog_tree):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for kind in ("upload", "train", "tune"):
        refuses(run(kind, f"data.root={dog_tree}"), "There are no AWS credentials", "mode=plan needs none")


def test_no_credentials_are_noticed_before_anything_is_downloaded(run, monkeypatch, amazon):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    refused = run("upload", "data.root=dogImages", "data.url=http://127.0.0.1:9/dogImages.zip")
    assert refused.code == 2
    assert "There are no AWS credentials" in refused.err


def test_no_region(run, monkeypatch, cloud, dog_tree):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    refuses(run("train", f"data.root={dog_tree}"), "No AWS region is set", "sagemaker.region=us-east-1")


def test_a_region_in_the_configuration_is_enough(run, monkeypatch, cloud, words):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert run("train", *words, "sagemaker.region=us-east-1").code == 0


def test_an_unknown_profile(run, monkeypatch, cloud):
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    refuses(run("train"), "nobody", "check AWS_PROFILE")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("ExpiredToken", "The AWS credentials have expired"),
        ("InvalidClientTokenId", "AWS does not know these credentials"),
        ("SignatureDoesNotMatch", "AWS does not know these credentials"),
    ],
)
def test_credentials_that_are_none(run, cloud, words, code, says):
    cloud.answer("GetCallerIdentity", refused_xml(code, "The security token is not good", 403))
    refuses(run("train", *words), says)
    nothing_runs()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (
            refused("ValidationException", "Could not assume role arn:aws:iam::1:role/x. Please ensure it exists"),
            ["SageMaker cannot use the execution role", "python launch/policies.py trust"],
        ),
        (
            refused("AccessDeniedException", "User: arn:aws:iam::1:user/me is not authorized to perform: iam:PassRole"),
            ["You may not hand this role to SageMaker", "python launch/policies.py train"],
        ),
        (
            refused("AccessDeniedException", "User is not authorized to perform: sagemaker:Create"),
            ["The credentials may not do this", "python launch/policies.py"],
        ),
        (
            refused("ResourceLimitExceeded", "The limit 'ml.g4dn.xlarge for training job usage' is 0 Instances"),
            ["The account's quota does not allow this", "is 0 Instances", "Service Quotas"],
        ),
        (
            refused("ResourceInUse", "Training job names must be unique within an AWS account and region"),
            ["The name is taken", "sagemaker.job_name"],
        ),
        (
            refused("InsufficientCapacityException", "no ml.g4dn.xlarge"),
            ["AWS has no machine of this type to spare now", "Try later"],
        ),
        (refused("ValidationException", "1 validation error"), ["AWS refused", "1 validation error"]),
    ],
    ids=["role", "pass role", "denied", "quota", "name", "capacity", "other"],
)
def test_the_request_is_refused(run, cloud, words, answer, says):
    cloud.answer("CreateTrainingJob", answer)
    refuses(run("train", *words), *says)
    nothing_runs()


def test_the_search_is_refused(run, cloud, words):
    cloud.answer("CreateHyperParameterTuningJob", refused("ResourceLimitExceeded", "2 training jobs at a time"))
    refuses(run("tune", *words), "The account's quota does not allow this", "a smaller search.parallel")
    nothing_runs()


def test_no_role_is_known(run, cloud, words):
    refuses(run("train", *(word for word in words if "role" not in word)), "No execution role is known")


def session_of(cloud: Cloud, name: str) -> None:
    """Credentials of a role."""
    text = (
        "<GetCallerIdentityResponse><GetCallerIdentityResult>"
        f"<Arn>arn:aws:sts::{ACCOUNT}:assumed-role/{name}/session</Arn><UserId>x</UserId><Account>{ACCOUNT}</Account>"
        "</GetCallerIdentityResult></GetCallerIdentityResponse>"
    )
    cloud.answer("GetCallerIdentity", Response(text, content_type="text/xml"))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("Notebook", "Notebook"),
        ("AmazonSageMaker-ExecutionRole-20260101", "service-role/AmazonSageMaker-ExecutionRole-20260101"),
        ("Team", "teams/dogs/Team"),  # IAM knows its path
        ("AWSReservedSSO_Admin_0123456789abcdef", None),  # a person's, which SageMaker cannot assume
    ],
)
def test_the_role_of_the_session_is_taken(run, cloud, words, name, role):
    session_of(cloud, name)
    boto3.client("iam").create_role(RoleName="Team", Path="/teams/dogs/", AssumeRolePolicyDocument="{}")
    done = run("train", *(word for word in words if "role" not in word))
    if role is None:
        refuses(done, "No execution role is known")
        return
    assert done.code == 0
    assert cloud.sent("CreateTrainingJob")[0]["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/{role}"


@pytest.mark.parametrize(
    ("metadata", "answers"),
    [
        ({"ExecutionRoleArn": f"arn:aws:iam::{ACCOUNT}:role/Studio"}, {}),
        ({"ResourceName": "nb"}, {"DescribeNotebookInstance": {"RoleArn": f"arn:aws:iam::{ACCOUNT}:role/Studio"}}),
        (
            {"DomainId": "d", "UserProfileName": "me"},
            {
                "DescribeUserProfile": {"UserSettings": {}},
                "DescribeDomain": {"DefaultUserSettings": {"ExecutionRole": f"arn:aws:iam::{ACCOUNT}:role/Studio"}},
            },
        ),
    ],
)
def test_the_role_of_a_notebook_is_taken(run, cloud, words, metadata, answers, monkeypatch, tmp_path):
    """As the SDK's get_execution_role finds it."""
    file = tmp_path / "resource-metadata.json"
    file.write_text(json.dumps(metadata))
    monkeypatch.setattr(account, "NOTEBOOK_METADATA", file)
    for operation, body in answers.items():
        cloud.answer(operation, said(**body))
    assert run("train", *(word for word in words if "role" not in word)).code == 0
    assert cloud.sent("CreateTrainingJob")[0]["RoleArn"] == f"arn:aws:iam::{ACCOUNT}:role/Studio"


@pytest.mark.parametrize("flag", [["--profile", "dogs"], ["sagemaker.profile=dogs"]])
def test_a_named_profile(run, cloud, words, monkeypatch, tmp_path, flag):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file = tmp_path / "config"
    file.write_text("[profile dogs]\nregion = us-east-1\naws_access_key_id = mine\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(file))
    refuses(run("train", *words), "There are no AWS credentials")
    refuses(run("train", *words, "--profile=cats"), "The config profile (cats) could not be found")
    assert run("train", *words, *flag).code == 0
    used = [headers["Authorization"] for name, _, headers in cloud.requests if name == "CreateTrainingJob"]
    assert "Credential=mine/" in used[0]


def test_a_role_of_another_account(run, cloud, words):
    refuses(
        run("train", *words, "sagemaker.role=arn:aws:iam::999999999999:role/x"), "belongs to the account 999999999999"
    )


@pytest.mark.parametrize("kind", ["upload", "train"])
def test_the_bucket_is_missing(run, cloud, words, kind):
    refuses(run(kind, *words, "sagemaker.bucket=absent"), "The bucket absent does not exist", "aws s3 mb s3://absent")
    nothing_runs()


@pytest.mark.parametrize("kind", ["upload", "train"])
def test_the_bucket_is_of_another_account(run, cloud, words, kind):
    cloud.answer("HEAD /mine", refused_s3("AccessDenied", "Access Denied", 403))
    refuses(run(kind, *words), f"The bucket mine is not of the account {ACCOUNT}")
    owners = [headers.get("X-Amz-Expected-Bucket-Owner") for name, _, headers in cloud.requests if name == "HEAD /mine"]
    assert set(owners) == {ACCOUNT}, "S3 itself is asked whose it is"
    assert not [name for name, _, _ in cloud.requests if name.startswith(("PUT", "POST", "Create"))]


@pytest.mark.parametrize("kind", ["upload", "train"])
def test_the_bucket_is_in_another_region(run, cloud, words, kind):
    where = {"LocationConstraint": "eu-central-1"}
    boto3.client("s3").create_bucket(Bucket="far", CreateBucketConfiguration=where)
    refuses(
        run(kind, *words, "sagemaker.bucket=far"), "The bucket far is in eu-central-1", "sagemaker.region=eu-central-1"
    )


def test_the_bucket_is_public(run, cloud, words):
    status = "<PolicyStatus><IsPublic>true</IsPublic></PolicyStatus>"
    from werkzeug.wrappers import Response

    cloud.answer("GET /mine", Response(status, content_type="application/xml"))
    refuses(run("upload", *words), "The bucket mine is public")


def test_throttling_is_waited_out(run, cloud, words):
    busy = refused(BUSY, "Rate exceeded")
    cloud.answer("CreateTrainingJob", busy, busy, None)
    assert run("train", *words).code == 0
    assert len(cloud.sent("CreateTrainingJob")) == 3


def test_throttling_without_end(run, cloud, words, monkeypatch):
    """The job is there by then: that is said too."""
    monkeypatch.setattr(account, "ATTEMPTS", 2)
    cloud.answer("DescribeTrainingJob", refused(BUSY, "Rate exceeded"))
    done = run("train", *words, "sagemaker.job_name=one")
    assert done.code == 2
    assert "AWS asks to slow down while looking at one" in done.err
    assert "one continues; follow it with python launch/sagemaker_train.py job=one" in done.err


def test_aws_is_out_of_reach(run, cloud, words, monkeypatch):
    monkeypatch.setattr(account, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    refuses(run("train", *words), "AWS could not be reached while asking AWS who you are", "check the network")


def test_the_network_is_cut_during_an_upload(run, cloud, write_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(account, "ATTEMPTS", 1)
    boto3.client("s3").create_bucket(Bucket="mine")
    root = write_tree(tmp_path / "dogs")
    words = ("sagemaker.bucket=mine", f"data.root={root}")
    cloud.breaks_after = 10
    cut = run("upload", *words)
    assert cut.code == 2
    assert "AWS could not be reached while sending files to S3" in cut.err
    assert "what is there already is not sent twice" in cut.err
    client = boto3.client("s3")
    arrived = client.list_objects_v2(Bucket="mine")["KeyCount"]
    assert arrived == 10
    for entry in client.list_objects_v2(Bucket="mine")["Contents"]:
        file = root / entry["Key"].removeprefix("dogbreed/data/dogs/")
        assert entry["Size"] == file.stat().st_size, "whole or not at all"
    assert "Uploads" not in client.list_multipart_uploads(Bucket="mine")

    cloud.breaks_after = None
    cloud.requests.clear()
    again = run("upload", *words)
    assert again.code == 0
    assert "10 were there already" in again.out
    assert len([name for name, _, _ in cloud.requests if name.startswith("PUT")]) == 48 - 10


def test_a_job_that_fails(run, cloud, words):
    logs, group, stream = boto3.client("logs"), "/aws/sagemaker/TrainingJobs", "one/algo-1-1"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000) + n, "message": f"line {n}"} for n in range(40)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    reason = "AlgorithmError: ExecuteUserScriptError: RuntimeError: The data folder is empty"

    def failed(body, ask):
        return said(**{**ask(), "TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason})

    cloud.answer("DescribeTrainingJob", failed)
    done = run("train", *words, "sagemaker.job_name=one")
    assert done.code == 2
    assert f"error: one failed: {reason}" in done.err
    assert done.err.splitlines()[-15:] == [f"  line {n}" for n in range(25, 40)]
    assert "Traceback" not in done.err


def test_a_job_for_which_there_was_no_machine(run, cloud, words):
    reason = "CapacityError: Unable to provision requested ML compute capacity."

    def failed(body, ask):
        return said(**{**ask(), "TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason})

    cloud.answer("DescribeTrainingJob", failed)
    done = run("train", *words, "sagemaker.job_name=one")
    assert done.code == 2
    assert f"{reason} Try later, another sagemaker.instance_type, or another region." in done.err


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ("Stopped", "one was stopped by somebody, and nothing of it runs any more."),
        ("MaxRuntimeExceeded", "one was stopped at its limit, sagemaker.max_run, and nothing of it runs any more."),
        ("MaxWaitTimeExceeded", "one was stopped at its limit, sagemaker.max_wait, and nothing of it runs any more."),
    ],
)
def test_a_job_that_was_stopped(run, cloud, words, state, says):
    def stopped(body, ask):
        return said(**{**ask(), "TrainingJobStatus": "Stopped", "SecondaryStatus": state})

    cloud.answer("DescribeTrainingJob", stopped)
    done = run("train", *words, "sagemaker.job_name=one")
    assert done.code == 2
    assert says in done.err
    assert "Its best model so far is s3://mine/dogbreed/jobs/one/output/model.tar.gz." in done.err
    assert "sagemaker.resume_from=one continues from its last epoch in a new job." in done.err
    assert done.err.count("\n") == 1


def test_a_search_of_which_all_trials_failed(run, cloud, words):
    trial = {
        "TrainingJobName": "one-001",
        "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/one-001",
        "CreationTime": 1.8e9,
        "TrainingJobStatus": "Failed",
        "TunedHyperParameters": {"lr": "0.1"},
    }
    cloud.answer("ListTrainingJobsForHyperParameterTuningJob", said(TrainingJobSummaries=[trial, trial]))

    def described(body, ask):
        job = {"TrainingJobName": "one-001", "TrainingJobStatus": "Failed", "FailureReason": "RuntimeError: no memory"}
        return said(**job)

    cloud.answer("DescribeTrainingJob", described)
    done = run("tune", *words, "sagemaker.job_name=one")
    assert done.code == 2
    assert "None of the 2 trials of one finished. The first that failed: one-001 failed: RuntimeError: no" in done.err


def test_a_job_that_does_not_exist(run, cloud, words):
    done = run("train", *words, "job=none")
    assert done.code == 2
    assert "looking at none" in done.err
    assert "continues" not in done.err
