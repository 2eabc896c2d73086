"""The plan in other forms: each carries the requests of the plan, field by field, and stands alone on stdout."""

import json
import re
import subprocess

import boto3
import cfnlint.api
import pytest
import yaml
from support.cloud import ROLE, SMALL
from support.exports import export_tiny

from launch import sagemaker_deploy
from launch.aws.validate import check_request

pytestmark = pytest.mark.slow
JOB, SEARCH = "CreateTrainingJob", "CreateHyperParameterTuningJob"
WORDS = (
    *("mode=plan", "sagemaker.region=us-east-1", "sagemaker.bucket=mine", f"sagemaker.role={ROLE}", *SMALL),
    *("sagemaker.job_name=one", 'sagemaker.environment={ODD: "it\'s $HOME `pwd`"}'),
)
SEARCHES = ("tune", *WORDS, "sagemaker.features_first=true", "search.trials=3")


def planned(run, kind: str, *words: str) -> dict:
    return yaml.safe_load(run(kind, *words).out)


def written(run, form: str, *words: str) -> str:
    said = run(*words, f"as={form}")
    assert said.code == 0, said.err
    assert "Has to be in S3" in said.err, "what to know is not on stdout"
    return said.out


def test_a_search_as_yaml_has_the_training_job_before_it(run):
    first, search = yaml.safe_load_all(written(run, "yaml", *SEARCHES))
    assert search == planned(run, *SEARCHES)
    assert first["TrainingJobName"] == "one-features"
    check_request(JOB, first)


def test_a_script_of_boto3_sends_the_plan(run, cloud):
    script = written(run, "boto3", *SEARCHES)
    assert not cloud.requests
    exec(compile(script, "script", "exec"), {})  # noqa: S102  what a person would run
    assert [name for name, *_ in cloud.requests] == [JOB, "DescribeTrainingJob", SEARCH]
    assert cloud.sent(SEARCH) == [planned(run, *SEARCHES)]


def arguments(commands: str) -> list[list[str]]:
    """The words that a shell gives to each call of `aws`."""
    shell = f"aws() {{ printf '%s\\0' \"$@\"; printf '\\n\\0'; }}\n{commands}"
    printed = subprocess.run(["bash", "-euc", shell], capture_output=True, text=True, check=True).stdout
    return [call.split("\0")[:-1] for call in printed.split("\n\0")[:-1]]


