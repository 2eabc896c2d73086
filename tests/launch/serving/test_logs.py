"""Logs and metrics as CloudWatch has them, of an endpoint and of a job."""

import time

import boto3
import pytest
from support.cloud import ROLE

from launch import sagemaker_logs

pytestmark = pytest.mark.slow


def write(group: str, stream: str, *messages: str) -> None:
    client = boto3.client("logs")
    client.create_log_group(logGroupName=group)
    client.create_log_stream(logGroupName=group, logStreamName=stream)
    now = int(time.time() * 1000)
    events = [{"timestamp": now + number, "message": message} for number, message in enumerate(messages)]
    client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def test_an_endpoint(cloud, capsys):
    client = boto3.client("sagemaker")
    variant = {"VariantName": "AllTraffic", "ModelName": "m", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    client.create_model(ModelName="m", ExecutionRoleArn=ROLE)
    client.create_endpoint_config(EndpointConfigName="c", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="dogs", EndpointConfigName="c")
    write("/aws/sagemaker/Endpoints/dogs", "AllTraffic/i-1", "model loaded", "200", "503")
    names = [{"Name": "EndpointName", "Value": "dogs"}, {"Name": "VariantName", "Value": "AllTraffic"}]
    data = [{"MetricName": "Invocations", "Dimensions": names, "Value": 1.0} for _ in range(3)]
    boto3.client("cloudwatch").put_metric_data(Namespace="AWS/SageMaker", MetricData=data)
    assert sagemaker_logs.main(["dogs", "--lines", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[9:] for line in lines[:2]] == ["200", "503"], "the last of them, with their time"
    assert "  Invocations          3" in lines
    assert "  Invocation5XXErrors  no value" in lines


def test_a_job(cloud, capsys):
    write("/aws/sagemaker/TrainingJobs", "one/algo-1-1", "epoch=1")
    assert sagemaker_logs.main(["one"]) == 0
    assert capsys.readouterr().out.endswith(" epoch=1\n")
    assert sagemaker_logs.main(["other"]) == 2
    assert "There is no endpoint other, and no job of this name wrote a log" in capsys.readouterr().err
    assert sagemaker_logs.main(["one", "--lines", "0"]) == 2
