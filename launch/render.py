"""What `mode=plan` prints: the exact request, as YAML that `aws ... --cli-input-yaml` takes, and above it in comments
what is sent along, how long it will take, what it will cost, and what to know before it is sent."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count, duration, join
from dogbreed.inference.archive import CODE, Archive
from launch.aws import tracking
from launch.aws.account import Target
from launch.aws.images import has_toolkit, patch_notice
from launch.aws.pricing import HOURS_PER_MONTH, Prices
from launch.aws.validate import parse_span
from launch.aws.work import passes
from launch.jobs.estimate import counts, estimates, warnings
from launch.jobs.request import FEATURES, TUNING, Job
from launch.jobs.source import APART_FILE
from launch.serving import cost
from launch.serving.request import Deployment, Step

COMMANDS = {TUNING: "aws sagemaker create-hyper-parameter-tuning-job", "": "aws sagemaker create-training-job"}


def summary(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    """Yield what `mode=submit` prints before it sends."""
    yield f"{job.name}: {job.operation} in {job.target.region}, account {job.target.account}, role {job.target.role}"
    yield from _time_and_cost(config, job, prices)
    yield from (f"Warning: {warning}." for warning in warnings(config, job, prices))


def notices(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    """Yield what is said beside a plan in another form."""
    yield from summary(config, job, prices)
    yield from _stand_ins(job.target)
    sent = join([job.code_uri, *job.sent_along])
    yield f"Has to be in S3, where mode=submit and the objects of `from launch import ...` put it: {sent}"
    if job.data_uri:
        yield f"Has to be in S3, where launch/sagemaker_upload.py puts it: {job.data_uri}"


def describe(config: Mapping[str, Any], job: Job, prices: Prices) -> str:
    """Return the whole plan; as YAML it is the request alone."""
    return f"{_comments(_lines(config, job, prices))}\n\n{_yaml(job.request)}"


class _Plain(yaml.SafeDumper):
    """Writes what appears twice twice: anchors do not help a reader."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(request: Mapping[str, Any]) -> str:
    return yaml.dump(request, sort_keys=False, width=1000, allow_unicode=True, Dumper=_Plain)


def documents(steps: Iterable[Step]) -> str:
    """Return requests as YAML, a document for each."""
    return "\n".join(f"---\n# {step.service} {step.operation}\n{_yaml(step.request)}" for step in steps)


def _comments(lines: Iterable[str]) -> str:
    return "\n".join(f"# {line}".rstrip() for line in lines)


def _assumed(target: Target, what: str) -> Iterator[str]:
    if target.assumed:
        yield from ("", f"Not known without an account, and replaced when {what} sent:")
        yield from (f"  {name}: {stand_in}" for name, stand_in in target.assumed.items())


def _stand_ins(target: Target) -> Iterator[str]:
    if target.assumed:
        stand_ins = join([f"{name} {stand_in}" for name, stand_in in target.assumed.items()])
        yield f"Warning: no account was asked, so these stand in: {stand_ins}; give sagemaker.role and the like."


