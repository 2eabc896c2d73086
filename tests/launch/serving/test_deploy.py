"""Deployments carried out: against a moto server in the part of AWS, with a real server behind the endpoint."""

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml
from support import policies
from support.cloud import ACCOUNT, refused
from support.exports import export_tiny
from support.serving import serving
from werkzeug.wrappers import Response

import dogbreed
from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from dogbreed.data.edge_cases import drawn, edge_case_files
from dogbreed.inference import archive
from dogbreed.inference.predictor import Predictor
from dogbreed.serving.client import Endpoint, PredictionError

boto3 = pytest.importorskip("boto3")
pytest.importorskip("moto")

from botocore.awsrequest import AWSResponse  # noqa: E402

from launch import sagemaker_delete, sagemaker_deploy, sagemaker_invoke  # noqa: E402
from launch.aws import account  # noqa: E402
from launch.aws.account import offline_target  # noqa: E402
from launch.aws.iam import policy  # noqa: E402
from launch.aws.naming import MARK  # noqa: E402
from launch.rehearsal import s3  # noqa: E402
from launch.serving import certificates, resources, wheels  # noqa: E402
from launch.serving.deploy import Deployer  # noqa: E402
from launch.serving.invoke import Queue  # noqa: E402
from launch.serving.request import describe  # noqa: E402
from launch.serving.smoke_test import EndpointProbe  # noqa: E402

ROOT = Path(dogbreed.__file__).parents[1]
REGION = "us-east-1"
ROLE = "arn:aws:iam::123456789012:role/Dogs"
NAME = "dogbreed-squeezenet1-1"
CLOUD = (f"sagemaker.region={REGION}", f"sagemaker.role={ROLE}", "sagemaker.bucket=dogs")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("other") / "model", ("One", "Two", "Three", "Four"))


@pytest.fixture(scope="module")
def address(model) -> Iterator[str]:
    with serving(model) as server:
        yield server.address


