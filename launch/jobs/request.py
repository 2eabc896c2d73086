"""One description of a job, made from the configuration: the exact request, and what has to be in S3 before it is sent.

`mode=plan` prints it, `mode=rehearse` carries it out here, `mode=submit` sends it. It needs neither AWS nor torch.
"""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dogbreed.config.overrides import to_wire
from dogbreed.config.search_space import check_search, ranges
from dogbreed.core.errors import DogbreedError
from dogbreed.core.metric_lines import METRIC_REGEXES
from launch.aws import images, tracking
from launch.aws.account import Target
from launch.aws.naming import features_uri, job_name, parse_s3_uri, prefix, tags
from launch.aws.validate import check_request, check_settings
from launch.aws.wheels import Wheel, cached
from launch.jobs import debugger, packages
from launch.jobs.hyperparameters import settings
from launch.jobs.source import ENTRY_POINT, Source, stage
from launch.jobs.tuning import LOCAL_OBJECTIVES, parameter_ranges, tuning_config

SPLITS = ("train", "valid", "test")
REGISTERED = re.compile(r"^@register_model\(\).*?^def (\w+)", re.DOTALL | re.MULTILINE)


def folders(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the folders of the images that a job's channels are made of; "." is all there is, in any layout."""
    return SPLITS if config["sagemaker"]["channels"] == "splits" else (".",)


TRAINING = "CreateTrainingJob"
TUNING = "CreateHyperParameterTuningJob"

# In the container. The entry point finds the first two in its environment, and where jobs leave their results.
CHECKPOINTS = "/opt/ml/checkpoints"
CACHE = "/tmp/dogbreed"  # noqa: S108  the container's own, on the job's volume
CHANNELS = "/opt/ml/input/data"
FEATURES = "DOGBREED_FEATURES"  # dogbreed.cache.remote reads it, which this does not import: it has torch


@dataclass(frozen=True)
class Job:
    """One request to SageMaker, and what it needs in S3.

    Attributes:
        operation: `CreateTrainingJob` or `CreateHyperParameterTuningJob`.
        request: Its parameters, as boto3 takes them.
        source: The archive, to be at `code_uri`.
        code_uri: Address of the archive.
        data_uri: Address of the images; None where the job draws them itself.
        target: Where it runs.
        sent_along: Local files by the address where the job looks for them.
        wheels: Those of `sent_along` that have to be fetched first.
        searches: Whether the one job itself searches.
        first: Of a search, the training job that goes before it, so that all its trials find their features.
    """

    operation: str
    request: dict[str, Any]
    source: Source
    code_uri: str
    data_uri: str | None
    target: Target
    sent_along: Mapping[str, Path] = field(default_factory=dict)
    wheels: tuple[Wheel, ...] = ()
    searches: bool = False
    first: "Job | None" = None

    @property
    def name(self) -> str:
        """The job's name."""
        return str(self.request["HyperParameterTuningJobName" if self.operation == TUNING else "TrainingJobName"])

    @property
    def definition(self) -> dict[str, Any]:
        """What training and tuning jobs have in common: image, channels, machines, limits."""
        return self.request["TrainingJobDefinition"] if self.operation == TUNING else self.request


def describe(config: Mapping[str, Any], kind: str, target: Target, experiment: str | None) -> Job:
    """Describe and check the job of a configuration.

    Args:
        config: A composed configuration.
        kind: `train` or `tune`.
        target: Where it runs.
        experiment: That the configuration was composed with; the job composes with it too.

    Raises:
        DogbreedError: The configuration asks for something that cannot be.
    """
    _check_backbone(config["model"]["backbone"])
    tuning = kind == "tune" and not in_one_job(config)
    builder = _Builder(config, target, experiment, searches=kind == "tune" and not tuning)
    job = builder.tuning() if tuning else builder.training()
    check_request(job.operation, job.request)
    return job


def in_one_job(config: Mapping[str, Any]) -> bool:
    """Return whether one training job makes the whole search.

    Raises:
        DogbreedError: search.where is unknown, or the search is one over backbones.
    """
    where = str(config["search"]["where"])
    if config["search"]["backbones"]:
        raise DogbreedError(
            "search.backbones compares networks where `python -m dogbreed.tune` runs; a search on SageMaker has "
            "'search.space.model.backbone.choices=[...]' for them."
        )
    if where not in ("trials", "one_job"):
        raise DogbreedError(f"search.where={where} is unknown; it is trials or one_job.")
    return where == "one_job"


def torchvision_names() -> set[str]:
    """Return the classification networks that the installed torchvision registers.

    Its source is read: to import it takes seconds, and a plan needs nothing else of it.
    """
    try:
        found = find_spec("torchvision")
    except ModuleNotFoundError:
        found = None
    folders = (found.submodule_search_locations if found else None) or ()
    files = [file for folder in folders for file in Path(folder, "models").glob("*.py")]
    return {name for file in files for name in REGISTERED.findall(file.read_text(encoding="utf-8"))}


def _check_backbone(name: str) -> None:
    """Check the name where torchvision is installed; a plan needs none, and the default is one of its networks."""
    if name == "vgg16" or name in torchvision_names():
        return
    try:
        from dogbreed.models.backbones import check_name
    except ModuleNotFoundError:
        return
    check_name(name)


class _Builder:
    """Puts a request together.

    Args:
        config: A composed configuration.
        target: Where it runs.
        experiment: That the configuration was composed with.
        searches: The job tries all trials of the search group and trains with the winner.
    """

    def __init__(self, config: Mapping[str, Any], target: Target, experiment: str | None, *, searches: bool) -> None:
        check_settings(config)
        if searches:
            ranges(config["search"]["space"])
            check_search(config["search"], LOCAL_OBJECTIVES)
        self.config, self.target, self.searches = config, target, searches
        self.cloud = config["sagemaker"]
        self.source = stage(config, search=searches)
        self.folder = f"s3://{target.bucket}/{prefix(config)}"
        self.code_uri = f"{self.folder}/code/{self.source.name}"
        self.data_uri = data_uri(config, target)
        self.weights_uri, self.sent_along = _weights(config, self.folder)
        self.wheels = packages.carried(config, search=searches)
        self.packages_uri = self.cloud["packages"]
        if self.wheels:
            self.packages_uri = f"{self.folder}/packages/{packages.digest(self.wheels)}/"
            self.sent_along |= {f"{self.packages_uri}{wheel.file}": cached(wheel) for wheel in self.wheels}
        self.hyperparameters = self._hyperparameters(experiment)

    def training(self, name: str = "") -> Job:
        """Describe a training job, of this name if there is one."""
        name = name or job_name(self.config, "search" if self.searches else "train", datetime.now())
        request = {
            "TrainingJobName": name,
            "HyperParameters": self.hyperparameters,
            **self._definition(name),
            "Tags": tags(self.config),
            **debugger.managed(self.config, self.folder, images.rules_image(self.config, self.target.region)),
        }
        return self._job(TRAINING, request)

    def tuning(self) -> Job:
        """Describe a search as a tuning job: one training job per trial."""
        for name in ("debugger", "profiler"):
            if self.cloud[name]["enabled"]:
                raise DogbreedError(
                    f"sagemaker.{name}.enabled cannot go with a tuning job: CreateHyperParameterTuningJob has no such "
                    "fields. Tune without, then train with the winner and with it; or search.where=one_job."
                )
        if self.cloud["resume_from"]:
            raise DogbreedError(
                "sagemaker.resume_from is for a training job; a search starts from sagemaker.warm_start."
            )
        name = job_name(self.config, "tune", datetime.now(), longest=32)
        ranges = parameter_ranges(self.config)
        tuned = {parameter["Name"] for kind in ranges.values() for parameter in kind}
        static = {key: value for key, value in self.hyperparameters.items() if key not in tuned}
        definition = self._definition(name)
        definition["ResourceConfig"].pop("KeepAlivePeriodInSeconds", None)  # a search reuses its machines by itself
        request: dict[str, Any] = {
            "HyperParameterTuningJobName": name,
            "HyperParameterTuningJobConfig": tuning_config(self.config, ranges),
            "TrainingJobDefinition": {"StaticHyperParameters": static, **definition},
            "Tags": tags(self.config),
        }
        if earlier := self.cloud["warm_start"]:
            # The other type wants the very same ranges and data, and a changed archive is another algorithm to it.
            names = [earlier] if isinstance(earlier, str) else earlier
            parents = [{"HyperParameterTuningJobName": name} for name in names]
            request["WarmStartConfig"] = {
                "ParentHyperParameterTuningJobs": parents,
                "WarmStartType": "TransferLearning",
            }
        job = self._job(TUNING, request)
        return replace(job, first=self.training(f"{name}-features")) if self.cloud["features_first"] else job

    def _job(self, operation: str, request: dict[str, Any]) -> Job:
        uris = (self.code_uri, self.data_uri)
        along = (self.sent_along, self.wheels)
        return Job(operation, request, self.source, *uris, self.target, *along, self.searches)

    def _hyperparameters(self, experiment: str | None) -> dict[str, str]:
        values = settings(self.config, experiment, with_search=self.searches)
        if self.cloud["instance_count"] > 1:
            values["trainer.num_nodes"] = self.cloud["instance_count"]
        try:
            wire = to_wire(values)
        except DogbreedError as error:
            raise DogbreedError(
                f"{error}. Write it into a file conf/experiment/NAME.yaml and give experiment=NAME: that travels."
            ) from error
        code = f"{CHANNELS}/code/{self.source.name}" if self.cloud["isolate"] else self.code_uri
        toolkit = {
            "sagemaker_program": ENTRY_POINT,
            "sagemaker_submit_directory": code,
            "sagemaker_region": self.target.region,
        }
        if self.cloud["instance_count"] > 1:
            toolkit["sagemaker_torch_distributed_enabled"] = "true"
        return wire | toolkit

    def _definition(self, name: str) -> dict[str, Any]:
        """Return the fields that a training job and a tuning job's definition share."""
        cloud = self.cloud
        output = {"S3OutputPath": f"{self.folder}/jobs"}
        if cloud["kms_key"]:
            output["KmsKeyId"] = cloud["kms_key"]
        fields: dict[str, Any] = {
            "AlgorithmSpecification": {
                "TrainingImage": images.training_image(self.config, self.target.region),
                "TrainingInputMode": "File",
                "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in METRIC_REGEXES.items()],
            },
            "RoleArn": self.target.role,
            "OutputDataConfig": output,
            "ResourceConfig": self._machines(),
            "StoppingCondition": {"MaxRuntimeInSeconds": cloud["max_run"]},
            # The service takes the address as a prefix: without its slash, job-1 would fetch what job-10 has left, too.
            "CheckpointConfig": {"S3Uri": f"{self.folder}/checkpoints/{name}/", "LocalPath": CHECKPOINTS},
            "Environment": self._environment(),
        }
        flags = {
            "EnableManagedSpotTraining": cloud["spot"],
            "EnableNetworkIsolation": cloud["isolate"],
            "EnableInterContainerTrafficEncryption": cloud["encrypt_traffic"],
        }
        fields |= {name: True for name, on in flags.items() if on}
        if channels := self._channels():
            fields["InputDataConfig"] = channels
        if cloud["spot"]:
            fields["StoppingCondition"]["MaxWaitTimeInSeconds"] = cloud["max_wait"] or 2 * cloud["max_run"]
        if cloud["subnets"]:
            fields["VpcConfig"] = {"SecurityGroupIds": cloud["security_groups"], "Subnets": cloud["subnets"]}
        return fields

    def _machines(self) -> dict[str, Any]:
        cloud = self.cloud
        machines = {
            "InstanceType": cloud["instance_type"],
            "InstanceCount": cloud["instance_count"],
            "VolumeSizeInGB": cloud["volume_gb"],
        }
        if cloud["volume_kms_key"]:
            machines["VolumeKmsKeyId"] = cloud["volume_kms_key"]
        if cloud["keep_alive"]:
            machines["KeepAlivePeriodInSeconds"] = cloud["keep_alive"]
        return machines

    def _environment(self) -> dict[str, str]:
        variables = {
            "DOGBREED_CHECKPOINTS": CHECKPOINTS,
            "DOGBREED_CACHE": CACHE,
            "DOGBREED_JOBS": f"{self.folder}/jobs",
        }
        if features := features_uri(self.config, self.target.bucket):
            variables |= {FEATURES: features, f"{FEATURES}_OWNER": self.target.account}
            variables |= {f"{FEATURES}_KMS_KEY": self.cloud["kms_key"]} if self.cloud["kms_key"] else {}
        if address := tracking.tracking_uri(self.config):
            variables["MLFLOW_TRACKING_URI"] = address
        if self.cloud["isolate"]:
            variables["PIP_NO_INDEX"] = "1"
        if self.packages_uri:
            variables["PIP_FIND_LINKS"] = f"{CHANNELS}/packages"
        return variables | {str(name): str(value) for name, value in (self.cloud["environment"] or {}).items()}

    def _channels(self) -> list[dict[str, Any]]:
        addresses: dict[str, str] = {}
        if self.data_uri and self.cloud["channels"] == "splits":
            addresses |= {split: f"{self.data_uri}/{split}/" for split in SPLITS}
        elif self.data_uri:
            addresses["training"] = f"{self.data_uri}/"
        if self.weights_uri:
            addresses["weights"] = self.weights_uri
        if self.packages_uri:
            addresses["packages"] = self.packages_uri
        if self.cloud["isolate"]:
            addresses["code"] = self.code_uri
        if earlier := self.cloud["resume_from"]:
            addresses["resume"] = f"{self.folder}/checkpoints/{earlier}/{earlier}/"  # the run in the job's folder
        return [_channel(name, address) for name, address in addresses.items()]


def _channel(name: str, address: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def data_uri(config: Mapping[str, Any], target: Target) -> str | None:
    """Return where the images are in S3, without a slash at the end; None where the job draws them itself."""
    if uri := config["sagemaker"]["data"]:
        parse_s3_uri(uri, "sagemaker.data")
        return str(uri).rstrip("/")
    if config["data"]["source"] == "sample":
        return None
    folder = Path(os.path.abspath(config["data"]["root"])).name  # which . and .. have, too
    return f"s3://{target.bucket}/{prefix(config)}/data/{folder}"


def _weights(config: Mapping[str, Any], folder: str) -> tuple[str | None, dict[str, Path]]:
    """Return the address of the weights' channel, and the file that has to be sent there."""
    uri, weights = config["sagemaker"]["weights"], config["model"]["weights"]
    if uri:
        parse_s3_uri(uri, "sagemaker.weights")
        return uri, {}
    if weights in ("imagenet", "none", None):
        return None, {}
    file = Path(weights)
    if not file.is_file():
        raise DogbreedError(f"The weights file {file} does not exist; model.weights is imagenet, none, or a path.")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    address = f"{folder}/weights/{digest}/{file.name}"
    return address, {address: file}
