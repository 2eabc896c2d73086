"""The account: where jobs run and what they may use, and a session whose credentials AWS has acknowledged."""

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.errors import AwsError, explained
from launch.aws.naming import partition, prefix

ATTEMPTS = 8  # of each call, with growing pauses, before throttling or a fault of AWS's becomes ours
NO_ACCOUNT = "000000000000"  # stands for the account in a plan that does not know it
NOTEBOOK_METADATA = Path("/opt/ml/metadata/resource-metadata.json")  # of Studio and of notebook instances
STAND_IN_ROLE = "SageMakerExecutionRole"
_ROLE = re.compile(r"arn:(aws[a-z-]*):iam::(\d{12}):role/([\w+=,.@/-]+)", re.ASCII)
_ROLE_NAME = re.compile(r"(?:[\w+=,.@-]+/)*[\w+=,.@-]{1,64}", re.ASCII)
_REGION = re.compile(r"[a-z]{2}(?:-[a-z]+)+-\d")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(frozen=True)
class Target:
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


def resolve_target(config: Mapping[str, Any], region: str | None, account: str | None, role: str | None) -> Target:
    """Return the target of a configuration.

    Args:
        config: A composed configuration.
        region: Of the environment, used where `sagemaker.region` is null.
        account: Of the credentials; None where there are none.
        role: ARN of the role that this runs under, used where `sagemaker.role` is null; None where there is none.

    Returns:
        With what is not known replaced by stand-ins, which `assumed` lists.

    Raises:
        DogbreedError: The region, the role or the bucket is none.
    """
    cloud = config["sagemaker"]
    assumed: dict[str, str] = {}
    region = cloud["region"] or region
    if region is None:
        region = assumed["region"] = "us-east-1"
    if not _REGION.fullmatch(region):
        raise DogbreedError(f"sagemaker.region={region} is no AWS region; it looks like us-east-1.")
    arn = _ROLE.fullmatch(cloud["role"] or role or "")
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
    else:
        if not cloud["role"]:
            assumed["role"] = f"arn:{partition(region)}:iam::{account}:role/{STAND_IN_ROLE}"
        role_arn = arn_of_role(region, account, cloud["role"] or STAND_IN_ROLE)
    return Target(region, account, role_arn, _bucket(cloud["bucket"], region, account, assumed), assumed)


def arn_of_role(region: str, account: str, name: str, key: str = "sagemaker.role") -> str:
    """Return the ARN of a role that a key gives by its name or its ARN.

    Raises:
        DogbreedError: It is neither.
    """
    if _ROLE.fullmatch(name):
        return name
    if not _ROLE_NAME.fullmatch(name):
        raise DogbreedError(f"{key}={name} is neither a role's name nor its ARN, arn:aws:iam::123456789012:role/NAME.")
    return f"arn:{partition(region)}:iam::{account}:role/{name}"


def _bucket(name: str | None, region: str, account: str, assumed: dict[str, str]) -> str:
    """Return the bucket; the account's default one where none is named."""
    bucket = name or f"sagemaker-{region}-{account}"
    if not name and account == NO_ACCOUNT:
        assumed["bucket"] = bucket
    if not _BUCKET.fullmatch(bucket):
        own = bucket.removeprefix("s3://").partition("/")[0]
        hint = f"; leave the s3:// out: sagemaker.bucket={own}" if bucket.startswith("s3://") else ""
        raise DogbreedError(f"sagemaker.bucket={bucket} is no name of a bucket{hint}.")
    return bucket


def offline_target(config: Mapping[str, Any]) -> Target:
    """Return the target as far as it is known without an account."""
    return resolve_target(config, environment_region(config["sagemaker"]["profile"]), None, None)


