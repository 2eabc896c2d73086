"""`mode=rehearse`: carries out, on this machine, the very request that would be sent.

S3 is a server on the loopback interface; the job's code, its data and weights are uploaded there and fetched back; the
toolkit of SageMaker's training images installs the requirements and runs the program. Nothing is sent to AWS.
"""

import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from launch.jobs.request import TUNING, Job
from launch.rehearsal import summary, tuning
from launch.rehearsal.container import TAKEN_AWAY, Container, Outcome
from launch.rehearsal.environment import Environment
from launch.rehearsal.opt_ml import Request
from launch.rehearsal.s3 import LocalS3, serve, split
from launch.rehearsal.subset import sample
from launch.rehearsal.toolkit import requirements_of, toolkit, version

REGION = "sagemaker_region"  # a hyperparameter by which the toolkit finds the code's bucket
PROGRAM_STARTS = "Invoking script with the following command"  # as the toolkit announces it
DATA = "data"  # in the rehearsal's folder: links to the photographs that took part


class JobFailed(DogbreedError):
    """The job ended as Failed or Stopped; in the cloud it would have, too."""

    exit_code = 1


@dataclass(frozen=True)
class Options:
    """How to rehearse.

    Attributes:
        images: Photographs of each breed and split, at most; 0 for all.
        trials: Of a tuning job, at most.
        parallel: Trials at a time, at most.
        interrupt_after: Epochs after which the machine of a spot job is taken away; None for never.
        cache_dir: Where features are kept; None for this machine's usual place.
    """

    images: int = 2
    trials: int = 4
    parallel: int = 2
    interrupt_after: int | None = None
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("images", 0), ("trials", 1), ("parallel", 1), ("interrupt_after", 1)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                key = f"sagemaker.rehearsal.{name}"
                raise DogbreedError(f"{key}={value} is out of range; it is a whole number from {least}.")


def rehearse(config: Mapping[str, Any], job: Job) -> None:
    """Rehearses the job that a configuration asks for.

    Args:
        config: A composed configuration.
        job: What it makes of it.

    Raises:
        JobFailed: The job failed, as it would in the cloud.
        DogbreedError: Something that the job needs is not on this machine.
    """
    if config["sagemaker"]["instance_count"] > 1:
        raise DogbreedError("A rehearsal has one machine; rehearse with sagemaker.instance_count=1.")
    options = Options(**config["sagemaker"]["rehearsal"], cache_dir=config["cache"]["dir"])
    folder = Path(config["output_dir"] or Path("outputs") / "rehearsals" / job.name)
    (tune if job.operation == TUNING else train)(job.request, _sources(config, job), folder, options)


def _sources(config: Mapping[str, Any], job: Job) -> dict[str, Path | bytes]:
    """What has to be in S3 before the job starts, from this machine."""
    found: dict[str, Path | bytes] = {job.code_uri: job.source.archive, **job.sent_along}
    root, weights = Path(config["data"]["root"]), Path(str(config["model"]["weights"]))
    for channel in job.definition.get("InputDataConfig", ()):
        name, uri = channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]
        if job.data_uri and f"{uri}/".startswith(f"{job.data_uri}/"):
            folder = root / uri[len(job.data_uri) :].strip("/")
            if not folder.is_dir():
                raise DogbreedError(
                    f"A rehearsal takes photographs from this machine, and the folder {folder} does not exist; give "
                    "data.root=FOLDER, or data=sample model.weights=none to have some drawn."
                )
            found[uri] = folder
        elif name == "weights" and uri not in found:
            if not weights.is_file():
                raise DogbreedError(
                    f"{uri} is out of reach for a rehearsal; give a file of such weights in its place: "
                    "sagemaker.weights=null model.weights=PATH."
                )
            found[uri] = weights
        elif uri not in found:
            raise DogbreedError(
                f"{uri} is out of reach for a rehearsal, so the channel {name} would be empty; rehearse without it."
            )
    return found


