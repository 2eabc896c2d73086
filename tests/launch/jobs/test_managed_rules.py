"""What SageMaker's own rules found, after a job that was sent with them."""

from pathlib import Path

import boto3
import pytest
from support.cloud import said

from launch.aws.account import Account
from launch.jobs import managed_rules

pytestmark = pytest.mark.slow


def job(*rules: tuple[str, str]) -> dict:
    statuses = [{"RuleConfigurationName": name, "RuleEvaluationStatus": status} for name, status in rules]
    statuses[0]["StatusDetails"] = "RuleEvaluationConditionMet: Evaluation of the rule\n Overfit at step 9"
    return {
        "TrainingJobName": "one",
        "TrainingJobStatus": "Completed",
        "OutputDataConfig": {"S3OutputPath": "s3://mine/dogbreed/jobs"},
        "DebugRuleEvaluationStatuses": statuses[:1],
        "ProfilerRuleEvaluationStatuses": statuses[1:],
    }


@pytest.fixture
def account(cloud, monkeypatch) -> Account:
    from dogbreed.config.compose import compose

    monkeypatch.setattr(managed_rules, "POLL_SECONDS", 0.01)
    boto3.client("s3").create_bucket(Bucket="mine")
    return Account(compose(["sagemaker.bucket=mine", "sagemaker.role=Dogs"]))


def test_findings_and_the_profilers_report_are_fetched(cloud, account, tmp_path, capsys):
    files = ("Overfit/debug-output/a.json", "ProfilerReport/profiler-output/profiler-report.html", "../../evil")
    for name in files:
        boto3.client("s3").put_object(Bucket="mine", Key=f"dogbreed/jobs/one/rule-output/{name}", Body=b"x")
    boto3.client("s3").put_object(Bucket="mine", Key="dogbreed/jobs/one/output/model.tar.gz", Body=b"x")
    done = job(("Overfit", "IssuesFound"), ("ProfilerReport", "NoIssuesFound"))
    cloud.answer("DescribeTrainingJob", said(**done))
    lines = list(
        managed_rules.results(account, job(("Overfit", "InProgress"), ("ProfilerReport", "InProgress")), tmp_path)
    )
    report = Path("rule-output/ProfilerReport/profiler-output/profiler-report.html")
    assert lines == [
        "rule     Overfit         IssuesFound  RuleEvaluationConditionMet: Evaluation of the rule Overfit at step 9",
        "rule     ProfilerReport  NoIssuesFound",
        f"rules    wrote {tmp_path / report}",
    ]
    fetched = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert fetched == {report, Path("rule-output/Overfit/debug-output/a.json")}
    assert "Waiting for SageMaker's rules" in capsys.readouterr().out


def test_rules_that_do_not_end_are_left(cloud, account, tmp_path, monkeypatch):
    monkeypatch.setattr(managed_rules, "RULES_SECONDS", 0)
    lines = list(managed_rules.results(account, job(("Overfit", "InProgress")), tmp_path))
    assert lines[-1] == "rules    are still at work; python launch/sagemaker_train.py job=one fetches them later"
    assert list(managed_rules.results(account, {"TrainingJobName": "two"}, tmp_path)) == [], "a job without rules"


def test_a_job_that_is_followed_shows_them(cloud, account, run):
    client = boto3.client("sagemaker")
    image = {"TrainingImage": "image", "TrainingInputMode": "File"}
    client.create_training_job(
        TrainingJobName="one",
        AlgorithmSpecification=image,
        RoleArn="arn:aws:iam::123456789012:role/Dogs",
        OutputDataConfig={"S3OutputPath": "s3://mine/dogbreed/jobs"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 30},
        StoppingCondition={"MaxRuntimeInSeconds": 600},
    )
    cloud.answer("DescribeTrainingJob", lambda body, ask: said(**{**ask(), **job(("Overfit", "IssuesFound"))}))
    followed = run("train", "job=one", "sagemaker.bucket=mine", "sagemaker.role=Dogs")
    assert followed.code == 0, followed.err
    assert "  rule     Overfit  IssuesFound  RuleEvaluationConditionMet" in followed.out