def _warnings(lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield from ("", "Warnings:", *(f"  - {line}." for line in lines))


def _lines(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    yield f"Plan of {job.name}: nothing was sent, and no account was asked."
    yield f"Below is the request {job.operation}; {COMMANDS.get(job.operation, COMMANDS[''])} takes it too"
    yield "(--cli-input-yaml), once what it names is in S3."
    yield from _assumed(job.target, "it is")
    yield ""
    yield from _data(config, job, prices)
    yield from _features(config, job, prices)
    yield ""
    yield from _time_and_cost(config, job, prices)
    yield from _warnings(list(warnings(config, job, prices)))
    yield ""
    yield f"Sent along: {job.code_uri}"
    size = sum(map(len, job.source.files.values()))
    yield f"  {count(len(job.source.files), 'file')}, {size:,} bytes, packed {len(job.source.archive):,}:"
    yield from _folders({name: len(content) for name, content in job.source.files.items()})
    sizes = {wheel.file: wheel.size for wheel in job.wheels}  # which may not be here yet
    for address, file in job.sent_along.items():
        yield f"  {sizes.get(file.name) or file.stat().st_size:>9,}  {file} -> {address}"
    packages = job.source.files["requirements.txt"].decode().split("\n")
    yield f"Installed in the container: {', '.join(filter(None, packages))}"
    if tracking.logs_to_mlflow(config):
        inside = "mlruns/ in output.tar.gz of the job, since loggers.mlflow.tracking_uri names no other address"
        yield f"MLflow: {tracking.tracking_uri(config) or inside}"
    if apart := job.source.files.get(APART_FILE):
        yield f"Installed in a folder of its own: {', '.join(apart.decode().split())}"


def _folders(sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield a line per file at the top, and one per folder: `tar -tf` lists what is in the archive, a plan is read."""
    inside: dict[str, list[int]] = {}
    for name, size in sizes.items():
        folder = "/".join(name.split("/")[:-1][:2])
        inside.setdefault(f"{folder}/" if folder else name, []).append(size)
    for name, files in inside.items():
        yield f"  {sum(files):>9,}  {name}" + (f" ({count(len(files), 'file')})" if name.endswith("/") else "")


def _data(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    if job.data_uri is None:
        yield "Images: none are sent; the job draws the sample itself (data=sample)."
        return
    known = counts(config)
    numbers = " / ".join(f"{count:,}" for count in known.values()) if known else "an unknown number"
    yield f"Images: {job.data_uri}, {numbers} to train / validate / test"
    root = Path(config["data"]["root"])
    if not config["sagemaker"]["data"]:
        yield f"  put there by: python launch/sagemaker_upload.py data.root={root}"
    if not root.is_dir() and not config["sagemaker"]["data"]:
        yield f"  {root} does not exist here: give data.root=FOLDER to count and to send your own images"
    if root.is_dir():
        size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
        yield f"  {size:,} bytes in S3: ${prices.storage(size):.2f} per month"


def _features(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    features, known = job.definition["Environment"].get(FEATURES), counts(config)
    size = passes(config, known).features_gb if known else 0
    if not features or (known and not size):
        return
    stored = f", {size:.2f} GB, ${prices.storage(round(size * 1e9)):.2f} per month" if known else ""
    yield f"Features: {features}{stored}; a job fetches those that are there, and adds what it computes"
    if job.first:
        yield f"  filled by {job.first.name}, a training job that is sent first (sagemaker.features_first=false: none)"


def _time_and_cost(config: Mapping[str, Any], job: Job, prices: Prices) -> Iterator[str]:
    kinds = estimates(config, job, prices)
    for number, (kind, estimate) in enumerate(kinds.items()):
        time = "time not known"
        if estimate.seconds is not None and estimate.billed_seconds is not None:
            time = f"{duration(estimate.seconds)}, {duration(estimate.billed_seconds)} billed"
        this = "  (this request)" if number == 0 and len(kinds) > 1 else ""
        yield f"Expected, {kind}: {time}, {_dollars(estimate.cost)}; at its limits {_dollars(estimate.most)}{this}"
    yield from (f"  {sentence}" for sentence in next(iter(kinds.values())).because)
    machine = config["sagemaker"]["endpoint"]["instance_type"]
    idle = prices.endpoint_month(machine)
    yield f"  deployed afterwards, a real-time endpoint on {machine}: {_dollars(idle)} per month, used or not"


def _dollars(amount: float | None) -> str:
    return "cost not known" if amount is None else f"${amount:,.2f}"


# A deployment


def describe_deployment(config: Mapping[str, Any], deployment: Deployment, prices: Prices, certificate: str) -> str:
    """Return the whole plan of a deployment; as YAML it is the requests alone, a document for each.

    Args:
        config: A composed configuration.
        deployment: To show.
        prices: To compute with.
        certificate: What is known of the model's certificate, a sentence.
    """
    comments = _comments(_deployment_lines(config, deployment, prices, certificate))
    return f"{comments}\n\n{documents(deployment.steps)}"


def deployment_notices(config: Mapping[str, Any], deployment: Deployment) -> Iterator[str]:
    """Yield what is said beside a plan of a deployment in another form."""
    yield from _stand_ins(deployment.target)
    yield from (f"Warning: {warning}." for warning in _deployment_warnings(config, deployment))
    yield f"Has to be in S3, where mode=submit puts it: {deployment.model_uri}"


def _deployment_lines(
    config: Mapping[str, Any], deployment: Deployment, prices: Prices, certificate: str
) -> Iterator[str]:
    yield f"Plan of {deployment.name} ({deployment.kind}): nothing was sent, and no account was asked."
    yield "Below are the requests in their order."
    if config["sagemaker"]["endpoint"]["update"]:
        yield "UpdateEndpoint and its alarms take the place of CreateEndpoint where there is an endpoint of this name."
    yield from _assumed(deployment.target, "they are")
    yield ""
    yield from _deployment_cost(config, deployment, prices)
    lines = list(_deployment_warnings(config, deployment))
    try:
        cost.check_cost(config, deployment, prices)
    except DogbreedError as error:
        lines.insert(0, f"mode=submit would refuse this. {str(error).rstrip('.')}")
    yield from _warnings(lines)
    yield ""
    archive = deployment.archive
    size = sum(map(archive.size, archive.names))
    code = [name for name in archive.names if name.startswith(f"{CODE}/dogbreed/")]
    yield f"Sent along: {deployment.model_uri}"
    yield f"  {count(len(archive.names), 'file')}, {size:,} bytes; ${prices.storage(size):.2f} per month in S3:"
    yield from (f"  {archive.size(name):>13,}  {name}" for name in archive.names if name not in code)
    yield f"  {sum(map(archive.size, code)):>13,}  {CODE}/dogbreed/ ({len(code)} files)"
    if has_toolkit(deployment.request("CreateModel")["PrimaryContainer"]["Image"]):
        yield f"Installed in the container: {', '.join(_requirements(archive))}"
    else:
        yield f"Installed in the container: nothing; the image answers by itself, and {CODE}/ is for AWS's."
    yield f"Certificate: {certificate}."


def _requirements(archive: Archive) -> Iterator[str]:
    """Yield what code/requirements.txt names, without hashes."""
    lines = archive.texts[f"{CODE}/requirements.txt"].splitlines()
    yield from (line.split()[0] for line in lines if not line.startswith("--"))
    if "--no-index" in lines:
        yield "from the wheels in the archive alone"


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
        yield f"The price of {machine} is not known: {prices.source(machine)}."
        return
    machines = f"{options['instance_count']} x {machine}, {prices.source(machine)}"
    if deployment.kind == "batch":
        yield f"Costs ${hour:.3f} per hour while it works ({machines}), and nothing afterwards."
        return
    yield f"Costs ${hour:.3f} per hour, used or not ({machines}):"
    yield f"  ${hour * 24:,.2f} per day, ${hour * HOURS_PER_MONTH:,.0f} per month if it is forgotten"
    if options["min_count"] == 0:
        yield "  $0.000 per hour while no request waits, after some minutes without one"
    if options["max_count"]:
        most = hour / options["instance_count"] * options["max_count"]
        yield f"  up to ${most:.3f} per hour with {options['max_count']} instances under load"
    if options["expires"]:
        hours = parse_span(options["expires"]) / timedelta(hours=1)
        yield f"  ${hour * hours:.2f} until it expires, if it is deleted then"


def _deployment_warnings(config: Mapping[str, Any], deployment: Deployment) -> Iterator[str]:
    options = config["sagemaker"]["endpoint"]
    image = deployment.request("CreateModel")["PrimaryContainer"]["Image"]
    if has_toolkit(image) and (notice := patch_notice(image)):
        yield f"{notice}. It is AWS's last for inference with PyTorch; launch/Dockerfile makes one for image="
    if options["scheduler_role"]:
        yield "EventBridge Scheduler deletes the endpoint then; its settings and its model stay, which cost nothing"
    elif options["expires"]:
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
