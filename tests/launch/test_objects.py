"""Objects of the SageMaker SDK: what they send, caught on its way, is what the plan of the same settings shows."""

import pytest
import yaml
from support.cloud import ROLE, SMALL, put_photographs

from launch import estimator, tuner

pytestmark = pytest.mark.slow
KINDS = {"CreateTrainingJob": "TrainingJobName", "CreateHyperParameterTuningJob": "HyperParameterTuningJobName"}
SETTINGS = (
    *("sagemaker.bucket=mine", f"sagemaker.role={ROLE}", *SMALL, "sagemaker.job_name=one", "model.lr=0.01"),
    *("sagemaker.kms_key=alias/a", "sagemaker.subnets=[subnet-1]", "sagemaker.security_groups=[sg-1]"),
    *("sagemaker.encrypt_traffic=true", "sagemaker.tags={a: b}", "sagemaker.environment={NCCL_DEBUG: INFO}"),
    *("sagemaker.instance_type=ml.m5.xlarge", "sagemaker.volume_kms_key=alias/b", "sagemaker.volume_gb=50"),
)


@pytest.fixture
def settings(cloud, dog_tree) -> list[str]:
    """Settings under which the images are in S3 already."""
    put_photographs("mine", "dogbreed/data/dogImages")
    return [*SETTINGS, f"data.root={dog_tree}"]


def planned(run, kind: str, words: list[str]) -> dict:
    request = yaml.safe_load(run(kind, "mode=plan", *words).out)
    request.pop(KINDS["CreateTrainingJob" if kind == "train" else "CreateHyperParameterTuningJob"])
    return request


def sent(cloud, operation: str) -> dict:
    """The request without its name, to which the SDK adds the time, and without what is off and need not be said."""
    (request,) = cloud.sent(operation)
    assert request.pop(KINDS[operation]).startswith("one")
    return _on(request)


def _on(value):
    return (
        {name: _on(inner) for name, inner in value.items() if inner is not False} if isinstance(value, dict) else value
    )


@pytest.mark.parametrize(
    "more",
    [
        ["sagemaker.spot=true", "sagemaker.instance_count=2", "sagemaker.debugger.enabled=true"],
        ["sagemaker.keep_alive=60", "sagemaker.isolate=true", "sagemaker.packages=s3://mine/wheels"],
    ],
    ids=["spot and debugger", "warm and closed"],
)
def test_an_estimator_sends_the_plan(cloud, run, settings, more):
    expected = planned(run, "train", [*settings, *more])
    cloud.requests.clear()
    estimator([*settings, *more]).train(wait=False)
    assert sent(cloud, "CreateTrainingJob") == expected


def test_a_tuner_sends_the_plan(cloud, run, settings):
    more = ["search.trials=6", "sagemaker.spot=true", "sagemaker.warm_start=[a,b]", "sagemaker.max_search=7200"]
    more += ["sagemaker.stop_search={at: 0.4, not_improving: 5, converged: true}", "search.prune=false"]
    expected = planned(run, "tune", [*settings, *more])
    cloud.requests.clear()
    tuner([*settings, *more]).tune(wait=False)
    assert sent(cloud, "CreateHyperParameterTuningJob") == expected