@pytest.fixture
def aws(address, monkeypatch) -> Iterator[s3.LocalS3]:
    """S3, SageMaker, STS and auto scaling by moto; the endpoint's answers by our server."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(resources, "POLL_SECONDS", 0.05)
    with s3.serve(REGION) as server:
        for name, value in server.variables().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", address)
        urlopen(Request(f"{server.endpoint}/moto-api/reset", method="POST")).read()  # noqa: S310  loopback
        yield server


def client(service: str) -> Any:
    return boto3.client(service, region_name=REGION)


def left() -> list[str]:
    """Names of all that is there, whoever made it."""
    sagemaker = client("sagemaker")
    return [
        *(entry["EndpointName"] for entry in sagemaker.list_endpoints()["Endpoints"]),
        *(entry["EndpointConfigName"] for entry in sagemaker.list_endpoint_configs()["EndpointConfigs"]),
        *(entry["ModelName"] for entry in sagemaker.list_models()["Models"]),
    ]


def expiry() -> str:
    arn = client("sagemaker").describe_endpoint(EndpointName=NAME)["EndpointArn"]
    tags = client("sagemaker").list_tags(ResourceArn=arn)["Tags"]
    return {tag["Key"]: tag["Value"] for tag in tags}["expires"]  # moto keeps the old value too, and lists it first


def scaled() -> list[dict[str, Any]]:
    found = client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")
    return list(found["ScalableTargets"])


def run_deploy(model: Path, *words: str) -> int:
    return sagemaker_deploy.main([str(model), *CLOUD, *words])


def test_submit_invoke_delete(aws, model, capsys, tmp_path):
    assert run_deploy(model, "mode=plan", "expires=2h", "max_count=3") == 0
    planned = [document for document in yaml.safe_load_all(capsys.readouterr().out) if document]
    assert left() == [], "a plan makes nothing"

    assert run_deploy(model, "expires=2h", "max_count=3") == 0
    said = capsys.readouterr().out
    assert "It answers as certified: odd/drawn.jpg is" in said

    sagemaker = client("sagemaker")
    made = {
        "ModelName": sagemaker.describe_model(ModelName=planned[0]["ModelName"]),
        "EndpointConfigName": sagemaker.describe_endpoint_config(EndpointConfigName=planned[1]["EndpointConfigName"]),
        "EndpointName": sagemaker.describe_endpoint(EndpointName=planned[2]["EndpointName"]),
    }
    for request, found in zip(planned, made.values(), strict=False):
        for field, value in request.items():
            if field == "Tags":
                arn = next(found[key] for key in ("ModelArn", "EndpointConfigArn", "EndpointArn") if key in found)
                tags = {tag["Key"]: tag["Value"] for tag in sagemaker.list_tags(ResourceArn=arn)["Tags"]}
                assert tags.keys() == {tag["Key"] for tag in value}
                assert tags["created-by"] == "dogbreed"
            elif field == "ProductionVariants":
                assert [{k: got[k] for k in want} for got, want in zip(found[field], value, strict=True)] == value
            else:
                assert found[field] == value, field
    bucket, key = planned[0]["PrimaryContainer"]["ModelDataUrl"].removeprefix("s3://").split("/", 1)
    stored = client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    with archive.assemble(model) as packed:
        assert packed.write(tmp_path / "model.tar.gz").read_bytes() == stored
    (target,) = scaled()
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)

    photo = tmp_path / "dog.jpg"
    photo.write_bytes(drawn())
    assert sagemaker_invoke.main([NAME, str(photo), "--json", "--region", REGION]) == 0
    answer = json.loads(capsys.readouterr().out)
    (expected,) = Predictor(model).predict([photo])
    assert (answer["label"], answer["index"]) == (expected.label, expected.index)
    assert answer["probability"] == pytest.approx(expected.probability, abs=1e-6)

    assert run_deploy(model, "max_count=3") == 0, "the same again"
    said = capsys.readouterr().out
    assert "already with exactly this model" in said
    assert re.search(rf"{NAME} expires at 20\S+Z", said)
    before = expiry()
    assert run_deploy(model, "expires=9d") == 0
    assert before < expiry(), "the same again, for longer"

    assert sagemaker_delete.main(list(CLOUD)) == 0
    said = capsys.readouterr().out
    assert re.search(rf"endpoint +{NAME} +InService +0\.115  20", said)
    assert sagemaker_delete.main([NAME, "mode=plan", *CLOUD]) == 0
    assert capsys.readouterr().out.count("Would delete") == 3
    assert len(left()) == 3
    assert sagemaker_delete.main([NAME, *CLOUD]) == 0
    assert left() == []
    assert scaled() == []
    capsys.readouterr()
    assert sagemaker_delete.main(list(CLOUD)) == 0
    assert "This project has nothing" in capsys.readouterr().out


def test_an_image_of_ones_own_is_rehearsed_without_java(model, monkeypatch, tmp_path, capfd):
    """With the certificate of the test before, or one that is made."""
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    image = "123456789012.dkr.ecr.us-east-1.amazonaws.com/dogs/serve:1"
    assert run_deploy(model, "mode=rehearse", f"image={image}") == 0
    said = capfd.readouterr().out
    assert "python -m dogbreed.serve plays its part" in said
    assert re.search(r"It answers \d+ files as certified", said)
    assert said.endswith("Rehearsed and cleaned up.\n")


def test_the_certificate_names_the_wheels_of_an_endpoint_without_network(model):
    with archive.assemble(model) as packed:
        image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
        sent = wheels.carried(packed, image)
        arguments = (model, packed, {"odd/drawn.jpg": drawn()}, [])
        certificates.certify(*arguments, sent)
        pinned = {wheel.file: wheel.sha256 for wheel in wheels.WHEELS}
        assert {name.split("-")[0] for name in pinned} == {"pillow", "safetensors"}
        assert json.loads((model / "certificate.json").read_text())["wheels"] == pinned
        assert pinned.items() <= {Path(name).name: digest for name, digest in sent.digests.items()}.items()
        assert certificates.certify(*arguments, packed)["passed"], "it is the certificate of any archive of this model"


def test_an_endpoint_that_answers_otherwise_is_taken_back(aws, model, other, monkeypatch, capsys):
    with serving(other) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.address)
        assert run_deploy(model, "max_count=2") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: The endpoint says")
    assert error.endswith("What was made is gone again.")
    assert left() == []
    assert scaled() == []


def test_an_endpoint_that_cannot_be_asked_is_taken_back(aws, model, monkeypatch, capsys):
    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", "http://127.0.0.1:9")
    monkeypatch.setattr(account, "ATTEMPTS", 1)
    assert run_deploy(model) == 2
    assert "could not be reached" in capsys.readouterr().err
    assert left() == []


def test_a_fault_of_this_program_leaves_nothing_behind(aws, model, monkeypatch, capsys):
    def broken(self: EndpointProbe, name: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(EndpointProbe, "__call__", broken)
    assert run_deploy(model, "max_count=2") == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert left() == []
    assert scaled() == []


def test_names_that_are_taken(aws, model, other, capsys):
    assert run_deploy(model) == 0
    before = left()
    assert run_deploy(model, "instance_type=ml.m5.xlarge") == 2
    assert "update=true" in capsys.readouterr().err
    assert left() == before
    sagemaker = client("sagemaker")
    arn = sagemaker.describe_endpoint(EndpointName=NAME)["EndpointArn"]
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["created-by"])
    assert run_deploy(model, "instance_type=ml.m5.xlarge", "update=true") == 2
    assert "that this project has not made" in capsys.readouterr().err
    assert left() == before
    assert sagemaker_delete.main(["all=true", *CLOUD]) == 0
    assert left() == [NAME], "what is not ours stays"


@pytest.fixture
def updates(monkeypatch) -> list[dict[str, Any]]:
    """The bodies of UpdateEndpoint, which moto has not: the answer is made here, and its effect on moto's records."""
    bodies: list[dict[str, Any]] = []

    def answer(request: Any, **_: Any) -> AWSResponse:
        bodies.append(json.loads(request.body))
        endpoint = record(bodies[-1]["EndpointName"])
        endpoint.endpoint_config_name = bodies[-1]["EndpointConfigName"]
        return AWSResponse(request.url, 200, {}, _Raw(json.dumps({"EndpointArn": endpoint.arn}).encode()))

    before_sagemaker(monkeypatch, "UpdateEndpoint", answer)
    return bodies


