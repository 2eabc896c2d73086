"""Following a job to its end: its log, its state, what it left, what it cost."""

import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError, Interrupted
from launch.aws.account import Account, elsewhere
from launch.aws.errors import AwsError, explained
from launch.aws.naming import parse_s3_uri
from launch.aws.pricing import RECEIPTS, Prices
from launch.jobs import managed_rules, trials
from launch.jobs.receipt import receipt

POLL_SECONDS = 5.0
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
LAST_LINES = 15  # of the log of a job that failed
ENDED = ("Completed", "Failed", "Stopped", "DeleteFailed")


def follow_training(config: Mapping[str, Any], name: str, account: Account, prices: Prices) -> None:
    """Stream a training job's log until it ends, and print the results.

    Raises:
        DogbreedError: There is no such job, it failed, or it was stopped.
        Interrupted: Ctrl-C; the job continues.
    """
    client = account.client("sagemaker")
    with leaving(name, "train", "stop-training-job --training-job-name", account.target.region):
        job = _watch_training(client, name, Log(account, name, print_line))
    if job["TrainingJobStatus"] == "Failed":
        raise DogbreedError(_failure(account, job))
    if job["TrainingJobStatus"] == "Stopped":
        raise DogbreedError(_stopped(job))
    artefact = job.get("ModelArtifacts", {}).get("S3ModelArtifacts", "none")
    print(f"\n{name} is done.\n  model    {artefact}")
    for metric in job.get("FinalMetricDataList", []):
        print(f"  {metric['MetricName']:<18} {metric['Value']:.6g}")
    folder = RECEIPTS / name
    if fetch_output(account, job, folder):
        print(f"  results  {folder}/ (metrics.json, report.html, predictions.csv)")
    print("\n".join(f"  {line}" for line in receipt(config, job, prices, folder)))
    with suppress(KeyboardInterrupt):  # the job is done
        for line in managed_rules.results(account, job, folder):
            print(f"  {line}", flush=True)
    words = f"job={name}{_region_setting(account.target.region)}"
    print(f"\nDeploy it: python launch/sagemaker_deploy.py mode=plan {words}", flush=True)


def follow_tuning(config: Mapping[str, Any], name: str, account: Account, prices: Prices) -> None:
    """Show a tuning job's trials until it ends, and print which was best.

    Raises:
        DogbreedError: There is no such job, it failed, or none of its trials finished.
        Interrupted: Ctrl-C; the job continues.
    """
    client = account.client("sagemaker")
    stop = "stop-hyper-parameter-tuning-job --hyper-parameter-tuning-job-name"
    with leaving(name, "tune", stop, account.target.region):
        job = _watch_tuning(client, name)
    listed = trials.list_trials(client, name)
    if not any(trial.value is not None for trial in listed):
        raise DogbreedError(_no_trial(account, client, job, listed))
    folder = RECEIPTS / name
    trials.write(config, job, listed, folder)
    print("\n".join(trials.summary(config, job, listed, folder, prices)), flush=True)


def _watch_training(client: Any, name: str, log: "Log") -> dict[str, Any]:
    """Wait for a training job's end; print its states and stream its log meanwhile."""
    printed = ""
    while True:
        with explained(f"looking at {name}"):
            job: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
        state = job.get("SecondaryStatus", job["TrainingJobStatus"])
        if state != printed:
            print_line(f"[{name}: {state}]")
            printed = state
        log.read()
        if job["TrainingJobStatus"] in ENDED:
            return job
        time.sleep(POLL_SECONDS)


def _watch_tuning(client: Any, name: str) -> dict[str, Any]:
    """Show the trials until the tuning job ends: as a table on a terminal, else one line per change."""
    live = trials.live_table() if sys.stdout.isatty() else None
    printed = ""
    with live or nullcontext():
        while True:
            with explained(f"looking at {name}"):
                job: dict[str, Any] = client.describe_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
            line = trials.progress(job)
            if live is not None:
                live.update(trials.table(trials.list_trials(client, name), trials.minimizes(job)), refresh=True)
            elif line != printed:
                print_line(line)
                printed = line
            if job["HyperParameterTuningJobStatus"] in ENDED:
                return job
            time.sleep(POLL_SECONDS)


