"""What to delete of what this project has made, and the list of it with what it costs per hour."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.account import Account
from launch.aws.pricing import Prices
from launch.serving.resources import KINDS, LABELS, Resource, delete_resource, list_resources


def delete(config: Mapping[str, Any], names: Sequence[str], *, expired: bool, everything: bool) -> None:
    """Delete what is chosen, or with `mode=plan` say what would be; list what there is where nothing is.

    Args:
        config: A composed configuration.
        names: What to delete.
        expired: Whether to delete the endpoints whose time is over.
        everything: Whether to delete all of it.

    Raises:
        DogbreedError: This project has made nothing of such a name, or it cannot be deleted.
    """
    account, prices = Account(config), Prices(config)
    resources = list(list_resources(account))
    if not (names or expired or everything):
        print(table(resources, prices, datetime.now(UTC)))
        return
    chosen = choose(resources, names, expired=expired, everything=everything)
    if not chosen:
        print("Nothing has expired." if expired else "There is nothing to delete.")
    for resource in chosen:
        label = f"the {LABELS[resource.kind]} {resource.name}"
        if config["mode"] == "plan":
            print(f"Would delete {label}")
            continue
        delete_resource(account, resource.kind, resource.name)
        saved = resource.hourly(prices)
        print(f"Deleted {label}" + (f" (${saved:.3f} per hour)" if saved else ""))


def delete_endpoint(account: Account, name: str) -> None:
    """Delete an endpoint with its settings and its model."""
    for resource in choose(list(list_resources(account)), [name]):
        delete_resource(account, resource.kind, resource.name)


def delete_unused(account: Account, settings: str) -> None:
    """Delete settings that an update has replaced, and their model, unless something else uses them."""
    resources = list(list_resources(account))
    ours = any(each.kind == "EndpointConfig" and each.name == settings for each in resources)
    used = any(each.kind == "Endpoint" and settings in each.uses for each in resources)
    for resource in choose(resources, [settings]) if ours and not used else []:
        delete_resource(account, resource.kind, resource.name)


def choose(
    resources: Sequence[Resource],
    names: Sequence[str],
    *,
    expired: bool = False,
    everything: bool = False,
    now: datetime | None = None,
) -> list[Resource]:
    """Choose what to delete, in the order in which it can be.

    Args:
        resources: What there is.
        names: What to delete.
        expired: Whether to delete the endpoints whose time is over.
        everything: Whether to delete all of it.
        now: The time for `expired`; the present one if None.

    Raises:
        DogbreedError: This project has made nothing of such a name.
    """
    if everything:
        return sorted(resources, key=lambda resource: KINDS.index(resource.kind))
    now = now or datetime.now(UTC)
    for name in names:
        if name not in {resource.name for resource in resources}:
            raise DogbreedError(f"This project has made no {name} in this account and region.")
    chosen = [r for r in resources if r.name in names or (expired and r.kind == "Endpoint" and r.expired(now))]
    for above, kind in pairwise(KINDS):  # what they use goes with them, unless others use it too
        used = {name for resource in chosen if resource.kind == above for name in resource.uses}
        kept = {name for r in resources if r.kind == above and r not in chosen for name in r.uses}
        chosen += [r for r in resources if r.kind == kind and r.name in used - kept and r not in chosen]
    return sorted(chosen, key=lambda resource: KINDS.index(resource.kind))


def table(resources: Sequence[Resource], prices: Prices, now: datetime) -> str:
    """Return the list for a person, with the cost of each endpoint."""
    if not resources:
        return "This project has nothing in this account and region: no endpoint, no settings, no model."
    width = max(len(resource.name) for resource in resources)
    lines = [f"{'':<9} {'name':<{width}}  {'status':<11} {'$ / hour':>9}  expires"]
    total = 0.0
    for resource in resources:
        cost = end = ""
        if resource.kind == "Endpoint":
            hour = resource.hourly(prices)
            total += hour or 0.0
            cost = "unknown" if hour is None else f"{hour:.3f}"
            end = resource.expires + ("  <- is over" if resource.expired(now) else "")
        line = f"{LABELS[resource.kind]:<9} {resource.name:<{width}}  {resource.status:<11} {cost:>9}  {end}"
        lines.append(line.rstrip())
    return "\n".join([*lines, "", f"Total ${total:.3f} per hour. To delete: python launch/sagemaker_delete.py NAME"])
