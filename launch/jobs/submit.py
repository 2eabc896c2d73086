"""Sends what the plan shows, follows the job, and keeps what is needed to know later what it was."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from dogbreed.config.compose import check, to_yaml
from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.files import atomic_write
from launch.aws.account import Account
from launch.aws.errors import explained
from launch.aws.naming import parse_s3_uri, prefix
from launch.aws.pricing import RECEIPTS, Prices, listed_price
from launch.aws.storage import Bucket
from launch.aws.wheels import fetch
from launch.jobs.estimate import check_limits, counts, estimates
from launch.jobs.follow import follow_training, follow_tuning
from launch.jobs.request import TUNING, Job, folders


def submit(config: Mapping[str, Any], job: Job, account: Account, prices: Prices) -> None:
    """Send a job and follow it to its end.

    Args:
        config: A composed configuration.
        job: Described for the account's target.
        account: To send it from.
        prices: To check the cost with.

    Raises:
        DogbreedError: It could cost too much or not finish in time, something is missing, AWS refused, or the job
            failed.
    """
    estimate = next(iter(estimates(config, job, prices).values()))
    check_limits(config, estimate)
    prepare(config, job, account)
    if job.first:
        _submit_first(config, job.first, account, prices)
    client = account.client("sagemaker")
    tuning = job.operation == TUNING
    with _new_folder(RECEIPTS / job.name), explained(f"sending {job.operation}"):
        (client.create_hyper_parameter_tuning_job if tuning else client.create_training_job)(**job.request)
    _keep(config, job, estimate.cost)
    print(f"Sent. {job.name} runs in {job.target.region}; Ctrl-C leaves it running.", flush=True)
    follow(config, job.name, account, prices, tuning=tuning)


def _submit_first(config: Mapping[str, Any], first: Job, account: Account, prices: Prices) -> None:
    """Send the job that fills the features for a search, and wait for its end."""
    print(
        "A training job goes first, whose features all trials find (sagemaker.features_first=false: none).", flush=True
    )
    try:
        submit(config, first, account, prices)
    except Interrupted as stopped:
        raise Interrupted(f"{stopped}\nThe search was not sent; the same command sends it.") from None


def follow(config: Mapping[str, Any], name: str, account: Account, prices: Prices, *, tuning: bool) -> None:
    """Follow a job that is there already to its end.

    Args:
        config: A composed configuration.
        name: Of the job.
        account: That it is in.
        prices: Of its machines.
        tuning: Whether it is a tuning job.

    Raises:
        DogbreedError: There is no such job, or it failed.
    """
    (follow_tuning if tuning else follow_training)(config, name, account, prices)


def sent_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the configuration that the job of `config` was sent with, if it was sent from here, else `config`.

    The results are computed with it: another network's speed would mislead the next plan.
    """
    try:
        sent = yaml.safe_load((RECEIPTS / config["job"] / "config.yaml").read_text(encoding="utf-8"))
        check(sent)
    except (OSError, ValueError, AttributeError, yaml.YAMLError, DogbreedError):
        return config
    now = {key: config["sagemaker"][key] for key in ("region", "prices")}
    return {**sent, "job": config["job"], "mode": config["mode"], "sagemaker": {**sent["sagemaker"], **now}}


def prepare(config: Mapping[str, Any], job: Job, account: Account) -> None:
    """Put the archive and the weights into S3, and make sure that the images are there.

    Raises:
        DogbreedError: The bucket cannot be used, or there are no images.
    """
    cloud, target = config["sagemaker"], job.target
    bucket = Bucket(account.client("s3"), target.bucket, account.account, target.region, cloud["kms_key"])
    there = bucket.check(may_lack=cloud["bucket"] is None)
    if job.data_uri:
        name = parse_s3_uri(job.data_uri, "sagemaker.data")[0]
        data = bucket if name == bucket.name else Bucket(bucket.client, name, account.account, target.region)
        if data is not bucket:
            data.check()
        addresses = [f"{job.data_uri}/{part}/".replace("/./", "/") for part in folders(config)]
        missing = [uri for uri in addresses if not (there and data.has(parse_s3_uri(uri, "sagemaker.data")[1]))]
        if missing:
            raise DogbreedError(
                f"There are no images in {missing[0]}; send them first, with the same sagemaker.* "
                f"keys: python launch/sagemaker_upload.py data.root={config['data']['root']}"
            )
    if earlier := cloud["resume_from"]:
        key = f"{prefix(config)}/checkpoints/{earlier}/{earlier}/checkpoints/"
        if not (there and bucket.has(key)):
            raise DogbreedError(
                f"There are no checkpoints in s3://{bucket.name}/{key}; sagemaker.resume_from names a job that "
                "finished an epoch, and was sent with the same sagemaker.bucket and sagemaker.prefix."
            )
    if not there:
        bucket.make()
    fetch(job.wheels, "job")
    if job.sent_along:
        bucket.send({parse_s3_uri(address, "model.weights")[1]: file for address, file in job.sent_along.items()})
    bucket.put(parse_s3_uri(job.code_uri, "sagemaker.bucket")[1], job.source.archive)


def current_prices(config: Mapping[str, Any], account: Account) -> Prices:
    """Return the table with the price that AWS lists now, where it says one."""
    machine = config["sagemaker"]["instance_type"]
    listed = None
    with suppress(Exception):  # a price is a courtesy: without permission or answer the table has one
        # The list is served from a few regions only.
        client = account.client("pricing", region="us-east-1", attempts=1, wait=2)
        listed = listed_price(client, machine, account.target.region)
    return Prices(config, {} if listed is None else {machine: listed})


@contextmanager
def _new_folder(folder: Path) -> Iterator[None]:
    """Make the folder for what is kept before anything runs, and is billed; remove it again on an error.

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
    """Write what was sent, for later commands and for the receipt."""
    texts = {
        "request.yaml": yaml.safe_dump(job.request, sort_keys=False),
        "config.yaml": to_yaml(config),
        "expected.json": json.dumps({"cost": expected, "counts": counts(config), "sent": time.time()}),
    }
    for name, text in texts.items():
        with atomic_write(RECEIPTS / job.name / name) as file:
            file.write_text(text, encoding="utf-8")
