"""What a job is expected to take, and what to know before it is sent."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dogbreed.config.compose import fitting_batch_size
from dogbreed.config.search_space import ranges
from dogbreed.core.errors import DogbreedError
from dogbreed.data.download import DOG_IMAGES_COUNTS
from dogbreed.data.layout import find_splits
from dogbreed.data.splits import parse_shares
from launch.aws.images import patch_notice
from launch.aws.naming import features_uri
from launch.aws.pricing import UNKNOWN_MAX_RUN, Estimate, Prices, check_cost, check_time
from launch.aws.validate import check_settings
from launch.aws.work import network_of
from launch.jobs.debugger import NOTICE
from launch.jobs.request import SPLITS, TUNING, Job, in_one_job
from launch.jobs.tuning import ONCE, parallel_jobs

SAMPLE_COUNTS = {"train": 144, "valid": 48, "test": 48}  # of data=sample


def counts(config: Mapping[str, Any]) -> dict[str, int] | None:
    """Return images by split: counted if the folder is here, else known for dogImages and the sample, else None."""
    root = Path(config["data"]["root"])
    if root.is_dir():
        splits = find_splits(root)
        if not splits:  # the job splits them
            shares = parse_shares(config["data"]["split"])
            return {split: round(share * _files(root)) for split, share in zip(SPLITS, shares, strict=True)}
        return {split: _files(splits[split]) if split in splits else 0 for split in SPLITS}
    if config["data"]["source"] == "sample":
        return dict(SAMPLE_COUNTS)
    return dict(DOG_IMAGES_COUNTS) if root.name == "dogImages" else None


def _files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def estimates(config: Mapping[str, Any], job: Job, prices: Prices) -> dict[str, Estimate]:
    """Return what the request is expected to take, first, and for a search the other kind of job too."""
    images, trials = counts(config), config["search"]["trials"]
    if job.operation == TUNING:  # a grid has as many as it has combinations
        trials = job.request["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    if job.operation != TUNING and not job.searches:
        return {"the job": prices.training(images)}
    first, shares = bool(config["sagemaker"]["features_first"]), shares_features(config)
    both = {
        "a job per trial": prices.training(
            images, trials=trials, parallel=parallel_jobs(config), shares=shares, first=first
        ),
        "all trials in one job": prices.training(images, trials=trials, one_job=True),
    }
    return dict(reversed(both.items())) if job.searches else both


def shares_features(config: Mapping[str, Any]) -> bool:
    """Return whether the trials of a search find each other's features: no range changes these, and S3 keeps them."""
    changing = ("model.backbone", "model.weights", "model.trainable", "data.", "head_stage.", "cache.")
    keys = set(ranges(config["search"]["space"])) - {"data.batch_size"}
    return bool(features_uri(config, "")) and not any(key.startswith(changing) for key in keys)


