"""The requests of a deployment and what a plan says of them; nothing is sent."""

import hashlib
import json
import subprocess
import sys
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from support.exports import export_tiny

import dogbreed
from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from dogbreed.inference import archive
from launch import sagemaker_deploy
from launch.aws.account import resolve_target
from launch.aws.pricing import Prices
from launch.serving import cost, delete, deploy, request, wheels
from launch.serving.resources import Resource

NOW = datetime(2026, 5, 1, 10, 30, tzinfo=UTC)
ROLE = "arn:aws:iam::123456789012:role/Dogs"
OWN = "123456789012.dkr.ecr.us-east-1.amazonaws.com/dogs/serve:2.6"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


def describe(model: Path, *words: str) -> request.Deployment:
    _, overrides = request.split_arguments([*words, f"sagemaker.role={ROLE}"])
    config = compose(overrides)
    with archive.assemble(model) as packed:
        image = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
        where = resolve_target(config, "us-east-1", None, None)
        return request.describe(config, packed, "squeezenet1_1", where, image, NOW)


@pytest.mark.slow
def test_keys_reach_everything_that_is_kept(model, tmp_path):
    keys = ("sagemaker.kms_key=alias/a", "sagemaker.volume_kms_key=alias/b")
    settings = describe(model, "capture=10", *keys).request("CreateEndpointConfig")
    assert (settings["DataCaptureConfig"]["KmsKeyId"], settings["KmsKeyId"]) == ("alias/a", "alias/b")
    settings = describe(model, "kind=async", *keys).request("CreateEndpointConfig")
    assert settings["AsyncInferenceConfig"]["OutputConfig"]["KmsKeyId"] == "alias/a"
    job = describe(model, "kind=batch", f"input={tmp_path}", *keys).request("CreateTransformJob")
    assert job["TransformOutput"]["KmsKeyId"] == "alias/a"
    assert job["TransformResources"]["VolumeKmsKeyId"] == "alias/b"
    with pytest.raises(DogbreedError, match=r"volume_kms_key cannot go with ml\.g5\.xlarge"):
        describe(model, "instance_type=ml.g5.xlarge", *keys)


def test_realtime(model):
    made = describe(model, "expires=2h", "capture=10", "max_count=4", "target=30", "instance_count=2")
    assert [step.operation for step in made.steps] == [
        "CreateModel",
        "CreateEndpointConfig",
        "CreateEndpoint",
        "RegisterScalableTarget",
        "PutScalingPolicy",
    ]
    container = made.request("CreateModel")["PrimaryContainer"]
    assert container["ModelDataUrl"] == made.model_uri
    assert made.archive.digest[:16] in made.model_uri
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert made.request("CreateModel")["ExecutionRoleArn"] == ROLE
    settings = made.request("CreateEndpointConfig")
    (variant,) = settings["ProductionVariants"]
    assert (variant["InstanceType"], variant["InitialInstanceCount"]) == ("ml.m5.large", 2)
    assert variant["ModelName"] == made.request("CreateModel")["ModelName"]
    assert settings["DataCaptureConfig"]["InitialSamplingPercentage"] == 10
    endpoint = made.request("CreateEndpoint")
    assert endpoint["EndpointName"] == made.name == "dogbreed-squeezenet1-1"
    assert endpoint["EndpointConfigName"] == settings["EndpointConfigName"]
    assert {"Key": "created-by", "Value": "dogbreed"} in endpoint["Tags"]
    assert {"Key": "expires", "Value": "2026-05-01T12:30Z"} in endpoint["Tags"]
    limits, policy = made.request("RegisterScalableTarget"), made.request("PutScalingPolicy")
    assert (limits["MinCapacity"], limits["MaxCapacity"]) == (2, 4)
    assert limits["ResourceId"] == policy["ResourceId"] == "endpoint/dogbreed-squeezenet1-1/variant/AllTraffic"
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 30


@pytest.mark.slow
def test_names_follow_the_content(model, tmp_path):
    first, again = describe(model), describe(model, "expires=1d")
    for operation, key in (("CreateModel", "ModelName"), ("CreateEndpointConfig", "EndpointConfigName")):
        assert first.request(operation)[key] == again.request(operation)[key]
    larger = describe(model, "instance_type=ml.m5.xlarge")
    assert larger.request("CreateModel")["ModelName"] == first.request("CreateModel")["ModelName"]
    name = first.request("CreateEndpointConfig")["EndpointConfigName"]
    assert larger.request("CreateEndpointConfig")["EndpointConfigName"] != name
    other = describe(export_tiny(tmp_path / "other", temperature=1.5))
    assert other.name == first.name
    assert other.request("CreateModel")["ModelName"] != first.request("CreateModel")["ModelName"]


