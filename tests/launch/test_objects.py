"""Objects of the SageMaker SDK: what they send, caught on its way, is what the plan of the same settings shows."""

import json
from functools import partial

import pytest
import yaml
from support.cloud import ROLE, SMALL, put_photographs, said
from support.exports import export_tiny

from dogbreed.core.errors import DogbreedError
from launch import deployment, estimator, sagemaker_deploy, tuner

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


@pytest.mark.filterwarnings("ignore:Running within a PipelineSession")
def test_the_sdk_makes_the_same_steps_of_a_pipeline(cloud, run, settings):
    from sagemaker.core.workflow.pipeline_context import PipelineSession
    from sagemaker.mlops.workflow.pipeline import Pipeline
    from sagemaker.mlops.workflow.steps import TrainingStep

    trainer = estimator([*settings, "sagemaker.spot=true"])
    trainer.sagemaker_session = PipelineSession()
    step = TrainingStep(name="Train", step_args=trainer.train())
    pipeline = Pipeline(name="p", steps=[step], sagemaker_session=trainer.sagemaker_session)
    (theirs,) = json.loads(pipeline.definition())["Steps"]
    ours = json.loads(run("train", "mode=plan", "as=pipeline", *settings, "sagemaker.spot=true").out)
    assert {**theirs, "Arguments": _on(theirs["Arguments"])} == ours["Steps"][0]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


CLOSED = (
    *("sagemaker.kms_key=alias/a", "sagemaker.subnets=[subnet-1]", "sagemaker.security_groups=[sg-1]"),
    "sagemaker.tags={a: b}",
)


def described(left_out, body, ask):
    return said(**{name: value for name, value in ask().items() if value and name != left_out})


@pytest.mark.parametrize(
    "words",
    [
        [*CLOSED, "capture=10", "instance_count=2", "instance_type=ml.m5.xlarge", "sagemaker.volume_kms_key=alias/b"],
        ["kind=serverless", "memory_mb=2048", "concurrency=3"],
        [*CLOSED, "kind=async", "concurrency=2"],
    ],
    ids=["realtime", "serverless", "async"],
)
def test_a_deployment_sends_the_plan(cloud, model, capsys, words):
    words = ["sagemaker.bucket=mine", f"sagemaker.role={ROLE}", "sagemaker.region=us-east-1", *words]
    assert sagemaker_deploy.main([str(model), "mode=plan", *words]) == 0
    expected = [document for document in yaml.safe_load_all(capsys.readouterr().out) if document]
    assert not cloud.requests, "a plan asks nobody"
    # moto describes what was not given as empty, and captured data without their state: the SDK refuses to read that.
    for kind, left_out in {"Model": "", "EndpointConfig": "", "Endpoint": "DataCaptureConfig"}.items():
        cloud.answer(f"Describe{kind}", partial(described, left_out))
    endpoint = deployment(model, words).create()
    sent = [cloud.sent(f"Create{kind}") for kind in ("Model", "EndpointConfig", "Endpoint")]
    assert [request for requests in sent for request in requests] == expected
    assert endpoint.endpoint_name == "dogbreed-squeezenet1-1"
    assert endpoint.endpoint_status == "InService"


def test_what_the_sdk_has_no_resource_for_is_said(cloud, model):
    words = ["sagemaker.bucket=mine", f"sagemaker.role={ROLE}", "sagemaker.region=us-east-1", "max_count=3"]
    with pytest.raises(DogbreedError, match="The SDK has no resource for RegisterScalableTarget"):
        deployment(model, words)
