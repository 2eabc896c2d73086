"""`mode=rehearse`: carries out, on this machine, the very request that would be sent.

S3 is a server on the loopback interface; the job's code, its data and weights are uploaded there and fetched back; the
toolkit of SageMaker's training images installs the requirements and runs the program. Nothing is sent to AWS.
"""

import os
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import write_json
from launch.jobs.request import TUNING, Job
from launch.rehearsal import calibration, tuning
from launch.rehearsal.container import INTERRUPTED, MASTER_PORT, MOST_HOSTS, Container, Outcome, Request
from launch.rehearsal.s3 import LOOPBACK, LocalS3
from launch.rehearsal.staging import CHECKPOINTS, DATA, Options, local_sources, stage

RECORD = "rehearsal.json"
RECEIPT = "receipt.json"
PROGRAM_STARTS = "Invoking script with the following command"  # as the toolkit announces it


class JobFailed(DogbreedError):
    """The job ended as Failed or Stopped; in the cloud it would have, too."""

    exit_code = 1


def rehearse(config: Mapping[str, Any], job: Job) -> None:
    """Rehearse the job that a configuration asks for.

    Args:
        config: A composed configuration.
        job: That it describes.

    Raises:
        JobFailed: The job failed, as it would in the cloud.
        DogbreedError: Something that the job needs is not on this machine.
    """
    if config["sagemaker"]["instance_count"] > MOST_HOSTS:
        raise DogbreedError(f"A rehearsal has at most {MOST_HOSTS} machines; give a smaller sagemaker.instance_count.")
    if config["sagemaker"]["instance_count"] > 1 and job.operation == TUNING:
        raise DogbreedError("The trials of a rehearsed search have one machine each; give sagemaker.instance_count=1.")
    if config["sagemaker"]["instance_count"] > 1 and not _is_free(MASTER_PORT):
        raise DogbreedError(f"The toolkit joins machines at port {MASTER_PORT}, which another program uses; end that.")
    options = Options(**config["sagemaker"]["rehearsal"], cache_dir=config["cache"]["dir"])
    folder = Path(config["output_dir"] or Path("outputs") / "rehearsals" / job.name)
    sources = local_sources(config, job, folder.parent)
    if job.operation == TUNING:
        tune(job.request, sources, folder, options, job.first.request if job.first else None)
    else:
        outcome = train(job.request, sources, folder, options)
        if outcome.status == "Completed" and not job.searches:
            print(calibration.receipt(config, outcome, folder / DATA, folder / RECEIPT), flush=True)


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def train(request: Request, sources: Mapping[str, Path | bytes], folder: Path, options: Options) -> Outcome:
    """Rehearse a training job.

    Args:
        request: Of CreateTrainingJob.
        sources: What lies in S3 before the job starts, by address: bytes, files, and folders, of which a few images per
            class take part.
        folder: Gets the log, the artefacts and `rehearsal.json`.
        options: How to rehearse.

    Returns:
        The result of the completed job.

    Raises:
        JobFailed: With the toolkit's own message and the end of the log.
        DogbreedError: It could not be started.
    """
    if options.interrupt_after and not (request.get("EnableManagedSpotTraining") and "CheckpointConfig" in request):
        raise DogbreedError("sagemaker.rehearsal.interrupt_after needs sagemaker.spot=true: only then a job resumes.")
    with (
        stage(request["TrainingJobName"], request, sources, folder, options) as (environment, s3),
        (folder / "job.log").open("w") as log,
    ):
        screen = _Screen()

        def say(line: str) -> None:
            log.write(f"{line}\n")
            screen(line)

        container = Container(request, environment, s3, say, cache_dir=options.cache_dir)
        outcome = container.run(options.interrupt_after, options.stop_after)
        _fetch(outcome, s3, folder)
        if outcome.status == "Stopped" and "CheckpointConfig" in request:
            s3.get(request["CheckpointConfig"]["S3Uri"], folder / CHECKPOINTS)
    write_json(folder / RECORD, {"jobs": [_record(outcome, request)]})
    if outcome.status == "Stopped" and options.stop_after:
        print(_stopped(outcome, folder), flush=True)
        return outcome
    if outcome.status != "Completed":
        raise JobFailed(_failed(outcome, folder / "job.log"))
    print(_completed(outcome, folder, options.interrupt_after), flush=True)
    return outcome


