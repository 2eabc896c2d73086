"""One training job carried out on this machine by SageMaker's own toolkit, in place of the container in the cloud.

The request is read as the service reads it, and nothing in it is changed. The folder that a container finds at /opt/ml
is laid out on this machine:
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, Literal

import psutil

from dogbreed.core.background import in_background
from dogbreed.core.errors import DogbreedError
from launch.aws import tracking
from launch.rehearsal.environment import Environment
from launch.rehearsal.s3 import LocalS3

Request = Mapping[str, Any]  # of CreateTrainingJob, if nothing else is said

OPT_ML = PurePosixPath("/opt/ml")
CHECKPOINTS = OPT_ML / "checkpoints"  # the service's default
# "algo-1" and so on in the cloud. The toolkit waits until the DNS knows the names.
HOST = "localhost"
MOST_HOSTS = 8
MASTER_PORT = 7777  # where the toolkit has the first of several machines listen
SYNC_SECONDS = 1.0
# Names a folder of the container's own disk in the request. Features are the same wherever they were computed, so here
# they go where this machine keeps its own.
CACHE = "DOGBREED_CACHE"
METRICS = re.compile(r'^\{.*"cache": "\w+".*\}$')  # metrics.json, which a job prints at its end
LAST_LINES = 15
INTERRUPTED = "Spot interruption (SIGTERM, SIGKILL); another machine resumes from the checkpoints."
GRACE_SECONDS = 0.5  # between SIGTERM and SIGKILL; the service gives 120, in which nothing happens either
# The image starts a shell, which waits for the toolkit and passes no SIGTERM on to it.
SHELL = ("bash", "-m", "-c", 'trap : TERM; "$0"; exit $?')
LOOK_SECONDS = 0.05

End = Literal["Completed", "Failed", "Stopped", "Interrupted"]


@dataclass
class Outcome:
    """The result of a job.

    Attributes:
        name: Of the job.
        status: Completed, Failed or Stopped.
        reason: Why it failed, in the toolkit's own words, or why it was stopped.
        emitted: All values of every metric, in their order.
        seconds: From the start of the container to its end, over all the machines it had.
        result: The job's own metrics.json; empty where it came to none.
        cache: `built`, `hit` or `off`, as the job's own metrics say; "" where it came to none.
        interruptions: How often it lost its machine.
        model: Address of model.tar.gz.
        output: Address of output.tar.gz.
        last_lines: Of its log.
    """

    name: str
    status: str = "InProgress"
    reason: str = ""
    emitted: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    result: dict[str, Any] = field(default_factory=dict)
    cache: str = ""
    interruptions: int = 0
    model: str | None = None
    output: str | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    @property
    def metrics(self) -> dict[str, float]:
        """Return the last value of every metric; the tuner compares these."""
        return {name: values[-1] for name, values in self.emitted.items()}


class Container:
    """Carries out one job.

    Args:
        request: Of CreateTrainingJob.
        environment: With the toolkit.
        s3: Where the request's addresses lead.
        say: Gets every line of the log.
        threads: Of torch; as many as it likes if None.
        cache_dir: Where features are kept; None for this machine's usual place.
        alone: Features are kept in the container, as in the cloud, so that others find them in S3 alone.

    Attributes:
        cancelled: Set it, and the job is stopped.
    """

    def __init__(
        self,
        request: Request,
        environment: Environment,
        s3: LocalS3,
        say: Callable[[str], None] = print,
        threads: int | None = None,
        cache_dir: str | None = None,
        alone: bool = False,
    ) -> None:
        self.request = request
        self.alone = alone or len(hosts_of(request)) > 1  # machines share no disk
        self.environment = environment
        self.s3 = s3
        self.say = say
        self.threads = threads
        self.cache_dir = cache_dir
        self.outcome = Outcome(request["TrainingJobName"])
        definitions = request["AlgorithmSpecification"].get("MetricDefinitions", ())
        self.expressions = {each["Name"]: re.compile(each["Regex"]) for each in definitions}
        self.lines_with_metrics = 0
        self.cancelled = threading.Event()

    def run(self, interrupt_after: int | None = None, stop_after: int | None = None) -> Outcome:
        """Run the job to its end and upload what it leaves.

        Args:
            interrupt_after: Simulate one spot interruption after so many log lines with a metric.
            stop_after: Stop the job after so many on the machine that it then has.

        Returns:
            The outcome, also of a job that failed.
        """
        while True:
            with TemporaryDirectory(prefix="dogbreed-rehearsal-") as folder:
                roots = {host: Path(folder).resolve() / host for host in hosts_of(self.request)}
                for host, root in roots.items():
                    lay_out(self.request, root, self.s3, host)
                interrupts = interrupt_after is not None and not self.outcome.interruptions
                if interrupts:
                    end = self._run_toolkit(list(roots.values()), interrupt_after, "Interrupted")
                else:
                    end = self._run_toolkit(list(roots.values()), stop_after, "Stopped")
                if end == "Interrupted":
                    self.outcome.interruptions += 1
                    continue
                self.outcome.status = end
                reasons = [reason for root in roots.values() if (reason := failure(root))]
                self.outcome.reason = self.outcome.reason or "".join(reasons[:1])
                first = next(iter(roots.values()))  # the other machines leave nothing
                artefacts = collect(self.request, first, self.s3, failed=end == "Failed")
                self.outcome.model, self.outcome.output = artefacts
                return self.outcome

    def variables(self, root: Path) -> dict[str, str]:
        """Return the environment variables of the container whose /opt/ml is `root`."""
        # A rehearsal reaches no AWS, so what would go to SageMaker's MLflow stays in the job's own output.
        requested = {
            name: value
            for name, value in self.request.get("Environment", {}).items()
            if name != CACHE and not tracking.ARN.fullmatch(value)
        }
        foreign = ("AWS_", "SM_", "SAGEMAKER_", "TRAINING_JOB_", "MLFLOW_")  # of this shell, which no job sees
        ours = {name: value for name, value in self.environment.variables().items() if not name.startswith(foreign)}
        return {
            **ours,
            **self.s3.variables(),
            "SAGEMAKER_BASE_DIR": str(root),
            "TRAINING_JOB_NAME": self.request["TrainingJobName"],
            "SMDEBUG_CONFIG_FILE_PATH": str(root / "input" / "config" / "debughookconfig.json"),  # if any
            "PYTHONUNBUFFERED": "TRUE",  # as in the image
            "SAGEMAKER_TRAINING_MODULE": "sagemaker_pytorch_container.training:main",  # as in the image
            "DOGBREED_REHEARSAL": "1",  # this machine need not have the GPU of the instance type
            "PIP_QUIET": "1",
            **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}),
            **({CACHE: str(Path(self.cache_dir).absolute())} if self.cache_dir else {}),
            **({CACHE: str(root / "cache")} if self.alone else {}),
            **({"GLOO_SOCKET_IFNAME": "lo"} if len(hosts_of(self.request)) > 1 else {}),
            **below(root, requested),
        }

    def _run_toolkit(self, roots: Sequence[Path], lines: int | None, end_after: End) -> End:
        """Run the toolkit to its end, to the job's limit, or to so many lines with a metric and what comes then.

        Args:
            roots: That stand for /opt/ml, of each machine.
            lines: With a metric; None for no such end.
            end_after: What comes after so many lines.
        """
        started, self.lines_with_metrics = time.monotonic(), 0
        limit = self.request["StoppingCondition"]["MaxRuntimeInSeconds"] - self.outcome.seconds
        enough = threading.Event()

        def read(process: subprocess.Popen[str], root: Path) -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._read_line(line.rstrip("\n").replace(str(root), str(OPT_ML)))
                if lines is not None and self.lines_with_metrics >= lines:
                    enough.set()

        end: End = "Stopped"
        with ExitStack() as machines:
            processes = []
            for root in roots:
                machines.enter_context(synchronised(self.request, root, self.s3))
                processes.append(self._start(root))
                reader = threading.Thread(target=read, args=(processes[-1], root), daemon=True)
                reader.start()
                machines.enter_context(_ended(processes[-1], reader))
            while time.monotonic() - started < limit and not self.cancelled.is_set():
                codes = [process.poll() for process in processes]
                if any(codes) or None not in codes:
                    end = "Failed" if any(codes) else "Completed"
                    break
                if enough.wait(LOOK_SECONDS):
                    end = end_after
                    break
        self.outcome.seconds += time.monotonic() - started
        if end == "Interrupted":
            self._read_line(INTERRUPTED)
        if end == "Stopped" and enough.is_set():
            self.outcome.reason = f"It was stopped after {lines} epochs (sagemaker.rehearsal.stop_after)."
        elif end == "Stopped" and not self.cancelled.is_set():
            self.outcome.reason = f"It ran longer than the request allows, {limit:.0f} s (sagemaker.max_run)."
        return end

    def _start(self, root: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(  # noqa: S603
            [*SHELL, str(self.environment.script("train"))],
            cwd=root,
            env=self.variables(root),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that the job can be ended with all that it has started
        )

    def has_metric(self, line: str) -> bool:
        """Return whether one of the request's expressions matches a line."""
        return any(expression.search(line) for expression in self.expressions.values())

    def _read_line(self, line: str) -> None:
        """Read the metrics of a line of the log, as the service does, and pass the line on."""
        self.outcome.last_lines.append(line)
        if METRICS.match(line):
            with suppress(ValueError):  # of somebody else's
                self.outcome.result = json.loads(line)
                self.outcome.cache = self.outcome.result["cache"]
        has_metric = False
        for name, expression in self.expressions.items():
            for match in expression.finditer(line):
                with suppress(ValueError, IndexError):  # not a number, not a metric
                    self.outcome.emitted.setdefault(name, []).append(float(match.group(1)))
                    has_metric = True
        self.lines_with_metrics += has_metric
        self.say(line)


