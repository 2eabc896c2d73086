"""What `mode=plan` prints: the exact request, as YAML that `aws ... --cli-input-yaml` takes, and above it in comments
what is sent along, how long it will take, what it will cost, and what to beware of."""

import os
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import yaml

from dogbreed.core.errors import DogbreedError
from dogbreed.data.download import DOG_IMAGES_COUNTS
from dogbreed.inference.archive import CODE
from launch.aws.pricing import HOURS_A_MONTH, Estimate, Prices, check_cost
from launch.jobs.debugger import NOTICE
from launch.jobs.request import SPLITS, TUNING, Job
from launch.serving import cost
from launch.serving.request import Deployment, parse_span

COMMANDS = {TUNING: "aws sagemaker create-hyper-parameter-tuning-job", "": "aws sagemaker create-training-job"}
SAMPLE_COUNTS = {"train": 144, "valid": 48, "test": 48}  # of data=sample

# Last day of patches of AWS's PyTorch images by version, as far as it is known.
PATCHED_UNTIL = {"2.6": date(2026, 6, 30)}


def counts(config: Mapping[str, Any]) -> dict[str, int] | None:
    """Photographs by split: counted if the folder is here, else known for dogImages and the sample; None if neither."""
    root = Path(config["data"]["root"])
    if root.is_dir():
        return {split: sum(len(files) for _, _, files in os.walk(root / split)) for split in SPLITS}
    if config["data"]["source"] == "sample":
        return dict(SAMPLE_COUNTS)
    return dict(DOG_IMAGES_COUNTS) if root.name == "dogImages" else None


def estimates(config: Mapping[str, Any], job: Job, prices: Prices) -> dict[str, Estimate]:
    """What the request is expected to take, first, and for a search the other way to do it too."""
    known, trials = counts(config), config["search"]["trials"]
    if job.operation == TUNING:  # a grid has as many as it has combinations
        trials = job.request["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxNumberOfTrainingJobs"]
    if job.operation == TUNING or job.searches:
        ways = {
            "a job a trial": prices.training(known, trials=trials),
            "all trials in one job": prices.training(known, trials=trials, one_job=True),
        }
        return dict(sorted(ways.items(), key=lambda way: way[0].startswith("all") != job.searches))
    return {"the job": prices.training(known)}


def notices(config: Mapping[str, Any], job: Job, prices: Prices) -> list[str]:
    """What to beware of before this is sent."""
    wanted, found = config["sagemaker"], []
    try:
        check_cost(config, next(iter(estimates(config, job, prices).values())))
    except DogbreedError as error:
        found.append(f"mode=submit would refuse this. {str(error).rstrip('.')}")
    found += [NOTICE[name] for name in ("debugger", "profiler") if wanted[name]["enabled"]]
    if job.operation == TUNING and config["search"]["objective"] == "average test loss":
        found.append(
            "The search chooses by the test split, as published; its test result is then too good. val_loss is the way"
        )
    image = job.definition["AlgorithmSpecification"]["TrainingImage"]
    if notice := image_notice(image):
        found.append(notice)
    if config["model"]["weights"] == "imagenet" and not wanted["weights"]:
        found.append(
            "Each job fetches the ImageNet weights from download.pytorch.org; sagemaker.weights=s3://... is nearer"
        )
    limits = job.request.get("HyperParameterTuningJobConfig", {}).get("ResourceLimits")
    if limits and limits["MaxNumberOfTrainingJobs"] != (asked := config["search"]["trials"]):
        found.append(
            f"A grid tries every combination: {limits['MaxNumberOfTrainingJobs']} training jobs, not "
            f"search.trials={asked}"
        )
    if limits and (count := limits["MaxParallelTrainingJobs"]) > 1:
        found.append(
            f"{count} machines at a time: the account's quota for {wanted['instance_type']} must allow as many "
            "(Service Quotas); search.parallel lowers it"
        )
    if wanted["keep_alive"]:
        found.append(f"The machine stays for {wanted['keep_alive']} s after the job, and is billed until then")
    return found


def image_notice(image: str, today: date | None = None) -> str | None:
    """Whether an image of AWS's is past its last patches."""
    _, _, tag = image.rpartition(":")
    version = ".".join(tag.split("-")[0].split(".")[:2])
    end = PATCHED_UNTIL.get(version)
    if end is None or (today or date.today()) <= end:
        return None
    return f"The image {tag} (PyTorch {version}) has had no patches since {end}; it gets no security fixes"


