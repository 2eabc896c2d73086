"""What runs in the container: the training toolkit calls it with the job's hyperparameters, `--name value ...`.

It lies at the root of the staged archive. It gives the package its paths, trains (or searches, and trains with the
winner), and leaves the model in SM_MODEL_DIR, which becomes the job's artefact, and everything else in
SM_OUTPUT_DATA_DIR. The run itself lies in the folder of the checkpoints, which S3 keeps: `resume=auto` resumes from
the last epoch. The shell that the image starts passes no SIGTERM on, so a job that is stopped is killed without a
warning: the best model so far is in SM_MODEL_DIR as soon as there is one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dogbreed.config.compose import compose
from dogbreed.config.overrides import quote, split_argv
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.metric_lines import EXPORT_LINE
from dogbreed.inference.archive import write_code
from dogbreed.models.manifest import files_of, read_manifest

SPLITS = ("train", "valid", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the whole job; return the exit code."""

    def task() -> None:
        try:
            run(sys.argv[1:] if argv is None else argv)
        except DogbreedError as error:
            # The toolkit takes as the reason of a failure what follows the name of one of Python's own errors.
            print(f"RuntimeError: {error}", file=sys.stderr)
            raise

    return guard(task)


def run(argv: Sequence[str]) -> None:
    """Train as the hyperparameters say and put the results where SageMaker looks for them.

    Raises:
        DogbreedError: Something a person can correct.
    """
    show_channels()
    check_gpu(argv)
    install_apart()
    keep_features()
    folder = Path(os.environ["DOGBREED_CHECKPOINTS"]) / os.environ.get("TRAINING_JOB_NAME", "job")
    fetch_earlier_run(folder)
    _, overrides = split_argv(argv)
    own = [*weights(), f"output_dir={folder}", "resume=auto", "progress=plain"]
    if compose(overrides)["search"]["where"] == "one_job":
        overrides = [*overrides, *search([*overrides, *weights()], folder)]
    from dogbreed.training import best_so_far
    from dogbreed.training.run import train

    best = folder / "checkpoints" / "best.ckpt"
    with best_so_far.kept(best, Path(os.environ["SM_MODEL_DIR"])) if is_first() else nullcontext():
        result = train(overrides=[*overrides, *own])
    if result.metrics:  # on the first of several processes
        hand_over(result.output_dir, result.metrics)


def show_channels() -> None:
    """Point to the folder of three channels, which lie side by side as the splits of one folder do."""
    folders = {os.environ.get(f"SM_CHANNEL_{split.upper()}") for split in SPLITS}
    if "SM_CHANNEL_TRAINING" in os.environ or folders == {None}:
        return
    if None in folders:
        raise DogbreedError("The channels are train, valid and test, all three, or a single one named training.")
    (root,) = {Path(folder).parent for folder in folders if folder}
    os.environ["SM_CHANNEL_TRAINING"] = str(root)


def check_gpu(argv: Sequence[str]) -> None:
    """Refuse a machine with GPUs, billed as such, on which torch sees none."""
    machine = os.environ.get("SM_CURRENT_INSTANCE_TYPE", "")
    intended = "cpu" in argv or os.environ.get("DOGBREED_REHEARSAL")  # trainer.accelerator=cpu
    if intended or not re.match(r"ml\.(g|p)\d", machine):
        return
    import torch

    if not torch.cuda.is_available():
        try:
            torch.cuda.init()
            reason = "it counts none"
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
        raise DogbreedError(
            f"{machine} has a GPU, and torch {torch.__version__} sees none ({reason}): training on its processors "
            "costs the same and takes many times as long. Use an instance that this image's CUDA supports, or an older "
            "sagemaker.pytorch_version; trainer.accelerator=cpu trains without."
        )