@contextmanager
def _ended(process: subprocess.Popen[str], reader: threading.Thread) -> Iterator[None]:
    """End a shell and all that it has started as a container ends: SIGTERM to the shell alone, then SIGKILL to all.

    The reader of their output ends when the last of them has.
    """
    try:
        yield
    finally:
        started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        if started:
            process.terminate()
            reader.join(GRACE_SECONDS)
        for pid in {process.pid, *(each.pid for each in started), *_session(process.pid)}:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        reader.join()


def _session(leader: int) -> Iterator[int]:
    """Yield the processes of a session, also those whose parent is gone."""
    for pid in psutil.pids():
        with suppress(OSError):
            if os.getsid(pid) == leader:
                yield pid


# /opt/ml


def hosts_of(request: Request) -> list[str]:
    """Return the names of the machines that stand for those of a job: addresses of the loopback interface."""
    count = request["ResourceConfig"].get("InstanceCount", 1)
    return [HOST] if count == 1 else [f"127.0.0.{number}" for number in range(1, count + 1)]


def lay_out(request: Request, root: Path, s3: LocalS3, host: str = HOST) -> None:
    """Write the tree, with the channels and kept checkpoints as S3 has them.

    Args:
        request: Of CreateTrainingJob.
        root: An empty folder, standing for /opt/ml.
        s3: Where the request's addresses lead.
        host: Name of the machine, one of `hosts_of(request)`.

    Raises:
        DogbreedError: Nothing lies where a channel points.
    """
    config = root / "input" / "config"
    for folder in (config, root / "model", root / "output" / "data", checkpoints(request, root)):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in _configuration(request, root, host).items():
        (config / f"{name}.json").write_text(json.dumps(content))
    for channel in request.get("InputDataConfig", ()):
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        if not s3.get(uri, root / "input" / "data" / channel["ChannelName"]):
            raise DogbreedError(f"The channel {channel['ChannelName']} points to {uri}, and nothing lies there.")
    if "CheckpointConfig" in request:
        s3.get(request["CheckpointConfig"]["S3Uri"], checkpoints(request, root))