def before_sagemaker(monkeypatch: pytest.MonkeyPatch, operation: str, answer: Any) -> None:
    """Has a call, or with "" every call, to SageMaker answered by a function, where it answers."""
    make = account.Account.client

    def hooked(self: account.Account, service: str, **options: Any) -> Any:
        made = make(self, service, **options)
        if service == "sagemaker":
            made.meta.events.register(f"before-send.sagemaker.{operation}".rstrip("."), answer)
        return made

    monkeypatch.setattr(account.Account, "client", hooked)


def test_update_in_place(aws, address, model, other, updates, monkeypatch, capsys):
    assert run_deploy(model) == 0
    before = left()
    assert run_deploy(model, "instance_type=ml.m5.xlarge", "update=true") == 0, capsys.readouterr().err
    (new,) = [body["EndpointConfigName"] for body in updates]
    assert new not in before
    assert sorted(left()) == sorted([NAME, new, before[2]]), "the old settings are gone, the same model stays"

    with serving(other) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", server.address)
        assert run_deploy(model, "instance_type=ml.g4dn.xlarge", "update=true") == 2
    assert [body["EndpointConfigName"] for body in updates[2:]] == [new], "it went back"
    assert client("sagemaker").describe_endpoint(EndpointName=NAME)["EndpointConfigName"] == new
    assert sorted(left()) == sorted([NAME, new, before[2]])

    monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", address)
    assert not any("RetainAllVariantProperties" in body for body in updates), "a count that was given is used"
    assert run_deploy(model, "instance_type=ml.m5.2xlarge", "update=true", "max_count=3") == 0
    assert run_deploy(model, "instance_type=ml.m5.4xlarge", "update=true") == 0
    assert updates[-1]["RetainAllVariantProperties"], "what has scaled out stays so"
    assert updates[-1]["ExcludeRetainedVariantProperties"] == [{"VariantPropertyType": "DataCaptureConfig"}]

    watched = ("update=true", "watch=5m", "canary=50", "instance_count=2", "sagemaker.region=us-east-1")
    capsys.readouterr()
    assert run_deploy(model, *watched, "mode=plan") == 0
    plan = [document for document in yaml.safe_load_all(capsys.readouterr().out) if document]
    during: list[str] = []

    def look(self: EndpointProbe, name: str) -> None:
        during.extend(a["AlarmName"] for a in client("cloudwatch").describe_alarms()["MetricAlarms"])

    monkeypatch.setattr(EndpointProbe, "__call__", look)
    assert run_deploy(model, *watched) == 0
    (config,) = (document["DeploymentConfig"] for document in plan if "DeploymentConfig" in document)
    assert updates[-1]["DeploymentConfig"] == config
    assert f"{NAME}-Invocation5XXErrors" in during
    names = [alarm["AlarmName"] for alarm in client("cloudwatch").describe_alarms()["MetricAlarms"]]
    assert f"{NAME}-Invocation5XXErrors" not in names, "they are there for the update alone"


