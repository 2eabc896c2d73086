"""What keeps an endpoint from harm while nobody looks: an update that goes back by itself, and an end that comes."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.naming import partition

BY_SCHEDULER = {"Key": "expires-by", "Value": "scheduler"}  # marks an endpoint that a schedule deletes
ROOM_SECONDS = 3600  # for an update to start its instances, besides the time that they are watched for


def check(options: Mapping[str, Any], watch: float) -> None:
    """Refuse guardrails that could not work.

    Args:
        options: The group `sagemaker.endpoint`.
        watch: Seconds.

    Raises:
        DogbreedError: Says which, and the way out.
    """
    canary, latency, errors = options["canary"], options["max_latency"], options["max_errors"]
    if (watch or canary) and not options["update"]:
        raise DogbreedError("watch and canary are for an update of an endpoint; give update=true, or leave them out.")
    if canary is not None and not watch:
        raise DogbreedError(f"canary={canary} needs watch=10m: without it nothing would be noticed.")
    if watch > 3600:
        raise DogbreedError(f"watch={options['watch']} is out of range; SageMaker watches for 60m at most.")
    if canary is not None and not (type(canary) is int and 1 <= canary <= 50):
        raise DogbreedError(f"canary={canary} is out of range; it is a whole number of percent from 1 to 50.")
    if canary is not None and options["instance_count"] < 2:
        raise DogbreedError(f"canary={canary} needs instance_count=2 or more: a part of one instance is none.")
    if not 0 < errors < 100:
        raise DogbreedError(f"max_errors={errors} is out of range; it is a number of percent between 0 and 100.")
    if latency is not None and not latency > 0:
        raise DogbreedError(f"max_latency={latency} is out of range; it is a number of milliseconds above 0.")


def alarms(name: str, variant: str, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the requests of the alarms that put an update back: errors of the server, and latency where limited.

    https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-configuration.html

    Args:
        name: Of the endpoint.
        variant: Its one variant.
        options: The group `sagemaker.endpoint`.
    """
    limits = {"Invocation5XXErrors": options["max_errors"] / 100}  # the metric is 1 for each such answer, else 0
    if options["max_latency"] is not None:
        limits["ModelLatency"] = 1000.0 * options["max_latency"]  # in microseconds
    dimensions = [{"Name": "EndpointName", "Value": name}, {"Name": "VariantName", "Value": variant}]
    return [
        {
            "AlarmName": f"{name}-{metric}",
            "Namespace": "AWS/SageMaker",
            "MetricName": metric,
            "Dimensions": dimensions,
            "Statistic": "Average",
            "Period": 60,
            "EvaluationPeriods": 1,
            "Threshold": limit,
            "ComparisonOperator": "GreaterThanThreshold",
            "TreatMissingData": "notBreaching",  # no request, no error
        }
        for metric, limit in limits.items()
    ]


def deployment_config(watch: int, canary: int | None, names: list[str]) -> dict[str, Any]:
    """Return how an update replaces the instances: new ones beside the old, which stay as long as alarms are watched.

    Args:
        watch: Seconds, after the first requests go to the new instances and after all do.
        canary: Percent of the capacity that gets requests first; None for all at once.
        names: Of the alarms.
    """
    traffic: dict[str, Any] = {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}
    if canary is not None:
        share = {"Type": "CAPACITY_PERCENT", "Value": canary}
        traffic = {"Type": "CANARY", "CanarySize": share, "WaitIntervalInSeconds": watch}
    return {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": traffic,
            "TerminationWaitInSeconds": watch,
            "MaximumExecutionTimeoutInSeconds": 2 * watch + ROOM_SECONDS,
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": name} for name in names]},
    }


def schedule(name: str, end: datetime, role: str, region: str) -> dict[str, Any]:
    """Return the request of a schedule that deletes an endpoint once, and then itself.

    https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-targets-universal.html

    Args:
        name: Of the endpoint.
        end: In UTC.
        role: ARN of the role that the schedule runs under.
        region: Of the endpoint.
    """
    return {
        "Name": name,
        "ScheduleExpression": f"at({end:%Y-%m-%dT%H:%M:00})",
        "ScheduleExpressionTimezone": "UTC",
        "FlexibleTimeWindow": {"Mode": "OFF"},
        "ActionAfterCompletion": "DELETE",
        "Target": {
            "Arn": f"arn:{partition(region)}:scheduler:::aws-sdk:sagemaker:deleteEndpoint",
            "RoleArn": role,
            "Input": json.dumps({"EndpointName": name}),
        },
    }