def _configuration(request: Request, root: Path, host: str) -> dict[str, Any]:
    """Return the files in input/config/ by name. Hyperparameters are text, as the service passes them."""
    mode = request["AlgorithmSpecification"]["TrainingInputMode"]
    instance = request["ResourceConfig"]["InstanceType"]
    group = "homogeneousCluster"
    channels = {}
    for channel in request.get("InputDataConfig", ()):
        source = channel["DataSource"]["S3DataSource"]
        channels[channel["ChannelName"]] = {
            "TrainingInputMode": channel.get("InputMode", mode),
            "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
            "RecordWrapperType": channel.get("RecordWrapperType", "None"),
            **({"ContentType": channel["ContentType"]} if "ContentType" in channel else {}),
        }
    hook = request.get("DebugHookConfig")
    return {
        # The addresses, the collections, and where the platform fetches the tensors from.
        **({"debughookconfig": {**hook, "LocalPath": str(root / "output" / "tensors")}} if hook else {}),
        "hyperparameters": below(root, request.get("HyperParameters", {})),
        "inputdataconfig": channels,
        "resourceconfig": {
            "current_host": host,
            "current_instance_type": instance,
            "current_group_name": group,
            "hosts": hosts_of(request),
            "instance_groups": [{"instance_group_name": group, "instance_type": instance, "hosts": hosts_of(request)}],
            "network_interface_name": "lo",
        },
    }


