"""What CloudWatch has of an endpoint or a job: the last lines of its log, and an endpoint's metrics."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from dogbreed.core.errors import DogbreedError
from launch.aws.account import Account
from launch.aws.errors import AwsError, explained
from launch.serving.request import VARIANT
from launch.serving.resources import find

JOBS = ("TrainingJobs", "TransformJobs")
# Of an endpoint: namespace, metric, statistic, unit as it is printed and its share of CloudWatch's.
METRICS = (
    ("AWS/SageMaker", "Invocations", "Sum", "", 1.0),
    ("AWS/SageMaker", "Invocation4XXErrors", "Sum", "", 1.0),
    ("AWS/SageMaker", "Invocation5XXErrors", "Sum", "", 1.0),
    ("AWS/SageMaker", "ModelLatency", "p50", "ms", 1e-3),
    ("AWS/SageMaker", "ModelLatency", "p99", "ms", 1e-3),
    ("/aws/sagemaker/Endpoints", "CPUUtilization", "Average", "%", 1.0),
    ("/aws/sagemaker/Endpoints", "MemoryUtilization", "Average", "%", 1.0),
)


def show(account: Account, name: str, minutes: int, lines: int) -> Iterator[str]:
    """Yield the last lines of the log, and for an endpoint its metrics.

    Args:
        account: That it is in.
        name: Of an endpoint, a training job, a trial, or a batch.
        minutes: How far back.
        lines: At most so many.

    Raises:
        DogbreedError: There is no log of such a name.
    """
    start = datetime.now(UTC) - timedelta(minutes=minutes)
    endpoint = find(account.client("sagemaker"), "Endpoint", name) is not None
    groups = [(f"Endpoints/{name}", "")] if endpoint else [(group, f"{name}/") for group in JOBS]
    logs = [events for group, prefix in groups if (events := _events(account, group, prefix, start)) is not None]
    if not any(logs) and not endpoint:
        raise DogbreedError(f"There is no endpoint {name}, and no job of this name wrote a log in {minutes} minutes.")
    for event in [event for events in logs for event in events][-lines:]:
        moment = datetime.fromtimestamp(event["timestamp"] / 1000, UTC)
        yield f"{moment:%H:%M:%S} {event['message'].rstrip()}"
    if endpoint:
        yield from _metrics(account, name, start, minutes)


def _events(account: Account, group: str, prefix: str, start: datetime) -> list[dict[str, Any]] | None:
    """Return the events of a group's streams in their order; None where there is no such group."""
    pages = account.client("logs").get_paginator("filter_log_events")
    options = {"logStreamNamePrefix": prefix} if prefix else {}
    try:
        with explained(f"reading the log group /aws/sagemaker/{group}"):
            read = pages.paginate(
                logGroupName=f"/aws/sagemaker/{group}", startTime=int(start.timestamp() * 1000), **options
            )
            events = [event for page in read for event in page["events"]]
            return [event for event in events if event["logStreamName"].startswith(prefix)]
    except AwsError as error:
        if error.code == "ResourceNotFoundException":
            return None
        raise


def _metrics(account: Account, name: str, start: datetime, minutes: int) -> Iterator[str]:
    names = (("EndpointName", name), ("VariantName", VARIANT))
    dimensions = [{"Name": key, "Value": value} for key, value in names]
    queries = []
    for number, (namespace, metric, statistic, _, _) in enumerate(METRICS):
        measure = {"Namespace": namespace, "MetricName": metric, "Dimensions": dimensions}
        queries.append(
            {"Id": f"m{number}", "MetricStat": {"Metric": measure, "Period": 60 * minutes, "Stat": statistic}}
        )
    with explained(f"reading the metrics of {name}"):
        data = account.client("cloudwatch").get_metric_data(
            MetricDataQueries=queries, StartTime=start, EndTime=datetime.now(UTC) + timedelta(minutes=1)
        )
    values = {result["Id"]: result["Values"] for result in data["MetricDataResults"]}
    yield f"In the last {minutes} minutes:"
    for number, (_, metric, statistic, unit, share) in enumerate(METRICS):
        label = metric if statistic in ("Sum", "Average") else f"{metric} {statistic}"
        value = values.get(f"m{number}")
        yield f"  {label:<20} " + (f"{value[0] * share:,.4g} {unit}".rstrip() if value else "no value")
