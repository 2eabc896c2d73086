"""Checks before anything is sent: of the settings, and of requests against botocore's model of the service.

Neither needs an account or a network.
"""

import difflib
import math
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws import tracking
from launch.aws.naming import MARK, parse_s3_uri

# Keys that are null until somebody gives them, so that the default does not show their kind.
_TEXTS = (
    *(
        "profile",
        "region",
        "role",
        "bucket",
        "job_name",
        "image",
        "data",
        "weights",
        "packages",
        "kms_key",
        "volume_kms_key",
    ),
    *("resume_from", "scaling", "prices", "instance_type", "prefix", "as"),
)
_ENDPOINT_TEXTS = ("name", "image", "instance_type", "input", "output", "scheduler_role")
_LISTS = ("subnets", "security_groups", "warm_start")
_POSITIVE = ("max_cost", "images_per_second")
VOLUME_GB = 30  # by default
LOCAL = "local"  # the instance type that stands for this machine; a rehearsal measures its figures
# Types whose disk is part of the machine: G and P instances but the oldest, and others with a d in their name.
LOCAL_DISKS = re.compile(r"ml\.(g4dn|g5|g6\w*|gr6|p3dn|p[4-9]\w*|trn\d\w*|[cmr]\d[a-z]*d[a-z]*)\.")
_AT_LEAST = {"instance_count": 1, "volume_gb": 1, "keep_alive": 0}
_SPAN = re.compile(r"(\d{1,6})\s*([mhd])")
# What the training code would refuse once the machine is there and billed; it has torch, and this has not.
WORDS = {
    "data.augment": ("none", "flip", "crop"),
    "data.resize": ("squash", "crop"),
    "data.on_bad_image": ("skip", "error"),
    "model.trainable": ("head", "block", "all"),
    "model.optimizer": ("adam", "adamw", "sgd", "lbfgs"),
    "model.schedule": ("constant", "cosine", "onecycle"),
    "head_stage.optimizer": ("adam", "adamw", "sgd", "lbfgs"),
    "head_stage.augment": ("none", "flip", "crop"),
    "cache.mode": ("auto", "off", "require"),
    "cache.precision": ("float32", "bfloat16", "float16", "tf32"),
}


def check_kinds(config: Mapping[str, Any]) -> None:
    """Refuse values of the group sagemaker that are of another kind than their key's, or no use to any command.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: Says which, and what it should be.
    """
    cloud = config["sagemaker"]
    texts = {f"sagemaker.{key}": cloud[key] for key in _TEXTS}
    texts["sagemaker.features"] = cloud["features"] or None
    texts |= {f"sagemaker.endpoint.{key}": cloud["endpoint"][key] for key in _ENDPOINT_TEXTS}
    for key, value in {**texts, "job": config["job"]}.items():
        if value is not None and not isinstance(value, str):
            raise DogbreedError(f"{key}={value} is no text; where it is meant as one, give it as \"{key}='{value}'\".")
    for key in _LISTS:
        value = [cloud[key]] if key == "warm_start" and isinstance(cloud[key], str) else cloud[key]
        if value is not None and not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
            raise DogbreedError(f"sagemaker.{key}={value} is no list of names; it looks like sagemaker.{key}=[a,b].")
    if cloud["as"] is not None and config["mode"] != "plan":
        raise DogbreedError("as is the form of a plan: give mode=plan, or leave it out.")
    if cloud["as"] is not None and not cloud["under"] is cloud["within"] is None:
        raise DogbreedError("as is the form of a request, and under and within choose a machine; give one of them.")
    if bool(cloud["subnets"]) != bool(cloud["security_groups"]):
        raise DogbreedError("sagemaker.subnets and sagemaker.security_groups go together; give both, as lists.")
    for key in map(str, cloud["tags"] or {}):
        if key == MARK["Key"] or key.lower().startswith("aws:"):
            raise DogbreedError(f"sagemaker.tags may not have {key}: that name is taken; choose another.")
    for key in _POSITIVE:
        value = cloud[key]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if value is not None and not (number and value > 0):
            raise DogbreedError(f"sagemaker.{key}={value} is out of range; it is a number above 0.")


def parse_span(text: str, key: str = "expires") -> timedelta:
    """Parse the span of time of a key as people write it: 30m, 2h, 7d.

    Raises:
        DogbreedError: It is none.
    """
    match = _SPAN.fullmatch(str(text).strip().lower())
    if not match or not int(match[1]):
        raise DogbreedError(f"{key}={text} is no span of time; it looks like 30m, 2h or 7d.")
    return timedelta(**{{"m": "minutes", "h": "hours", "d": "days"}[match[2]]: int(match[1])})