def resolved(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return the configuration with a value for what the estimate decides where it is null.

    These are `sagemaker.max_run`, three times the estimate, and `sagemaker.features_first` of a search.

    Args:
        config: A composed configuration.
        kind: `train` or `tune`.

    Raises:
        DogbreedError: A setting that the estimate needs could not work.
    """
    check_settings(config)
    one_job = kind == "tune" and in_one_job(config)
    cloud, images, trials, prices = config["sagemaker"], counts(config), config["search"]["trials"], Prices(config)
    max_run, first = cloud["max_run"], cloud["features_first"]
    if max_run is None:
        max_run = prices.training(images, trials=trials if one_job else 1, one_job=one_job).max_run
        if config["mode"] == "rehearse":  # the estimate is for another machine than this one
            max_run = max(max_run, UNKNOWN_MAX_RUN)
    if kind != "tune" or one_job:
        first = False
    elif first is None:
        parallel = parallel_jobs(config)
        first = (
            shares_features(config)
            and prices.training(images, trials=trials, parallel=parallel, shares=True, first=None).first
        )
    return {**config, "sagemaker": {**cloud, "max_run": max_run, "features_first": first}}


def check_limits(config: Mapping[str, Any], estimate: Estimate) -> None:
    """Refuse what may cost too much, or cannot finish in time.

    Raises:
        DogbreedError: Names what lowers the cost, or the time to allow.
    """
    check_cost(config, estimate)
    check_time(estimate)


def memory_shortage(config: Mapping[str, Any]) -> str:
    """Return why a step of training does not fit a machine's memory; "" where it does, or the head alone trains."""
    trainable, images = config["model"]["trainable"], counts(config)
    batch = fitting_batch_size(config["data"], images["train"]) if images else config["data"]["batch_size"]
    figures, machine = network_of(config), config["sagemaker"]["instance_type"]
    memory = Prices(config).machine(machine)[0]["memory_gb"]
    if trainable == "head" or figures.memory_gb(trainable, batch) <= memory:
        return ""
    fits = batch
    while fits and figures.memory_gb(trainable, fits) > memory:
        fits //= 2
    return (
        f"data.batch_size={batch} takes about {figures.memory_gb(trainable, batch):.0f} GB of memory, {machine} has "
        f"{memory}" + (f", {fits} fits" if fits else "")
    )


def warnings(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    """Yield what to know before this is sent, a sentence each without its full stop."""
    cloud, estimate = config["sagemaker"], next(iter(estimates(config, job, prices).values()))
    try:
        check_limits(config, estimate)
    except DogbreedError as error:
        yield f"mode=submit would refuse this. {str(error).rstrip('.')}"
    if estimate.job_seconds is None:
        yield f"Nobody knows how long this takes, and it is stopped after sagemaker.max_run={cloud['max_run']} seconds"
    if shortage := memory_shortage(config):
        yield shortage
    root = Path(config["data"]["root"])
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if missing and root.is_dir() and cloud["channels"] == "splits" and not cloud["data"]:
        yield f"{root} has no folder {missing[0]}/, so it would not be sent; sagemaker.channels=root sends it as it is"
    yield from (NOTICE[name] for name in ("debugger", "profiler") if cloud[name]["enabled"])
    if job.operation == TUNING:
        yield from _tuning_warnings(config, job.request["HyperParameterTuningJobConfig"]["ResourceLimits"])
    if notice := patch_notice(job.definition["AlgorithmSpecification"]["TrainingImage"]):
        yield notice
    if config["model"]["weights"] == "imagenet" and not cloud["weights"] and (hub := _hub(config["model"]["backbone"])):
        yield f"Each job fetches the ImageNet weights from {hub}; sagemaker.weights=s3://... is nearer"
    if cloud["keep_alive"] and job.operation == TUNING:
        yield "sagemaker.keep_alive is left out: a tuning job reuses its machines by itself, and has no warm pool"
    elif cloud["keep_alive"]:
        yield f"The machine stays for {cloud['keep_alive']} s after the job, and is billed until then"


def _hub(backbone: str) -> str | None:
    """Return where published weights are fetched from; None where a package of the requirements brings them."""
    if backbone == "efficientnet_lite0":
        return None
    return "huggingface.co" if backbone.startswith("timm/") else "download.pytorch.org"


def _tuning_warnings(config: Mapping[str, Any], limits: Mapping[str, int]) -> Iterator[str]:
    search, machine = config["search"], config["sagemaker"]["instance_type"]
    jobs, parallel = limits["MaxNumberOfTrainingJobs"], limits["MaxParallelTrainingJobs"]
    if search["objective"] == "average test loss":
        yield "The search chooses by the test split, as published; its test result is then too good. Choose by val_loss"
    if jobs != search["trials"]:
        yield f"A grid tries every combination: {jobs} training jobs, not search.trials={search['trials']}"
    if search["prune"] and search["objective"] == ONCE:
        yield f"Early stopping is off: {ONCE} has one value per job, at its end, so no trial could be stopped by it"
    if parallel > 1:
        learns = config["sagemaker"]["strategy"] == "bayesian"
        rounds = f", so that a Bayesian search learns over {math.ceil(jobs / parallel)} rounds" if learns else ""
        yield (
            f"{parallel} machines at a time{rounds}: the account's quota for {machine} must allow as many (Service "
            "Quotas); sagemaker.parallel changes it"
        )