def test_commands_of_the_cli_are_quoted_for_a_shell(run, tmp_path, monkeypatch):
    (tmp_path / "config").write_text("[profile work]\nregion = eu-west-1\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    first, wait, search = arguments(written(run, "cli", *SEARCHES, "--profile", "work"))
    assert first[:2] == ["sagemaker", "create-training-job"]
    common = ["--region", "us-east-1", "--profile", "work"]
    assert wait[3:] == [*common, "--training-job-name", "one-features"]
    *verb, request = search
    assert verb == ["sagemaker", "create-hyper-parameter-tuning-job", *common, "--cli-input-json"]
    assert json.loads(request) == planned(run, *SEARCHES)
    assert json.loads(request)["TrainingJobDefinition"]["Environment"]["ODD"] == "it's $HOME `pwd`"


def steps(run, *words: str) -> dict[str, dict]:
    definition = json.loads(written(run, "pipeline", *words))
    assert definition["Version"] == "2020-12-01"
    return {step["Name"]: step for step in definition["Steps"]}


def test_a_pipeline_trains_registers_and_makes_a_model(run, cloud):
    words = ("train", *WORDS, "sagemaker.subnets=[subnet-1]", "sagemaker.security_groups=[sg-1]", "sagemaker.spot=true")
    made = steps(run, *words)
    request = planned(run, *words)
    name = request.pop("TrainingJobName")
    assert made["Train"] == {"Name": "Train", "Type": "Training", "Arguments": request}
    check_request(JOB, {"TrainingJobName": name, **made["Train"]["Arguments"]})
    model, package = made["Model"]["Arguments"], made["Register"]["Arguments"]
    artefact = model["PrimaryContainer"].pop("ModelDataUrl")
    assert artefact == {"Get": "Steps.Train.ModelArtifacts.S3ModelArtifacts"}
    assert package["InferenceSpecification"]["Containers"][0].pop("ModelDataUrl") == artefact
    check_request("CreateModel", {"ModelName": "made-by-pipelines", **model})
    check_request("CreateModelPackage", package)
    assert model["VpcConfig"] == request["VpcConfig"]
    client = boto3.client("sagemaker")
    body = written(run, "pipeline", *words)
    client.create_pipeline(PipelineName="p", PipelineDefinition=body, RoleArn=ROLE, ClientRequestToken="t" * 32)
    assert json.loads(client.describe_pipeline(PipelineName="p")["PipelineDefinition"]) == json.loads(body)


def test_a_pipeline_of_a_search_registers_the_winner(run):
    made = steps(run, *SEARCHES)
    assert list(made) == ["Features", "Tune", "Model", "Register"]
    request = planned(run, *SEARCHES)
    request.pop("HyperParameterTuningJobName")
    assert made["Tune"] == {"Name": "Tune", "Type": "Tuning", "Arguments": request, "DependsOn": ["Features"]}
    best = {"Get": "Steps.Tune.TrainingJobSummaries[0].TrainingJobName"}
    address = {"Std:Join": {"On": "/", "Values": ["s3://mine/dogbreed/jobs", best, "output/model.tar.gz"]}}
    assert made["Model"]["Arguments"]["PrimaryContainer"]["ModelDataUrl"] == address


def linted(text: str) -> dict[str, dict]:
    matches = cfnlint.api.lint(text, regions=["us-east-1"])
    assert [str(match) for match in matches if not match.rule.id.startswith("I")] == []
    return json.loads(text)["Resources"]


def test_a_job_is_a_pipeline_for_cloudformation(run):
    (resource,) = linted(written(run, "cloudformation", "train", *WORDS)).values()
    body = json.loads(resource["Properties"]["PipelineDefinition"]["PipelineDefinitionBody"])
    assert body == json.loads(written(run, "pipeline", "train", *WORDS))
    assert resource["Properties"]["PipelineName"] == "dogbreed-train"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(export_tiny(tmp_path_factory.mktemp("run") / "model"))


@pytest.fixture
def deploy(model, capsys):
    def command(*words: str):
        code = sagemaker_deploy.main([model, *WORDS[:4], *words])
        return code, *capsys.readouterr()

    return command


@pytest.mark.parametrize(
    "words",
    [
        ("kind=async", "min_count=0", "max_count=2", "sagemaker.kms_key=alias/a"),
        ("kind=serverless", "memory_mb=2048"),
        ("capture=10", "max_count=3", "sagemaker.subnets=[subnet-01234567]", "sagemaker.security_groups=[sg-01234567]"),
    ],
    ids=["async", "serverless", "realtime"],
)
def test_a_deployment_for_cloudformation(deploy, words):
    _, plan, _ = deploy(*words)
    requests = [document for document in yaml.safe_load_all(plan) if document]
    code, out, err = deploy(*words, "as=cloudformation")
    assert code == 0, err
    properties = [resource["Properties"] for resource in linted(out).values()]
    if "min_count=0" in words:
        assert properties[-1].pop("AlarmActions") == [{"Ref": "ScalingPolicy2"}]
        assert requests[-1].pop("AlarmActions")
    assert properties == requests


def test_a_deployment_as_boto3_waits_before_it_scales(deploy, cloud):
    code, script, _ = deploy("max_count=3", "as=boto3")
    assert code == 0
    exec(compile(script, "script", "exec"), {})  # noqa: S102
    calls = [name for name, *_ in cloud.requests]
    expected = ["CreateModel", "CreateEndpointConfig", "CreateEndpoint", "DescribeEndpoint", "RegisterScalableTarget"]
    assert calls == [*expected, "PutScalingPolicy"]
    _, commands, _ = deploy("update=true", "as=cli")
    assert [call[1] for call in arguments(commands)] == ["create-model", "create-endpoint-config", "update-endpoint"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["as=terraform"], "as=terraform is unknown here; it is one of yaml, boto3, cli, cloudformation, pipeline."),
        (["as=yaml", "mode=submit"], "as is the form of a plan: give mode=plan, or leave it out."),
        (["as=yaml", "under=1"], "give one of them"),
        (["as=3"], "as=3 is no text"),
        (["as=pipeline", "sagemaker.isolate=true"], "as=pipeline cannot go with sagemaker.isolate=true"),
    ],
)
def test_bad_use_is_one_sentence(run, words, says):
    said = run("train", *WORDS, *words)
    assert re.fullmatch(r"error: .*\n", said.err)
    assert says in said.err
    assert (said.out, said.code) == ("", 2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["as=pipeline"], "as=pipeline is unknown here; it is one of yaml, boto3, cli, cloudformation."),
        (["as=cloudformation", "update=true"], "CloudFormation has no resource for UpdateEndpoint"),
        (["as=cli", "kind=async", "min_count=0"], "as=cloudformation can name it"),
    ],
)
def test_bad_use_of_a_deployment_is_one_sentence(deploy, words, says):
    code, out, err = deploy(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