def test_an_update_needs_no_more_than_its_policy_beside_the_endpoints_of_others(aws, model, updates, monkeypatch):
    sagemaker = client("sagemaker")
    sagemaker.create_model(ModelName="theirs", ExecutionRoleArn=ROLE)
    variant = {"VariantName": "a", "ModelName": "theirs", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName="theirs", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="theirs", EndpointConfigName="theirs")
    config = compose([*CLOUD, "sagemaker.endpoint.update=true"])
    statements = policy("deploy", config, offline_target(config))["Statement"]
    denied: list[str] = []

    def enforce(request: Any, event_name: str, **_: Any) -> AWSResponse | None:
        operation, body = event_name.rpartition(".")[2], json.loads(request.body)
        arns = [body["ResourceArn"]] if "ResourceArn" in body else arns_of(body)
        tags = {tag["Key"]: tag["Value"] for tag in body.get("Tags", [])} if operation.startswith("Create") else None
        if all(policies.allows(statements, f"sagemaker:{operation}", arn, tags) for arn in arns):
            return None
        denied.extend(f"{operation} {arn}" for arn in arns)
        error = {"__type": "AccessDeniedException", "message": "no"}
        return AWSResponse(request.url, 400, {}, _Raw(json.dumps(error).encode()))

    before_sagemaker(monkeypatch, "", enforce)
    assert run_deploy(model) == 0
    assert run_deploy(model, "instance_type=ml.m5.xlarge", "update=true") == 0
    (update,) = updates
    assert all(policies.allows(statements, "sagemaker:UpdateEndpoint", arn) for arn in arns_of(update))
    theirs = arns_of({"EndpointName": "theirs", "EndpointConfigName": "theirs", "ModelName": "theirs"})
    assert set(denied) == {f"ListTags {arn}" for arn in theirs}, "what is denied is of others, and no obstacle"
    assert sorted(left()).count("theirs") == 3
    assert len(left()) == 6, "the old settings are gone"


def arns_of(body: dict[str, Any]) -> list[str]:
    """What a call is about; CreateEndpoint needs the right to its settings too, as UpdateEndpoint does."""
    kinds = {"EndpointName": "endpoint", "EndpointConfigName": "endpoint-config", "ModelName": "model"}
    start = f"arn:aws:sagemaker:{REGION}:123456789012"
    return [f"{start}:{kind}/{body[key].lower()}" for key, kind in kinds.items() if key in body] or ["*"]


def test_an_endpoint_that_scales_to_zero(aws, model, monkeypatch, capsys):
    monkeypatch.setattr(EndpointProbe, "__call__", lambda self, name: None)  # no moto runs an asynchronous endpoint
    assert run_deploy(model, "kind=async", "min_count=0", "max_count=2") == 0, capsys.readouterr().err
    policies = client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")
    step = next(each for each in policies["ScalingPolicies"] if each["PolicyType"] == "StepScaling")
    (alarm,) = client("cloudwatch").describe_alarms(AlarmNamePrefix=NAME)["MetricAlarms"]
    assert alarm["AlarmActions"] == [step["PolicyARN"]]
    assert sagemaker_delete.main([NAME, *CLOUD]) == 0
    assert client("cloudwatch").describe_alarms(AlarmNamePrefix=NAME)["MetricAlarms"] == []
    assert scaled() == []


def record(name: str) -> Any:
    """moto's own record of an endpoint, whose state can be set."""
    from moto.sagemaker.models import sagemaker_backends

    return sagemaker_backends["123456789012"][REGION].endpoints[name]


def test_ctrl_c_while_it_is_being_made_waits_until_it_can_be_deleted(aws, model):
    """SageMaker deletes no endpoint that it is making; without its settings such an endpoint would hang, and cost."""
    config = compose([*CLOUD])
    here = account.Account(config)
    said: list[str] = []

    def interrupt(name: str) -> None:
        record(name).endpoint_status = "Creating"
        raise KeyboardInterrupt

    def say(line: str) -> None:
        said.append(line)
        if "Waiting" in line:
            assert len(left()) == 3, "nothing goes before the endpoint does"
            record(NAME).endpoint_status = "InService"

    with archive.assemble(model) as packed:
        deployment = describe(config, packed, "squeezenet1_1", here.with_role(), "image", datetime.now(UTC))
        with pytest.raises(KeyboardInterrupt):
            Deployer(here, interrupt, say=say).deploy(deployment)
    assert f"Waiting for {NAME}, which is Creating" in said
    assert left() == []