def train(request: Request, sources: Mapping[str, Path | bytes], folder: Path, options: Options) -> Outcome:
    """Rehearses a training job.

    Args:
        request: Of CreateTrainingJob.
        sources: What lies in S3 before the job starts, by address: bytes, files and folders. Folders are sampled.
        folder: Gets the log, the artefacts and `rehearsal.json`.
        options: How to rehearse.

    Returns:
        What the completed job came to.

    Raises:
        JobFailed: With the toolkit's own message and the end of the log.
        DogbreedError: It could not be started.
    """
    if options.interrupt_after and not (request.get("EnableManagedSpotTraining") and "CheckpointConfig" in request):
        raise DogbreedError("sagemaker.rehearsal.interrupt_after needs sagemaker.spot=true: only then a job goes on.")
    with (
        _stage(request["TrainingJobName"], request, sources, folder, options) as (environment, s3),
        (folder / "job.log").open("w") as log,
    ):
        screen = _Screen()

        def say(line: str) -> None:
            log.write(f"{line}\n")
            screen(line)

        outcome = Container(request, environment, s3, say, cache_dir=options.cache_dir).run(options.interrupt_after)
        _fetch(outcome, s3, folder)
    _write(folder, {"jobs": [summary.record(outcome, request)]})
    if outcome.status != "Completed":
        raise JobFailed(summary.failed(outcome, folder / "job.log"))
    print(summary.job(outcome, folder, options.interrupt_after), flush=True)
    return outcome


