"""The folder that a training container finds at /opt/ml, laid out on this machine, and its way from and to S3.

https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-training-algo-running-container.html
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.rehearsal.s3 import LocalS3

Request = Mapping[str, Any]  # of CreateTrainingJob, if nothing else is said

OPT_ML = PurePosixPath("/opt/ml")
CHECKPOINTS = OPT_ML / "checkpoints"  # the service's default
# "algo-1" in the cloud. The toolkit waits until the DNS knows the name.
HOST = "localhost"
SYNC_SECONDS = 1.0


def lay_out(request: Request, root: Path, s3: LocalS3) -> None:
    """Writes the tree, with the channels and kept checkpoints as S3 has them.

    Args:
        request: Of CreateTrainingJob.
        root: An empty folder, standing for /opt/ml.
        s3: Where the request's addresses lead.

    Raises:
        DogbreedError: Nothing lies where a channel points.
    """
    config = root / "input" / "config"
    for folder in (config, root / "model", root / "output" / "data", checkpoints(request, root)):
        folder.mkdir(parents=True, exist_ok=True)
    for name, content in _configuration(request, root).items():
        (config / f"{name}.json").write_text(json.dumps(content))
    for channel in request.get("InputDataConfig", ()):
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        if not s3.get(uri, root / "input" / "data" / channel["ChannelName"]):
            raise DogbreedError(f"The channel {channel['ChannelName']} points to {uri}, and nothing lies there.")
    if "CheckpointConfig" in request:
        s3.get(request["CheckpointConfig"]["S3Uri"], checkpoints(request, root))


def _configuration(request: Request, root: Path) -> dict[str, Any]:
    """The files in input/config/ by name. Hyperparameters are text, as the service passes them."""
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
            "current_host": HOST,
            "current_instance_type": instance,
            "current_group_name": group,
            "hosts": [HOST],
            "instance_groups": [{"instance_group_name": group, "instance_type": instance, "hosts": [HOST]}],
            "network_interface_name": "lo",
        },
    }


def below(root: Path, values: Mapping[str, str]) -> dict[str, str]:
    """Values with the paths in /opt/ml, where they are such, led to the tree."""
    opt_ml = f"{OPT_ML}/"
    return {
        name: f"{root}/{value.removeprefix(opt_ml)}" if value.startswith(opt_ml) else value
        for name, value in values.items()
    }


def checkpoints(request: Request, root: Path) -> Path:
    """The folder in the tree that stands for the request's CheckpointConfig.LocalPath.

    Raises:
        DogbreedError: It is a path that is not below /opt/ml.
    """
    path = PurePosixPath(request.get("CheckpointConfig", {}).get("LocalPath", CHECKPOINTS))
    if not path.is_relative_to(OPT_ML):
        raise DogbreedError(f"Checkpoints in {path} cannot be rehearsed; choose a folder below {OPT_ML}.")
    return root / path.relative_to(OPT_ML)


@contextmanager
def synchronised(request: Request, root: Path, s3: LocalS3) -> Iterator[None]:
    """Copies what is new in the checkpoint folder to S3, again and again, and a last time at the end.

    Like the service, it removes nothing there.
    """
    if "CheckpointConfig" not in request:
        yield
        return
    folder, uri = checkpoints(request, root), request["CheckpointConfig"]["S3Uri"].rstrip("/")
    copied: dict[Path, tuple[int, int]] = {}
    ended = threading.Event()

    def copy() -> None:
        for file in sorted(folder.rglob("*")):
            try:
                state = (file.stat().st_mtime_ns, file.stat().st_size)
                if file.is_file() and copied.get(file) != state:
                    s3.put(file, f"{uri}/{file.relative_to(folder).as_posix()}")
                    copied[file] = state
            except FileNotFoundError:
                continue  # renamed or removed in the meantime

    def again_and_again() -> None:
        while not ended.wait(SYNC_SECONDS):
            copy()

    thread = threading.Thread(target=again_and_again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        copy()


def collect(request: Request, root: Path, s3: LocalS3, *, completed: bool) -> tuple[str | None, str | None]:
    """Uploads the model of a completed job, and what any job wrote to output/data.

    Returns:
        The addresses of model.tar.gz and of output.tar.gz; None for what is empty.
    """
    base = f"{request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{request['TrainingJobName']}/output"
    model, output = f"{base}/model.tar.gz", f"{base}/output.tar.gz"
    has_model = completed and s3.put_archive(root / "model", model)
    has_output = s3.put_archive(root / "output" / "data", output)
    return (model if has_model else None), (output if has_output else None)


def failure(root: Path) -> str:
    """What the toolkit wrote about a job that failed; the service shows it as the FailureReason."""
    file = root / "output" / "failure"
    return file.read_text(errors="replace").strip()[:1024] if file.is_file() else ""