def test_serverless(model):
    made = describe(model, "kind=serverless", "memory_mb=2048", "concurrency=3")
    (variant,) = made.request("CreateEndpointConfig")["ProductionVariants"]
    assert variant["ServerlessConfig"] == {"MemorySizeInMB": 2048, "MaxConcurrency": 3}
    assert "InstanceType" not in variant


def test_async(model):
    made = describe(model, "kind=async", "max_count=2")
    wanted = made.request("CreateEndpointConfig")["AsyncInferenceConfig"]
    assert wanted["OutputConfig"]["S3OutputPath"].endswith("/dogbreed/answers/dogbreed-squeezenet1-1")
    assert wanted["OutputConfig"]["S3FailurePath"] == wanted["OutputConfig"]["S3OutputPath"] + "/failed"
    policy = made.request("PutScalingPolicy")["TargetTrackingScalingPolicyConfiguration"]
    assert policy["CustomizedMetricSpecification"]["MetricName"] == "ApproximateBacklogSizePerInstance"
    assert made.request("CreateModel")["PrimaryContainer"]["Environment"]["TS_MAX_REQUEST_SIZE"] == "100000000"


def test_async_scales_to_zero(model):
    """As AWS documents it: backlog per instance has no value without one, so an alarm on another metric starts it."""
    made = describe(model, "kind=async", "min_count=0", "max_count=3")
    limits = made.request("RegisterScalableTarget")
    assert (limits["MinCapacity"], limits["MaxCapacity"]) == (0, 3)
    tracking, step = (each.request for each in made.steps if each.operation == "PutScalingPolicy")
    assert tracking["PolicyType"] == "TargetTrackingScaling"
    assert step["PolicyType"] == "StepScaling"
    assert step["PolicyName"] != tracking["PolicyName"]
    adjustments = step["StepScalingPolicyConfiguration"]["StepAdjustments"]
    assert adjustments == [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}]
    alarm = made.request("PutMetricAlarm")
    assert (alarm["MetricName"], alarm["Threshold"]) == ("HasBacklogWithoutCapacity", 1)
    assert alarm["Dimensions"] == [{"Name": "EndpointName", "Value": made.name}]
    assert describe(model, "kind=async", "min_count=0").request("RegisterScalableTarget")["MaxCapacity"] == 1


def test_an_image_that_is_too_large_to_test_with_is_refused_first(tmp_path):
    image = tmp_path / "large.jpg"
    image.write_bytes(b"x" * (4 * 2**20 + 1))
    _, overrides = request.split_arguments([f"photo={image}", "kind=serverless"])
    with pytest.raises(DogbreedError, match="has 4,194,305 bytes, and kind=serverless takes 4,194,304 per request"):
        deploy.read_images(compose(overrides))
    _, overrides = request.split_arguments([f"photo={image}"])
    assert list(deploy.read_images(compose(overrides))[0]) == [str(image)]


