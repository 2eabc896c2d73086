"""Deleting in an account that others use too, with no more rights than launch/policies.py prints."""

import boto3
import pytest
from support.cloud import ROLE, Cloud, refused

from launch import sagemaker_delete
from launch.aws.naming import MARK

pytestmark = pytest.mark.slow


def make(name: str, *tags: dict[str, str]) -> None:
    """An endpoint with settings and a model of the same name."""
    client = boto3.client("sagemaker")
    client.create_model(ModelName=name, ExecutionRoleArn=ROLE, Tags=list(tags))
    variant = {"VariantName": "a", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], Tags=list(tags))
    client.create_endpoint(EndpointName=name, EndpointConfigName=name, Tags=list(tags))


def left() -> set[str]:
    return {endpoint["EndpointName"] for endpoint in boto3.client("sagemaker").list_endpoints()["Endpoints"]}


@pytest.fixture
def shared(cloud: Cloud) -> Cloud:
    """Two endpoints of ours and one of others, whose tags nobody may read."""
    make("dogbreed-vgg16", MARK)
    make("shop", MARK)
    make("theirs")

    def denied(body, ask):
        return refused("AccessDeniedException", "no") if body["ResourceArn"].endswith("/theirs") else None

    cloud.answer("ListTags", denied)
    return cloud


def test_what_is_of_others_is_no_obstacle(shared, capsys):
    assert sagemaker_delete.main(["all=true", "mode=plan"]) == 0
    planned = capsys.readouterr().out
    assert "theirs" not in planned
    assert planned.count("Would delete") == 6
    assert sagemaker_delete.main(["dogbreed-vgg16"]) == 0
    assert left() == {"shop", "theirs"}


def test_tags_of_ours_that_cannot_be_read_are_an_error(shared, capsys):
    """Else an endpoint of ours would look as if there were none, and cost."""
    shared.answer("ListTags", refused("AccessDeniedException", "no"))
    assert sagemaker_delete.main([]) == 2
    assert "The credentials may not do this while listing what there is" in capsys.readouterr().err
    assert left() == {"dogbreed-vgg16", "shop", "theirs"}
