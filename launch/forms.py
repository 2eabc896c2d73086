"""`mode=plan as=boto3`: the planned requests as what other tools read, alone on stdout; what to know is on stderr."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pprint import pformat
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import join
from launch import render
from launch.aws.account import Target
from launch.aws.images import inference_image
from launch.aws.naming import prefix, tags
from launch.aws.pricing import Prices
from launch.jobs.request import TRAINING, TUNING, Job
from launch.serving.request import POLICY_ARN, Deployment, Step, container

# What a call has to be waited for before the next one: boto3's waiter, and the field of the name.
WAITERS = {
    TRAINING: ("training_job_completed_or_stopped", "TrainingJobName"),
    "CreateEndpoint": ("endpoint_in_service", "EndpointName"),
    "UpdateEndpoint": ("endpoint_in_service", "EndpointName"),
}
RESOURCES = {
    "CreateModel": "AWS::SageMaker::Model",
    "CreateEndpointConfig": "AWS::SageMaker::EndpointConfig",
    "CreateEndpoint": "AWS::SageMaker::Endpoint",
    "RegisterScalableTarget": "AWS::ApplicationAutoScaling::ScalableTarget",
    "PutScalingPolicy": "AWS::ApplicationAutoScaling::ScalingPolicy",
    "PutMetricAlarm": "AWS::CloudWatch::Alarm",
}


def show_job(config: Mapping[str, Any], job: Job) -> None:
    """Print a job in the form that `as` names."""
    steps = [Step("sagemaker", each.operation, each.request) for each in (job.first, job) if each]
    show = {
        **_calls(config, steps, job.target.region),
        "cloudformation": lambda: _json(_pipeline_resource(config, job)),
        "pipeline": lambda: _json(pipeline(config, job)),
    }
    _show(config["sagemaker"]["as"], show, render.notices(config, job, Prices(config)))


def show_deployment(config: Mapping[str, Any], deployment: Deployment) -> None:
    """Print a deployment in the form that `as` names."""
    updates = any(step.operation == "UpdateEndpoint" for step in deployment.steps)
    steps = [step for step in deployment.steps if not (updates and step.operation == "CreateEndpoint")]
    calls = _calls(config, steps, deployment.target.region)
    show = {**calls, "cloudformation": lambda: _json(_template(steps))}
    _show(config["sagemaker"]["as"], show, render.deployment_notices(config, deployment))


def _show(form: str, forms: Mapping[str, Callable[[], str]], notices: Iterable[str]) -> None:
    if form not in forms:
        raise DogbreedError(f"as={form} is unknown here; it is one of {', '.join(forms)}.")
    text = forms[form]()
    for line in notices:
        print(line, file=sys.stderr)
    print(text.rstrip("\n"))


def _calls(config: Mapping[str, Any], steps: Sequence[Step], region: str) -> dict[str, Callable[[], str]]:
    profile = config["sagemaker"]["profile"]
    return {
        "yaml": lambda: render.documents(steps),
        "boto3": lambda: _boto3(steps, region, profile),
        "cli": lambda: _cli(steps, region, profile),
    }


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2)


def _method(operation: str) -> str:
    from botocore import xform_name

    return str(xform_name(operation))


def _check_known(steps: Sequence[Step]) -> None:
    if any(POLICY_ARN in step.request.get("AlarmActions", ()) for step in steps):
        raise DogbreedError(
            "min_count=0 needs the address of a policy that AWS gives when it makes it; as=cloudformation can name it."
        )


def _boto3(steps: Sequence[Step], region: str, profile: str | None) -> str:
    """Return a script of boto3's calls."""
    _check_known(steps)
    options = {"region_name": region} | ({"profile_name": profile} if profile else {})
    arguments = ", ".join(f"{name}={value!r}" for name, value in options.items())
    lines = [f'"""{join([step.operation for step in steps])}."""', "", "import boto3", ""]
    lines.append(f"session = boto3.Session({arguments})")
    for number, (service, operation, request) in enumerate(steps, 1):
        body = pformat(request, width=116, sort_dicts=False)
        lines += ["", f"request = {body}", f"session.client({service!r}).{_method(operation)}(**request)"]
        if number < len(steps) and operation in WAITERS:
            waiter, name = WAITERS[operation]
            lines.append(f"session.client({service!r}).get_waiter({waiter!r}).wait({name}={request[name]!r})")
    return "\n".join(lines)


def _cli(steps: Sequence[Step], region: str, profile: str | None) -> str:
    """Return commands of the AWS CLI, each of which runs if the one before has gone well."""
    _check_known(steps)
    common = ["--region", region, *(["--profile", profile] if profile else [])]
    commands = []
    for number, (service, operation, request) in enumerate(steps, 1):
        verb = _method(operation).replace("_", "-")
        commands.append(["aws", service, verb, *common, "--cli-input-json", json.dumps(request)])
        if number < len(steps) and operation in WAITERS:
            waiter, name = (word.replace("_", "-") for word in WAITERS[operation])
            commands.append(["aws", service, "wait", waiter, *common, f"--{_option(name)}", request[name]])
    return " &&\n".join(map(shlex.join, commands))