@pytest.mark.slow
def test_an_update_that_goes_back_by_itself(model):
    words = ("update=true", "watch=10m", "canary=25", "instance_count=4", "max_errors=2", "max_latency=800")
    made = describe(model, *words)
    update = made.request("UpdateEndpoint")
    assert update["EndpointConfigName"] == made.request("CreateEndpoint")["EndpointConfigName"]
    policy = update["DeploymentConfig"]["BlueGreenUpdatePolicy"]
    canary = {"Type": "CAPACITY_PERCENT", "Value": 25}
    assert policy["TrafficRoutingConfiguration"] == {
        "Type": "CANARY",
        "CanarySize": canary,
        "WaitIntervalInSeconds": 600,
    }
    assert policy["TerminationWaitInSeconds"] == 600
    assert policy["MaximumExecutionTimeoutInSeconds"] > 600 + 600
    alarms = made.requests("PutMetricAlarm")
    rollback = update["DeploymentConfig"]["AutoRollbackConfiguration"]
    assert rollback["Alarms"] == [{"AlarmName": alarm["AlarmName"]} for alarm in alarms]
    assert [(a["MetricName"], a["Threshold"]) for a in alarms] == [
        ("Invocation5XXErrors", 0.02),
        ("ModelLatency", 800_000),
    ]
    for alarm in alarms:
        dimensions = {each["Name"]: each["Value"] for each in alarm["Dimensions"]}
        assert dimensions == {"EndpointName": made.name, "VariantName": "AllTraffic"}
    whole = describe(model, "update=true", "watch=5m").request("UpdateEndpoint")["DeploymentConfig"]
    traffic = whole["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert (traffic["Type"], whole["BlueGreenUpdatePolicy"]["TerminationWaitInSeconds"]) == ("ALL_AT_ONCE", 300)
    assert "DeploymentConfig" not in describe(model, "update=true").request("UpdateEndpoint")


@pytest.mark.slow
def test_an_endpoint_without_network_carries_what_it_installs(model):
    made, other = describe(model, "sagemaker.isolate=true"), describe(model)
    assert made.request("CreateModel")["EnableNetworkIsolation"]
    assert made.model_uri != other.model_uri, "another archive"
    lines = made.archive.texts["code/requirements.txt"].splitlines()
    assert lines[:2] == ["--no-index", "--find-links wheels"]
    pins = dict(line.split(" --hash=sha256:") for line in lines[2:])
    assert {pin.split("==")[0] for pin in pins} == {"pillow", "safetensors"}
    inside = {name: made.archive.digests[name] for name in made.archive.names if name.startswith("code/wheels/")}
    assert sorted(inside.values()) == sorted(pins.values()), "the hashes are in the archive's name too"
    for pin, sha in pins.items():
        name, version = pin.split("==")
        (wheel,) = [file for file, digest in inside.items() if digest == sha]
        assert Path(wheel).name.startswith(f"{name}-{version}-")
    assert not [name for name in other.archive.names if "wheels" in name]
    own = describe(model, "sagemaker.isolate=true", f"image={OWN}")
    assert own.archive.digest == other.archive.digest, "an image of one's own has them"


@pytest.mark.slow
def test_wheels_are_fetched_by_their_hash_and_install_with_no_index(model, tmp_path, monkeypatch):
    """With a registry of one's own, in which one wheel lies; and another under its name."""
    wheel = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("toy.py", "")
        packed.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        packed.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr("toy-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    toy = wheels.Wheel("toy==1.0", wheel.name, digest, wheel.stat().st_size)
    monkeypatch.setattr(wheels, "WHEELS", (toy, toy._replace(file="toy-2.0-py3-none-any.whl", requirement="toy==2.0")))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    made = describe(model, "sagemaker.isolate=true")
    with pytest.raises(DogbreedError, match=r"toy==2\.0 could not be fetched for the endpoint"):
        wheels.fetch(made.archive)
    monkeypatch.setattr(wheels, "WHEELS", (toy,))
    wheels.fetch(made.archive)
    assert (tmp_path / "dogbreed" / "wheels" / wheel.name).read_bytes() == wheel.read_bytes()
    code = tmp_path / "code"
    (code / "wheels").mkdir(parents=True)
    (code / "wheels" / wheel.name).write_bytes(wheel.read_bytes())
    (code / "requirements.txt").write_text(f"--no-index\n--find-links wheels\ntoy==1.0 --hash=sha256:{digest}\n")
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    target = tmp_path / "installed"
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", target, "-r", code / "requirements.txt"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert (target / "toy.py").is_file()


def test_an_end_that_comes_by_itself(model):
    made = describe(model, "expires=2h", "scheduler_role=Sweeper")
    schedule = made.request("CreateSchedule")
    assert schedule["ScheduleExpression"] == "at(2026-05-01T12:30:00)"
    assert (schedule["Name"], schedule["ActionAfterCompletion"]) == (made.name, "DELETE")
    target = schedule["Target"]
    assert target["Arn"] == "arn:aws:scheduler:::aws-sdk:sagemaker:deleteEndpoint"
    assert target["RoleArn"] == "arn:aws:iam::123456789012:role/Sweeper"
    assert json.loads(target["Input"]) == {"EndpointName": made.name}
    assert {"Key": "expires-by", "Value": "scheduler"} in made.request("CreateEndpoint")["Tags"]
    assert not describe(model, "expires=2h").requests("CreateSchedule")


def test_batch(model, tmp_path):
    made = describe(model, "kind=batch", f"input={tmp_path}", "concurrency=4")
    assert [step.operation for step in made.steps] == ["CreateModel", "CreateTransformJob"]
    job = made.request("CreateTransformJob")
    assert job["TransformJobName"] == "dogbreed-squeezenet1-1-20260501-103000"
    assert job["TransformInput"]["ContentType"] == "application/x-image"
    assert job["MaxConcurrentTransforms"] * job["MaxPayloadInMB"] <= 100
    assert made.images == tmp_path
    there = describe(model, "kind=batch", "input=s3://bucket/dogs", "output=s3://bucket/answers")
    source = there.request("CreateTransformJob")["TransformInput"]["DataSource"]["S3DataSource"]
    assert source["S3Uri"] == "s3://bucket/dogs"
    assert there.images is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["kind=lambda"], "kind=lambda is unknown; it is one of realtime, serverless, async, batch"),
        (["expires=soon"], "expires=soon is no span of time; it looks like 30m, 2h or 7d"),
        (["kind=serverless", "memory_mb=1000"], "memory_mb=1000 is out of range"),
        (["kind=serverless", "max_count=3"], "max_count=3 cannot go with kind=serverless"),
        (["kind=serverless", "concurrency=500"], "500"),
        (["kind=serverless", "capture=5"], "capture=5 cannot go with kind=serverless; it is for realtime"),
        (["kind=async", "capture=5"], "capture=5 cannot go with kind=async; it is for realtime"),
        (
            ["kind=serverless", "instance_type=ml.m5.xlarge"],
            "instance_type=ml.m5.xlarge cannot go with kind=serverless",
        ),
        (["kind=serverless", "sagemaker.volume_kms_key=alias/dogs"], "volume_kms_key cannot go with kind=serverless"),
        (["kind=serverless", "sagemaker.region=cn-north-1"], "kind=serverless is not in China's regions (cn-north-1)"),
        (["kind=serverless", "sagemaker.subnets=[subnet-1]"], "cannot go with kind=serverless"),
        (["memory_mb=2048"], "memory_mb=2048 cannot go with kind=realtime; it is for serverless"),
        (["min_count=0"], "min_count=0 cannot go with kind=realtime; it is for async"),
        (["kind=async", "min_count=2"], "min_count=2 is out of range; it is a whole number from 0 to 1"),
        (["instance_count=0"], "instance_count=0 is out of range"),
        (["max_count=1", "instance_count=2"], "max_count=1 is out of range; it is a whole number from 2"),
        (["instance_type=ml.dog.large"], "ml.dog.large"),
        (["name=bad_name"], "bad_name"),
        (["kind=batch"], "kind=batch needs input=FOLDER"),
        (["kind=batch", "input=nowhere"], "input=nowhere is no folder"),
        (["watch=10m"], "watch and canary are for an update of an endpoint; give update=true"),
        (["update=true", "canary=10", "instance_count=2"], "canary=10 needs watch=10m"),
        (["update=true", "watch=10m", "canary=10"], "canary=10 needs instance_count=2 or more"),
        (["update=true", "watch=10m", "canary=60", "instance_count=2"], "canary=60 is out of range"),
        (["update=true", "watch=2h"], "SageMaker watches for 60m at most"),
        (["update=true", "watch=soon"], "watch=soon is no span of time"),
        (["update=true", "watch=5m", "max_errors=0"], "max_errors=0 is out of range"),
        (["update=true", "watch=5m", "max_latency=-1"], "max_latency=-1 is out of range"),
        (["kind=async", "update=true", "watch=5m"], "watch=5m cannot go with kind=async; it is for realtime"),
        (["scheduler_role=Sweeper"], "give expires=2h too"),
        (["scheduler_role=a b", "expires=2h"], "scheduler_role=a b is neither a role's name nor its ARN"),
    ],
)
@pytest.mark.slow
def test_bad_use(words, sentence, model):
    with pytest.raises(DogbreedError) as error:
        describe(model, *words)
    assert sentence in str(error.value)


