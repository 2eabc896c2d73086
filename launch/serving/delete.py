"""`sagemaker_delete.py`: what this project has made and what it costs an hour, and deleting it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from dogbreed.config import cli
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from launch.aws.account import Account
from launch.aws.errors import explained
from launch.aws.naming import MARK
from launch.aws.pricing import Prices
from launch.aws.settings import check_kinds
from launch.serving.endpoints import Deployer
from launch.serving.request import EXPIRES

HELP = """
Lists the endpoints, their settings, and the models that this project has made in the account and region, with what they
cost an hour, and deletes what is named.

  NAME...           endpoints, settings or models to delete; an endpoint takes its settings and its model with it
  expired=true      delete the endpoints whose expires= is past
  all=true          delete everything that this project has made
  mode=plan         only say what would be deleted

Without any of these it lists. What this project has not made is never deleted.

Examples:
  python launch/sagemaker_delete.py
  python launch/sagemaker_delete.py dogbreed-vgg16
  python launch/sagemaker_delete.py expired=true
"""
SWITCHES = ("expired", "all")
KINDS = ("Endpoint", "EndpointConfig", "Model")
_TOLD = {"Endpoint": "endpoint", "EndpointConfig": "settings", "Model": "model"}


@dataclass(frozen=True)
class Thing:
    """Something that this project has made.

    Attributes:
        kind: Endpoint, EndpointConfig or Model.
        name: Of it.
        status: Of an endpoint.
        uses: Names of the settings of an endpoint, of the models of settings.
        machines: Of an endpoint: instance type and how many.
        expires: When, as its tag says.
    """

    kind: str
    name: str
    status: str = ""
    uses: tuple[str, ...] = ()
    machines: tuple[tuple[str, int], ...] = ()
    expires: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    def hourly(self, prices: Prices) -> float | None:
        """US dollars an hour; None where the table does not know the machines."""
        costs = [(prices.hour(machine), count) for machine, count in self.machines]
        return None if any(hour is None for hour, _ in costs) else sum((hour or 0.0) * count for hour, count in costs)

    def expired(self, now: datetime) -> bool:
        """Whether its time is over."""
        return bool(self.expires) and self.expires <= now.astimezone(UTC).strftime("%Y-%m-%dT%H:%MZ")


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    return guard(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    from launch.deploy import arguments

    names, words = arguments(argv)
    given = {name: _switch(name, words) for name in SWITCHES}
    rest = [word for word in words if word.partition("=")[0] not in SWITCHES]

    def task(config: dict[str, Any]) -> None:
        check_kinds(config)
        if config["mode"] not in ("plan", "submit"):
            raise DogbreedError(f"mode={config['mode']} is not for deleting; it is plan or submit.")
        account = Account(config)
        things = list(found(account))
        prices = Prices(config)
        if not names and not any(given.values()):
            print(table(things, prices, datetime.now(UTC)))
            return
        chosen = choose(things, names, given["expired"], given["all"], datetime.now(UTC))
        if not chosen:
            print("Nothing is expired." if given["expired"] else "There is nothing to delete.")
        for thing in chosen:
            if config["mode"] == "plan":
                print(f"Would delete the {_TOLD[thing.kind]} {thing.name}")
                continue
            deployer(account).delete(thing.kind, thing.name)
            saved = thing.hourly(prices)
            print(f"Deleted the {_TOLD[thing.kind]} {thing.name}" + (f" (${saved:.3f} an hour)" if saved else ""))

    return cli.run(task, prog="python launch/sagemaker_delete.py [NAME...]", help=HELP, argv=rest)


def _switch(name: str, words: Sequence[str]) -> bool:
    """The value of a word that is no key of the configuration; the last one counts."""
    found = [word.partition("=")[2].lower() for word in words if word.partition("=")[0] == name]
    if found and found[-1] not in ("true", "false"):
        raise DogbreedError(f"{name}={found[-1]} is neither true nor false.")
    return found[-1:] == ["true"]


def delete(account: Account, name: str) -> None:
    """Deletes an endpoint with its settings and its model."""
    for thing in choose(list(found(account)), [name], False, False, datetime.now(UTC)):
        deployer(account).delete(thing.kind, thing.name)


def delete_unused(account: Account, settings: str) -> None:
    """Deletes settings that an update has replaced, and their model, unless something else uses them."""
    things = list(found(account))
    ours = any(thing.kind == "EndpointConfig" and thing.name == settings for thing in things)
    used = any(thing.kind == "Endpoint" and settings in thing.uses for thing in things)
    for thing in choose(things, [settings], False, False, datetime.now(UTC)) if ours and not used else []:
        deployer(account).delete(thing.kind, thing.name)


def deployer(account: Account) -> Deployer:
    """One that deletes."""
    return Deployer(account, lambda name: None)


def found(account: Account) -> Iterator[Thing]:
    """Everything that carries this project's mark."""
    client = account.client("sagemaker")
    lists = {
        "Endpoint": ("list_endpoints", "Endpoints"),
        "EndpointConfig": ("list_endpoint_configs", "EndpointConfigs"),
        "Model": ("list_models", "Models"),
    }
    with explained("listing what there is"):
        for kind, (operation, member) in lists.items():
            for page in client.get_paginator(operation).paginate():
                for entry in page[member]:
                    tags = client.list_tags(ResourceArn=entry[f"{kind}Arn"])["Tags"]
                    if MARK in tags:
                        yield _thing(client, kind, entry[f"{kind}Name"], {tag["Key"]: tag["Value"] for tag in tags})


