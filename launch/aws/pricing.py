"""What a job will take and cost, and what it did: from a dated table, earlier receipts, or AWS's own price list."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import duration
from launch.aws.account import environment_region
from launch.aws.networks import Network, network
from launch.aws.validate import LOCAL
from launch.aws.work import measured_as, network_of, passes

TABLE = Path(__file__).with_name("machines.yaml")
RECEIPTS = Path("outputs") / "sagemaker"
REHEARSALS = Path("outputs") / "rehearsals"
HOURS_PER_MONTH = 730
UNKNOWN_MAX_RUN = 3600  # seconds, where sagemaker.max_run is null and nobody knows how long a job takes
HAS_GPU = re.compile(r"ml\.(g|p)\d")
MIN_MAX_RUN, MAX_MAX_RUN = 600, 28 * 86400  # the latter is SageMaker's own


@dataclass(frozen=True)
class Estimate:
    """What a request is expected to take.

    Attributes:
        seconds: From start to end; None where the number of images is not known.
        billed_seconds: Over all machines and trials; None likewise.
        cost: US dollars, None likewise.
        most: US dollars if every machine runs until its limit; None where the price is not known.
        job_seconds: Of one job, which has to end within `max_run`; None where it is not known.
        max_run: Seconds after which a job is stopped: `sagemaker.max_run`, or three times `job_seconds`.
        because: How the figures came about, a sentence each.
        first: Whether a training job before a search makes it cost less: its features are then there for every trial.
    """

    seconds: float | None
    billed_seconds: float | None
    cost: float | None
    most: float | None
    job_seconds: float | None
    max_run: int
    because: tuple[str, ...]
    first: bool = False


class Speed(NamedTuple):
    """How fast a machine runs a network.

    Attributes:
        passes: Images per second, forward through the whole network.
        decoded: Images per second that are read and decoded; None where `passes` includes it.
        source: Where the figures are from.
    """

    passes: float
    decoded: float | None
    source: str


class Prices:
    """The table that ships, with a person's own laid over it.

    Args:
        config: A composed configuration.
        listed: US dollars per hour by instance type as AWS's price list has them; they go before the table's.

    Raises:
        DogbreedError: The person's file cannot be read.
    """

    def __init__(self, config: Mapping[str, Any], listed: Mapping[str, float] | None = None) -> None:
        self.table: dict[str, Any] = dict(_shipped())
        if config["sagemaker"]["instance_type"] == LOCAL and (receipt := _last_receipt(LOCAL, folder=REHEARSALS)):
            self.lay_over(receipt["prices"])
        if config["sagemaker"]["prices"]:
            self._overlay(Path(config["sagemaker"]["prices"]))
        self.listed = dict(listed or {})
        self.config = config

    def _overlay(self, file: Path) -> None:
        try:
            own = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise DogbreedError(f"sagemaker.prices={file} is no YAML file that can be read.") from error
        if isinstance(own, dict):
            own = own.get("prices", own)  # of a rehearsal's receipt
        if not isinstance(own, dict) or own.keys() - self.table.keys():
            unknown = ", ".join(own.keys() - self.table.keys()) if isinstance(own, dict) else repr(own)
            raise DogbreedError(f"sagemaker.prices={file} has {unknown}; it may have {', '.join(self.table)}.")
        self.lay_over(own)

    def lay_over(self, own: Mapping[str, Any]) -> "Prices":
        """Let keys go before the table's, and return the whole."""
        for key, value in own.items():
            both = isinstance(value, dict) and isinstance(self.table[key], dict)
            self.table[key] = self.table[key] | value if both else value
        return self

    def hour(self, instance_type: str) -> float | None:
        """Return US dollars per hour on demand; None where nobody says."""
        price = self.listed.get(instance_type, self.table["hour"].get(instance_type))
        return None if price is None else float(price)

    def source(self, instance_type: str) -> str:
        """Return where the price of an instance type is from, or how to give one."""
        if self.hour(instance_type) is None:
            return f"put 'hour: {{{instance_type}: DOLLARS}}' into a YAML file and give sagemaker.prices=FILE"
        if instance_type in self.listed:
            return "AWS Price List"
        cloud = self.config["sagemaker"]
        region = cloud["region"] or environment_region(cloud["profile"]) or self.table["region"]
        other = (
            "" if region == self.table["region"] else f" for {self.table['region']}; {region} may differ by up to 30 %"
        )
        return f"table of {self.table['as_of']}{other}"

    def speed(self, instance_type: str) -> Speed:
        """Return a measured speed where there is one, else what the machine's and the network's figures come to."""
        if own := self.config["sagemaker"]["images_per_second"]:
            return Speed(float(own), None, "sagemaker.images_per_second")
        backbone = self.config["model"]["backbone"]
        if receipt := _last_receipt(instance_type, backbone):
            return Speed(receipt["images_per_second"], None, f"the receipt of {receipt['job']}")
        if listed := self.table["images_per_second"].get(instance_type, {}).get(backbone):
            return Speed(float(listed), None, f"table of {self.table['as_of']}")
        return self._roofline(instance_type)

    def machine(self, instance_type: str) -> tuple[Mapping[str, Any], str]:
        """Return what a machine can do, and the one whose figures they are.

        Raises:
            DogbreedError: It is this one, and no rehearsal has measured it.
        """
        machines: dict[str, dict[str, Any]] = self.table["machines"]
        if instance_type == LOCAL and LOCAL not in machines and self.config["mode"] == "plan":
            raise DogbreedError(
                f"sagemaker.instance_type={LOCAL} is this machine, which no rehearsal has measured; rehearse a "
                f"training job (mode=rehearse) in this folder, or give sagemaker.prices=FOLDER/receipt.json of one."
            )
        slowest = "ml.g4dn.xlarge" if HAS_GPU.match(instance_type) else "ml.m5.large"
        name = instance_type if instance_type in machines else slowest
        return machines[name], name

    def _roofline(self, instance_type: str) -> Speed:
        """Return what multiply-adds and memory allow; a receipt for another network corrects it."""
        machine, name = self.machine(instance_type)
        figures = network_of(self.config)
        by = "a rehearsal" if name == LOCAL else f"the table of {self.table['as_of']}"
        source = f"{figures.gmacs:.1f} billion multiply-adds each, {name} by {by}"
        if name != instance_type:
            source += f", which has no {instance_type}"
        decoded = machine["vcpus"] * machine.get("decoded_per_vcpu", self.table["decoded_per_vcpu"])
        if measured := machine.get("passes", {}).get(measured_as(self.config)):
            return Speed(measured, decoded, "measured by a rehearsal of this network")
        speed = passes_per_second(machine, figures)
        if receipt := _last_receipt(instance_type):
            speed *= receipt["images_per_second"] / passes_per_second(machine, network(receipt["backbone"]))
            source = f"in proportion to {receipt['backbone']} in the receipt of {receipt['job']}"
        return Speed(speed, decoded, f"{source}; {figures.assumed}" if figures.assumed else source)

    def training(
        self,
        counts: Mapping[str, int] | None,
        *,
        trials: int = 1,
        parallel: int | None = None,
        one_job: bool = False,
        shares: bool = False,
        first: bool | None = False,
    ) -> Estimate:
        """Estimate a training job, a search of several, or a search in one job.

        Args:
            counts: Images by split; None where they are not known.
            trials: How many trainings.
            parallel: Jobs at a time; None for `search.parallel`.
            one_job: All trials in one job, on features that are computed once.
            shares: Each trial finds the features that another has computed before it started.
            first: A training job goes before the trials; None where that costs less.
        """
        cloud = self.config["sagemaker"]
        hour, share = self.hour(cloud["instance_type"]), self.table["spot_share"] if cloud["spot"] else 1.0
        disk = cloud["volume_gb"] * self.table["volume_gb_month"] / HOURS_PER_MONTH
        parallel = max(1, min(parallel or self.config["search"]["parallel"], trials))
        machines = cloud["instance_count"]
        seconds, explanation = self._seconds(counts, trainings=trials + 1 if one_job else 1)
        max_run = cloud["max_run"] or _generous(seconds)
        if_hit = self._seconds(counts, hit=True)[0] if shares and not one_job else None
        if first is None:
            first = if_hit is not None and seconds is not None and seconds < (parallel - 1) * (seconds - if_hit)
        jobs = 1 if one_job else trials + first
        kept = cloud["keep_alive"] if jobs == 1 else 0  # a tuning job has no warm pool
        longest = (max_run + kept) / 3600
        most = None if hour is None else jobs * machines * longest * (hour + disk)
        because = [*self._priced(), explanation]
        if if_hit is not None and trials > 1:
            who = "a training job before them" if first else f"each of the first {parallel} trials"
            because.append(f"{who} computes the features; the trials that find them in S3 take {duration(if_hit)} each")
        if seconds is None:
            return Estimate(None, None, None, most, None, max_run, tuple(because), first)
        rounds = 1 if one_job else math.ceil(trials / parallel) + first
        short = min(seconds if if_hit is None else if_hit, max_run)
        long = 1 if first else min(jobs, parallel)  # so many compute features, or all that a job computes
        total = seconds + (rounds - 1) * short
        billed = machines * (long * min(seconds, max_run) + (jobs - long) * short + jobs * kept)
        cost = None if hour is None else billed / 3600 * (hour * share + disk)
        return Estimate(total, billed, cost, most, seconds, max_run, tuple(because), first)

    def _priced(self) -> Iterator[str]:
        """Yield what the machine costs, a sentence each."""
        cloud = self.config["sagemaker"]
        hour = self.hour(cloud["instance_type"])
        price = "of unknown price" if hour is None else f"{hour:.3f} $/h on demand"
        yield f"{cloud['instance_type']} {price} ({self.source(cloud['instance_type'])})"
        if cloud["spot"]:
            yield f"spot taken as {self.table['spot_share']:.0%} of that; at most the price on demand"

    def _seconds(
        self, counts: Mapping[str, int] | None, trainings: int = 1, *, hit: bool = False
    ) -> tuple[float | None, str]:
        """Return how long a job works, and why; trainings share the features, the winner's of a search included.

        Args:
            counts: Images by split; None where they are not known.
            trainings: In this job.
            hit: The features come from S3.
        """
        if counts is None:
            return None, "the number of images is not known"
        instance = self.config["sagemaker"]["instance_type"]
        speed, machine = self.speed(instance), self.machine(instance)[0]
        done = passes(self.config, counts)
        fetching = done.features_gb / self.table["features_gb_per_second"] if hit else 0.0
        if hit:
            done = done._replace(shared=0, shared_images=0)
        work, head = done.work(trainings), trainings * done.head
        seconds = work / speed.passes
        if speed.decoded:
            decoding = done.decoded(trainings) / speed.decoded
            beside = HAS_GPU.match(instance) or machine.get("gpu")  # else the same processors do both
            seconds = max(seconds, decoding) if beside else seconds + decoding
        start = machine.get("start_seconds", self.table["start_seconds"])
        head /= machine.get("head_images_per_second", self.table["head_images_per_second"])
        machines = self.config["sagemaker"]["instance_count"]
        trainable = self.config["model"]["trainable"]
        step = network_of(self.config).step(trainable)
        counted = f", a step of training {trainable} counted as {step:.1f}" if trainable != "head" else ""
        return start + fetching + seconds / machines + head, (
            f"{work:,.0f} images through the network{counted}, at {speed.passes:,.0f} per second ({speed.source}), "
            f"{start} s to start ({'measured' if 'start_seconds' in machine else 'assumed'})"
        )

    def storage(self, size: int) -> float:
        """Return US dollars per month for bytes in S3."""
        return float(size / 1e9 * self.table["s3_gb_month"])

    def endpoint_month(self, instance_type: str, count: int = 1) -> float | None:
        """Return US dollars per month for an endpoint that nobody uses; None where the price is not known."""
        hour = self.hour(instance_type)
        return None if hour is None else hour * count * HOURS_PER_MONTH