@pytest.mark.slow
def test_plan(model, capsys, monkeypatch):
    """Without account and network; as YAML it is the requests, a document each."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_DEFAULT_REGION", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    assert sagemaker_deploy.main([str(model.parent), "mode=plan", "expires=2h", f"sagemaker.role={ROLE}"]) == 0
    said = capsys.readouterr().out
    requests = [document for document in yaml.safe_load_all(said) if document]
    made = describe(model, "expires=2h")
    tags = [request.pop("Tags") for request in requests]
    assert all(tag[0] == {"Key": "created-by", "Value": "dogbreed"} for tag in tags)
    assert requests == [{k: v for k, v in step.request.items() if k != "Tags"} for step in made.steps]
    for words in (
        "$0.115 per hour",
        "$84 per month",
        "$0.23 until it expires",
        "no patches since 2026-06-30",
        "none yet",
    ):
        assert words in said
    assert (
        said.index("per month if it is forgotten") < said.index("Sent along") < said.index("Installed in the container")
    )
    assert sagemaker_deploy.main([str(model), "mode=plan", "kind=serverless"]) == 0
    assert "Costs $0.00 per hour when it is not used" in capsys.readouterr().out
    assert sagemaker_deploy.main([str(model), "mode=plan", f"image={OWN}"]) == 0
    said = capsys.readouterr().out
    assert next(yaml.safe_load_all(said))["PrimaryContainer"]["Image"] == OWN
    assert "Installed in the container: nothing; the image answers by itself" in said
    assert "no patches since" not in said, "its tag is no version of AWS's"
    assert sagemaker_deploy.main([str(model), "mode=plan", "sagemaker.max_cost=1"]) == 0
    assert "mode=submit would refuse this. sagemaker.max_cost=1 is set" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["mode=plan"], "Give one model"),
        (["nowhere", "mode=plan"], "nowhere does not exist; give an exported model"),
        (["MODEL", "mode=fly"], "mode=fly is unknown; it is one of submit, plan, rehearse"),
        (["MODEL", "mode=plan", "knd=batch"], "Unknown key knd"),
        (["MODEL", "mode=plan", "name=5"], "sagemaker.endpoint.name=5 is no text"),
        (
            ["MODEL", "mode=plan", "sagemaker.subnets=[a]"],
            "sagemaker.subnets and sagemaker.security_groups go together",
        ),
        (["MODEL", "mode=plan", "sagemaker.tags={created-by: me}"], "sagemaker.tags may not have created-by"),
        (["MODEL", "mode=rehearse", "photo=none.jpg"], "photo=none.jpg is no image"),
        (["MODEL", "mode=plan", "image=dogbreed-serve:1"], "image=dogbreed-serve:1 is no address in Amazon ECR"),
        (["MODEL", "mode=plan", f"image={OWN.partition(':')[0]}"], "it looks like 123456789012.dkr.ecr.us-east-1."),
        (["MODEL", "mode=plan", f"image={OWN}", "sagemaker.region=eu-west-1"], "or give sagemaker.region=us-east-1"),
    ],
)
@pytest.mark.slow
def test_the_command_refuses(argv, sentence, model, capsys):
    assert sagemaker_deploy.main([word.replace("MODEL", str(model)) for word in argv]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_max_cost(model):
    def check(*words):
        _, overrides = request.split_arguments(words)
        config = compose(overrides)
        cost.check_cost(config, describe(model, *words), Prices(config))

    check("sagemaker.max_cost=1", "expires=2h")
    check("sagemaker.max_cost=1", "kind=serverless")
    with pytest.raises(DogbreedError, match="SageMaker has no limit of time for kind=batch"):
        check("sagemaker.max_cost=1", "kind=batch", "input=s3://bucket/dogs")
    with pytest.raises(DogbreedError, match="say how long with expires=2h"):
        check("sagemaker.max_cost=1")
    with pytest.raises(DogbreedError, match=r"could cost \$2\.76 until it expires, more than sagemaker\.max_cost=1"):
        check("sagemaker.max_cost=1", "expires=1d")


def test_what_is_deleted():
    def resource(kind, name, *uses, expires=""):
        return Resource(kind, name, uses=uses, expires=expires)

    old, new = resource("Endpoint", "old", "s1", expires="2026-05-01T10:29Z"), resource("Endpoint", "new", "s2")
    late = resource("Endpoint", "late", "s2", expires="2026-05-01T10:31Z")
    settings = [
        resource("EndpointConfig", "s1", "m1"),
        resource("EndpointConfig", "s2", "m1"),
        resource("EndpointConfig", "s3"),
    ]
    models = [resource("Model", "m1"), resource("Model", "m2")]
    resources = [old, new, late, *settings, *models]

    def chosen(*names, expired=False, everything=False, now=NOW):
        return [each.name for each in delete.choose(resources, names, expired=expired, everything=everything, now=now)]

    assert chosen("old") == ["old", "s1"], "the model is still used"
    assert chosen("new") == ["new"], "its settings are those of another endpoint too"
    assert chosen("new", "late", "old") == ["old", "new", "late", "s1", "s2", "m1"]
    assert chosen(expired=True) == ["old", "s1"]
    assert chosen(expired=True, now=NOW + timedelta(hours=1)) == ["old", "late", "s1"]
    assert len(chosen(everything=True)) == len(resources)
    assert chosen("s3") == ["s3"]
    with pytest.raises(DogbreedError, match="This project has made no other"):
        chosen("other")


@pytest.mark.slow
def test_planning_needs_no_torch(model):
    program = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['lightning'] = sys.modules['torchvision'] = None  # importing them fails\n"
        "from launch import sagemaker_delete, sagemaker_deploy, sagemaker_invoke\n"
        f"sys.exit(sagemaker_deploy.main([{str(model)!r}, 'mode=plan']))\n"
    )
    root = Path(dogbreed.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CreateEndpointConfig" in done.stdout
