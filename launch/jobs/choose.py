"""`mode=plan under=1 within=30m`: what each machine would take and cost, and the cheapest that fits."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import duration, join
from launch.aws.account import offline_target
from launch.aws.pricing import Estimate, Prices
from launch.aws.validate import parse_span
from launch.aws.work import network_of
from launch.jobs.estimate import check_limits, counts, estimates, memory_shortage, resolved
from launch.jobs.request import describe

_DOLLARS = re.compile(r"\$?(\d+(?:\.\d+)?|\.\d+)")


class Limits(NamedTuple):
    """What a request may cost in US dollars, and take in seconds; None where it does not matter."""

    under: float | None
    within: float | None

    def exceeded(self, seconds: float, cost: float) -> float:
        """Return by what factor the worse of both is more than it may be; at most 1 fits."""
        return max(cost / self.under if self.under else 0.0, seconds / self.within if self.within else 0.0)

    def __str__(self) -> str:
        under = [f"under ${self.under:,.2f}"] if self.under else []
        return join(under + ([f"within {duration(self.within)}"] if self.within else []))


class Offer(NamedTuple):
    """A request on one kind of machine.

    Attributes:
        machine: Instance type.
        seconds: From start to end.
        cost: In US dollars on demand.
        spot: In US dollars on spot; None where that cannot be.
        why_not: Why it cannot be sent so; "" where it can.
    """

    machine: str
    seconds: float
    cost: float
    spot: float | None
    why_not: str = ""


def limits_of(config: Mapping[str, Any]) -> Limits | None:
    """Return what `under` and `within` say; None where neither is given.

    Raises:
        DogbreedError: One is no amount or no span of time, or something else is to be done than to plan.
    """
    under, within = config["sagemaker"]["under"], config["sagemaker"]["within"]
    if under is None and within is None:
        return None
    if config["mode"] != "plan":
        raise DogbreedError("under and within choose a machine in a plan: give mode=plan, and send what it names.")
    dollars = _DOLLARS.fullmatch(str(under).strip()) if under is not None else None
    if under is not None and not (dollars and float(dollars[1])):
        raise DogbreedError(f"under={under} is no amount of US dollars; it looks like under=1 or under='$1.50'.")
    seconds = parse_span(within, "within") / timedelta(seconds=1) if within is not None else None
    return Limits(float(dollars[1]) if dollars else None, seconds)


def offers(config: Mapping[str, Any], kind: str, experiment: str | None) -> list[Offer]:
    """Return the request on each machine whose price is known, the cheapest first.

    Args:
        config: A composed configuration.
        kind: `train` or `tune`.
        experiment: That the configuration was composed with.

    Raises:
        DogbreedError: Nobody knows how many images there are, or no machine could carry the request out.
    """
    if counts(config) is None:
        raise DogbreedError(
            f"How long it takes depends on the number of images, and {config['data']['root']} does not exist here; "
            "give data.root=FOLDER."
        )
    describe(resolved(config, kind), kind, offline_target(config), experiment)  # what is wrong on any machine
    hours = Prices(config).table["hour"]
    return sorted((_offer(config, kind, experiment, name) for name in hours), key=lambda offer: offer.cost)


def _offer(config: Mapping[str, Any], kind: str, experiment: str | None, machine: str) -> Offer:
    own = machine == config["sagemaker"]["instance_type"]  # a speed that was given is of this machine
    speed = config["sagemaker"]["images_per_second"] if own else None
    on_it = _with(config, instance_type=machine, images_per_second=speed, spot=False, max_wait=None)
    try:
        capped = resolved(on_it, kind)
        job = describe(capped, kind, offline_target(capped), experiment)
        estimate = _first(capped, job)
        why_not = memory_shortage(capped) or _refused(capped, estimate)
    except DogbreedError as error:
        return Offer(machine, math.inf, math.inf, None, _first_clause(error))
    spot = None if capped["sagemaker"]["keep_alive"] else _first(_with(capped, spot=True), job).cost
    return Offer(machine, estimate.seconds or 0.0, estimate.cost or 0.0, spot, why_not)


def _with(config: Mapping[str, Any], **settings: Any) -> dict[str, Any]:
    return {**config, "sagemaker": {**config["sagemaker"], **settings}}


def _first(config: Mapping[str, Any], job: Any) -> Estimate:
    return next(iter(estimates(config, job, Prices(config)).values()))


def _refused(config: Mapping[str, Any], estimate: Estimate) -> str:
    try:
        check_limits(config, estimate)
    except DogbreedError as error:
        return _first_clause(error)
    return ""


def _first_clause(error: DogbreedError) -> str:
    return re.split(r"; | \(", str(error))[0]


def table(found: Sequence[Offer], limits: Limits) -> Iterator[str]:
    """Yield a table of the machines, in lines."""
    width = max(len(offer.machine) for offer in found)
    yield f"{'machine':{width}}  {'time':>10}  {'cost':>8}  {'on spot':>8}  fits {limits}"
    for offer in found:
        spot = "" if offer.spot is None else f"${offer.spot:,.2f}"
        known = math.isfinite(offer.cost)
        time, cost = (duration(offer.seconds), f"${offer.cost:,.2f}") if known else ("", "")
        yield f"{offer.machine:{width}}  {time:>10}  {cost:>8}  {spot:>8}  {_verdict(offer, limits)}"


def _verdict(offer: Offer, limits: Limits) -> str:
    if offer.why_not:
        return f"no: {offer.why_not}"
    if limits.exceeded(offer.seconds, offer.cost) <= 1:
        return "yes"
    if _fits_on_spot(offer, limits):
        return "on spot"
    slow = limits.within is not None and offer.seconds > limits.within
    dear = limits.under is not None and offer.cost > limits.under
    return f"no: {' and '.join(['too slow'] * slow + ['too dear'] * dear)}"


def _fits_on_spot(offer: Offer, limits: Limits) -> bool:
    return offer.spot is not None and limits.exceeded(offer.seconds, offer.spot) <= 1


def cheapest(found: Sequence[Offer], limits: Limits) -> tuple[Offer, bool]:
    """Return the cheapest offer that fits, and whether it does on spot alone.

    Raises:
        DogbreedError: None does; names the nearest.
    """
    possible = [offer for offer in found if not offer.why_not]
    for offer in possible:
        if limits.exceeded(offer.seconds, offer.cost) <= 1:
            return offer, False
    on_spot = [offer for offer in possible if _fits_on_spot(offer, limits)]
    if on_spot:
        return min(on_spot, key=lambda offer: offer.spot or 0.0), True
    if not possible:
        raise DogbreedError(f"No machine can carry this out: {found[0].machine}, {found[0].why_not}.")
    near = min(possible, key=lambda offer: limits.exceeded(offer.seconds, offer.cost))
    raise DogbreedError(
        f"No machine does this {limits}; the nearest is sagemaker.instance_type={near.machine}, which takes "
        f"{duration(near.seconds)} and ${near.cost:,.2f}."
    )


def show(config: Mapping[str, Any], kind: str, experiment: str | None, limits: Limits) -> None:
    """Print the machines and what to add to the command for the cheapest that fits.

    Raises:
        DogbreedError: None fits, or the request could be carried out nowhere.
    """
    found = offers(config, kind, experiment)
    if known := counts(config):
        numbers = " / ".join(f"{number:,}" for number in known.values())
        print(f"For {numbers} images to train / validate / test ({config['data']['root']}):\n")
    print("\n".join(table(found, limits)), flush=True)
    offer, spot = cheapest(found, limits)
    dollars = f"${offer.spot if spot else offer.cost:,.2f}"
    print(f"\nThe cheapest that fits, {duration(offer.seconds)} and {dollars}{' (waiting not counted)' * spot}; add:")
    print(f"  sagemaker.instance_type={offer.machine}{' sagemaker.spot=true' * spot}")
    if assumed := network_of(config).assumed:
        print(f"{assumed}.")