def check_settings(config: Mapping[str, Any]) -> None:
    """Refuse settings that could not work.

    Args:
        config: A composed configuration.

    Raises:
        DogbreedError: Says which, and the way out.
    """
    _check_training(config)
    cloud = config["sagemaker"]
    if cloud["instance_type"] == LOCAL and config["mode"] == "submit":
        raise DogbreedError(
            f"sagemaker.instance_type={LOCAL} is this machine, which AWS does not have; give one such as ml.m5.large."
        )
    check_disks(cloud, cloud["instance_type"])
    if cloud["volume_gb"] != VOLUME_GB and LOCAL_DISKS.match(cloud["instance_type"]):
        raise DogbreedError(
            f"sagemaker.volume_gb={cloud['volume_gb']} has no effect with {cloud['instance_type']}, whose disk is part "
            "of the machine; leave it out, or use a type such as ml.m5."
        )
    if cloud["features"] not in (None, False):
        parse_s3_uri(cloud["features"], "sagemaker.features")
    if cloud["features_first"] not in (None, True, False):
        raise DogbreedError(f"sagemaker.features_first={cloud['features_first']} is neither true nor false, nor null.")
    if cloud["features_first"] and (cloud["features"] is False or cloud["isolate"] or config["cache"]["mode"] == "off"):
        raise DogbreedError(
            "sagemaker.features_first=true needs the cache, and S3 for it: no isolate, no features=false."
        )
    for key, least in _AT_LEAST.items():
        if cloud[key] < least:
            raise DogbreedError(f"sagemaker.{key}={cloud[key]} is out of range; it is a whole number from {least}.")
    counts = {key: cloud[key] for key in ("parallel", "max_search")}
    for key, value in {**counts, "stop_search.not_improving": cloud["stop_search"]["not_improving"]}.items():
        if value is not None and not (isinstance(value, int) and value is not True and value >= 1):
            raise DogbreedError(f"sagemaker.{key}={value} is out of range; it is a whole number from 1, or null.")
    good_enough = cloud["stop_search"]["at"]
    if good_enough is not None and (isinstance(good_enough, bool) or not isinstance(good_enough, int | float)):
        raise DogbreedError(f"sagemaker.stop_search.at={good_enough} is no number.")
    max_run = cloud["max_run"]
    if max_run is not None and not (isinstance(max_run, int) and max_run is not True and max_run >= 1):
        raise DogbreedError(f"sagemaker.max_run={max_run} is out of range; it is a whole number of seconds, or null.")
    if cloud["channels"] not in ("splits", "root"):
        raise DogbreedError(f"sagemaker.channels={cloud['channels']} is unknown; it is splits or root.")
    if config["data"]["labels"]:
        _check_labels(config)
    if cloud["max_wait"] is not None:
        _check_wait(cloud)
    if cloud["spot"] and cloud["keep_alive"]:
        raise DogbreedError(
            "sagemaker.keep_alive cannot go with sagemaker.spot=true: spot machines are not kept. Choose one."
        )
    if cloud["isolate"]:
        _check_isolated(config)
    tracking.managed(config)


def _check_labels(config: Mapping[str, Any]) -> None:
    """Refuse a table that the job would not find: it comes with the images alone, and all of them."""
    root, labels = Path(config["data"]["root"]), Path(config["data"]["labels"])
    if labels.is_absolute() or (root.is_dir() and not (root / labels).is_file()):
        raise DogbreedError(
            f"data.labels={labels} would not be there for a job: put the table into {root}, and give its path in it."
        )
    if config["sagemaker"]["channels"] != "root":
        raise DogbreedError("data.labels needs sagemaker.channels=root, which sends the folder as it is.")
    if config["mode"] == "rehearse" and config["sagemaker"]["rehearsal"]["images"]:
        raise DogbreedError(
            "data.labels would name images that a rehearsal leaves out; give sagemaker.rehearsal.images=0 for all."
        )


def _check_training(config: Mapping[str, Any]) -> None:
    """Refuse what the job itself would refuse."""
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


def _check_wait(cloud: Mapping[str, Any]) -> None:
    wait = cloud["max_wait"]
    if not isinstance(wait, int) or wait is True:
        raise DogbreedError(f"sagemaker.max_wait={wait} is out of range; it is a whole number of seconds.")
    if not cloud["spot"]:
        raise DogbreedError("sagemaker.max_wait is for spot jobs; give sagemaker.spot=true too, or leave it out.")
    if cloud["max_run"] is not None and wait < cloud["max_run"]:
        raise DogbreedError(
            f"sagemaker.max_wait={wait} is less than sagemaker.max_run={cloud['max_run']}; the waiting counts the work "
            "too, so it must be at least as long."
        )


def _check_isolated(config: Mapping[str, Any]) -> None:
    cloud = config["sagemaker"]
    if config["model"]["weights"] == "imagenet" and not cloud["weights"]:
        raise DogbreedError(
            "sagemaker.isolate=true leaves the job without network, so it cannot fetch the ImageNet weights; give "
            "model.weights=PATH (it is sent along) or sagemaker.weights=s3://bucket/file."
        )


