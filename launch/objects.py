"""The plan as objects of the SageMaker SDK, for notebooks and other code; what they send is what `mode=plan` shows.

    from launch import estimator, tuner, deployment
    estimator(["sagemaker.role=MyRole", "model.lr=0.001"]).train()
    tuner(["sagemaker.role=MyRole", "search.trials=10"]).tune()
    deployment("model.tar.gz", ["sagemaker.role=MyRole"]).create().wait_for_status("InService")

The code and the weights are in S3 when an object is returned; the images have to be there (sagemaker_upload.py).
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dogbreed.config.compose import compose
from dogbreed.config.overrides import to_overrides
from dogbreed.core.errors import DogbreedError
from dogbreed.inference import archive
from launch.aws.account import Account
from launch.aws.pricing import Prices
from launch.aws.validate import check_kinds
from launch.jobs import submit
from launch.jobs.estimate import resolved
from launch.jobs.request import Job, describe
from launch.modes import experiment_of
from launch.serving import certificates, deploy
from launch.serving.cost import check_cost
from launch.serving.request import Deployment, split_arguments

# In place of the SDK's own files: no defaults of theirs are added to a request, and nothing is reported.
SDK = {"SchemaVersion": "1.0", "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}}}

RESOURCES = ("Model", "EndpointConfig", "Endpoint")

if TYPE_CHECKING:
    from sagemaker.core.resources import Endpoint
    from sagemaker.train import ModelTrainer
    from sagemaker.train.tuner import HyperparameterTuner


def estimator(overrides: Sequence[str] = ()) -> "ModelTrainer":
    """Return the ModelTrainer of `python launch/sagemaker_train.py OVERRIDES`.

    Args:
        overrides: As on the command line.

    Raises:
        DogbreedError: No such job can be sent from here.
    """
    return _trainer(*_prepared(overrides, "train"))


def tuner(overrides: Sequence[str] = ()) -> "HyperparameterTuner":
    """Return the HyperparameterTuner of `python launch/sagemaker_tune.py OVERRIDES`.

    Args:
        overrides: As on the command line; with `search.where=one_job` a search is a training job, for `estimator`.

    Raises:
        DogbreedError: No such job can be sent from here.
    """
    job, account = _prepared([*overrides, "search.where=trials"], "tune")
    trainer = _trainer(job, account)
    from sagemaker.core import parameter, shapes
    from sagemaker.train.tuner import HyperparameterTuner

    config = job.request["HyperParameterTuningJobConfig"]
    kinds = {"Continuous": (parameter.ContinuousParameter, float), "Integer": (parameter.IntegerParameter, int)}
    ranges: dict[str, Any] = {}
    for kind, (make, number) in kinds.items():
        for each in config["ParameterRanges"].get(f"{kind}ParameterRanges", ()):
            bounds = number(each["MinValue"]), number(each["MaxValue"])
            ranges[each["Name"]] = make(*bounds, scaling_type=each["ScalingType"])
    for each in config["ParameterRanges"].get("CategoricalParameterRanges", ()):
        ranges[each["Name"]] = parameter.CategoricalParameter(each["Values"])
    optional = {
        "warm_start_config": (shapes.HyperParameterTuningJobWarmStartConfig, job.request.get("WarmStartConfig")),
        "strategy_config": (shapes.HyperParameterTuningJobStrategyConfig, config.get("StrategyConfig")),
        "completion_criteria_config": (
            shapes.TuningJobCompletionCriteria,
            config.get("TuningJobCompletionCriteria"),
        ),
    }
    return HyperparameterTuner(
        trainer,
        config["HyperParameterTuningJobObjective"]["MetricName"],
        ranges,
        metric_definitions=job.definition["AlgorithmSpecification"]["MetricDefinitions"],
        strategy=config["Strategy"],
        objective_type=config["HyperParameterTuningJobObjective"]["Type"],
        max_jobs=config["ResourceLimits"]["MaxNumberOfTrainingJobs"],
        max_parallel_jobs=config["ResourceLimits"]["MaxParallelTrainingJobs"],
        max_runtime_in_seconds=config["ResourceLimits"].get("MaxRuntimeInSeconds"),
        base_tuning_job_name=job.name,
        early_stopping_type=config["TrainingJobEarlyStoppingType"],
        random_seed=config["RandomSeed"],
        **{name: shape(**_snake(fields)) for name, (shape, fields) in optional.items() if fields},
    )


@dataclass(frozen=True)
class Deployable:
    """A model that is certified and in S3, and the requests that make an endpoint of it.

    Attributes:
        requests: Those of the plan.
        account: Where they go.
    """

    requests: Deployment
    account: Account

    def create(self) -> "Endpoint":
        """Make model, settings and endpoint as the SDK's resources; return the endpoint, which starts."""
        os.environ.setdefault("AWS_DEFAULT_REGION", self.account.target.region)
        from sagemaker.core import resources

        session = {"session": self.account.session, "region": self.account.target.region}
        # The SDK writes MemorySizeInMB with another ending, which the service does not know.
        settings = self.requests.request("CreateEndpointConfig")
        event = "provide-client-params.sagemaker.CreateEndpointConfig"
        self.account.session.events.register(event, lambda params, **_: params.update(settings))
        made: Any = None
        for kind in RESOURCES:
            made = getattr(resources, kind).create(**_snake(self.requests.request(f"Create{kind}")), **session)
        endpoint: Endpoint = made
        return endpoint


