"""One training job carried out on this machine by SageMaker's own toolkit, in place of the container in the cloud.

The request is read as the service reads it, and nothing in it is changed.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from launch.rehearsal import opt_ml
from launch.rehearsal.environment import Environment
from launch.rehearsal.opt_ml import Request
from launch.rehearsal.s3 import LocalS3

# Names a folder of the container's own disk in the request. Features are the same wherever they were computed, so here
# they go where this machine keeps its own.
CACHE = "DOGBREED_CACHE"
LAST_LINES = 15
TAKEN_AWAY = "The machine is taken away (SIGTERM, SIGKILL); another one goes on with the checkpoints."
GRACE_SECONDS = 10.0  # between SIGTERM and SIGKILL; the service gives 120
LOOK_SECONDS = 0.05

End = Literal["Completed", "Failed", "Stopped", "Interrupted"]


@dataclass
class Outcome:
    """What a job came to.

    Attributes:
        name: Of the job.
        status: Completed, Failed or Stopped.
        reason: Why it failed, in the toolkit's own words, or why it was stopped.
        emitted: All values of every metric, in their order.
        seconds: From the start of the container to its end, over all the machines it had.
        interruptions: How often its machine was taken away.
        model: Address of model.tar.gz.
        output: Address of output.tar.gz.
        last_lines: Of its log.
    """

    name: str
    status: str = "InProgress"
    reason: str = ""
    emitted: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    interruptions: int = 0
    model: str | None = None
    output: str | None = None
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of every metric; the tuner compares these."""
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
    ) -> None:
        self.request = request
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

    def run(self, interrupt_after: int | None = None) -> Outcome:
        """Runs the job to its end and uploads what it leaves.

        Args:
            interrupt_after: After so many log lines with a metric, the machine is taken away, once; a new one goes on.

        Returns:
            The outcome; that of a job that failed, too.
        """
        while True:
            with TemporaryDirectory(prefix="dogbreed-rehearsal-") as folder:
                root = Path(folder).resolve()
                opt_ml.lay_out(self.request, root, self.s3)
                end = self._run_toolkit(root, None if self.outcome.interruptions else interrupt_after)
                if end == "Interrupted":
                    self.outcome.interruptions += 1
                    continue
                self.outcome.status = end
                self.outcome.reason = self.outcome.reason or opt_ml.failure(root)
                completed = end == "Completed"
                found = opt_ml.collect(self.request, root, self.s3, completed=completed)
                self.outcome.model, self.outcome.output = found
                return self.outcome

    def variables(self, root: Path) -> dict[str, str]:
        """The environment variables of the container whose /opt/ml is `root`."""
        given = {name: value for name, value in self.request.get("Environment", {}).items() if name != CACHE}
        foreign = ("AWS_", "SM_", "SAGEMAKER_", "TRAINING_JOB_")
        ours = {name: value for name, value in self.environment.variables().items() if not name.startswith(foreign)}
        return {
            **ours,
            **self.s3.variables(),
            "SAGEMAKER_BASE_DIR": str(root),
            "TRAINING_JOB_NAME": self.request["TrainingJobName"],
            "SMDEBUG_CONFIG_FILE_PATH": str(root / "input" / "config" / "debughookconfig.json"),  # if any
            "PYTHONUNBUFFERED": "TRUE",  # as in the image
            "PIP_QUIET": "1",
            **({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}),
            **({CACHE: str(Path(self.cache_dir).absolute())} if self.cache_dir else {}),
            **opt_ml.below(root, given),
        }

    def _run_toolkit(self, root: Path, interrupt_after: int | None) -> End:
        started = time.monotonic()
        limit = self.request["StoppingCondition"]["MaxRuntimeInSeconds"] - self.outcome.seconds
        enough = threading.Event()
        process = subprocess.Popen(  # noqa: S603
            [str(self.environment.script("train"))],
            cwd=root,
            env=self.variables(root),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # so that the job can be ended with all that it has started
        )

        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._take(line.rstrip("\n"))
                if interrupt_after is not None and self.lines_with_metrics >= interrupt_after:
                    enough.set()

        end: End = "Stopped"
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        with opt_ml.synchronised(self.request, root, self.s3), _nothing_left(process, reader):
            while time.monotonic() - started < limit and not self.cancelled.is_set():
                if process.poll() is not None:
                    end = "Failed" if process.returncode else "Completed"
                    break
                if enough.wait(LOOK_SECONDS):
                    end = "Interrupted"
                    break
        self.outcome.seconds += time.monotonic() - started
        if end == "Interrupted":
            self._take(TAKEN_AWAY)
        if end == "Stopped" and not self.cancelled.is_set():
            self.outcome.reason = f"It ran longer than the request allows, {limit:.0f} s (sagemaker.max_run)."
        return end

    def has_metric(self, line: str) -> bool:
        """Whether one of the request's expressions finds something in a line."""
        return any(expression.search(line) for expression in self.expressions.values())

    def _take(self, line: str) -> None:
        """Takes the metrics of a line of the log, as the service does, and passes the line on."""
        self.outcome.last_lines.append(line)
        found = False
        for name, expression in self.expressions.items():
            for match in expression.finditer(line):
                with suppress(ValueError, IndexError):  # what is no number is no metric
                    self.outcome.emitted.setdefault(name, []).append(float(match.group(1)))
                    found = True
        self.lines_with_metrics += found
        self.say(line)


@contextmanager
def _nothing_left(process: subprocess.Popen[str], reader: threading.Thread) -> Iterator[None]:
    """Ends a process and all that it has started: SIGTERM, and after a while SIGKILL.

    The reader of their output ends when the last of them has.
    """
    try:
        yield
    finally:
        if process.poll() is None:
            _signal(process, signal.SIGTERM)
            reader.join(GRACE_SECONDS)
        _signal(process, signal.SIGKILL)
        process.wait()
        reader.join(GRACE_SECONDS)


def _signal(process: subprocess.Popen[str], number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