def summary(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    """What `mode=submit` says before it sends."""
    yield f"{job.name}: {job.operation} in {job.place.region}, account {job.place.account}, role {job.place.role}"
    yield from _time_and_cost(config, job, prices)
    yield from (f"Beware: {notice}." for notice in notices(config, job, prices))


def describe(config: Mapping[str, Any], job: Job, prices: Prices) -> str:
    """The whole plan; as YAML it is the request alone."""
    lines = list(_lines(config, job, prices))
    request = yaml.dump(job.request, sort_keys=False, width=1000, allow_unicode=True, Dumper=_Plain)
    head = "\n".join(f"# {line}".rstrip() for line in lines)
    return f"{head}\n\n{request}"


class _Plain(yaml.SafeDumper):
    """Writes what appears twice twice: anchors are no help to a reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _lines(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    yield f"Plan of {job.name}: nothing was sent, and no account was asked."
    yield f"Below is the request {job.operation}; {COMMANDS.get(job.operation, COMMANDS[''])} takes it too"
    yield "(--cli-input-yaml), once what it names is in S3."
    if job.place.assumed:
        yield ""
        yield "Not known without an account, and replaced when it is sent:"
        yield from (f"  {what}: {stand_in}" for what, stand_in in job.place.assumed.items())
    yield ""
    yield f"Sent along: {job.code_uri}"
    size = sum(map(len, job.source.files.values()))
    yield f"  {len(job.source.files)} files, {size:,} bytes, packed {len(job.source.archive):,}:"
    yield from (f"  {len(content):>9,}  {name}" for name, content in job.source.files.items())
    yield from (f"  {file.stat().st_size:>9,}  {file} -> {address}" for address, file in job.sent_along.items())
    yield from _data(config, job, prices)
    yield ""
    yield from _time_and_cost(config, job, prices)
    if found := notices(config, job, prices):
        yield ""
        yield "Beware:"
        yield from (f"  - {notice}." for notice in found)


def _data(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    if job.data_uri is None:
        yield "Photographs: none are sent; the job draws the sample itself (data=sample)."
        return
    known = counts(config)
    told = " / ".join(f"{count:,}" for count in known.values()) if known else "unknown many"
    yield f"Photographs: {job.data_uri}, {told} to train / validate / test"
    root = Path(config["data"]["root"])
    if not config["sagemaker"]["data"]:
        yield f"  put there by: python launch/sagemaker_upload.py data.root={root}"
    if root.is_dir():
        size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        yield f"  {size:,} bytes in S3: ${prices.storage(size):.2f} a month"


def _time_and_cost(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    ways = estimates(config, job, prices)
    for number, (way, estimate) in enumerate(ways.items()):
        this = "  (this request)" if number == 0 and len(ways) > 1 else ""
        told = "time not known"
        if estimate.seconds is not None and estimate.billed_seconds is not None:
            told = f"{_span(estimate.seconds)}, {_span(estimate.billed_seconds)} billed"
        told += f", {_dollars(estimate.cost)}; at its limits {_dollars(estimate.most)}"
        yield f"Expected, {way}: {told}{this}"
    yield from (f"  {sentence}" for sentence in next(iter(ways.values())).because)
    idle = prices.endpoint_month(config["sagemaker"]["instance_type"])
    yield f"  an endpoint of the same type: {_dollars(idle)} a month, used or not"


def _dollars(amount: float | None) -> str:
    return "cost not known" if amount is None else f"${amount:,.2f}"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


# A deployment


def describe_deployment(config: Mapping[str, Any], deployment: Deployment, prices: Prices, certificate: str) -> str:
    """Return the whole plan of a deployment; as YAML it is the requests alone, a document for each.

    Args:
        config: A composed configuration.
        deployment: To show.
        prices: To compute with.
        certificate: What is known of the model's certificate, a sentence.
    """
    lines = _deployment_lines(config, deployment, prices, certificate)
    head = "\n".join(f"# {line}".rstrip() for line in lines)
    calls = [
        f"---\n# {step.service} {step.operation}\n"
        + yaml.dump(step.request, sort_keys=False, width=1000, allow_unicode=True, Dumper=_Plain)
        for step in deployment.steps
    ]
    return f"{head}\n\n" + "\n".join(calls)


def _deployment_lines(
    config: Mapping[str, Any], deployment: Deployment, prices: Prices, certificate: str
) -> Iterator[str]:
    yield f"Plan of {deployment.name} ({deployment.kind}): nothing was sent, and no account was asked."
    yield "Below are the requests in their order."
    if deployment.place.assumed:
        yield ""
        yield "Not known without an account, and replaced when they are sent:"
        yield from (f"  {name}: {stand_in}" for name, stand_in in deployment.place.assumed.items())
    yield ""
    archive = deployment.archive
    size = sum(map(archive.size, archive.names))
    code = [name for name in archive.names if name.startswith(f"{CODE}/dogbreed/")]
    yield f"Sent along: {deployment.model_uri}"
    yield f"  {len(archive.names)} files, {size:,} bytes; ${prices.storage(size):.2f} per month in S3:"
    yield from (f"  {archive.size(name):>13,}  {name}" for name in archive.names if name not in code)
    yield f"  {sum(map(archive.size, code)):>13,}  {CODE}/dogbreed/ ({len(code)} files)"
    yield f"Certificate: {certificate}."
    yield ""
    yield from _deployment_cost(config, deployment, prices)
    warnings = list(_deployment_warnings(config, deployment))
    try:
        cost.check_cost(config, deployment, prices)
    except DogbreedError as error:
        warnings.insert(0, f"mode=submit would refuse this. {str(error).rstrip('.')}")
    if warnings:
        yield ""
        yield "Warnings:"
        yield from (f"  - {warning}." for warning in warnings)


def _deployment_cost(config: Mapping[str, Any], deployment: Deployment, prices: Prices) -> Iterator[str]:
    options = config["sagemaker"]["endpoint"]
    if deployment.kind == "serverless":
        second = prices.table["serverless_gb_second"] * options["memory_mb"] / 1024
        yield "Costs $0.00 per hour when it is not used;"
        yield (
            f"  ${second * 1000:.3f} for 1,000 seconds of work with {options['memory_mb']} MB "
            f"(table of {prices.table['as_of']}), and the first request after a pause waits for the start"
        )
        return
    hour, machine = cost.hourly(config, deployment.kind, prices), options["instance_type"]
    if hour is None:
        yield f"The price of {machine} is not known: {prices.told(machine)}."
        return
    machines = f"{options['instance_count']} x {machine}, {prices.told(machine)}"
    if deployment.kind == "batch":
        yield f"Costs ${hour:.3f} per hour while it works ({machines}), and nothing afterwards."
        return
    yield f"Costs ${hour:.3f} per hour, used or not ({machines}):"
    yield f"  ${hour * 24:,.2f} per day, ${hour * HOURS_A_MONTH:,.0f} per month if it is forgotten"
    if options["max_count"]:
        most = hour / options["instance_count"] * options["max_count"]
        yield f"  up to ${most:.3f} per hour with {options['max_count']} instances under load"
    if options["expires"]:
        hours = parse_span(options["expires"]) / timedelta(hours=1)
        yield f"  ${hour * hours:.2f} until it expires, if it is deleted then"


def _deployment_warnings(config: Mapping[str, Any], deployment: Deployment) -> Iterator[str]:
    options = config["sagemaker"]["endpoint"]
    if notice := image_notice(deployment.request("CreateModel")["PrimaryContainer"]["Image"]):
        yield f"{notice}. It is the last that AWS has for inference with PyTorch; image= takes one of yours"
    if options["expires"]:
        yield "Nothing deletes it by itself: run python launch/sagemaker_delete.py expired=true, by hand or from cron"
    elif deployment.kind in ("realtime", "async"):
        yield "It costs until it is deleted: python launch/sagemaker_delete.py NAME; expires=2h reminds of it"
    if options["capture"]:
        yield "Requests are kept in the bucket, images and all: whoever sends them should know"
    weights, memory = deployment.archive.size("model.safetensors"), options["memory_mb"]
    if deployment.kind == "serverless" and weights * 2 + 700e6 > memory * 2**20:
        yield (
            f"The weights take {weights / 1e6:,.0f} MB, and {memory} MB of memory may be too little for them, torch "
            "and the container"
        )
