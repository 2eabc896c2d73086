"""After a job with the managed Debugger or profiler: what their rules found, and what they wrote."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from launch.aws.account import Account
from launch.aws.errors import AwsError, explained
from launch.aws.naming import parse_s3_uri

POLL_SECONDS = 10.0
RULES_SECONDS = 900  # that the rules may take when the job is done; the profiler's report comes last
OUTPUT = "rule-output"  # below the job's folder, where the rules' containers write
REPORT = "profiler-report.html"


def results(account: Account, job: Mapping[str, Any], folder: Path) -> Iterator[str]:
    """Wait for the rules of a job, and yield what they found, in lines to print; none for a job without.

    Args:
        account: That the job is in.
        job: As DescribeTrainingJob has it, done.
        folder: Gets what the rules wrote.
    """
    if not _statuses(job):
        return
    name = job["TrainingJobName"]
    try:
        job = _settled(account, job)
        width = max(len(status["RuleConfigurationName"]) for status in _statuses(job))
        for status in _statuses(job):
            details = " ".join(status.get("StatusDetails", "").split())
            line = f"rule     {status['RuleConfigurationName']:<{width}}  {status['RuleEvaluationStatus']}  {details}"
            yield line.rstrip()
        written = _fetch(account, job, folder)
    except AwsError as error:
        yield f"rules    could not be read: {error}"
        return
    if any(status["RuleEvaluationStatus"] in _UNDER_WAY for status in _statuses(job)):
        yield f"rules    are still at work; python launch/sagemaker_train.py job={name} fetches them later"
    if written:
        report = next((file for file in written if file.name == REPORT), folder / OUTPUT)
        yield f"rules    wrote {report}"


_UNDER_WAY = ("InProgress", "Stopping")


def _statuses(job: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*job.get("DebugRuleEvaluationStatuses", ()), *job.get("ProfilerRuleEvaluationStatuses", ())]


def _settled(account: Account, job: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the job as it is when its rules have ended, or have had the time for it."""
    client, deadline = account.client("sagemaker"), time.monotonic() + RULES_SECONDS
    said = False
    while any(status["RuleEvaluationStatus"] in _UNDER_WAY for status in _statuses(job)):
        if not said:
            print("Waiting for SageMaker's rules, which go on after the job; Ctrl-C leaves them alone", flush=True)
            said = True
        if time.monotonic() > deadline:
            break
        time.sleep(POLL_SECONDS)
        with explained(f"looking at {job['TrainingJobName']}"):
            job = client.describe_training_job(TrainingJobName=job["TrainingJobName"])
    return job


def _fetch(account: Account, job: Mapping[str, Any], folder: Path) -> list[Path]:
    """Bring what the rules wrote into a folder; return the files."""
    address = f"{job['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/{OUTPUT}/"
    bucket, prefix = parse_s3_uri(address, "OutputDataConfig")
    s3, owner = account.client("s3"), {"ExpectedBucketOwner": account.account}
    files = []
    with explained("fetching what the rules wrote"):
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **owner):
            for entry in page.get("Contents", ()):
                inside = PurePosixPath(entry["Key"].removeprefix(prefix))
                if entry["Key"].endswith("/") or ".." in inside.parts:
                    continue
                file = folder / OUTPUT / inside
                file.parent.mkdir(parents=True, exist_ok=True)
                s3.download_file(bucket, entry["Key"], str(file), owner)
                files.append(file)
    return files
