"""Names, tags and addresses of what is made in the account."""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dogbreed.core.errors import DogbreedError

# Everything that this project makes carries this tag, so that it can be found, and deleted, again.
MARK = {"Key": "created-by", "Value": "dogbreed"}

_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
_S3_URI = re.compile(r"s3://([^/]+)/?(.*)")


def partition(region: str) -> str:
    """Return the part of AWS that a region belongs to, as ARNs name it."""
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"


def job_name(config: Mapping[str, Any], kind: str, now: datetime, longest: int = 63) -> str:
    """Return a new name that says what and when.

    Args:
        config: A composed configuration.
        kind: `train`, `tune`, ...
        now: When.
        longest: How long the API lets it be.

    Raises:
        DogbreedError: The name is too long or has letters that a name may not have.
    """
    name, key = config["sagemaker"]["job_name"], "sagemaker.job_name"
    if not name:
        name, key = f"{prefix(config).replace('/', '-')}-{kind}-{now:%Y%m%d-%H%M%S}", "sagemaker.prefix"
    if not _NAME.fullmatch(name):
        hint = " It is an address in S3; a job's name is its last part." if str(name).startswith("s3://") else ""
        raise DogbreedError(f"{name} is no name for a job; give letters, digits and dashes between them ({key}).{hint}")
    if len(name) > longest:
        raise DogbreedError(
            f"{name} has {len(name)} characters, and the name of such a job may have {longest}; give a shorter {key}."
        )
    return str(name)


def prefix(config: Mapping[str, Any]) -> str:
    """Return the folder in the bucket, without slashes at its ends.

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
    """Return the tags of a request: this project's mark, and those of the configuration."""
    own = config["sagemaker"]["tags"] or {}
    return [MARK, *({"Key": str(key), "Value": str(value)} for key, value in own.items())]


def parse_s3_uri(address: str, key: str) -> tuple[str, str]:
    """Split `s3://bucket/key` into bucket and key.

    Args:
        address: To split.
        key: The configuration's key that holds it, for the error.

    Raises:
        DogbreedError: It is no such address.
    """
    match = _S3_URI.fullmatch(address)
    if not match:
        raise DogbreedError(f"{key}={address} is no address in S3; it looks like s3://bucket/folder.")
    return match[1], match[2]


def features_uri(config: Mapping[str, Any], bucket: str) -> str | None:
    """Return where jobs keep their features; None where they keep none, or have no network to do so.

    The default is the bucket of everything else, whose owner is checked and which the role can use already.
    """
    uri = config["sagemaker"]["features"]
    if uri is False or config["sagemaker"]["isolate"] or config["cache"]["mode"] == "off":
        return None
    return str(uri).rstrip("/") if uri else f"s3://{bucket}/{prefix(config)}/features"
