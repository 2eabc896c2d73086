"""What the group sagemaker may not ask for, as far as the API's model does not say so itself."""

from collections.abc import Mapping
from typing import Any

from dogbreed.errors import DogbreedError


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuses settings that could not work.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: Says which, and the way out.
    """
    wanted = config["sagemaker"]
    for key, least in (("instance_count", 1), ("volume_gb", 1), ("max_run", 1), ("keep_alive", 0)):
        if wanted[key] < least:
            raise DogbreedError(f"sagemaker.{key}={wanted[key]} is out of range; it is a whole number from {least}.")
    if wanted["channels"] not in ("splits", "root"):
        raise DogbreedError(f"sagemaker.channels={wanted['channels']} is unknown; it is splits or root.")
    if wanted["max_wait"] is not None and not wanted["spot"]:
        raise DogbreedError("sagemaker.max_wait is for spot jobs; give sagemaker.spot=true too, or leave it out.")
    if wanted["max_wait"] is not None and wanted["max_wait"] < wanted["max_run"]:
        raise DogbreedError(
            f"sagemaker.max_wait={wanted['max_wait']} is less than sagemaker.max_run={wanted['max_run']}; the waiting "
            "counts the work too, so it must be at least as long."
        )
    if wanted["spot"] and wanted["keep_alive"]:
        raise DogbreedError(
            "sagemaker.keep_alive cannot go with sagemaker.spot=true: spot machines are not kept. Choose one."
        )
    if bool(wanted["subnets"]) != bool(wanted["security_groups"]):
        raise DogbreedError("sagemaker.subnets and sagemaker.security_groups go together; give both, as lists.")
    if wanted["isolate"]:
        _check_isolated(config)


def _check_isolated(config: Mapping[str, Any]) -> None:
    wanted, weights = config["sagemaker"], config["model"]["weights"]
    if weights == "imagenet" and not wanted["weights"]:
        raise DogbreedError(
            "sagemaker.isolate=true leaves the job without network, so it cannot fetch the ImageNet weights; give "
            "model.weights=PATH (it is sent along) or sagemaker.weights=s3://bucket/file."
        )
    if not (wanted["packages"] or wanted["image"]):
        raise DogbreedError(
            "sagemaker.isolate=true leaves the job without network, so it cannot install packages; put wheels into "
            "sagemaker.packages=s3://bucket/folder (pip download -d wheels -r requirements.txt --only-binary=:all: "
            "--python-version 3.12 --platform manylinux_2_28_x86_64), or give a sagemaker.image that has all of them."
        )
