"""What `sagemaker_deploy.py mode=plan` prints: the exact requests, as YAML, and around them, as comments, what is sent
along, what it costs, and what to beware of."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import yaml

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.archive import CODE
from launch.aws.pricing import HOURS_A_MONTH, Prices
from launch.render import image_notice
from launch.serving.request import Deployment, span


def describe(config: Mapping[str, Any], deployment: Deployment, prices: Prices, certificate: str) -> str:
    """The whole plan; as YAML it is the requests alone, a document each.

    Args:
        config: A composed configuration.
        deployment: What it asks for.
        prices: To compute with.
        certificate: What is known of the model's certificate, a sentence.
    """
    head = "\n".join(f"# {line}".rstrip() for line in _lines(config, deployment, prices, certificate))
    calls = [
        f"---\n# {step.service} {step.operation}\n"
        + yaml.safe_dump(step.request, sort_keys=False, width=1000, allow_unicode=True)
        for step in deployment.steps
    ]
    return f"{head}\n\n" + "\n".join(calls)


def _lines(config: Mapping[str, Any], deployment: Deployment, prices: Prices, certificate: str) -> Iterator[str]:
    wanted = config["sagemaker"]["endpoint"]
    yield f"Plan of {deployment.name} ({deployment.kind}): nothing was sent, and no account was asked."
    yield "Below are the requests in their order."
    if deployment.place.assumed:
        yield ""
        yield "Not known without an account, and replaced when they are sent:"
        yield from (f"  {what}: {stand_in}" for what, stand_in in deployment.place.assumed.items())
    yield ""
    archive = deployment.archive
    size = sum(map(archive.size, archive.names))
    yield f"Sent along: {deployment.model_uri}"
    yield f"  {len(archive.names)} files, {size:,} bytes; ${prices.storage(size):.2f} a month in S3:"
    code = [name for name in archive.names if name.startswith(f"{CODE}/dogbreed/")]
    yield from (f"  {archive.size(name):>13,}  {name}" for name in archive.names if name not in code)
    yield f"  {sum(map(archive.size, code)):>13,}  {CODE}/dogbreed/ ({len(code)} files)"
    yield f"Certificate: {certificate}."
    yield ""
    yield from _cost(config, deployment, prices)
    found = list(_notices(deployment, wanted))
    try:
        check_cost(config, deployment, prices)
    except DogbreedError as error:
        found.insert(0, f"mode=submit would refuse this. {str(error).rstrip('.')}")
    if found:
        yield ""
        yield "Beware:"
        yield from (f"  - {notice}." for notice in found)


def hourly(config: Mapping[str, Any], kind: str, prices: Prices) -> float | None:
    """US dollars an hour, asked or not; 0 for what costs only while it works, None where the price is not known."""
    wanted = config["sagemaker"]["endpoint"]
    if kind == "serverless":
        return 0.0
    hour = prices.hour(wanted["instance_type"])
    return None if hour is None else hour * int(wanted["instance_count"])


def _cost(config: Mapping[str, Any], deployment: Deployment, prices: Prices) -> Iterator[str]:
    wanted = config["sagemaker"]["endpoint"]
    if deployment.kind == "serverless":
        second = prices.table["serverless_gb_second"] * wanted["memory_mb"] / 1024
        yield "Costs $0.00 an hour when nobody asks;"
        yield (
            f"  ${second * 1000:.3f} for 1,000 seconds of work with {wanted['memory_mb']} MB "
            f"(table of {prices.table['as_of']}), and the first request after a pause waits for the start"
        )
        return
    hour, machine = hourly(config, deployment.kind, prices), wanted["instance_type"]
    if hour is None:
        yield f"The price of {machine} is not known: {prices.told(machine)}."
        return
    told = f"{wanted['instance_count']} x {machine}, {prices.told(machine)}"
    if deployment.kind == "batch":
        yield f"Costs ${hour:.3f} an hour while it works ({told}), and nothing afterwards."
        return
    yield f"Costs ${hour:.3f} an hour, asked or not ({told}):"
    yield f"  ${hour * 24:,.2f} a day, ${hour * HOURS_A_MONTH:,.0f} a month if it is forgotten"
    if wanted["max_count"]:
        most = hour / wanted["instance_count"] * wanted["max_count"]
        yield f"  up to ${most:.3f} an hour with {wanted['max_count']} instances under load"
    if wanted["expires"]:
        kept = span(wanted["expires"])
        yield f"  ${hour * (kept / timedelta(hours=1)):.2f} until it expires, if it is deleted then"


def _notices(deployment: Deployment, wanted: Mapping[str, Any]) -> Iterator[str]:
    if notice := image_notice(deployment.request("CreateModel")["PrimaryContainer"]["Image"]):
        yield f"{notice}. It is the last that AWS has for inference with PyTorch; image= takes one of yours"
    if wanted["expires"]:
        yield "Nothing deletes it by itself: run python launch/sagemaker_delete.py expired=true, by hand or from cron"
    elif deployment.kind in ("realtime", "async"):
        yield "It costs until it is deleted: python launch/sagemaker_delete.py NAME; expires=2h reminds of it"
    if wanted["capture"]:
        yield "Requests are kept in the bucket, photographs and all: whoever sends them should know"
    weights = deployment.archive.size("model.safetensors")
    memory = wanted["memory_mb"] * 2**20
    if deployment.kind == "serverless" and weights * 2 + 700e6 > memory:
        yield (
            f"The weights take {weights / 1e6:,.0f} MB, and {wanted['memory_mb']} MB of memory may be too little for "
            "them, torch and the container"
        )


def check_cost(config: Mapping[str, Any], deployment: Deployment, prices: Prices) -> None:
    """Refuses what may cost more than `sagemaker.max_cost`.

    Raises:
        DogbreedError: It may, or nobody knows how long it will run.
    """
    most = config["sagemaker"]["max_cost"]
    if most is None or deployment.kind == "serverless":
        return
    if deployment.kind == "batch":
        raise DogbreedError(
            f"sagemaker.max_cost={most} is set, and cannot be kept: SageMaker has no limit of time for kind=batch. "
            "Leave it out, and look at mode=plan for what an hour costs."
        )
    wanted = config["sagemaker"]["endpoint"]
    if not wanted["expires"]:
        raise DogbreedError(
            f"sagemaker.max_cost={most} is set, and an endpoint costs without end; say how long with expires=2h."
        )
    hour = prices.hour(wanted["instance_type"])
    if hour is None:
        raise DogbreedError(
            f"sagemaker.max_cost={most} is set, and the price of {wanted['instance_type']} is not known: "
            f"{prices.told(wanted['instance_type'])}."
        )
    cost = hour * (wanted["max_count"] or wanted["instance_count"]) * (span(wanted["expires"]) / timedelta(hours=1))
    if cost > most:
        raise DogbreedError(
            f"This could cost ${cost:.2f} until it expires, more than sagemaker.max_cost={most}; lower expires, "
            "instance_count or the instance, or raise the limit."
        )
