"""The receipt of a rehearsal: what this machine can do, so that a plan knows how long other requests take on it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dogbreed.core.files import write_json
from dogbreed.core.machine import cpu_count
from launch.aws.networks import network
from launch.aws.pricing import Prices
from launch.aws.validate import LOCAL
from launch.aws.work import measured_as, network_of, passes
from launch.jobs.estimate import counts
from launch.rehearsal.container import Outcome

LEAST_UNLIKE = (
    0.05  # of networks' shares of arithmetic and memory: the ratio of singular values below which they count as alike
)
MOST = 0.9  # of the features has to be computed in a run that tells how fast that is


def receipt(config: Mapping[str, Any], outcome: Outcome, data: Path, file: Path) -> str:
    """Write a receipt, with a row for this machine that explains the seconds which the job took.

    Args:
        config: A composed configuration.
        outcome: Of its training job.
        data: Holds the images that took part; a folder that does not exist for those that the job draws itself.
        file: Where to write it.

    Returns:
        A sentence on what it is good for.
    """
    cloud = {**config["sagemaker"], "instance_type": LOCAL, "images_per_second": None, "instance_count": 1}
    here = {**config, "sagemaker": cloud}
    shown = {**config["data"], "root": str(data)} if data.is_dir() else config["data"]
    images = counts({**config, "data": shown})
    prices = _calibrated(here, outcome, images) if images else None
    speed = Prices(here).lay_over(prices).speed(LOCAL).passes if prices else None
    record = {
        "job": outcome.name,
        "instance_type": LOCAL,
        "instance_count": config["sagemaker"]["instance_count"],
        "backbone": config["model"]["backbone"],
        "billed_seconds": 0,
        "training_seconds": round(outcome.seconds, 1),
        "cost": 0.0,
        "images_per_second": speed and round(speed, 1),
        **({"prices": prices} if prices else {}),
    }
    write_json(file, record)
    if not prices:
        return f"{file} has no figures of this machine: a job on one machine that computes its features has."
    return f"{file} has the figures of this machine; sagemaker.instance_type={LOCAL} in a plan uses them."


def _calibrated(config: Mapping[str, Any], outcome: Outcome, images: Mapping[str, int]) -> dict[str, Any] | None:
    """Return what to lay over the table; None where the job does not tell."""
    done, measured = passes(config, images), outcome.result
    several = config["data"]["folds"] or config["refit"] or config["head_stage"]["epochs"] or outcome.interruptions
    if several or not 0 < MOST * done.shared_images <= measured.get("features_computed", 0):
        return None
    prices = Prices(config)
    row = _row(config, measured, prices)
    if config["model"]["trainable"] == "head":  # in epochs, which include the validation
        seconds = measured["images_seen"] / measured["images_per_second"]
        shown = measured["images_seen"] * (1 + images["valid"] / images["train"])
        row["head_images_per_second"] = round(shown / seconds, 1)
    overlay = {"hour": {LOCAL: 0}, "machines": {LOCAL: {**row, "start_seconds": 0.0}}}
    work = prices.lay_over(overlay).training(images).job_seconds or 0.0
    row["start_seconds"] = round(max(0.0, outcome.seconds - work), 2)
    return {**overlay, "machines": {LOCAL: row}}


def _row(config: Mapping[str, Any], measured: Mapping[str, Any], prices: Prices) -> dict[str, Any]:
    """Return the figures of this machine but for its start, from this job and those that were measured before it."""
    gpu, cores = measured["device"].startswith("cuda"), cpu_count()
    like, figures = prices.table["machines"]["ml.g4dn.xlarge" if gpu else "ml.m5.large"], network_of(config)
    computed, seconds, decoding = (
        measured[name] for name in ("features_computed", "features_seconds", "decoding_seconds")
    )
    computing = seconds if gpu else max(seconds - decoding / cores, seconds / 10)
    speed = computed * figures.frozen(config["model"]["trainable"]) / computing
    before = prices.table["machines"].get(LOCAL, {})
    same = before.get("vcpus") == cores and bool(before.get("gpu")) == gpu
    passes = {**(before.get("passes", {}) if same else {}), measured_as(config): round(speed, 2)}
    return {
        **_fitted(passes, like),
        "vcpus": cores,
        "memory_gb": like["memory_gb"] if gpu else round(psutil.virtual_memory().total / 1e9),
        "decoded_per_vcpu": round(computed / max(decoding, 1e-3), 1),
        **({"gpu": True} if gpu else {}),
        "passes": passes,
    }


def _fitted(passes: Mapping[str, float], like: Mapping[str, float]) -> dict[str, float]:
    """Return how fast arithmetic and memory are.

    Seconds of a pass are linear in both, so that two networks tell both. One does not, nor do several that are alike:
    then both are as many times as fast as those of a machine of its kind.

    Args:
        passes: Per second, by `measured_as`.
        like: Figures of a machine of its kind.
    """
    known = [(network(*_parts(name)), speed) for name, speed in passes.items()]
    known = [(figures, speed) for figures, speed in known if not figures.assumed] or known
    # By how much longer than on the other machine either takes, so that all the time is explained.
    kind = np.array([1 / like["gmacs"], 1 / like["gb_per_second"]])
    shares = kind * [[figures.gmacs * speed, figures.traffic_gb * speed] for figures, speed in known]
    whole = np.ones(len(shares))
    longer, _, rank, _ = np.linalg.lstsq(shares, whole, rcond=LEAST_UNLIKE)
    if rank < 2 or min(longer) <= 0:
        both = shares.sum(1)
        longer = np.full(2, both.sum() / (both @ both))
    gmacs, gb_per_second = 1 / (kind * longer)
    return {"gmacs": round(gmacs, 2), "gb_per_second": round(gb_per_second, 3)}


def _parts(name: str) -> tuple[str, int | None]:
    backbone, _, size = name.partition(" ")
    return backbone, int(size) if size else None