def test_an_endpoint_that_cannot_be_deleted_keeps_its_settings(aws, model, monkeypatch, capsys):
    monkeypatch.setattr(resources, "START_SECONDS", 0)

    def never(self: EndpointProbe, name: str) -> None:
        record(name).endpoint_status = "Creating"
        raise DogbreedError("It is slow.")

    monkeypatch.setattr(EndpointProbe, "__call__", never)
    assert run_deploy(model) == 2
    assert f"Delete it: python launch/sagemaker_delete.py {NAME}" in capsys.readouterr().out
    assert len(left()) == 3


def test_an_endpoint_whose_settings_are_gone_can_be_deleted(aws, model, capsys):
    assert run_deploy(model) == 0
    client("sagemaker").delete_endpoint_config(EndpointConfigName=left()[1])
    capsys.readouterr()
    assert sagemaker_delete.main(list(CLOUD)) == 0
    assert re.search(rf"endpoint +{NAME} +InService +unknown", capsys.readouterr().out)
    assert sagemaker_delete.main([NAME, *CLOUD]) == 0
    assert NAME not in left()


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("mode=rehearse", "mode=rehearse is unknown; it is one of submit, plan"),
        ("expired=yes", "expired=yes is neither true nor false"),
    ],
)
def test_what_is_no_order_to_delete_deletes_nothing(aws, model, word, sentence, capsys):
    client("sagemaker").create_model(ModelName="ours", ExecutionRoleArn=ROLE, Tags=[MARK])
    assert sagemaker_delete.main(["all=true", word, *CLOUD]) == 2
    assert sentence in capsys.readouterr().err
    assert left() == ["ours"]


def test_the_same_again_with_another_end(aws, model, capsys):
    def expires() -> str:
        tags = client("sagemaker").list_tags(ResourceArn=record(NAME).arn)["Tags"]
        return {tag["Key"]: tag["Value"] for tag in tags}["expires"]  # moto keeps former values too, the new one last

    assert run_deploy(model, "expires=2h") == 0
    first = expires()
    assert run_deploy(model, "expires=7d") == 0
    second = expires()
    assert second > first
    capsys.readouterr()
    assert run_deploy(model) == 0
    assert expires() == second, "nothing was said about it"
    assert f"{NAME} expires at {second}" in capsys.readouterr().out


def test_a_schedule_ends_it_and_goes_with_it(aws, model, monkeypatch, capsys):
    monkeypatch.setattr(EndpointProbe, "__call__", lambda self, name: None)

    def schedules() -> list[str]:
        client_ = client("scheduler")
        listed = client_.list_schedules()["Schedules"]
        return [client_.get_schedule(Name=each["Name"])["ScheduleExpression"] for each in listed]

    assert run_deploy(model, "expires=2h", "scheduler_role=Sweeper") == 0, capsys.readouterr().err
    (first,) = schedules()
    assert run_deploy(model, "expires=7d", "scheduler_role=Sweeper") == 0
    (second,) = schedules()
    assert second > first
    assert run_deploy(model, "expires=9d") == 2
    assert f"A schedule deletes {NAME} at another time; give scheduler_role=" in capsys.readouterr().err
    assert sagemaker_delete.main([NAME, *CLOUD]) == 0
    assert schedules() == [], "another endpoint of this name would be deleted"


