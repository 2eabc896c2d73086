"""Addresses of AWS's container images, from the tables of the SageMaker SDK; this needs no account."""

import logging
import re
from collections.abc import Mapping
from datetime import date
from typing import Any, NamedTuple

from dogbreed.core.errors import DogbreedError
from launch.aws.errors import explained

# Last day of patches of AWS's PyTorch images by version, as far as it is known.
OLDEST = [2, 6]  # version of PyTorch that this package runs with
NOT_IN_CUDA_13 = re.compile(r"ml\.(p2|p3|p3dn|g3|g3s)\.")
CUDA_13 = "cu13"
PATCHED_UNTIL = {"2.6": date(2026, 6, 30)}
IN_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr(-fips)?\.(?P<region>[a-z]+-[a-z\d-]+)\.[a-z.]+/"
    r"(?P<repository>[a-z\d]+([._/-]+[a-z\d]+)*)(:\w[\w.-]{0,127}|@sha256:[\da-f]{64})"
)


class EcrImage(NamedTuple):
    """An image in Amazon ECR."""

    account: str
    region: str
    repository: str


def in_ecr(address: str | None) -> EcrImage | None:
    """Parse the address of an image; None where it is none of Amazon ECR."""
    match = IN_ECR.fullmatch(address or "")
    return EcrImage(**match.groupdict()) if match else None


def has_toolkit(address: str) -> bool:
    """Return whether an inference image is AWS's, or one made from it that keeps its name: TorchServe calls handlers.

    Any other answers by itself, as that of launch/Dockerfile does.
    """
    image = in_ecr(address)
    return image is None or image.repository.rpartition("/")[2].startswith("pytorch-inference")


def _retrieve(framework: str, region: str, **options: Any) -> str:
    """Ask the SDK's tables; its ValueError says what there is instead."""
    logging.getLogger("sagemaker").setLevel(logging.ERROR)
    with explained("reading the AWS configuration"):  # the SDK makes a session when it is imported
        from sagemaker.core import image_uris

    return str(image_uris.retrieve(framework, region, **options))


def training_image(config: Mapping[str, Any], region: str) -> str:
    """Return the address of the training image: `sagemaker.image`, or AWS's of `sagemaker.pytorch_version`.

    Raises:
        DogbreedError: AWS has no such image there.
    """
    cloud = config["sagemaker"]
    if cloud["image"]:
        return str(cloud["image"])
    machine, version = cloud["instance_type"], str(cloud["pytorch_version"])
    options = {"version": version, "instance_type": machine, "image_scope": "training"}
    try:
        image = _retrieve("pytorch-amzn2023", region, **options)
    except ValueError as error:
        reason = " ".join(str(error).split())
        image = _older_image(region, options)
        if not image:
            raise DogbreedError(
                f"AWS has no image of PyTorch {version} for {machine} in {region} ({reason}); give another "
                "sagemaker.pytorch_version, or sagemaker.image."
            ) from error
    if NOT_IN_CUDA_13.match(machine) and CUDA_13 in image:
        raise DogbreedError(
            f"{machine} has GPUs that the image {image.rpartition(':')[2]} has no code for (CUDA 13 has left out V100 "
            "and older); give sagemaker.pytorch_version='2.6', or an ml.g4dn or ml.g5 instance."
        )
    return image


def _older_image(region: str, options: Mapping[str, Any]) -> str:
    """Return the image of a version of PyTorch before those on Amazon Linux 2023; "" where there is none."""
    numbers = re.findall(r"\d+", options["version"])
    if [int(number) for number in numbers[:2]] < OLDEST:
        return ""
    try:
        return _retrieve("pytorch", region, **options)
    except ValueError:
        return ""


def inference_image(config: Mapping[str, Any], region: str) -> str:
    """Return the address of the inference image: `sagemaker.endpoint.image`, or AWS's last with PyTorch.

    Raises:
        DogbreedError: AWS has no such image there, or SageMaker would not take the one that is given.
    """
    endpoint = config["sagemaker"]["endpoint"]
    if address := endpoint["image"]:
        if (image := in_ecr(address)) is None:
            raise DogbreedError(
                f"image={address} is no address in Amazon ECR, from which SageMaker takes images; it looks like "
                f"123456789012.dkr.ecr.{region}.amazonaws.com/NAME:TAG."
            )
        if image.region != region:
            raise DogbreedError(
                f"image={address} is in {image.region} and the endpoint in {region}; SageMaker takes images of its own "
                f"region: push it there too, or give sagemaker.region={image.region}."
            )
        return str(address)
    machine = "ml.m5.large" if endpoint["kind"] == "serverless" else endpoint["instance_type"]  # serverless has no GPU
    options = {"version": "2.6.0", "py_version": "py312", "instance_type": machine, "image_scope": "inference"}
    try:
        return _retrieve("pytorch", region, **options)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise DogbreedError(f"AWS has no inference image for {machine} in {region} ({reason}); give image=.") from error


def rules_image(config: Mapping[str, Any], region: str) -> str | None:
    """Return the address of the image that evaluates managed rules; None where none are enabled.

    Raises:
        DogbreedError: AWS has no such image there.
    """
    if not any(config["sagemaker"][name]["enabled"] for name in ("debugger", "profiler")):
        return None
    try:
        return _retrieve("debugger", region)
    except ValueError as error:
        raise DogbreedError(
            f"AWS has no image for the rules of sagemaker.debugger and sagemaker.profiler in {region}; leave both "
            "off (the same rules run locally in every run), or give another sagemaker.region."
        ) from error


def patch_notice(image: str, today: date | None = None) -> str | None:
    """Return a sentence about an image of AWS's that is past its last patches; None for any other."""
    _, _, tag = image.rpartition(":")
    version = ".".join(tag.split("-")[0].split(".")[:2])
    end = PATCHED_UNTIL.get(version)
    if end is None or (today or date.today()) <= end:
        return None
    return f"The image {tag} (PyTorch {version}) has had no patches since {end}; it gets no security fixes"
