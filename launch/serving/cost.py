"""What a deployment costs per hour, and whether it may."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.pricing import Prices
from launch.aws.validate import parse_span
from launch.serving.request import Deployment


def hourly(config: Mapping[str, Any], kind: str, prices: Prices) -> float | None:
    """Return US dollars per hour, used or not.

    0 for what costs only while it works; None where the price is not known.
    """
    if kind == "serverless":
        return 0.0
    endpoint = config["sagemaker"]["endpoint"]
    hour = prices.hour(endpoint["instance_type"])
    return None if hour is None else hour * int(endpoint["instance_count"])


def check_cost(config: Mapping[str, Any], deployment: Deployment, prices: Prices) -> None:
    """Refuse what may cost more than `sagemaker.max_cost`.

    Raises:
        DogbreedError: It may, or nobody knows how long it will run.
    """
    limit, endpoint = config["sagemaker"]["max_cost"], config["sagemaker"]["endpoint"]
    if limit is None or deployment.kind == "serverless":
        return
    if deployment.kind == "batch":
        raise DogbreedError(
            f"sagemaker.max_cost={limit} is set, and cannot be kept: SageMaker has no limit of time for kind=batch. "
            "Leave it out, and look at mode=plan for what an hour costs."
        )
    if not endpoint["expires"]:
        raise DogbreedError(
            f"sagemaker.max_cost={limit} is set, and an endpoint costs without end; say how long with expires=2h."
        )
    hour = prices.hour(endpoint["instance_type"])
    if hour is None:
        raise DogbreedError(
            f"sagemaker.max_cost={limit} is set, and the price of {endpoint['instance_type']} is not known: "
            f"{prices.source(endpoint['instance_type'])}."
        )
    hours = parse_span(endpoint["expires"]) / timedelta(hours=1)
    cost = hour * (endpoint["max_count"] or endpoint["instance_count"]) * hours
    if cost > limit:
        raise DogbreedError(
            f"This could cost ${cost:.2f} until it expires, more than sagemaker.max_cost={limit}; lower expires, "
            "instance_count or the instance, or raise the limit."
        )