def _option(field: str) -> str:
    return _method(field).replace("_", "-")


# CloudFormation


def _template(steps: Sequence[Step]) -> dict[str, Any]:
    """Return a template with a resource for each call, one after the other."""
    resources: dict[str, Any] = {}
    for step in steps:
        if step.operation not in RESOURCES:
            raise DogbreedError(
                f"CloudFormation has no resource for {step.operation} as it is planned here; as=boto3 and as=cli have."
            )
        kind = RESOURCES[step.operation]
        name = kind.rsplit("::", 1)[-1]
        name += str(1 + sum(each["Type"] == kind for each in resources.values())) if name in resources else ""
        before = list(resources)[-1:]
        properties = dict(step.request)
        if POLICY_ARN in properties.get("AlarmActions", ()):
            properties["AlarmActions"] = [{"Ref": before.pop()}]  # a policy's reference is its ARN
        resources[name] = {"Type": kind, "Properties": properties, **({"DependsOn": before} if before else {})}
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}


def _pipeline_resource(config: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Return a template with the pipeline: for a job itself CloudFormation has no resource."""
    properties = {
        "PipelineName": f"{_group(config)}-{'tune' if job.operation == TUNING else 'train'}",
        "PipelineDefinition": {"PipelineDefinitionBody": json.dumps(pipeline(config, job))},
        "RoleArn": job.target.role,
        "Tags": tags(config),
    }
    resources = {"Pipeline": {"Type": "AWS::SageMaker::Pipeline", "Properties": properties}}
    return {"AWSTemplateFormatVersion": "2010-09-09", "Resources": resources}


# SageMaker Pipelines


def _group(config: Mapping[str, Any]) -> str:
    """Return the group of the Model Registry, in letters that such a name may have."""
    return re.sub(r"[^a-zA-Z0-9]+", "-", prefix(config))


def pipeline(config: Mapping[str, Any], job: Job) -> dict[str, Any]:
    """Return the definition of a pipeline: the planned job, its model, and that in the Model Registry.

    https://aws-sagemaker-mlops.github.io/sagemaker-model-building-pipeline-definition-JSON-schema/

    Args:
        config: A composed configuration.
        job: To begin with; its name is made by Pipelines.

    Raises:
        DogbreedError: The model that the job leaves could not be served.
    """
    if config["sagemaker"]["isolate"]:
        raise DogbreedError(
            "as=pipeline cannot go with sagemaker.isolate=true: without network an endpoint needs wheels in its "
            "archive, which launch/sagemaker_deploy.py packs and a training job does not."
        )
    steps = [_step("Features", job.first)] if job.first else []
    steps.append(_step("Tune" if job.operation == TUNING else "Train", job))
    if job.first:
        steps[-1]["DependsOn"] = ["Features"]
    steps += _model_steps(config, job.target, _artefact(job, steps[-1]["Name"]))
    return {"Version": "2020-12-01", "Metadata": {}, "Parameters": [], "Steps": steps}


def _step(name: str, job: Job) -> dict[str, Any]:
    names = ("TrainingJobName", "HyperParameterTuningJobName")
    arguments = {field: value for field, value in job.request.items() if field not in names}
    return {"Name": name, "Type": "Tuning" if job.operation == TUNING else "Training", "Arguments": arguments}


def _artefact(job: Job, step: str) -> dict[str, Any]:
    """Return how Pipelines says the address of the model that a step leaves; of a search, that of its winner."""
    if job.operation == TRAINING:
        return {"Get": f"Steps.{step}.ModelArtifacts.S3ModelArtifacts"}
    best = {"Get": f"Steps.{step}.TrainingJobSummaries[0].TrainingJobName"}
    folder = job.definition["OutputDataConfig"]["S3OutputPath"]
    return {"Std:Join": {"On": "/", "Values": [folder, best, "output/model.tar.gz"]}}


def _model_steps(config: Mapping[str, Any], target: Target, artefact: Mapping[str, Any]) -> list[dict[str, Any]]:
    cloud = config["sagemaker"]
    serving = container(cloud["endpoint"], inference_image(config, target.region), artefact, target.region)
    model: dict[str, Any] = {"PrimaryContainer": serving, "ExecutionRoleArn": target.role, "Tags": tags(config)}
    if cloud["subnets"]:
        model["VpcConfig"] = {"Subnets": cloud["subnets"], "SecurityGroupIds": cloud["security_groups"]}
    package = {
        "ModelPackageGroupName": _group(config),
        "ModelApprovalStatus": "PendingManualApproval",
        "InferenceSpecification": {
            "Containers": [serving],
            "SupportedContentTypes": ["application/x-image"],
            "SupportedResponseMIMETypes": ["application/json"],
            "SupportedRealtimeInferenceInstanceTypes": [cloud["endpoint"]["instance_type"]],
        },
    }
    return [
        {"Name": "Model", "Type": "Model", "Arguments": model},
        {"Name": "Register", "Type": "RegisterModel", "Arguments": package},
    ]