class _Raw:
    """A body as urllib3 gives it."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.data


def test_the_client_class(address, model):
    """One class for an address and for boto3, with the same answers, and errors that say whose fault it is."""
    runtime = boto3.client(
        "sagemaker-runtime",
        region_name=REGION,
        endpoint_url=address,
        aws_access_key_id="nobody",
        aws_secret_access_key="nothing",  # noqa: S106
    )
    here, there = Endpoint(address), Endpoint("any-name", runtime)
    assert here.predict(drawn()) == there.predict(drawn())
    reply = here.predict(drawn(), top_k=2, logits=True)
    assert (len(reply.predictions), len(reply.logits)) == (2, 4)
    assert reply.label == reply.predictions[0].label
    for endpoint in (here, there):
        with pytest.raises(PredictionError, match="truncated") as error:
            endpoint.predict(edge_case_files(drawn())["truncated.jpg"])
        assert error.value.status == 400
    with pytest.raises(PredictionError, match="an endpoint takes 6,291,456"):
        here.predict(b"x" * 6_291_457)
    with pytest.raises(PredictionError, match="cannot be reached") as error:
        Endpoint("http://127.0.0.1:9").predict(drawn())
    assert error.value.status is None
    with pytest.raises(PredictionError, match=r"none\.jpg cannot be read"):
        here.predict("none.jpg")


def test_the_queue_takes_what_invoke_endpoint_does_not(aws):
    """With the answer there already: no moto runs an asynchronous endpoint."""
    large = b"x" * 6_291_457
    s3 = client("s3")
    s3.create_bucket(Bucket="dogs")
    s3.put_object(Bucket="dogs", Key="answer", Body=b'{"predictions": [{"label": "A", "index": 0, "probability": 1}]}')

    class Runtime:
        exceptions = client("sagemaker-runtime").exceptions

        def invoke_endpoint_async(self, **asked: Any) -> dict[str, str]:
            bucket, _, key = asked["InputLocation"].removeprefix("s3://").partition("/")
            stored = s3.get_object(Bucket=bucket, Key=key)
            assert stored["Body"].read() == large
            assert (stored["ServerSideEncryption"], stored["SSEKMSKeyId"]) == ("aws:kms", "alias/a")
            return {"OutputLocation": "s3://dogs/answer"}

    queue = Queue(Runtime(), s3, "dogs", "queue", owner="123456789012", kms_key="alias/a")
    assert Endpoint("any-name", queue).predict(large).label == "A"
    with pytest.raises(PredictionError, match="an endpoint takes 100,000,000"):
        Endpoint("any-name", queue).predict(b"x" * 100_000_001)


def test_a_queue_of_this_account_alone_gets_the_images(cloud, capsys, tmp_path):
    """From the command: who owns the bucket and what encrypts the images is said with each upload."""
    (tmp_path / "dog.jpg").write_bytes(drawn())
    boto3.client("s3").create_bucket(Bucket="dogs")
    answer = b'{"predictions": [{"label": "A", "index": 0, "probability": 1}]}'
    boto3.client("s3").put_object(Bucket="dogs", Key="answer", Body=answer)
    queued = Response("{}", headers={"X-Amzn-SageMaker-OutputLocation": "s3://dogs/answer"})
    cloud.answer("POST /endpoints/any-name/async-invocations", queued, refused("ValidationError", "no"))
    command = ["any-name", str(tmp_path / "dog.jpg"), "--queue", "s3://dogs/queue", "--kms-key", "alias/a"]
    assert sagemaker_invoke.main(command) == 0, capsys.readouterr().err
    assert sagemaker_invoke.main(command) == 2
    sent = [headers for name, _, headers in cloud.requests if name.startswith("PUT /dogs/queue/requests/")]
    assert len(sent) == 2
    for headers in sent:
        lower = {name.lower(): value for name, value in headers.items()}
        assert lower["x-amz-expected-bucket-owner"] == ACCOUNT
        assert lower["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/a"
    listed = boto3.client("s3").list_objects_v2(Bucket="dogs")["Contents"]
    assert [each["Key"] for each in listed] == ["answer"], "no image stays, whatever becomes of it"


def test_the_command_that_asks(address, tmp_path, capsys):
    (tmp_path / "good.jpg").write_bytes(drawn())
    (tmp_path / "bad.jpg").write_bytes(edge_case_files(drawn())["truncated.jpg"])
    assert sagemaker_invoke.main([address, str(tmp_path / "good.jpg"), str(tmp_path / "bad.jpg"), "--top-k", "2"]) == 1
    good, bad = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r".*good\.jpg: \S+ [\d.]+% \(or \S+ [\d.]+%\)", good)
    assert "truncated" in bad
    url = ["--endpoint-url", address, "--region", REGION]
    os.environ.setdefault("AWS_ACCESS_KEY_ID", "nobody")
    os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "nothing")
    assert sagemaker_invoke.main(["any-name", str(tmp_path / "good.jpg"), "--top-k", "2", *url]) == 0
    assert capsys.readouterr().out.strip() == good, "one client for the laptop and the cloud"
    assert sagemaker_invoke.main([address, "none.jpg"]) == 2
    assert "none.jpg does not exist" in capsys.readouterr().err
    assert sagemaker_invoke.main([address, str(tmp_path), "--top-k", "2"]) == 1, "a folder: the images in it"
    assert sorted(capsys.readouterr().out.splitlines()) == sorted([bad, good])
    assert sagemaker_invoke.main(["http://127.0.0.1:9", str(tmp_path / "good.jpg")]) == 2
    assert "cannot be reached" in capsys.readouterr().err