def environment_region(profile: str | None = None) -> str | None:
    """Return the region that the environment or the AWS profile names; a profile that is asked for goes first."""
    if not profile and (region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")):
        return region
    import botocore.session

    with explained("reading the AWS configuration"):
        configured = botocore.session.Session(profile=profile).get_config_variable("region")
    return str(configured) if configured else None


def elsewhere(region: str) -> bool:
    """Return whether a command that names no region would look in another one than this."""
    return environment_region() != region


class Account:
    """A session whose credentials AWS has acknowledged.

    Args:
        config: A composed configuration; `sagemaker.region` may be null.

    Attributes:
        session: boto3's.
        account: Twelve digits.
        target: Where jobs run, what they may use.
        names: What the names of this project's endpoints, settings and models begin with.

    Raises:
        DogbreedError: No or expired credentials, no region, or a role of another account.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        import boto3

        profile = config["sagemaker"]["profile"]
        with explained("reading the AWS configuration"):
            region = config["sagemaker"]["region"] or environment_region(profile)
            self.session = boto3.Session(region_name=region, profile_name=profile)
        if not self.session.region_name:
            raise DogbreedError(
                "No AWS region is set; give sagemaker.region=us-east-1 (or another; --region where there is one), or "
                "AWS_REGION."
            )
        with explained("asking AWS who you are"):
            identity = self.client("sts").get_caller_identity()
        self.account = str(identity["Account"])
        role = None if config["sagemaker"]["role"] else self._role(str(identity["Arn"]))
        self.target = resolve_target(config, self.session.region_name, self.account, role)
        self.names = (f"{prefix(config).replace('/', '-')}-", config["sagemaker"]["endpoint"]["name"] or "/")

    def _role(self, identity: str) -> str | None:
        """Return the execution role where the SDK's get_execution_role finds it: of the notebook, or of the session.

        Args:
            identity: ARN of the credentials.
        """
        try:
            metadata = json.loads(NOTEBOOK_METADATA.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return self._session_role(identity)
        if role := metadata.get("ExecutionRoleArn"):
            return str(role)
        sagemaker, domain = self.client("sagemaker"), metadata.get("DomainId")
        with suppress(AwsError, KeyError), explained("looking for the notebook's role"):
            if domain is None:
                name = metadata["ResourceName"]
                return str(sagemaker.describe_notebook_instance(NotebookInstanceName=name)["RoleArn"])
            user = sagemaker.describe_user_profile(DomainId=domain, UserProfileName=metadata["UserProfileName"])
            if role := user.get("UserSettings", {}).get("ExecutionRole"):
                return str(role)
            return str(sagemaker.describe_domain(DomainId=domain)["DefaultUserSettings"]["ExecutionRole"])
        return self._session_role(identity)

    def _session_role(self, identity: str) -> str | None:
        """Return the ARN of the role whose session this is; None for a user or for one who signed in by SSO.

        A role's path is not part of a session's ARN: IAM knows it, and roles that the console makes have a known one.
        """
        parts = identity.split(":")
        if parts[2:3] != ["sts"] or not parts[5].startswith("assumed-role/"):
            return None
        name = parts[5].split("/")[1]
        if name.startswith("AWSReservedSSO_"):  # a person's, which SageMaker cannot take
            return None
        with suppress(AwsError), explained("looking for the role"):
            return str(self.client("iam", attempts=1, wait=5).get_role(RoleName=name)["Role"]["Arn"])
        path = "service-role/" if name.startswith("AmazonSageMaker-ExecutionRole") else ""
        return f"arn:{parts[1]}:iam::{parts[4]}:role/{path}{name}"

    def with_role(self) -> Target:
        """Return the target, whose execution role is known.

        Raises:
            DogbreedError: It is not.
        """
        if "role" in self.target.assumed:
            raise DogbreedError(
                "No execution role is known: these credentials are not of a role that SageMaker runs under. Give "
                "sagemaker.role=NAME or its ARN (python launch/policies.py trust shows how to make one)."
            )
        return self.target

    def client(self, service: str, *, region: str | None = None, attempts: int | None = None, wait: float = 20) -> Any:
        """Return boto3's client, which retries with growing pauses.

        Args:
            service: Such as `s3`.
            region: Another than the session's.
            attempts: Of each call; None for `ATTEMPTS`.
            wait: Seconds for a connection and for an answer.
        """
        from botocore.config import Config

        retries = {"mode": "standard", "total_max_attempts": attempts or ATTEMPTS}
        config = Config(retries=retries, connect_timeout=wait, read_timeout=3 * wait, max_pool_connections=32)
        with explained(f"reaching {service}"):
            return self.session.client(service, region_name=region, config=config)
