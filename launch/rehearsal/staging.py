"""Puts what a rehearsed job needs where it looks for it: an S3 server on loopback, and the toolkit's environment."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.naming import parse_s3_uri
from launch.aws.wheels import fetch
from launch.jobs.request import FEATURES, Job
from launch.rehearsal.container import Request
from launch.rehearsal.environment import Environment, requirements_of, toolkit
from launch.rehearsal.s3 import LocalS3, serve

REGION = "sagemaker_region"  # a hyperparameter by which the toolkit finds the code's bucket
DATA = "data"  # in the rehearsal's folder: links to the images that took part
CHECKPOINTS = "checkpoints"  # in the rehearsal's folder: those of a job that was stopped


@dataclass(frozen=True)
class Options:
    """How to rehearse.

    Attributes:
        images: At most so many images per class and split; 0 for all.
        trials: At most so many trials of a tuning job.
        parallel: At most so many at a time.
        interrupt_after: Epochs after which a spot interruption is simulated; None for never.
        stop_after: Epochs after which the job is stopped; None for never.
        cache_dir: Where features are kept; None for this machine's usual place.
    """

    images: int = 2
    trials: int = 4
    parallel: int = 2
    interrupt_after: int | None = None
    stop_after: int | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("images", 0), ("trials", 1), ("parallel", 1), ("interrupt_after", 1), ("stop_after", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                key = f"sagemaker.rehearsal.{name}"
                raise DogbreedError(f"{key}={value} is out of range; it is a whole number from {least}.")


def local_sources(config: Mapping[str, Any], job: Job, rehearsals: Path) -> dict[str, Path | bytes]:
    """Return what has to be in S3 before the job starts, by address: bytes, files and folders of this machine.

    Args:
        config: A composed configuration.
        job: That it describes.
        rehearsals: Holds the folders of earlier rehearsals, by the job's name.

    Raises:
        DogbreedError: Something is out of reach here.
    """
    fetch(job.wheels, "job")
    sources: dict[str, Path | bytes] = {job.code_uri: job.source.archive, **job.sent_along}
    root, weights = Path(config["data"]["root"]), Path(str(config["model"]["weights"]))
    for channel in job.definition.get("InputDataConfig", ()):
        name, uri = channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]
        if job.data_uri and f"{uri}/".startswith(f"{job.data_uri}/"):
            folder = root / uri[len(job.data_uri) :].strip("/")
            if not folder.is_dir():
                raise DogbreedError(
                    f"A rehearsal takes images from this machine, and the folder {folder} does not exist; give "
                    "data.root=FOLDER, or data=sample model.weights=none to have some drawn."
                )
            sources[uri] = folder
        elif name == "resume":
            earlier = config["sagemaker"]["resume_from"]
            run = rehearsals / earlier / CHECKPOINTS / earlier
            sources |= {f"{uri}{file.relative_to(run).as_posix()}": file for file in run.rglob("*") if file.is_file()}
            if not run.is_dir():
                raise DogbreedError(
                    f"{run} does not exist; a rehearsal resumes from the rehearsal of a job that was stopped "
                    "(sagemaker.rehearsal.stop_after=1 sagemaker.job_name=NAME)."
                )
        elif name == "weights" and uri not in sources:
            if not weights.is_file():
                raise DogbreedError(
                    f"{uri} is out of reach for a rehearsal; give a file of such weights in its place: "
                    "sagemaker.weights=null model.weights=PATH."
                )
            sources[uri] = weights
        elif not any(address.startswith(uri) for address in sources):
            raise DogbreedError(
                f"{uri} is out of reach for a rehearsal, so the channel {name} would be empty; rehearse without it."
            )
    return sources


@contextmanager
def stage(
    name: str, request: Request, sources: Mapping[str, Path | bytes], folder: Path, options: Options
) -> Iterator[tuple[Environment, LocalS3]]:
    """Yield the toolkit's environment, and an S3 that holds what the job needs.

    Args:
        name: Of the job.
        request: Of CreateTrainingJob.
        sources: What lies in S3 before the job starts, by address; of folders, a few images per class.
        folder: Of the rehearsal.
        options: How to rehearse.
    """
    hyperparameters = request["HyperParameters"]
    requirements = requirements_of(request, sources)
    print(f"Rehearsing {name} on this machine; nothing is sent to AWS.", flush=True)
    with _ends_on_sigterm(), toolkit(requirements) as environment:
        print(
            f"Toolkit:  sagemaker-training {environment.version('sagemaker_training')} in {environment.folder}",
            flush=True,
        )
        with serve(hyperparameters.get(REGION, "us-east-1").strip('"')) as s3:
            folder.mkdir(parents=True, exist_ok=True)
            _upload(request, sources, s3, folder, options.images)
            yield environment, s3


def _upload(request: Request, sources: Mapping[str, Path | bytes], s3: LocalS3, folder: Path, images: int) -> None:
    """Upload files as they are, and subsets of folders, whose links stay in the rehearsal's folder to be looked at."""
    folders = {uri: content for uri, content in sources.items() if isinstance(content, Path) and content.is_dir()}
    files = {uri: content for uri, content in sources.items() if uri not in folders}
    for uri, whole in folders.items():
        linked = folder / DATA / whole.name if len(folders) > 1 else folder / DATA
        shutil.rmtree(linked, ignore_errors=True)  # of an earlier rehearsal in the same folder
        files |= {f"{uri}/{name}": linked / name for name in link_subset(whole, linked, images or None)}
    if folders:
        most = f"at most {images} per class and split" if images else "all there are"
        count = len(files) - len(sources) + len(folders)
        print(f"Data:     {count:,} images ({most}), links to them in {folder / DATA}", flush=True)
    uploads: dict[str, dict[str, Path]] = {
        parse_s3_uri(request["OutputDataConfig"]["S3OutputPath"], "S3OutputPath")[0]: {}
    }
    if features := request.get("Environment", {}).get(FEATURES):
        s3.make_bucket(parse_s3_uri(features, "sagemaker.features")[0])
    for uri, content in files.items():
        bucket, key = parse_s3_uri(uri, "address")
        s3.make_bucket(bucket)
        if isinstance(content, bytes):
            s3.bucket(bucket).put(key, content)
        else:
            uploads.setdefault(bucket, {})[key] = content
    for bucket, batch in uploads.items():
        s3.make_bucket(bucket)
        if batch:
            s3.bucket(bucket).send(batch)


def link_subset(source: Path, into: Path, images: int | None) -> list[str]:
    """Link the first files of every folder below `source` into a tree of the same shape.

    The choice depends on the names alone, so that a run on the linked tree can be compared with another.

    Args:
        source: Such as `train/<class>/<image>`, or a folder of such splits.
        into: Must not exist.
        images: At most so many of each folder; None for all.

    Returns:
        The links' names, relative to `into`.
    """
    names = []
    for name, folders, files in os.walk(source, followlinks=True):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        below = into / Path(name).relative_to(source)
        below.mkdir(parents=True)
        for file in sorted(each for each in files if not each.startswith("."))[:images]:
            (below / file).symlink_to((Path(name) / file).resolve())
            names.append((below / file).relative_to(into).as_posix())
    return names


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the rehearsal as Ctrl-C does, so that the job's processes and folders go with it."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
