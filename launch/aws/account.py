"""The one room that talks to the SageMaker SDK: images, sessions, and requests that are sent exactly as planned."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws import validate
from launch.aws.errors import AwsError, explained
from launch.aws.naming import Place, place

ATTEMPTS = 8  # of each call, with growing pauses, before throttling or a fault of AWS's becomes ours
_IMAGES = "pytorch-amzn2023"


def _prepare() -> None:
    """The SDK reports its use unless its own configuration says no."""
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
    os.environ.setdefault("SAGEMAKER_USER_CONFIG_OVERRIDE", str(Path(__file__).with_name("sdk_defaults.yaml")))
    for name in ("sagemaker", "sagemaker.config", "sagemaker.core", "botocore.credentials"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _sdk(module: str, region: str) -> Any:
    """A module of the SDK."""
    from importlib import import_module

    _prepare()
    # It wants a region when it is imported. The one that a plan assumes must not be taken for a person's choice later.
    none = environment_region() is None
    if none:
        os.environ["AWS_DEFAULT_REGION"] = region
    try:
        return import_module(module)
    finally:
        if none:
            del os.environ["AWS_DEFAULT_REGION"]


# Without an account


def training_image(config: Mapping[str, Any], region: str) -> str:
    """Address of the training image: `sagemaker.image`, or AWS's of `sagemaker.pytorch_version`.

    Raises:
        DogbreedError: AWS has no such image there.
    """
    wanted = config["sagemaker"]
    if wanted["image"]:
        return str(wanted["image"])
    try:
        return str(
            _sdk("sagemaker.core.image_uris", region).retrieve(
                _IMAGES,
                region,
                version=str(wanted["pytorch_version"]),
                instance_type=wanted["instance_type"],
                image_scope="training",
            )
        )
    except ValueError as error:
        said = " ".join(str(error).split())
        raise DogbreedError(
            f"AWS has no image of PyTorch {wanted['pytorch_version']} for {wanted['instance_type']} in {region} "
            f"({said}); give another sagemaker.pytorch_version, or sagemaker.image."
        ) from error


def inference_image(config: Mapping[str, Any], region: str) -> str:
    """Address of the inference image: `sagemaker.endpoint.image`, or AWS's last with PyTorch.

    Raises:
        DogbreedError: AWS has no such image there.
    """
    wanted = config["sagemaker"]["endpoint"]
    if wanted["image"]:
        return str(wanted["image"])
    machine = "ml.m5.large" if wanted["kind"] == "serverless" else wanted["instance_type"]  # serverless has no GPU
    try:
        return str(
            _sdk("sagemaker.core.image_uris", region).retrieve(
                "pytorch",
                region,
                version="2.6.0",
                py_version="py312",
                instance_type=machine,
                image_scope="inference",
            )
        )
    except ValueError as error:
        said = " ".join(str(error).split())
        raise DogbreedError(f"AWS has no inference image for {machine} in {region} ({said}); give image=.") from error


def rules_image(config: Mapping[str, Any], region: str) -> str | None:
    """Address of the image that evaluates managed rules; None where none are wanted."""
    if not any(config["sagemaker"][name]["enabled"] for name in ("debugger", "profiler")):
        return None
    return str(_sdk("sagemaker.core.image_uris", region).retrieve("debugger", region))


def environment_region() -> str | None:
    """The region that the environment or the AWS profile names."""
    found = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if found:
        return found
    import botocore.session

    with explained("reading the AWS configuration"):
        region = botocore.session.get_session().get_config_variable("region")
    return str(region) if region else None


def elsewhere(region: str) -> bool:
    """Whether a command that names no region would look in another one than this."""
    return environment_region() != region


# With an account


class Account:
    """A session whose credentials AWS has acknowledged.

    Args:
        config: A composed configuration; `sagemaker.region` may be null.

    Attributes:
        session: boto3's.
        account: Twelve digits.
        place: Where jobs run, what they may use.

    Raises:
        DogbreedError: No or expired credentials, no region, or a role of another account.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        import boto3

        with explained("reading the AWS configuration"):
            self.session = boto3.Session(region_name=config["sagemaker"]["region"] or environment_region())
        if not self.session.region_name:
            raise DogbreedError("No AWS region is set; give sagemaker.region=us-east-1 (or another), or AWS_REGION.")
        self._planned: tuple[str, Mapping[str, Any]] = ("", {})
        self._answered = False
        # Before the SDK makes its client of this session, which keeps the handlers that are there.
        self.session.events.register("provide-client-params.sagemaker", self._compare)
        self.session.events.register("after-call.sagemaker", self._note_answer)
        with explained("asking AWS who you are"):
            who = self.client("sts").get_caller_identity()
        self.account = str(who["Account"])
        self.place: Place = place(config, self.session.region_name, self.account, _role_of(str(who["Arn"])))

    def with_role(self) -> Place:
        """The place, whose execution role is known.

        Raises:
            DogbreedError: It is not.
        """
        if "role" in self.place.assumed:
            raise DogbreedError(
                "No execution role is known: these credentials are not of a role that SageMaker runs under. Give "
                "sagemaker.role=NAME or its ARN (python launch/policies.py trust shows how to make one)."
            )
        return self.place

    def client(self, service: str, *, region: str | None = None, attempts: int | None = None, wait: float = 20) -> Any:
        """boto3's client, which retries with growing pauses.

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

    def create(self, operation: str, request: Mapping[str, Any]) -> None:
        """Sends a request through the SDK, exactly as it was planned.

        Args:
            operation: `CreateTrainingJob` and the like.
            request: Its parameters, as boto3 takes them.

        Raises:
            AwsError: AWS refused.
            DogbreedError: The SDK would send something else, for example defaults of its configuration file.
        """
        resources = _sdk("sagemaker.core.resources", self.place.region)
        resource = getattr(resources, operation.removeprefix("Create"))
        shape = validate.model().operation_model(operation).input_shape
        self._planned, self._answered = (operation, request), False
        try:
            with explained(f"sending {operation}"):
                resource.create(**_snake(shape, request), session=self.session, region=self.place.region)
        except AwsError:
            if not self._answered:  # else only the SDK's own reading of what it made failed
                raise

    def _compare(self, params: Mapping[str, Any], model: Any, **_: Any) -> None:
        """Before a request leaves: it has to be the one that was planned."""
        operation, request = self._planned
        if model.name == operation and dict(params) != dict(request):
            keys = sorted(key for key in {*params, *request} if params.get(key) != request.get(key))
            raise DogbreedError(
                f"The SageMaker SDK would send other values than planned ({', '.join(keys)}), so nothing was sent; "
                "does its configuration file set defaults? SAGEMAKER_USER_CONFIG_OVERRIDE names another."
            )

    def _note_answer(self, http_response: Any, model: Any, **_: Any) -> None:
        self._answered = self._answered or (model.name == self._planned[0] and http_response.status_code < 300)


def _role_of(arn: str) -> str | None:
    """The ARN of the role whose session this is; None for a user.

    A role's path is not part of a session's ARN, so a role of a path other than `/` has to be named.
    """
    parts = arn.split(":")
    if parts[2:3] != ["sts"] or not parts[5].startswith("assumed-role/"):
        return None
    return f"arn:{parts[1]}:iam::{parts[4]}:role/{parts[5].split('/')[1]}"


def _snake(shape: Any, value: Any) -> Any:
    """Parameters as the SDK's resources take them: with the names of their members in snake case, maps as they are."""
    from sagemaker.core.utils.utils import pascal_to_snake

    if shape.type_name == "structure":
        return {pascal_to_snake(name): _snake(shape.members[name], inner) for name, inner in value.items()}
    if shape.type_name == "list":
        return [_snake(shape.member, inner) for inner in value]
    return value
