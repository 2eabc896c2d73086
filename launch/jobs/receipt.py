"""After a job: what was expected, what was billed, and how fast it was, for the next plan."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreed.core.files import write_json
from launch.aws.pricing import Prices
from launch.aws.work import passes


def receipt(config: Mapping[str, Any], job: Mapping[str, Any], prices: Prices, folder: Path) -> list[str]:
    """Write `receipt.json`.

    Args:
        config: A composed configuration.
        job: As DescribeTrainingJob has it, done.
        prices: Of the machines.
        folder: Of the job, with `expected.json` if it was sent from here.

    Returns:
        What is in it, in lines to print.
    """
    machines = job["ResourceConfig"]
    kind, count = machines["InstanceType"], machines["InstanceCount"]
    billed, trained = job.get("BillableTimeInSeconds"), job.get("TrainingTimeInSeconds")
    hour = prices.hour(kind)
    expected = _read(folder / "expected.json")
    cost = None if billed is None or hour is None else billed / 3600 * count * hour
    record: dict[str, Any] = {
        "job": job["TrainingJobName"],
        "instance_type": kind,
        "instance_count": count,
        "backbone": config["model"]["backbone"],
        "billed_seconds": billed,
        "training_seconds": trained,
        "cost": None if cost is None else round(cost, 4),
        "expected_cost": expected.get("cost"),
        "images_per_second": _speed(
            config, job, prices, expected.get("counts"), hit=_read(folder / "metrics.json").get("cache") == "hit"
        ),
    }
    write_json(folder / "receipt.json", record)
    if billed is None:
        return ["cost     AWS did not say how many seconds it bills"]
    line = f"cost     {billed:,} s billed"
    if count > 1:
        line += f" on each of {count} machines"
    line += f", ${cost:.2f} at {hour:.3f} $/h ({prices.source(kind)})" if cost is not None else ", at an unknown price"
    if cost is not None and record["expected_cost"] is not None:
        line += f"; ${record['expected_cost']:.2f} were expected"
    lines = [line]
    if job.get("EnableManagedSpotTraining") and trained and billed < trained:
        lines.append(f"spot     saved {1 - billed / trained:.0%}")
    if record["images_per_second"]:
        lines.append(f"speed    {record['images_per_second']:,.0f} images/s through the network; the next plan uses it")
    return lines


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


def _speed(
    config: Mapping[str, Any], job: Mapping[str, Any], prices: Prices, counts: Mapping[str, int] | None, hit: bool
) -> float | None:
    """Return forward passes per second: those that one training is worth, over the time in state Training.

    A job that found its features, not all passes of which it has made, tells nothing.
    """
    # A spot job that was interrupted has been in this state more than once.
    stages = [stage for stage in job.get("SecondaryStatusTransitions", []) if stage["Status"] == "Training"]
    complete = stages and all(stage.get("EndTime") is not None for stage in stages)
    if counts is None or not complete or config["search"]["where"] == "one_job" or hit:
        return None
    seconds = sum((stage["EndTime"] - stage["StartTime"]).total_seconds() for stage in stages)
    done = passes(config, counts)
    seconds -= done.head / prices.table["head_images_per_second"]
    return round(done.work() / seconds / job["ResourceConfig"]["InstanceCount"], 1) if seconds > 1 else None
