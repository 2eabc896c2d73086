"""Following a job to its end: its log, its state, what it left, what it cost."""

import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError, Interrupted
from launch.aws.account import Account, elsewhere
from launch.aws.errors import AwsError, explained
from launch.aws.naming import split_s3
from launch.aws.pricing import RECEIPTS, Prices
from launch.jobs.receipt import receipt

POLL_SECONDS = 5.0
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
LAST_LINES = 15  # of the log of a job that failed


def follow_training(config: Mapping[str, Any], name: str, account: Account, prices: Prices) -> None:
    """Streams a training job's log until it ends, and says what came out.

    Raises:
        DogbreedError: There is no such job, it failed, or it was stopped.
        Interrupted: Ctrl-C; the job goes on.
    """
    client = account.client("sagemaker")
    with leaving(name, "train", "stop-training-job --training-job-name", account.place.region):
        done = watch(account, client, name, Log(account, name, print_line))
    status = done["TrainingJobStatus"]
    if status == "Failed":
        raise DogbreedError(failure(account, done))
    if status == "Stopped":
        raise DogbreedError(_stopped(done))
    artefact = done.get("ModelArtifacts", {}).get("S3ModelArtifacts", "none")
    print(f"\n{name} is done.\n  model    {artefact}")
    for metric in done.get("FinalMetricDataList", []):
        print(f"  {metric['MetricName']:<18} {metric['Value']:.6g}")
    folder = RECEIPTS / name
    if fetch_output(account, done, folder):
        print(f"  results  {folder}/ (metrics.json, report.html, predictions.csv)")
    said = receipt(config, done, prices, folder)
    print("\n".join(f"  {line}" for line in said))
    job = f"job={name}{_where(account.place.region)}"
    print(f"\nDeploy it: python launch/sagemaker_deploy.py mode=plan {job}", flush=True)


def watch(account: Account, client: Any, name: str, log: "Log") -> dict[str, Any]:
    """Waits for a training job's end; tells its states and streams its log on the way."""
    told = ""
    while True:
        with explained(f"looking at {name}"):
            job: dict[str, Any] = client.describe_training_job(TrainingJobName=name)
        state = job.get("SecondaryStatus", job["TrainingJobStatus"])
        if state != told:
            print_line(f"[{name}: {state}]")
            told = state
        ended = job["TrainingJobStatus"] in ("Completed", "Failed", "Stopped")
        log.read()
        if ended:
            return job
        time.sleep(POLL_SECONDS)


class Log:
    """The log of a training job, read on from where it was read to.

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
        """Passes on what is new. Nothing yet, or no permission to read it, is no fault of the job's."""
        with suppress(AwsError), explained("reading the log"):
            found = self.client.describe_log_streams(logGroupName=LOG_GROUP, logStreamNamePrefix=f"{self.name}/")
            for stream in found["logStreams"]:
                self._read(stream["logStreamName"])

    def _read(self, stream: str) -> None:
        while True:
            token = self.tokens.get(stream)
            found = self.client.get_log_events(
                logGroupName=LOG_GROUP,
                logStreamName=stream,
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
            self.tokens[stream] = found["nextForwardToken"]
            for event in found["events"]:
                self.last = [*self.last, event["message"]][-LAST_LINES:]
                self.say(event["message"])
            if not found["events"]:  # the end is where a token leads to nothing more
                return


def print_line(line: str) -> None:
    """A line of the job's, as it comes."""
    print(line.rstrip("\r\n"), flush=True)


def failure(account: Account, job: Mapping[str, Any]) -> str:
    """The sentence for a training job that failed, with the last lines of its log."""
    name = job["TrainingJobName"]
    log = Log(account, name, lambda line: None)
    log.read()
    reason = " ".join(str(job.get("FailureReason", "it gave no reason")).split())
    told = f"{name} failed: {reason}"
    if any(word in reason for word in ("CapacityError", "InsufficientCapacity")):
        told += " Try later, another sagemaker.instance_type, or another region."
    if log.last:
        told += "\nThe last lines of its log:\n" + "\n".join(f"  {line.rstrip()}" for line in log.last)
    return told


def _stopped(job: Mapping[str, Any]) -> str:
    name, why = job["TrainingJobName"], job.get("SecondaryStatus")
    if why == "MaxRuntimeExceeded":
        return f"{name} was stopped at its limit; give a larger sagemaker.max_run, or fewer epochs."
    if why == "MaxWaitTimeExceeded":
        return f"{name} waited for spot machines until its limit; give a larger sagemaker.max_wait, or spot=false."
    artefact = job.get("ModelArtifacts", {}).get("S3ModelArtifacts")
    left = f"; what it had by then is in {artefact}" if artefact else ""
    return f"{name} was stopped from elsewhere{left}. Nothing of it runs any more; the same command starts anew."


@contextmanager
def leaving(name: str, command: str, stop: str, region: str) -> Iterator[None]:
    """Ctrl-C, or an account out of reach, leaves the job alone and says how to follow and how to stop it.

    Args:
        name: Of the job.
        command: `train` or `tune`.
        stop: What stops it, behind `aws sagemaker`.
        region: That it runs in.

    Raises:
        Interrupted: At Ctrl-C.
        AwsError: AWS refused to tell about the job, or could not be reached.
    """
    follow = f"python launch/sagemaker_{command}.py job={name}{_where(region)}"
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"\n{name} goes on, and is billed until it ends.\n"
            f"Follow it: {follow}\n"
            f"Stop it:   aws sagemaker {stop} {name}" + (f" --region {region}" if elsewhere(region) else "")
        ) from None
    except AwsError as error:
        if error.code in ("ValidationException", "ResourceNotFound"):  # there is none
            raise
        raise AwsError(f"{error} {name} goes on; follow it with {follow}", error.code) from error


def _where(region: str) -> str:
    """The region as a setting, for a command to copy, where it would not be found without."""
    return f" sagemaker.region={region}" if elsewhere(region) else ""


def fetch_output(account: Account, job: Mapping[str, Any], folder: Path) -> bool:
    """Metrics, report and predictions of a job, unpacked into a folder; whether there were any."""
    address = f"{job['OutputDataConfig']['S3OutputPath']}/{job['TrainingJobName']}/output/output.tar.gz"
    bucket, key = split_s3(address, "OutputDataConfig")
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


def follow_tuning(config: Mapping[str, Any], name: str, account: Account, prices: Prices) -> None:
    """Shows a tuning job's trials until it ends, and says which was best.

    Raises:
        DogbreedError: There is no such job, it failed, or none of its trials came to an end.
        Interrupted: Ctrl-C; the job goes on.
    """
    from launch.jobs import tuner

    client = account.client("sagemaker")
    stop = "stop-hyper-parameter-tuning-job --hyper-parameter-tuning-job-name"
    with leaving(name, "tune", stop, account.place.region):
        job = tuner.watch(client, name)
    found = tuner.listed(client, name)
    folder = RECEIPTS / name
    if not any(trial.value is not None for trial in found):
        failed = next((trial for trial in found if trial.status == "Failed"), None)
        told = f"None of the {len(found)} trials of {name} came to an end"
        if failed is None:
            reason = job.get("FailureReason")
            raise DogbreedError(
                f"{told}{f': {reason}' if reason else '; its state is '}{job['HyperParameterTuningJobStatus']}."
            )
        with explained(f"looking at {failed.name}"):
            first = client.describe_training_job(TrainingJobName=failed.name)
        raise DogbreedError(f"{told}. The first that failed: {failure(account, first)}")
    tuner.leave(config, job, found, folder)
    print("\n".join(tuner.summary(config, job, found, folder, prices)), flush=True)
