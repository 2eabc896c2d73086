"""After a job: what was expected, what was billed, and how fast it was, for the next plan."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreed.core.files import atomic_write
from launch.aws.pricing import Prices


def receipt(config: Mapping[str, Any], job: Mapping[str, Any], prices: Prices, folder: Path) -> list[str]:
    """Writes `receipt.json` and says what is in it.

    Args:
        config: A composed configuration.
        job: As DescribeTrainingJob has it, done.
        prices: Of the machines.
        folder: Of the job, with `expected.json` if it was sent from here.

    Returns:
        Lines to print.
    """
    machines = job["ResourceConfig"]
    kind, count = machines["InstanceType"], machines["InstanceCount"]
    billed, trained = job.get("BillableTimeInSeconds"), job.get("TrainingTimeInSeconds")
    hour = prices.hour(kind)
    expected = _expected(folder)
    cost = None if billed is None or hour is None else billed / 3600 * count * hour
    written: dict[str, Any] = {
        "job": job["TrainingJobName"],
        "instance_type": kind,
        "instance_count": count,
        "backbone": config["model"]["backbone"],
        "billed_seconds": billed,
        "training_seconds": trained,
        "cost": None if cost is None else round(cost, 4),
        "expected_cost": expected.get("cost"),
        "images_per_second": _speed(config, job, prices, expected.get("counts")),
    }
    with atomic_write(folder / "receipt.json") as file:
        file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    if billed is None:
        return ["cost     AWS did not say how many seconds it bills"]
    told = f"cost     {billed:,} s billed"
    if count > 1:
        told += f" on each of {count} machines"
    told += f", ${cost:.2f} at {hour:.3f} $/h ({prices.told(kind)})" if cost is not None else ", at an unknown price"
    if cost is not None and written["expected_cost"] is not None:
        told += f"; ${written['expected_cost']:.2f} were expected"
    lines = [told]
    if job.get("EnableManagedSpotTraining") and trained and billed < trained:
        lines.append(f"spot     saved {1 - billed / trained:.0%}")
    if written["images_per_second"]:
        lines.append(
            f"speed    {written['images_per_second']:,.0f} images/s through the network; the next plan uses it"
        )
    return lines


def _expected(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _speed(
    config: Mapping[str, Any], job: Mapping[str, Any], prices: Prices, counts: Mapping[str, int] | None
) -> float | None:
    """Images per second through the whole network: those of one training, over the time in the state Training."""
    # A spot job that was interrupted has been in this state more than once.
    stages = [stage for stage in job.get("SecondaryStatusTransitions", []) if stage["Status"] == "Training"]
    whole_told = stages and all(stage.get("EndTime") is not None for stage in stages)
    if counts is None or not whole_told or config["search"]["where"] == "one_job":
        return None
    seconds = sum((stage["EndTime"] - stage["StartTime"]).total_seconds() for stage in stages)
    whole, head = prices.passes(counts)
    seconds -= head / prices.table["head_images_per_second"]
    return round(whole / seconds / job["ResourceConfig"]["InstanceCount"], 1) if seconds > 1 else None