def check_disks(cloud: Mapping[str, Any], machine: str) -> None:
    """Refuse a key for the disks of a machine that has its own, which SageMaker does not encrypt with it."""
    if cloud["volume_kms_key"] and LOCAL_DISKS.match(machine):
        raise DogbreedError(
            f"sagemaker.volume_kms_key cannot go with {machine}: its disk is part of the machine, which encrypts it "
            "with a key of its own, and SageMaker refuses the request. Leave it out, or use a type such as ml.m5."
        )


# Requests

MAX_RANGES = 30  # of a tuning job; the model does not say

# The key of the configuration that a field comes from, for the sentence.
_KEYS = {
    "InstanceType": "sagemaker.instance_type",
    "InstanceCount": "sagemaker.instance_count",
    "VolumeSizeInGB": "sagemaker.volume_gb",
    "KeepAlivePeriodInSeconds": "sagemaker.keep_alive",
    "MaxRuntimeInSeconds": "sagemaker.max_run",
    "MaxWaitTimeInSeconds": "sagemaker.max_wait",
    "TrainingImage": "sagemaker.image",
    "RoleArn": "sagemaker.role",
    "KmsKeyId": "sagemaker.kms_key",
    "VolumeKmsKeyId": "sagemaker.volume_kms_key",
    "Subnets": "sagemaker.subnets",
    "SecurityGroupIds": "sagemaker.security_groups",
    "Environment": "sagemaker.environment",
    "Tags": "sagemaker.tags",
    "MaxNumberOfTrainingJobs": "search.trials",
    "MaxParallelTrainingJobs": "search.parallel",
    "RandomSeed": "seed",
    "HyperParameterTuningJobName": "sagemaker.warm_start",
}


@cache
def service_model(service: str = "sagemaker") -> Any:
    """Return botocore's model of a service, from its own files."""
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def check_request(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> None:
    """Refuse a request that the service would refuse.

    Args:
        operation: Such as `CreateTrainingJob`.
        request: Its parameters.
        service: As boto3 names it.

    Raises:
        DogbreedError: Says which field, what it is and what it may be.
    """
    from botocore.validate import ParamValidator

    shape = service_model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        lines = " ".join(report.generate_report().split("\n"))
        raise DogbreedError(f"The request is not one that {operation} takes: {lines}.")
    for violation in _violations(shape, request, ()):
        raise DogbreedError(violation)
    ranges = request.get("HyperParameterTuningJobConfig", {}).get("ParameterRanges", {})
    if (count := sum(map(len, ranges.values()))) > MAX_RANGES:
        raise DogbreedError(f"search.space has {count} ranges, and a tuning job may have {MAX_RANGES}; take some out.")


def _violations(shape: Any, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """Yield what the model forbids beyond types and required members: patterns, lengths, ranges, words."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _violations(shape.members[name], inner, (*path, name))
        return
    limits = shape.metadata
    size = len(value) if shape.type_name in ("string", "list", "map") else value
    most = limits.get("max")
    if most is not None and not isinstance(value, bool) and size > most:
        unit = {"string": "characters", "list": "entries", "map": "entries"}.get(shape.type_name)
        excess = f"has {size} {unit}, and may have {most}" if unit else f"is {size}, and may be {most} at most"
        yield f"{_label(path, value)} {excess}."
    if shape.type_name == "list":
        for number, inner in enumerate(value):
            yield from _violations(shape.member, inner, (*path, str(number)))
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from _violations(shape.key, name, (*path, name))
            yield from _violations(shape.value, inner, (*path, name))
    elif shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            near = difflib.get_close_matches(value, shape.enum, 1, 0.3)
            hint = f"; did you mean {near[0]}?" if near else "."
            yield f"{_label(path, value)} is not one that SageMaker knows{hint}"
        pattern = limits.get("pattern")
        if pattern and not re.fullmatch(_python(pattern), value, re.ASCII):
            yield f"{_label(path, value)} does not have the form that SageMaker wants, {pattern}."


def _python(pattern: str) -> str:
    r"""Translate the model's patterns, which are Java's: `\p{L}` and the like are not known here."""
    pattern = pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")  # written in UTF-16 there
    pattern = pattern.replace(r"\p{Print}", r"[\x20-\x7E]")
    return re.sub(r"\\p\{(\w)\w*\}", lambda match: {"L": r"a-zA-Z", "N": "0-9", "Z": " "}.get(match[1], ""), pattern)


def _label(path: tuple[str, ...], value: Any) -> str:
    """Name a field by the key of the configuration that it comes from."""
    names = [name for name in path if not name.isdigit()]
    key = next((_KEYS[name] for name in reversed(names) if name in _KEYS), None)
    field = ".".join(path)
    shown = f"={value}" if isinstance(value, str | int | float) and len(str(value)) < 100 else ""
    return f"{key}{shown} ({field})" if key else f"{field}{shown}"
