"""`mode=submit`: sends what the plan shows, follows the job, and says at the end what came out and what it cost."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dogbreed.config.compose import check, to_yaml
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from launch import render
from launch.aws.account import Account
from launch.aws.naming import split_s3
from launch.aws.pricing import RECEIPTS, Prices, check_cost, listed_price
from launch.aws.storage import Bucket
from launch.jobs.follow import follow_training, follow_tuning
from launch.jobs.request import SPLITS, TUNING, Job


def submit(config: Mapping[str, Any], job: Job, account: Account) -> None:
    """Sends a job and follows it to its end.

    Args:
        config: A composed configuration.
        job: Described for the account's place.
        account: To send it from.

    Raises:
        DogbreedError: It could cost too much, something is missing, AWS refused, or the job failed.
    """
    prices = Prices(config, _listed(config, account))
    ways = render.estimates(config, job, prices)
    estimate = next(iter(ways.values()))
    check_cost(config, estimate)
    for line in render.summary(config, job, prices):
        print(line, flush=True)
    prepare(config, job, account)
    with _room(RECEIPTS / job.name):
        account.create(job.operation, job.request)
    _keep(config, job, estimate.cost)
    print(f"Sent. {job.name} runs in {job.place.region}; Ctrl-C leaves it running.", flush=True)
    follow(config, job.name, account, tuning=job.operation == TUNING)


def follow(config: Mapping[str, Any], name: str, account: Account, *, tuning: bool) -> None:
    """Follows a job that is there already to its end.

    Args:
        config: A composed configuration.
        name: Of the job.
        account: That it is in.
        tuning: Whether it is a tuning job.

    Raises:
        DogbreedError: There is no such job, or it failed.
    """
    (follow_tuning if tuning else follow_training)(config, name, account, Prices(config, _listed(config, account)))


def kept(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration that the job of `config` was sent with, if it was sent from here, else `config`.

    What came out is told with it: another network's speed would be a lie in the next plan.
    """
    try:
        sent = yaml.safe_load((RECEIPTS / config["job"] / "config.yaml").read_text(encoding="utf-8"))
        check(sent)
    except (OSError, ValueError, AttributeError, yaml.YAMLError, DogbreedError):
        return config
    now = {key: config["sagemaker"][key] for key in ("region", "prices")}
    return {**sent, "job": config["job"], "mode": config["mode"], "sagemaker": {**sent["sagemaker"], **now}}


def prepare(config: Mapping[str, Any], job: Job, account: Account) -> None:
    """Puts the archive and the weights into S3, and makes sure that the photographs are there.

    Raises:
        DogbreedError: The bucket cannot be used, or there are no photographs.
    """
    wanted = config["sagemaker"]
    bucket = Bucket(account.client("s3"), job.place.bucket, account.account, job.place.region, wanted["kms_key"])
    there = bucket.check(may_lack=wanted["bucket"] is None)
    if job.data_uri:
        name, key = split_s3(job.data_uri, "sagemaker.data")
        data = bucket if name == bucket.name else Bucket(bucket.client, name, account.account, job.place.region)
        if data is not bucket:
            data.check()
        lacking = [split for split in SPLITS if not (there and data.has(f"{key}/{split}/"))]
        if lacking:
            raise DogbreedError(
                f"There are no photographs in {job.data_uri}/{lacking[0]}/; send them first, with the same sagemaker.* "
                f"keys: python launch/sagemaker_upload.py data.root={config['data']['root']}"
            )
    if not there:
        bucket.make()
    if job.sent_along:
        bucket.send({split_s3(address, "model.weights")[1]: file for address, file in job.sent_along.items()})
    bucket.put(split_s3(job.code_uri, "sagemaker.bucket")[1], job.source.archive)


def _listed(config: Mapping[str, Any], account: Account) -> dict[str, float]:
    """The price that AWS lists now; empty where it does not say, and the table is used."""
    kind = config["sagemaker"]["instance_type"]
    try:
        # The list is served from a few regions only.
        found = listed_price(
            account.client("pricing", region="us-east-1", attempts=1, wait=2), kind, account.place.region
        )
    except Exception:  # a price is a courtesy: without permission or answer the table has one
        return {}
    return {} if found is None else {kind: found}


@contextmanager
def _room(folder: Path) -> Iterator[None]:
    """Makes sure that there is a folder for what is kept before anything runs, and is billed; gone again on an error.

    Raises:
        DogbreedError: It cannot be.
    """
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DogbreedError(f"{folder} cannot be made ({error.strerror}), so nothing was sent.") from error
    try:
        yield
    except BaseException:
        for each in new:
            with suppress(OSError):
                each.rmdir()
        raise


def _keep(config: Mapping[str, Any], job: Job, expected: float | None) -> None:
    """What was sent, for whoever wants to know later, and for the receipt."""
    folder = RECEIPTS / job.name
    kept = {
        "request.yaml": yaml.safe_dump(job.request, sort_keys=False),
        "config.yaml": to_yaml(config),
        "expected.json": json.dumps({"cost": expected, "counts": render.counts(config), "sent": time.time()}),
    }
    for name, text in kept.items():
        with atomic_write(Path(folder / name)) as file:
            file.write_text(text, encoding="utf-8")