def tune(request: Request, sources: Mapping[str, Path | bytes], folder: Path, options: Options) -> list[Outcome]:
    """Rehearses some trials of a tuning job, each as a training job of its own.

    Args:
        request: Of CreateHyperParameterTuningJob.
        sources: As for `train`.
        folder: Gets a log a trial, the artefacts of the best one, and `rehearsal.json`.
        options: How to rehearse.

    Returns:
        What the trials came to, in their order.

    Raises:
        JobFailed: No trial ended with a value of the objective.
        DogbreedError: It could not be started.
    """
    if options.interrupt_after:
        raise DogbreedError("sagemaker.rehearsal.interrupt_after is for a training job; leave it out for a search.")
    limits = request["HyperParameterTuningJobConfig"]["ResourceLimits"]
    count = min(options.trials, limits.get("MaxNumberOfTrainingJobs", options.trials))
    jobs = tuning.training_requests(request, count)
    parallel = min(options.parallel, limits["MaxParallelTrainingJobs"], len(jobs))
    threads = max(1, (os.cpu_count() or 1) // parallel)
    metric, minimize = tuning.objective(request)
    name = request["HyperParameterTuningJobName"]
    with _stage(name, jobs[0], sources, folder, options) as (environment, s3):
        print(f"Trials:   {len(jobs)}, {parallel} at a time; what each says is in trial-<number>.log", flush=True)
        outcomes = _run_all(
            [Container(job, environment, s3, threads=threads, cache_dir=options.cache_dir) for job in jobs],
            parallel=parallel,
            folder=folder,
        )
        values = [outcome.metrics.get(metric) if outcome.status == "Completed" else None for outcome in outcomes]
        best = tuning.best(values, minimize=minimize)
        if best is not None:
            _fetch(outcomes[best], s3, folder)
    records = [summary.record(*pair) for pair in zip(outcomes, jobs, strict=True)]
    _write(folder, {"objective": metric, "best": best, "jobs": records})
    if best is None:
        first = summary.failed(outcomes[0], folder / "trial-1.log")
        raise JobFailed(f"No trial completed with a value of {metric!r}. {first}")
    chosen = [tuning.tuned(request, job) for job in jobs]
    print(summary.search(outcomes, chosen, values, metric, best), summary.artefacts(folder), sep="\n\n", flush=True)
    return outcomes


def _run_all(containers: Sequence[Container], *, parallel: int, folder: Path) -> list[Outcome]:
    """Runs jobs side by side; their logs go into files, and the lines with metrics onto the screen."""

    def follow(number: int, container: Container) -> Outcome:
        with (folder / f"trial-{number}.log").open("w") as log:

            def say(line: str) -> None:
                log.write(f"{line}\n")
                if container.has_metric(line):
                    _line(f"{number:>3} | {line}")

            container.say = say
            outcome = container.run()
        _line(f"{number:>3} | {outcome.status} after {outcome.seconds:.0f} s")
        return outcome

    with ThreadPoolExecutor(parallel) as pool:
        futures = [pool.submit(follow, number, each) for number, each in enumerate(containers, start=1)]
        try:
            wait(futures)
        except BaseException:
            for each in containers:
                each.cancelled.set()
            pool.shutdown(cancel_futures=True)
            raise
        return [future.result() for future in futures]


@contextmanager
def _stage(
    name: str, request: Request, sources: Mapping[str, Path | bytes], folder: Path, options: Options
) -> Iterator[tuple[Environment, LocalS3]]:
    """The toolkit's environment, and an S3 that holds what the job needs. What is printed here says what is real."""
    hyperparameters = request["HyperParameters"]
    requirements = requirements_of(request, sources)
    print(f"Rehearsing {name} on this machine; nothing is sent to AWS.", flush=True)
    with _ends_on_sigterm(), toolkit(requirements) as environment:
        print(f"Toolkit:  sagemaker-training {version(environment)} in {environment.folder}", flush=True)
        with serve(hyperparameters.get(REGION, "us-east-1").strip('"')) as s3:
            folder.mkdir(parents=True, exist_ok=True)
            _upload(request, sources, s3, folder, options.images)
            yield environment, s3


def _upload(request: Request, sources: Mapping[str, Path | bytes], s3: LocalS3, folder: Path, images: int) -> None:
    """Uploads files as they are, and samples of folders, whose links stay in the rehearsal's folder to be looked at."""
    folders = {uri: content for uri, content in sources.items() if isinstance(content, Path) and content.is_dir()}
    found = {uri: content for uri, content in sources.items() if uri not in folders}
    for uri, whole in folders.items():
        linked = folder / DATA / whole.name if len(folders) > 1 else folder / DATA
        shutil.rmtree(linked, ignore_errors=True)  # of an earlier rehearsal in the same folder
        found |= {f"{uri}/{name}": linked / name for name in sample(whole, linked, images or None)}
    if folders:
        most = f"at most {images} of a breed and split" if images else "all there are"
        count = len(found) - len(sources) + len(folders)
        print(f"Data:     {count:,} photographs ({most}), links to them in {folder / DATA}", flush=True)
    files: dict[str, dict[str, Path]] = {split(request["OutputDataConfig"]["S3OutputPath"])[0]: {}}
    for uri, content in found.items():
        bucket, key = split(uri)
        s3.make_bucket(bucket)
        if isinstance(content, bytes):
            s3.bucket(bucket).put(key, content)
        else:
            files.setdefault(bucket, {})[key] = content
    for bucket, some in files.items():
        s3.make_bucket(bucket)
        if some:
            s3.bucket(bucket).send(some)


def _fetch(outcome: Outcome, s3: LocalS3, folder: Path) -> None:
    """Brings the artefacts into the rehearsal's folder."""
    for uri in filter(None, (outcome.model, outcome.output)):
        s3.get(uri, folder)


def _write(folder: Path, content: Mapping[str, Any]) -> None:
    with atomic_write(folder / "rehearsal.json") as file:
        file.write_text(json.dumps(content, indent=2) + "\n")


class _Screen:
    """Shows a log from the job's own program on: before it, the toolkit lists its environment on two hundred lines."""

    def __init__(self) -> None:
        self.shows = False

    def __call__(self, line: str) -> None:
        if PROGRAM_STARTS in line and not self.shows:
            self.shows = True
            _line("| (What the toolkit says while it prepares the container is in job.log.)")
        if self.shows:
            _line(f"| {line}")
        self.shows &= line != TAKEN_AWAY  # another container, another list


def _line(text: str) -> None:
    """One write, so that lines of several jobs do not mix."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Makes SIGTERM end the rehearsal as Ctrl-C does, so that the job's processes and folders go with it."""

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