class Log:
    """The log of a training job, read in pieces.

    Args:
        account: That the job is in.
        name: Of the job.
        say: Gets each line.
    """

    def __init__(self, account: Account, name: str, say: Callable[[str], None]) -> None:
        self.client, self.name, self.say = account.client("logs"), name, say
        self.tokens: dict[str, str | None] = {}
        self.last: list[str] = []

    def read(self) -> None:
        """Pass on what is new. Nothing yet, or no permission to read it, is no error of the job's."""
        with suppress(AwsError), explained("reading the log"):
            page = self.client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.name}/")
            for stream in page["logStreams"]:
                self._read(stream["logStreamName"])

    def _read(self, stream: str) -> None:
        while True:
            token = self.tokens.get(stream)
            page = self.client.get_log_events(
                logGroupName=LOG_GROUP,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            self.tokens[stream] = page["nextForwardToken"]
            for event in page["events"]:
                self.last = [*self.last, event["message"]][-LAST_LINES:]
                self.say(event["message"])
            if not page["events"]:  # the end is where a token leads to nothing more
                return


def print_line(line: str) -> None:
    """Print a line of the job's, as it comes."""
    print(line.rstrip("\r\n"), flush=True)


def _failure(account: Account, job: Mapping[str, Any]) -> str:
    """Return the sentence for a training job that failed, with the last lines of its log."""
    name = job["TrainingJobName"]
    log = Log(account, name, lambda line: None)
    log.read()
    reason = " ".join(str(job.get("FailureReason", "it gave no reason")).split())
    message = f"{name} failed: {reason}"
    if any(word in reason for word in ("CapacityError", "InsufficientCapacity")):
        message += " Try later, another sagemaker.instance_type, or another region."
    if log.last:
        message += "\nThe last lines of its log:\n" + "\n".join(f"  {line.rstrip()}" for line in log.last)
    return message


def _no_trial(account: Account, client: Any, job: Mapping[str, Any], listed: list[trials.Trial]) -> str:
    """Return the sentence for a tuning job without a result."""
    message = f"None of the {len(listed)} trials of {job['HyperParameterTuningJobName']} finished"
    failed = next((trial for trial in listed if trial.status == "Failed"), None)
    if failed is None:
        reason = job.get("FailureReason") or f"its state is {job['HyperParameterTuningJobStatus']}"
        return f"{message}: {reason}."
    with explained(f"looking at {failed.name}"):
        first = client.describe_training_job(TrainingJobName=failed.name)
    return f"{message}. The first that failed: {_failure(account, first)}"


def _stopped(job: Mapping[str, Any]) -> str:
    name, status = job["TrainingJobName"], job.get("SecondaryStatus")
    reason = {
        "MaxRuntimeExceeded": "at its limit, sagemaker.max_run",
        "MaxWaitTimeExceeded": "at its limit, sagemaker.max_wait",
    }.get(str(status), "by somebody")
    artefact = job.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    model = f" Its best model so far is {artefact}." if artefact else ""
    return (
        f"{name} was stopped {reason}, and nothing of it runs any more.{model} "
        f"sagemaker.resume_from={name} continues from its last epoch in a new job."
    )


@contextmanager
def leaving(name: str, command: str, stop: str, region: str) -> Iterator[None]:
    """Leave the job alone at Ctrl-C or where AWS is out of reach; say how to follow and how to stop it.

    Args:
        name: Of the job.
        command: `train` or `tune`.
        stop: What stops it, behind `aws sagemaker`.
        region: That it runs in.

    Raises:
        Interrupted: At Ctrl-C.
        AwsError: AWS refused to tell about the job, or could not be reached.
    """
    follow = f"python launch/sagemaker_{command}.py job={name}{_region_setting(region)}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"\n{name} continues, and is billed until it ends.\n"
            f"Follow it: {follow}\n"
            f"Stop it:   aws sagemaker {stop} {name}" + (f" --region {region}" if elsewhere(region) else "")
        ) from None
    except AwsError as error:
        if error.code in ("ValidationException", "ResourceNotFound"):  # there is none
            raise
        raise AwsError(f"{error} {name} continues; follow it with {follow}", error.code) from error


def _region_setting(region: str) -> str:
    """Return the region as a setting, for a command to copy, where it would not be found without."""
    return f" sagemaker.region={region}" if elsewhere(region) else ""


def fetch_output(account: Account, job: Mapping[str, Any], folder: Path) -> bool:
    """Unpack metrics, report and predictions of a job into a folder; return whether there were any."""
    address = f"{job['OutputDataConfig']['S3OutputPath']}/{job['TrainingJobName']}/output/output.tar.gz"
    bucket, key = parse_s3_uri(address, "OutputDataConfig")
    with tempfile.NamedTemporaryFile(suffix=".tar.gz") as packed:
        try:
            with explained("fetching the results"):
                account.client("s3").download_fileobj(bucket, key, packed, {"ExpectedBucketOwner": account.account})
        except AwsError:
            return False
        packed.seek(0)
        with tarfile.open(fileobj=packed, mode="r:gz") as archive:
            archive.extractall(folder, filter="data")
    return True
