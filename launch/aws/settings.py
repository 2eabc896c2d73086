"""What the group sagemaker may not ask for, as far as the API's model does not say so itself."""

import math
from collections.abc import Mapping
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.naming import MARK

# Keys that are null until somebody gives them, so that their kind cannot be told from the default.
_TEXTS = (
    *("region", "role", "bucket", "job_name", "image", "data", "weights", "packages", "kms_key", "volume_kms_key"),
    *("warm_start", "prices", "instance_type", "prefix"),
)
_ENDPOINT_TEXTS = ("name", "image", "instance_type", "input", "output")
_LISTS = ("subnets", "security_groups")
_POSITIVE = ("max_cost", "images_per_second")
# What the training code would refuse once the machine is there and billed; it has torch, and this has not.
WORDS = {
    "data.augment": ("none", "flip", "crop"),
    "data.resize": ("squash", "crop"),
    "data.on_bad_image": ("skip", "error"),
    "model.trainable": ("head", "block", "all"),
    "model.optimizer": ("adam", "adamw", "sgd"),
    "model.schedule": ("constant", "cosine", "onecycle"),
    "cache.mode": ("auto", "off", "require"),
    "cache.precision": ("float32", "bfloat16", "float16"),
}


def check_kinds(config: Mapping[str, Any]) -> None:
    """Refuses values of the group sagemaker that are of another kind than their key's, or no use to any command.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: Says which, and what it should be.
    """
    cloud = config["sagemaker"]
    texts = {f"sagemaker.{key}": cloud[key] for key in _TEXTS}
    texts |= {f"sagemaker.endpoint.{key}": cloud["endpoint"][key] for key in _ENDPOINT_TEXTS}
    for key, value in {**texts, "job": config["job"]}.items():
        if value is not None and not isinstance(value, str):
            raise DogbreedError(f"{key}={value} is no text; where it is meant as one, give it as \"{key}='{value}'\".")
    for key in _LISTS:
        value = cloud[key]
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise DogbreedError(f"sagemaker.{key}={value} is no list of names; it looks like sagemaker.{key}=[a,b].")
    if bool(cloud["subnets"]) != bool(cloud["security_groups"]):
        raise DogbreedError("sagemaker.subnets and sagemaker.security_groups go together; give both, as lists.")
    _check_tags(cloud["tags"] or {})
    for key in _POSITIVE:
        value = cloud[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and value > 0):
            raise DogbreedError(f"sagemaker.{key}={value} is out of range; it is a number above 0.")


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuses settings that could not work.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: Says which, and the way out.
    """
    wanted = config["sagemaker"]
    _check_training(config)
    for key, least in (("instance_count", 1), ("volume_gb", 1), ("max_run", 1), ("keep_alive", 0)):
        if wanted[key] < least:
            raise DogbreedError(f"sagemaker.{key}={wanted[key]} is out of range; it is a whole number from {least}.")
    if wanted["channels"] not in ("splits", "root"):
        raise DogbreedError(f"sagemaker.channels={wanted['channels']} is unknown; it is splits or root.")
    if wanted["max_wait"] is not None and (not isinstance(wanted["max_wait"], int) or wanted["max_wait"] is True):
        raise DogbreedError(
            f"sagemaker.max_wait={wanted['max_wait']} is out of range; it is a whole number of seconds."
        )
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
    if wanted["isolate"]:
        _check_isolated(config)


def _check_training(config: Mapping[str, Any]) -> None:
    """What the job itself would refuse."""
    for key, words in WORDS.items():
        group, _, name = key.partition(".")
        if config[group][name] not in words:
            raise DogbreedError(f"{key}={config[group][name]} is unknown; it is one of {', '.join(words)}.")
    for key in ("data.batch_size", "trainer.max_epochs"):
        group, _, name = key.partition(".")
        value = config[group][name]
        if value is None or value < 1:
            raise DogbreedError(f"{key}={value} is out of range; for a job it is a whole number from 1.")
    lr = config["model"]["lr"]
    if not (math.isfinite(lr) and lr > 0):
        raise DogbreedError(f"model.lr={lr} is out of range; it is more than 0.")


def _check_tags(tags: Mapping[str, Any]) -> None:
    for key in map(str, tags):
        if key == MARK["Key"] or key.lower().startswith("aws:"):
            raise DogbreedError(f"sagemaker.tags may not have {key}: that name is taken; choose another.")


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