def deployment(model: str | Path, overrides: Sequence[str] = ()) -> Deployable:
    """Return what `python launch/sagemaker_deploy.py MODEL OVERRIDES` makes, with the model certified and in S3.

    Args:
        model: An exported model, the folder of a run, or a model.tar.gz.
        overrides: As on the command line.

    Raises:
        DogbreedError: It cannot be deployed from here, or takes more than the SDK's resources.
    """
    config = compose(to_overrides(split_arguments(overrides)[1]))
    check_kinds(config)
    images, paths = deploy.read_images(config)
    account = Account(config)
    with archive.assemble(Path(model)) as packed:
        requests = deploy.describe_model(config, packed, account.with_role())
        more = [step.operation for step in requests.steps if step.operation not in {f"Create{r}" for r in RESOURCES}]
        if more:
            raise DogbreedError(
                f"The SDK has no resource for {more[0]}; python launch/sagemaker_deploy.py sends these settings."
            )
        check_cost(config, requests, Prices(config))
        certificates.certify(Path(model), packed, images, paths, requests.archive)
        deploy.Deployer(account, lambda name: None, kms_key=config["sagemaker"]["kms_key"]).upload(requests)
    return Deployable(requests, account)


def _prepared(overrides: Sequence[str], kind: str) -> tuple[Job, Account]:
    """Describe a job, and put into S3 what it needs."""
    words = to_overrides(overrides)
    config: Mapping[str, Any] = compose(words)
    check_kinds(config)
    config = resolved(config, kind)
    account = Account(config)
    job = describe(config, kind, account.with_role(), experiment_of(words))
    submit.prepare(config, job, account)
    return job, account


def _trainer(job: Job, account: Account) -> "ModelTrainer":
    os.environ.setdefault("AWS_DEFAULT_REGION", account.target.region)  # the SDK wants one when it is imported
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")  # which may look at its policies or not
    from sagemaker.core import shapes
    from sagemaker.core.helper.session_helper import Session
    from sagemaker.core.training.configs import Compute, Networking
    from sagemaker.train import ModelTrainer

    fields = job.definition
    # The SDK knows no debugger, and its tuner neither keys for disks nor networks; they are added as it sends.
    event = f"provide-client-params.sagemaker.{job.operation}"
    account.session.events.register(event, lambda params, **_: _complete(params, job.request))
    network: dict[str, Any] = {
        "enable_network_isolation": fields.get("EnableNetworkIsolation"),
        "enable_inter_container_traffic_encryption": fields.get("EnableInterContainerTrafficEncryption"),
        **_snake(fields.get("VpcConfig", {})),
    }
    network = {name: value for name, value in network.items() if value is not None}
    spot = fields.get("EnableManagedSpotTraining")
    metrics = fields["AlgorithmSpecification"]["MetricDefinitions"]
    return ModelTrainer(
        sagemaker_session=Session(boto_session=account.session, sagemaker_config=SDK),
        role=fields["RoleArn"],
        base_job_name=job.name,
        training_image=fields["AlgorithmSpecification"]["TrainingImage"],
        training_input_mode=fields["AlgorithmSpecification"]["TrainingInputMode"],
        hyperparameters=dict(fields.get("HyperParameters") or fields["StaticHyperParameters"]),
        environment=dict(fields["Environment"]),
        compute=Compute(**_snake(fields["ResourceConfig"]), enable_managed_spot_training=spot),
        networking=Networking(**network) if network else None,
        stopping_condition=shapes.StoppingCondition(**_snake(fields["StoppingCondition"])),
        output_data_config=shapes.OutputDataConfig(**_snake(fields["OutputDataConfig"])),
        checkpoint_config=shapes.CheckpointConfig(**_snake(fields["CheckpointConfig"])),
        input_data_config=[shapes.Channel(**_snake(channel)) for channel in fields.get("InputDataConfig", ())],
        tags=[shapes.Tag(**_snake(tag)) for tag in job.request["Tags"]],
    ).with_metric_definitions([shapes.MetricDefinition(**_snake(metric)) for metric in metrics])


def _snake(value: Any) -> Any:
    """Return a request's fields under the names that the SDK's shapes give them."""
    from sagemaker.core.utils.code_injection.codec import pascal_to_snake

    if isinstance(value, Mapping):
        # A variable of a container has the name that a person gave it.
        return {
            pascal_to_snake(name): inner if name == "Environment" else _snake(inner) for name, inner in value.items()
        }
    return [_snake(inner) for inner in value] if isinstance(value, list) else value


def _complete(params: dict[str, Any], planned: Mapping[str, Any]) -> None:
    """Add the fields of a planned request that are missing in one that is about to be sent."""
    for name, value in planned.items():
        if name not in params:
            params[name] = value
        elif isinstance(value, Mapping) and isinstance(params[name], dict):
            _complete(params[name], value)
