"""Names, places and marks of what is made in the account."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from dogbreed.core.errors import DogbreedError

# Everything that this project makes carries this tag, so that it can be found, and deleted, again.
MARK = {"Key": "created-by", "Value": "dogbreed"}

NO_ACCOUNT = "000000000000"  # stands for the account in a plan that does not know it
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_ROLE = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/([\w+=,.@/-]+)", re.ASCII)
_ROLE_NAME = re.compile(r"(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64}", re.ASCII)
_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_S3 = re.compile(r"s3://([^/]+)/?(.*)")


@dataclass(frozen=True)
class Place:
    """Where a job runs and what it may use.

    Attributes:
        region: Such as `us-east-1`.
        account: Twelve digits.
        role: ARN of the execution role.
        bucket: For data, code and results.
        assumed: What a plan had to assume, for want of an account: pairs of what and its stand-in.
    """

    region: str
    account: str
    role: str
    bucket: str
    assumed: Mapping[str, str] = field(default_factory=dict)


def place(config: Mapping[str, Any], region: str | None, account: str | None, role: str | None) -> Place:
    """The place that a configuration means.

    Args:
        config: A composed configuration.
        region: What the environment says, used where `sagemaker.region` is null.
        account: Of the credentials; None where there are none.
        role: ARN of the role that this runs under, used where `sagemaker.role` is null; None where there is none.

    Returns:
        With what is not known replaced by stand-ins, which `assumed` lists.

    Raises:
        DogbreedError: The region, the role or the bucket is none.
    """
    wanted = config["sagemaker"]
    assumed: dict[str, str] = {}
    region = wanted["region"] or region
    if region is None:
        region = assumed["region"] = "us-east-1"
    if not _REGION.fullmatch(region):
        raise DogbreedError(f"sagemaker.region={region} is no AWS region; it looks like us-east-1.")
    arn = _ROLE.fullmatch(wanted["role"] or role or "")
    if account is None:
        account = arn[2] if arn else NO_ACCOUNT
        if not arn:
            assumed["account"] = NO_ACCOUNT
    if arn:
        role_arn = arn[0]
        if arn[2] != account:
            raise DogbreedError(
                f"sagemaker.role belongs to the account {arn[2]}, but the credentials are of {account}; use a role of "
                "the same account, or other credentials (AWS_PROFILE)."
            )
    elif wanted["role"]:
        if not _ROLE_NAME.fullmatch(wanted["role"]):
            raise DogbreedError(
                f"sagemaker.role={wanted['role']} is neither a role's name nor its ARN, "
                "arn:aws:iam::123456789012:role/NAME."
            )
        role_arn = f"arn:{partition(region)}:iam::{account}:role/{wanted['role']}"
    else:
        role_arn = assumed["role"] = f"arn:{partition(region)}:iam::{account}:role/SageMakerExecutionRole"
    bucket = wanted["bucket"]
    if bucket is None:
        bucket = f"sagemaker-{region}-{account}"
        if account == NO_ACCOUNT:
            assumed["bucket"] = bucket
    if not _BUCKET.fullmatch(bucket):
        hint = (
            f"; leave the s3:// out: sagemaker.bucket={bucket[5:].partition('/')[0]}" if bucket[:5] == "s3://" else ""
        )
        raise DogbreedError(f"sagemaker.bucket={bucket} is no name of a bucket{hint}.")
    return Place(region, account, role_arn, bucket, assumed)


def partition(region: str) -> str:
    """The part of AWS that a region belongs to, as ARNs name it."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def job_name(config: Mapping[str, Any], kind: str, now: datetime, longest: int = 63) -> str:
    """A name that says what and when; SageMaker wants it to be new.

    Args:
        config: A composed configuration.
        kind: `train`, `tune`, ...
        now: When.
        longest: How long the API lets it be.

    Raises:
        DogbreedError: The name is too long or has letters that a name may not have.
    """
    wanted = config["sagemaker"]
    name = wanted["job_name"]
    key = "sagemaker.job_name"
    if not name:
        name, key = f"{prefix(config).replace('/', '-')}-{kind}-{now:%Y%m%d-%H%M%S}", "sagemaker.prefix"
    if not _NAME.fullmatch(name):
        raise DogbreedError(f"{name} is no name for a job; letters, digits and single dashes between them are ({key}).")
    if len(name) > longest:
        raise DogbreedError(
            f"{name} has {len(name)} characters, and the name of such a job may have {longest}; give a shorter {key}."
        )
    return str(name)


def prefix(config: Mapping[str, Any]) -> str:
    """The folder in the bucket, without slashes at its ends.

    Raises:
        DogbreedError: It is empty or an address.
    """
    text = str(config["sagemaker"]["prefix"]).strip("/")
    if not re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9/_.-]*[A-Za-z0-9])?", text) or "//" in text:
        raise DogbreedError(
            f"sagemaker.prefix={config['sagemaker']['prefix']} is no folder's name; letters, digits, - _ . / are."
        )
    return text


def tags(config: Mapping[str, Any]) -> list[dict[str, str]]:
    """The tags of a request: this project's mark, and those of the configuration."""
    given = config["sagemaker"]["tags"] or {}
    return [MARK, *({"Key": str(key), "Value": str(value)} for key, value in given.items())]


def split_s3(address: str, key: str) -> tuple[str, str]:
    """Bucket and key of `s3://bucket/key`.

    Args:
        address: To split.
        key: The configuration's key that holds it, for the error.

    Raises:
        DogbreedError: It is no such address.
    """
    found = _S3.fullmatch(address)
    if not found:
        raise DogbreedError(f"{key}={address} is no address in S3; it looks like s3://bucket/folder.")
    return found[1], found[2]