@cache
def _shipped() -> Mapping[str, Any]:
    table: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return table


def passes_per_second(machine: Mapping[str, float], network: Network) -> float:
    """Return how often a machine runs a network forward: some layers wait for the sums, the others for the memory."""
    return 1 / (network.gmacs / machine["gmacs"] + network.traffic_gb / machine["gb_per_second"])


def check_cost(config: Mapping[str, Any], estimate: Estimate) -> None:
    """Refuse what may cost more than `sagemaker.max_cost`; it counts what the request could cost at its limits.

    Raises:
        DogbreedError: Names the cost and what lowers it.
    """
    cloud = config["sagemaker"]
    limit, machine = cloud["max_cost"], cloud["instance_type"]
    if limit is None:
        return
    if estimate.most is None:
        raise DogbreedError(
            f"The price of {machine} is not known, so sagemaker.max_cost={limit} cannot be kept; "
            f"{Prices(config).source(machine)}."
        )
    if estimate.most > limit:
        raise DogbreedError(
            f"This could cost ${estimate.most:.2f}, more than sagemaker.max_cost={limit}; lower sagemaker.max_run "
            f"({estimate.max_run} s), search.trials or the instance, or raise the limit."
        )


def check_time(estimate: Estimate) -> None:
    """Refuse a job that would be stopped before it is done.

    Raises:
        DogbreedError: Names how long it takes, and the value to give.
    """
    seconds = estimate.job_seconds
    if seconds is not None and seconds > estimate.max_run:
        raise DogbreedError(
            f"A job takes about {duration(seconds)}, and sagemaker.max_run={estimate.max_run} would stop it after "
            f"{duration(estimate.max_run)}, unfinished; give sagemaker.max_run={_generous(seconds)}, or null."
        )


