"""What this project has made in the account: found by its tag, waited for, and deleted."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.account import Account
from launch.aws.errors import AwsError, explained
from launch.aws.naming import MARK
from launch.aws.pricing import Prices
from launch.serving.guardrails import BY_SCHEDULER
from launch.serving.request import ALARM, DIMENSION, EXPIRES, SCALING

POLL_SECONDS = 10.0
START_SECONDS = 3600  # the longest that SageMaker itself lets a start take
KINDS = ("Endpoint", "EndpointConfig", "Model")  # in the order in which they can be deleted
LABELS = {"Endpoint": "endpoint", "EndpointConfig": "settings", "Model": "model"}
_SNAKE = {"Model": "model", "EndpointConfig": "endpoint_config", "Endpoint": "endpoint"}
_LISTS = {"Endpoint": "list_endpoints", "EndpointConfig": "list_endpoint_configs", "Model": "list_models"}
# Until SageMaker lets an endpoint be changed; boto3's endpoint_in_service waits on where an update's rollback failed.
_UNDER_WAY = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")
_SETTLED = {
    "operation": "DescribeEndpoint",
    "delay": 30,
    "maxAttempts": 120,
    "acceptors": [
        {
            "matcher": "path",
            "argument": f"contains(`{list(_UNDER_WAY)}`, EndpointStatus)".replace("'", '"'),
            "expected": False,
            "state": "success",
        },
        {"matcher": "error", "expected": "ValidationException", "state": "success"},  # there is none
    ],
}


@dataclass(frozen=True)
class Resource:
    """Something that this project has made.

    Attributes:
        kind: Endpoint, EndpointConfig or Model.
        name: Its name.
        status: Of an endpoint.
        uses: Names of an endpoint's settings, or of the models of settings.
        machines: An endpoint's instance types, each with its count.
        expires: When, as its tag says.
    """

    kind: str
    name: str
    status: str = ""
    uses: tuple[str, ...] = ()
    machines: tuple[tuple[str, int], ...] = ()
    expires: str = ""

    def hourly(self, prices: Prices) -> float | None:
        """Return US dollars per hour; None where the price of a machine is not known."""
        costs = [(prices.hour(machine), count) for machine, count in self.machines]
        return None if any(hour is None for hour, _ in costs) else sum((hour or 0.0) * count for hour, count in costs)

    def expired(self, now: datetime) -> bool:
        """Return whether its time is over."""
        return bool(self.expires) and self.expires <= now.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def list_resources(account: Account) -> Iterator[Resource]:
    """Yield everything that carries this project's tag.

    The policy that launch/policies.py prints lets nobody read the tags of what has another's name: that is not ours.
    """
    client = account.client("sagemaker")
    with explained("listing what there is"):
        for kind, operation in _LISTS.items():
            for page in client.get_paginator(operation).paginate():
                for entry in page[f"{kind}s"]:
                    try:
                        tags = client.list_tags(ResourceArn=entry[f"{kind}Arn"])["Tags"]
                    except client.exceptions.ClientError as error:
                        ours = entry[f"{kind}Name"].startswith(account.names)
                        if error.response["Error"]["Code"] not in ("AccessDenied", "AccessDeniedException") or ours:
                            raise
                        continue
                    if MARK in tags:
                        yield _resource(client, kind, entry[f"{kind}Name"], {tag["Key"]: tag["Value"] for tag in tags})


def _resource(client: Any, kind: str, name: str, tags: Mapping[str, str]) -> Resource:
    expires = tags.get(EXPIRES, "")
    if kind == "Model":
        return Resource(kind, name, expires=expires)
    if kind == "EndpointConfig":
        variants = client.describe_endpoint_config(EndpointConfigName=name)["ProductionVariants"]
        return Resource(kind, name, uses=tuple(v["ModelName"] for v in variants), expires=expires)
    endpoint = client.describe_endpoint(EndpointName=name)
    settings = endpoint["EndpointConfigName"]
    try:
        variants = client.describe_endpoint_config(EndpointConfigName=settings)["ProductionVariants"]
    except client.exceptions.ClientError as error:
        if not _is_missing(str(error)):
            raise
        # Somebody has deleted them already. The endpoint runs on, and SageMaker no longer says on which machines.
        variants = [{"VariantName": "", "InstanceType": "unknown", "InitialInstanceCount": 1}]
    counts = {v["VariantName"]: v.get("CurrentInstanceCount") for v in endpoint.get("ProductionVariants", ())}
    machines = tuple(
        (v["InstanceType"], int(counts.get(v["VariantName"]) or v["InitialInstanceCount"]))
        for v in variants
        if "InstanceType" in v
    )
    return Resource(kind, name, endpoint["EndpointStatus"], (settings,), machines, expires)


def _is_missing(message: str) -> bool:
    return "ould not find" in message


def call(client: Any, verb: str, kind: str, name: str) -> Any:
    """Call `describe_model`, `delete_endpoint` and the like."""
    return getattr(client, f"{verb}_{_SNAKE[kind]}")(**{f"{kind}Name": name})


def find(client: Any, kind: str, name: str) -> dict[str, Any] | None:
    """Return the description of a resource; None where there is none of this name."""
    try:
        with explained(f"looking for {name}"):
            description: dict[str, Any] = call(client, "describe", kind, name)
    except AwsError as error:
        if error.code in ("ValidationException", "ResourceNotFound") and _is_missing(str(error)):
            return None
        raise
    return description


def wait(waiter: Any, seconds: float, **names: str) -> float:
    """Wait with one of boto3's waiters, whatever it ends with; whoever calls looks at what is there then.

    Args:
        waiter: Of boto3.
        seconds: At most.
        names: Of what it waits for.

    Returns:
        Seconds that it took.
    """
    from botocore.exceptions import WaiterError

    start = time.monotonic()
    limits = {"Delay": POLL_SECONDS, "MaxAttempts": max(1, int(seconds / POLL_SECONDS))}
    with suppress(WaiterError):  # out of time, or a state or an error that the next look shows and explains
        waiter.wait(**names, WaiterConfig=limits)
    return time.monotonic() - start


def settled(client: Any, name: str, say: Callable[[str], None] = print, more: float = 0) -> dict[str, Any] | None:
    """Wait until SageMaker lets an endpoint be changed.

    Args:
        client: boto3's client of `sagemaker`.
        name: Of the endpoint.
        say: Gets a line where it has to wait.
        more: Seconds that it may take besides what a start takes.

    Returns:
        The endpoint's description; None where there is none.

    Raises:
        DogbreedError: It is still being changed after an hour.
    """
    from botocore.waiter import WaiterModel, create_waiter_with_client

    endpoint = find(client, "Endpoint", name)
    if endpoint is None or endpoint["EndpointStatus"] not in _UNDER_WAY:
        return endpoint
    say(f"Waiting for {name}, which is {endpoint['EndpointStatus']}")
    model = WaiterModel({"version": 2, "waiters": {"EndpointSettled": _SETTLED}})
    seconds = wait(create_waiter_with_client("EndpointSettled", model, client), START_SECONDS + more, EndpointName=name)
    endpoint = find(client, "Endpoint", name)
    if endpoint is not None and endpoint["EndpointStatus"] in _UNDER_WAY:
        status, minutes = endpoint["EndpointStatus"], seconds / 60
        raise DogbreedError(f"{name} is still {status} after {minutes:.0f} minutes, and cannot be changed until then.")
    return endpoint


def delete_resource(account: Account, kind: str, name: str, say: Callable[[str], None] = print) -> None:
    """Delete a model, settings, or an endpoint, whose auto scaling goes first, and wait until it is gone.

    Raises:
        DogbreedError: It cannot be deleted, or is still there after an hour.
    """
    client = account.client("sagemaker")
    if kind == "Endpoint":
        if endpoint := settled(client, name, say):
            _delete_schedule(account, client, endpoint)
        _delete_scaling(account, name)
    try:
        with explained(f"deleting {name}"):
            call(client, "delete", kind, name)
    except AwsError as error:
        if not _is_missing(str(error)):
            raise
    if kind == "Endpoint":
        wait(client.get_waiter("endpoint_deleted"), START_SECONDS, EndpointName=name)
        if endpoint := find(client, kind, name):
            raise DogbreedError(f"{name} is still there after it was deleted; it is {endpoint['EndpointStatus']}.")


def scalable_targets(account: Account, name: str) -> list[dict[str, Any]]:
    """Return the variants of an endpoint that scale by themselves."""
    with explained(f"looking for the auto scaling of {name}"):
        scope = {"ServiceNamespace": "sagemaker", "ScalableDimension": DIMENSION}
        targets = account.client(SCALING).describe_scalable_targets(**scope)["ScalableTargets"]
    return [target for target in targets if target["ResourceId"].startswith(f"endpoint/{name}/")]


def _delete_schedule(account: Account, client: Any, endpoint: Mapping[str, Any]) -> None:
    """Delete what would delete the endpoint later: by then, another one may have its name."""
    name = endpoint["EndpointName"]
    with explained(f"deleting the schedule of {name}"):
        if BY_SCHEDULER in client.list_tags(ResourceArn=endpoint["EndpointArn"])["Tags"]:
            scheduler = account.client("scheduler")
            with suppress(scheduler.exceptions.ResourceNotFoundException):
                scheduler.delete_schedule(Name=name)


def _delete_scaling(account: Account, name: str) -> None:
    targets = scalable_targets(account, name)
    with explained(f"deleting the auto scaling of {name}"):
        for target in targets:  # with its policies
            keys = ("ServiceNamespace", "ScalableDimension", "ResourceId")
            account.client(SCALING).deregister_scalable_target(**{key: target[key] for key in keys})
        if any(target["MinCapacity"] == 0 for target in targets):
            account.client("cloudwatch").delete_alarms(AlarmNames=[f"{name}{ALARM}"])
