"""The inference container on this machine: SageMaker's own toolkit and TorchServe, without Docker, on loopback.

The model's archive is unpacked where the container would find it, the toolkit installs `code/requirements.txt`, loads
`code/inference.py` and answers `/ping` and `/invocations`. Needs a Java runtime, 17 or later. The image of
launch/Dockerfile needs none: the same script starts its server.
"""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.inference import archive
from launch.rehearsal import environment

# What the image of PyTorch 2.6.0 holds. The toolkit imports pkg_resources, which later setuptools no longer have.
PACKAGES = (
    "sagemaker-pytorch-inference==2.0.25",
    "sagemaker-inference==1.10.1",
    "torchserve==0.12.0",
    "pyyaml",
    "setuptools<81",
)
# In TorchServe's log.
FAILED_TO_LOAD = "Load model failed"
FROM_HANDLERS = "MODEL_LOG - "
WORKER_CLOSED = "-stdout org.pytorch.serve.wlm.WorkerLifeCycle - Stopped Scanner"
START_SECONDS = 180
LOG_SECONDS = 10
STOP_SECONDS = 20
OWN = Path(__file__).parents[1] / "container.sh"
PORTS = ("inference", "management", "metrics", "grpc_inference", "grpc_management")


class ContainerFailed(DogbreedError):
    """The container did not start, or stopped."""


@contextmanager
def running(
    model_archive: Path, *, workers: int = 1, variables: Mapping[str, str] | None = None, folder: Path | None = None
) -> Iterator[str]:
    """Serve a `model.tar.gz` for as long as the context lasts; nothing runs afterwards, whatever happened.

    Args:
        model_archive: As `dogbreed.inference.archive` writes it.
        workers: Processes that hold the model. The image takes one per core.
        variables: Of CreateModel's Environment; this machine's folders and ports take precedence.
        folder: Where environments lie, see `environment.ready`.

    Yields:
        The address, http://127.0.0.1:PORT.

    Raises:
        ContainerFailed: No Java, or the handlers could not be loaded; the sentence holds the last line of its log.
    """
    check_java()
    with (
        environment.ready("serving", PACKAGES, folder=folder) as python,
        TemporaryDirectory(prefix="dogbreed-container-") as temporary,
    ):
        root = Path(temporary)
        archive.unpack(model_archive, root / "ml" / "model")
        ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
        log = root / "container.log"
        own = _variables(root, ports, workers)
        command = [python.python, Path(__file__).with_name("serving_start.py"), root]
        with _process(command, root, {**python.variables(), **(variables or {}), **own}, log) as process:
            _wait_until_ready(process, ports, log)
            yield f"http://127.0.0.1:{ports['inference']}"


@contextmanager
def running_own(model_archive: Path) -> Iterator[str]:
    """Serve a `model.tar.gz` as the image of launch/Dockerfile does, for as long as the context lasts.

    Yields:
        The address, http://127.0.0.1:PORT.

    Raises:
        ContainerFailed: It did not start; the sentence holds the last line of its log.
    """
    with TemporaryDirectory(prefix="dogbreed-container-") as temporary:
        root, log = Path(temporary), Path(temporary) / "container.log"
        archive.unpack(model_archive, root / "ml" / "model")
        search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        paths = {"SAGEMAKER_BASE_DIR": str(root / "ml"), "PATH": search, "PYTHONPATH": str(archive.PACKAGE.parent)}
        command: list[str | Path] = ["sh", OWN, "serve", "--host", "127.0.0.1", "--port", "0"]
        with _process(command, root, {**os.environ, **paths}, log) as process:
            deadline = time.monotonic() + START_SECONDS
            while not (address := re.search(r"(http://\S+)/invocations", log.read_text(errors="replace"))):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ContainerFailed(f"The server did not start: {_last_line(log)}")
                time.sleep(0.05)
            yield address[1]


