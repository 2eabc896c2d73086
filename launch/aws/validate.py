"""Checks a request against botocore's model of the service, before anything is sent: no account and no network."""

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from dogbreed.core.errors import DogbreedError

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
def model(service: str = "sagemaker") -> Any:
    """botocore's model of a service, from its own files."""
    import botocore.session

    return botocore.session.get_session().get_service_model(service)


def check_request(operation: str, request: Mapping[str, Any], service: str = "sagemaker") -> None:
    """Refuses a request that the service would refuse.

    Args:
        operation: Such as `CreateTrainingJob`.
        request: Its parameters.
        service: As boto3 names it.

    Raises:
        DogbreedError: Says which field, what it is and what it may be.
    """
    from botocore.validate import ParamValidator

    shape = model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        lines = " ".join(report.generate_report().split("\n"))
        raise DogbreedError(f"The request is not one that {operation} takes: {lines}.")
    for fault in _faults(shape, request, ()):
        raise DogbreedError(fault)
    ranges = request.get("HyperParameterTuningJobConfig", {}).get("ParameterRanges", {})
    if (count := sum(map(len, ranges.values()))) > MAX_RANGES:
        raise DogbreedError(f"search.space has {count} ranges, and a tuning job may have {MAX_RANGES}; take some out.")


def _faults(shape: Any, value: Any, path: tuple[str, ...]) -> Iterator[str]:
    """What the model says beyond types and required members: patterns, lengths, ranges, words."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _faults(shape.members[name], inner, (*path, name))
        return
    limits = shape.metadata
    size = len(value) if shape.type_name in ("string", "list", "map") else value
    most = limits.get("max")
    if most is not None and not isinstance(value, bool) and size > most:
        what = {"string": "characters", "list": "entries", "map": "entries"}.get(shape.type_name)
        told = f"has {size} {what}, and may have {most}" if what else f"is {size}, and may be {most} at most"
        yield f"{_told(path, value)} {told}."
    if shape.type_name == "list":
        for number, inner in enumerate(value):
            yield from _faults(shape.member, inner, (*path, str(number)))
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from _faults(shape.key, name, (*path, name))
            yield from _faults(shape.value, inner, (*path, name))
    elif shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            near = difflib.get_close_matches(value, shape.enum, 1, 0.3)
            yield f"{_told(path, value)} is not one that SageMaker knows{f'; did you mean {near[0]}?' if near else '.'}"
        pattern = limits.get("pattern")
        if pattern and not re.fullmatch(_python(pattern), value, re.ASCII):
            yield f"{_told(path, value)} does not have the form that SageMaker wants, {pattern}."


def _python(pattern: str) -> str:
    r"""The model's patterns are Java's: `\p{L}` and the like are not known here."""
    pattern = pattern.replace(r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF")  # written in UTF-16 there
    pattern = pattern.replace(r"\p{Print}", r"[\x20-\x7E]")
    return re.sub(r"\\p\{(\w)\w*\}", lambda found: {"L": r"a-zA-Z", "N": "0-9", "Z": " "}.get(found[1], ""), pattern)


def _told(path: tuple[str, ...], value: Any) -> str:
    names = [name for name in path if not name.isdigit()]
    key = next((_KEYS[name] for name in reversed(names) if name in _KEYS), None)
    field = ".".join(path)
    shown = f"={value}" if isinstance(value, str | int | float) and len(str(value)) < 100 else ""
    return f"{key}{shown} ({field})" if key else f"{field}{shown}"