def tune(
    request: Request,
    sources: Mapping[str, Path | bytes],
    folder: Path,
    options: Options,
    first: Request | None = None,
) -> list[Outcome]:
    """Rehearse some trials of a tuning job, each as a training job of its own.

    Args:
        request: Of CreateHyperParameterTuningJob.
        sources: As for `train`.
        folder: Gets a log per trial, the artefacts of the best one, and `rehearsal.json`.
        options: How to rehearse.
        first: The training job that goes before, and fills the features in S3; None for no such job.

    Returns:
        The results of the trials, in their order.

    Raises:
        JobFailed: The first job failed, or no trial ended with a value of the objective.
        DogbreedError: It could not be started.
    """
    if options.interrupt_after:
        raise DogbreedError("sagemaker.rehearsal.interrupt_after is for a training job; leave it out for a search.")
    if options.stop_after:
        raise DogbreedError("sagemaker.rehearsal.stop_after is for a training job; leave it out for a search.")
    limits = request["HyperParameterTuningJobConfig"]["ResourceLimits"]
    count = min(options.trials, limits.get("MaxNumberOfTrainingJobs", options.trials))
    jobs = tuning.training_requests(request, count)
    parallel = min(options.parallel, limits["MaxParallelTrainingJobs"], len(jobs))
    threads = max(1, (os.cpu_count() or 1) // parallel)
    metric, minimize = tuning.objective(request)
    name = request["HyperParameterTuningJobName"]
    with stage(name, jobs[0], sources, folder, options) as (environment, s3):
        if first:
            _run_first(Container(first, environment, s3, cache_dir=options.cache_dir), folder)
        print(f"Trials:   {len(jobs)}, {parallel} at a time; each log is in trial-<number>.log", flush=True)
        outcomes = _run_all(
            [Container(job, environment, s3, threads=threads, alone=True) for job in jobs],
            parallel=parallel,
            folder=folder,
        )
        values = [outcome.metrics.get(metric) if outcome.status == "Completed" else None for outcome in outcomes]
        best = tuning.best(values, minimize=minimize)
        if best is not None:
            _fetch(outcomes[best], s3, folder)
    records = [_record(*pair) for pair in zip(outcomes, jobs, strict=True)]
    write_json(folder / RECORD, {"objective": metric, "best": best, "jobs": records})
    if best is None:
        reason = _failed(outcomes[0], folder / "trial-1.log")
        raise JobFailed(f"No trial completed with a value of {metric!r}. {reason}")
    chosen = [tuning.tuned(request, job) for job in jobs]
    print(tuning.table(outcomes, chosen, values, metric, best), _artefacts(folder), sep="\n\n", flush=True)
    return outcomes


def _run_first(container: Container, folder: Path) -> None:
    """Run the job that fills the features for the trials."""
    log = folder / "first.log"
    with log.open("w") as file:
        container.say = lambda line: print(line, file=file)
        outcome = container.run()
    if outcome.status != "Completed":
        raise JobFailed(_failed(outcome, log))
    print(
        f"First:    a training job, {outcome.seconds:.0f} s, cache: {outcome.cache}; its log is in first.log",
        flush=True,
    )


def _run_all(containers: Sequence[Container], *, parallel: int, folder: Path) -> list[Outcome]:
    """Run jobs side by side; their logs go into files, and the lines with metrics onto the screen."""

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


def _fetch(outcome: Outcome, s3: LocalS3, folder: Path) -> None:
    """Bring the artefacts into the rehearsal's folder."""
    for uri in filter(None, (outcome.model, outcome.output)):
        s3.get(uri, folder)


class _Screen:
    """Shows a log from the job's own program on: before it, the toolkit lists its environment on two hundred lines."""

    def __init__(self) -> None:
        self.shows = False

    def __call__(self, line: str) -> None:
        if PROGRAM_STARTS in line and not self.shows:
            self.shows = True
            _line("| (The toolkit's own output while it prepares the container is in job.log.)")
        if self.shows:
            _line(f"| {line}")
        self.shows &= line != INTERRUPTED  # another container, another list


def _line(text: str) -> None:
    """Write a line at once, so that lines of several jobs do not mix."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# What is said at the end


def _record(outcome: Outcome, request: Request) -> dict[str, Any]:
    """Return a job for `rehearsal.json`, with the request that was carried out."""
    fields = asdict(outcome)
    del fields["last_lines"], fields["result"]
    return {**fields, "metrics": outcome.metrics, "request": request}


def _failed(outcome: Outcome, log: Path) -> str:
    """Say why a job failed: what the service would show as its reason, and the end of its log."""
    lines = "\n".join(f"  | {line}" for line in outcome.last_lines)
    reason = "\n".join(f"  {line}" for line in (outcome.reason or "no reason was given").splitlines())
    return f"{outcome.name} ended as {outcome.status}. Its reason:\n{reason}\nThe end of its log, {log}:\n{lines}"


def _completed(outcome: Outcome, folder: Path, interrupt_after: int | None) -> str:
    """Say what a training job that completed came to."""
    lines = ["", f"Completed in {outcome.seconds:.0f} s. The service would show these metrics:"]
    width = max((len(name) for name in outcome.metrics), default=0)
    lines += [f"  {name:<{width}}  {value:g}" for name, value in outcome.metrics.items()]
    if interrupt_after and outcome.interruptions:
        lines.append(f"A spot interruption was simulated after {interrupt_after} epochs; another machine resumed.")
    elif interrupt_after:
        lines.append(f"It was over before {interrupt_after} epochs had passed, so no spot interruption was simulated.")
    return "\n".join([*lines, "", _artefacts(folder)])


def _stopped(outcome: Outcome, folder: Path) -> str:
    """Say what a job leaves that was stopped."""
    return (
        f"\n{outcome.reason} The container was killed without a warning, as at its limit.\n\n{_artefacts(folder)}\n\n"
        f"Continue it: the same command with sagemaker.resume_from={outcome.name}"
    )


def _artefacts(folder: Path) -> str:
    """Say where things lie, and what to do with the model."""
    names = {
        "model.tar.gz": "the model",
        "output.tar.gz": "the rest of the run: metrics, report",
        RECORD: "the requests that were carried out, and their metrics",
    }
    lines = [f"  {name:<16} {what}" for name, what in names.items() if (folder / name).is_file()]
    model = shlex.quote(str(folder / "model"))
    archive = shlex.quote(str(folder / "model.tar.gz"))
    use = f"mkdir {model} && tar -xzf {archive} -C {model} && python -m dogbreed.predict {model} PHOTO"
    return "\n".join([f"{folder}/", *lines, "", f"Try the model: {use}"])