def check_java() -> None:
    """Check the machine's Java.

    Raises:
        ContainerFailed: There is none, or one before 17.
    """
    home = os.environ.get("JAVA_HOME")
    java = shutil.which(f"{home}/bin/java" if home else "java")
    if java is None:
        raise ContainerFailed(
            "TorchServe needs Java 17 or later, and there is no java here; install one, for example with "
            "apt-get install default-jre-headless."
        )
    output = subprocess.run([java, "-version"], capture_output=True, text=True).stderr  # noqa: S603
    version = output.partition('"')[2].partition('"')[0]
    if not version.split(".")[0].isdecimal() or int(version.split(".")[0]) < 17:
        raise ContainerFailed(f"TorchServe needs Java 17 or later; {java} is {version or 'of an unknown version'}.")


@contextmanager
def _process(
    command: Sequence[str | Path], root: Path, variables: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=root,  # where it keeps its logs and its model store
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            _stop(process)


def _variables(root: Path, ports: dict[str, int], workers: int) -> dict[str, str]:
    """Return what the service sets, and what keeps the server to this machine (TS_... override its properties file)."""
    addresses = {f"TS_{name.upper()}_ADDRESS": f"http://127.0.0.1:{ports[name]}" for name in PORTS[:3]}
    grpc = {f"TS_{name.upper()}_PORT": str(ports[name]) for name in PORTS[3:]}
    local = {f"TS_{name.upper()}_ADDRESS": "127.0.0.1" for name in PORTS[3:]}
    return {
        "SAGEMAKER_BASE_DIR": str(root / "ml"),
        "SAGEMAKER_PROGRAM": archive.HANDLERS,
        "SAGEMAKER_SUBMIT_DIRECTORY": str(root / "ml" / "model" / archive.CODE),
        "SAGEMAKER_MODEL_SERVER_WORKERS": str(workers),
        "LOG_LOCATION": str(root / "logs"),
        "METRICS_LOCATION": str(root / "logs"),
        "TMPDIR": str(root),
        "TEMP": str(root),
        **addresses,
        **grpc,
        **local,
    }


def _wait_until_ready(process: subprocess.Popen[bytes], ports: dict[str, int], log: Path) -> None:
    """Wait until all workers hold the model: `/ping` answers 200 before, and even where the model cannot be loaded."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ContainerFailed(f"The container stopped at its start: {_last_line(log)}")
        workers = _workers(ports["management"])
        if workers and all(worker.get("status") == "READY" for worker in workers):
            return
        if FAILED_TO_LOAD in log.read_text(errors="replace"):
            _wait_for_traceback(log)
            raise ContainerFailed(f"The model cannot be loaded in the container: {_last_line(log, of=FROM_HANDLERS)}")
        time.sleep(0.2)
    raise ContainerFailed(f"The container was not ready within {START_SECONDS} s: {_last_line(log)}")


def _wait_for_traceback(log: Path) -> None:
    """Wait until the worker's output is in the log: another thread writes it, often after the failure itself."""
    deadline = time.monotonic() + LOG_SECONDS
    while WORKER_CLOSED not in log.read_text(errors="replace") and time.monotonic() < deadline:
        time.sleep(0.05)


def _workers(port: int) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/models/model")
        models = json.loads(connection.getresponse().read())
        return list(models[0]["workers"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return []  # it is not up yet
    finally:
        connection.close()


def _last_line(log: Path, of: str = "") -> str:
    """Return the last line that is not empty; with `of`, what follows it in the last line that is not indented."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if of in line]
    texts = [line.rpartition(of)[2] for line in lines] if of else lines
    return next((line.strip() for line in reversed(texts) if line.strip() and line[0] != " "), "it printed nothing")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the container and all that it has started: they share a session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        deadline = time.monotonic() + STOP_SECONDS
        while _alive(process) and time.monotonic() < deadline:
            time.sleep(0.05)


def _alive(process: subprocess.Popen[bytes]) -> bool:
    process.poll()  # takes the exit code, so that it does not count as alive
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