def _thing(client: Any, kind: str, name: str, tags: Mapping[str, str]) -> Thing:
    expires = tags.get(EXPIRES, "")
    if kind == "Model":
        return Thing(kind, name, expires=expires, tags=tags)
    if kind == "EndpointConfig":
        variants = client.describe_endpoint_config(EndpointConfigName=name)["ProductionVariants"]
        return Thing(kind, name, uses=tuple(v["ModelName"] for v in variants), expires=expires, tags=tags)
    told = client.describe_endpoint(EndpointName=name)
    settings = told["EndpointConfigName"]
    try:
        variants = client.describe_endpoint_config(EndpointConfigName=settings)["ProductionVariants"]
    except client.exceptions.ClientError as error:
        if "ould not find" not in str(error):
            raise
        # Somebody has deleted them already. The endpoint runs on, on machines that SageMaker does not tell any more.
        variants = [{"VariantName": "", "InstanceType": "unknown", "InitialInstanceCount": 1}]
    now = {v["VariantName"]: v.get("CurrentInstanceCount") for v in told.get("ProductionVariants", ())}
    machines = tuple(
        (v["InstanceType"], int(now.get(v["VariantName"]) or v["InitialInstanceCount"]))
        for v in variants
        if "InstanceType" in v
    )
    return Thing(kind, name, told["EndpointStatus"], (settings,), machines, expires, tags)


def choose(
    things: Sequence[Thing], names: Sequence[str], expired: bool, everything: bool, now: datetime
) -> list[Thing]:
    """What to delete, in the order in which it can be.

    Args:
        things: What there is.
        names: Of what was asked for.
        expired: Whether the endpoints whose time is over are meant.
        everything: Whether all of it is meant.
        now: To hold against.

    Raises:
        DogbreedError: There is nothing of this name that this project has made.
    """
    if everything:
        return sorted(things, key=lambda thing: KINDS.index(thing.kind))
    known = {thing.name for thing in things}
    for name in names:
        if name not in known:
            raise DogbreedError(f"There is no {name} that this project has made in this account and region.")
    chosen = [t for t in things if t.name in names or (expired and t.kind == "Endpoint" and t.expired(now))]
    for kind in KINDS[1:]:  # what they use goes with them, unless others use it too
        above = KINDS[KINDS.index(kind) - 1]
        used = {name for thing in chosen if thing.kind == above for name in thing.uses}
        kept = {name for thing in things if thing.kind == above and thing not in chosen for name in thing.uses}
        chosen += [t for t in things if t.kind == kind and t.name in used - kept and t not in chosen]
    return sorted(chosen, key=lambda thing: KINDS.index(thing.kind))


def table(things: Sequence[Thing], prices: Prices, now: datetime) -> str:
    """The list, for a person."""
    if not things:
        return "This project has nothing in this account and region: no endpoint, no settings, no model."
    width = max(len(thing.name) for thing in things)
    lines = [f"{'':<9} {'name':<{width}}  {'status':<11} {'$ an hour':>9}  expires"]
    for thing in things:
        hour = thing.hourly(prices) if thing.kind == "Endpoint" else 0.0
        cost = "unknown" if hour is None else f"{hour:.3f}" if thing.kind == "Endpoint" else ""
        late = "  <- is over" if thing.kind == "Endpoint" and thing.expired(now) else ""
        expires = thing.expires if thing.kind == "Endpoint" else ""
        line = f"{_TOLD[thing.kind]:<9} {thing.name:<{width}}  {thing.status:<11} {cost:>9}  {expires}{late}"
        lines.append(line.rstrip())
    total = sum(thing.hourly(prices) or 0.0 for thing in things)
    lines += ["", f"All together ${total:.3f} an hour. To delete: python launch/sagemaker_delete.py NAME"]
    return "\n".join(lines)