def install_apart() -> None:
    """Install what would replace packages of the image into a folder of this process alone, ahead of the image's."""
    file = Path(__file__).with_name("apart.txt")
    if not file.is_file():
        return
    folder = tempfile.mkdtemp(prefix="dogbreed-apart-")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "-r", str(file)]
    if subprocess.run(command, check=False).returncode:  # noqa: S603
        raise DogbreedError("smdebug could not be installed (see the log above); sagemaker.debugger.enabled=false.")
    os.environ["PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION"] = "python"  # smdebug's messages are too old for the others
    sys.path.insert(0, folder)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))  # for workers


def keep_features() -> None:
    """Let features travel through the folder in S3 that the request names."""
    address = os.environ.get("DOGBREED_FEATURES")
    if not address:
        return
    from dogbreed.cache.remote import Home, keep_in

    keep_in(Home(s3, address, os.environ.get("DOGBREED_FEATURES_OWNER"), os.environ.get("DOGBREED_FEATURES_KMS_KEY")))


def s3() -> Any:
    """Return boto3's client, which gives up soon where S3 is out of reach."""
    import boto3
    from botocore.config import Config

    retries: Any = {"mode": "standard", "total_max_attempts": 3}
    return boto3.client("s3", config=Config(connect_timeout=5, read_timeout=60, retries=retries))


def is_first() -> bool:
    """Return whether this is the first of the processes that train together."""
    return not any(int(os.environ.get(name, 0)) for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def fetch_earlier_run(folder: Path) -> None:
    """Copy the run of an earlier job, which comes through a channel, unless this job has one of its own already."""
    channel = os.environ.get("SM_CHANNEL_RESUME")
    last = Path("checkpoints") / "last.ckpt"
    if channel is None or (folder / last).exists():
        return
    if not (Path(channel) / last).is_file():
        raise DogbreedError(f"The channel resume should hold the run of an earlier job, and has no {last}.")
    shutil.copytree(channel, folder, dirs_exist_ok=True)


def weights() -> list[str]:
    """Return the override for the weights' channel, whose one file goes before what the configuration names."""
    channel = os.environ.get("SM_CHANNEL_WEIGHTS")
    if channel is None:
        return []
    files = sorted(path for path in Path(channel).rglob("*") if path.is_file())
    if len(files) != 1:
        raise DogbreedError(f"The channel weights should hold one file, and holds {len(files)}.")
    return [f"model.weights={quote(str(files[0]))}"]


def search(overrides: Sequence[str], folder: Path) -> list[str]:
    """Try all trials of the search group here; return the winner's settings as overrides."""
    from dogbreed.search.run import tune

    # The job trains with the winner and evaluates it: it is not trained with other seeds before.
    done = tune(overrides=[*overrides, f"output_dir={folder / 'search'}", "progress=plain", "search.seeds=0"])
    best = done.best()
    if best is None:
        raise DogbreedError("No trial of the search finished with a finite loss; try smaller learning rates.")
    return [f"{key}={value}" for key, value in best.params.items()]


def hand_over(folder: Path, metrics: dict[str, Any]) -> None:
    """Make the model the artefact; metrics, report and the like are kept beside it, checkpoints are not."""
    model, output = Path(os.environ["SM_MODEL_DIR"]), Path(os.environ["SM_OUTPUT_DATA_DIR"])
    for name in files_of(read_manifest(folder / "model")):
        with atomic_write(model / name) as file:
            shutil.copy(folder / "model" / name, file)
    write_code(model)
    shutil.copytree(folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "model"))
    print(EXPORT_LINE.format(**metrics), flush=True)
    print(json.dumps(metrics), flush=True)
    if jobs := os.environ.get("DOGBREED_JOBS"):
        address = f"{jobs}/{os.environ.get('TRAINING_JOB_NAME', 'job')}/output"
        print(f"In S3 once the job has ended:\n  {address}/model.tar.gz   the model, which deploys as it is")
        print(f"  {address}/output.tar.gz  report.html, metrics.json, predictions.csv and the like", flush=True)


if __name__ == "__main__":
    sys.exit(main())