def below(root: Path, values: Mapping[str, str]) -> dict[str, str]:
    """Return values in which paths below /opt/ml lead to the tree."""
    opt_ml = f"{OPT_ML}/"
    return {
        name: f"{root}/{value.removeprefix(opt_ml)}" if value.startswith(opt_ml) else value
        for name, value in values.items()
    }


def checkpoints(request: Request, root: Path) -> Path:
    """Return the folder in the tree that stands for the request's CheckpointConfig.LocalPath.

    Raises:
        DogbreedError: It is a path that is not below /opt/ml.
    """
    path = PurePosixPath(request.get("CheckpointConfig", {}).get("LocalPath", CHECKPOINTS))
    if not path.is_relative_to(OPT_ML):
        raise DogbreedError(f"Checkpoints in {path} cannot be rehearsed; choose a folder below {OPT_ML}.")
    return root / path.relative_to(OPT_ML)


@contextmanager
def synchronised(request: Request, root: Path, s3: LocalS3) -> Iterator[None]:
    """Copy what is new in the checkpoint folder to S3, again and again, and a last time at the end.

    Like the service, it removes nothing there.
    """
    if "CheckpointConfig" not in request:
        yield
        return
    folder, uri = checkpoints(request, root), request["CheckpointConfig"]["S3Uri"].rstrip("/")
    copied: dict[Path, tuple[int, int]] = {}

    def copy() -> None:
        for file in sorted(folder.rglob("*")):
            try:
                state = (file.stat().st_mtime_ns, file.stat().st_size)
                if file.is_file() and copied.get(file) != state:
                    s3.put(file, f"{uri}/{file.relative_to(folder).as_posix()}")
                    copied[file] = state
            except FileNotFoundError:
                continue  # renamed or removed in the meantime

    def repeat(ended: threading.Event) -> None:
        while not ended.wait(SYNC_SECONDS):
            copy()

    try:
        with in_background(repeat):
            yield
    finally:
        copy()


def collect(request: Request, root: Path, s3: LocalS3, *, failed: bool) -> tuple[str | None, str | None]:
    """Upload the model of a job that completed or was stopped, and what any job wrote to output/data.

    Returns:
        The addresses of model.tar.gz and of output.tar.gz; None for what is empty.
    """
    base = f"{request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output"
    model, output = f"{base}/model.tar.gz", f"{base}/output.tar.gz"
    has_model = not failed and s3.put_archive(root / "model", model)
    has_output = s3.put_archive(root / "output" / "data", output)
    return (model if has_model else None), (output if has_output else None)


def failure(root: Path) -> str:
    """Return what the toolkit wrote about a job that failed; the service shows it as the FailureReason."""
    file = root / "output" / "failure"
    reason = file.read_text(errors="replace").strip() if file.is_file() else ""
    return reason.replace(str(root), str(OPT_ML))[:1024]