def _generous(seconds: float | None) -> int:
    """Return a limit for a job that is expected to take so long: three times that, in whole minutes."""
    if seconds is None:
        return UNKNOWN_MAX_RUN
    return min(max(60 * math.ceil(3 * seconds / 60), MIN_MAX_RUN), MAX_MAX_RUN)


def _last_receipt(instance_type: str, backbone: str | None = None, folder: Path = RECEIPTS) -> dict[str, Any] | None:
    """Return the newest receipt of such a job, with any network where none is named, that measured its speed."""
    files = sorted(folder.glob("*/receipt.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            receipt: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        same = receipt.get("instance_type") == instance_type and backbone in (None, receipt.get("backbone"))
        if same and receipt.get("images_per_second"):
            return receipt
    return None


def listed_price(client: Any, instance_type: str, region: str, component: str = "Training") -> float | None:
    """Return US dollars per hour from AWS's Price List API.

    Args:
        client: boto3's `pricing` client.
        instance_type: Such as `ml.g4dn.xlarge`.
        region: Such as `us-east-1`.
        component: `Training` or `Hosting`.

    Returns:
        None where the list has no such price.
    """
    fields = {"instanceName": instance_type, "regionCode": region, "component": component}
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in fields.items()]
    page = client.get_products(ServiceCode="AmazonSageMaker", Filters=filters, MaxResults=10)
    for text in page["PriceList"]:
        for term in json.loads(text).get("terms", {}).get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                dollars = float(dimension["pricePerUnit"].get("USD", 0))
                if dimension["unit"] in ("Hrs", "Hours") and dollars > 0:
                    return dollars
    return None
