"""One description of a job, made from the configuration: the exact request, and what has to be in S3 before it is sent.

`mode=plan` prints it, `mode=rehearse` carries it out here, `mode=submit` sends it. It needs neither AWS nor torch.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from dogbreed.config.compose import compose, conf_dir, diff, flatten
from dogbreed.config.overrides import to_wire
from dogbreed.core.errors import DogbreedError
from dogbreed.core.metric_lines import METRIC_REGEXES
from launch.aws.naming import Place, job_name, prefix, split_s3, tags
from launch.aws.settings import check_settings
from launch.jobs import debugger
from launch.jobs.source import ENTRY_POINT, Source, stage
from launch.jobs.tuning import LOCAL_OBJECTIVES, check_search, spans_of, tuning_config

SPLITS = ("train", "valid", "test")
TRAINING = "CreateTrainingJob"
TUNING = "CreateHyperParameterTuningJob"

# Settings that concern this machine, or that the container decides.
STAYS_HERE = (
    "sagemaker",
    "mode",
    "job",
    "output_dir",
    "resume",
    "progress",
    "cache.dir",
    "data.root",
    "data.download",
    "data.url",
    "data.source",
)
# In the container. The entry point finds the first two in its environment.
CHECKPOINTS = "/opt/ml/checkpoints"
CACHE = "/tmp/dogbreed"  # noqa: S108  the container's own, on the job's volume
CHANNELS = "/opt/ml/input/data"


@dataclass(frozen=True)
class Job:
    """What will be asked of SageMaker.

    Attributes:
        operation: `CreateTrainingJob` or `CreateHyperParameterTuningJob`.
        request: Its parameters, as boto3 takes them.
        source: The archive, to be at `code_uri`.
        code_uri: Address of the archive.
        data_uri: Address of the photographs; None where the job draws them itself.
        sent_along: Local files by the address where the job looks for them.
        place: Where it runs.
        searches: Whether the one job itself searches.
    """

    operation: str
    request: dict[str, Any]
    source: Source
    code_uri: str
    data_uri: str | None
    place: Place
    sent_along: Mapping[str, Path] = field(default_factory=dict)
    searches: bool = False

    @property
    def name(self) -> str:
        """Of the job."""
        return str(self.request["HyperParameterTuningJobName" if self.operation == TUNING else "TrainingJobName"])

    @property
    def definition(self) -> dict[str, Any]:
        """What training and tuning jobs have in common: image, channels, machines, limits."""
        return self.request["TrainingJobDefinition"] if self.operation == TUNING else self.request


def training_job(
    config: Mapping[str, Any],
    place: Place,
    image: str,
    now: datetime,
    *,
    experiment: str | None = None,
    searches: bool = False,
    rules_image: str | None = None,
) -> Job:
    """One training job.

    Args:
        config: A composed configuration.
        place: Where it runs.
        image: Address of the training image.
        now: Goes into the name.
        experiment: The experiment that `config` was composed with; the job composes with it too.
        searches: The job tries all trials of the search group and trains with the winner.
        rules_image: Address of the image that evaluates the managed rules.

    Raises:
        DogbreedError: The configuration asks for something that cannot be.
    """
    if searches:
        check_search(config, LOCAL_OBJECTIVES)
    shared = _Shared(config, place, image, experiment, searches)
    name = job_name(config, "search" if searches else "train", now)
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "HyperParameters": shared.hyperparameters,
        **shared.definition(name),
    }
    request["Tags"] = tags(config)
    folder = f"s3://{place.bucket}/{prefix(config)}"
    request |= debugger.debugger(config, f"{folder}/debugger", rules_image)
    request |= debugger.profiler(config, f"{folder}/profiler", rules_image)
    return shared.job(TRAINING, request)


def tuning_job(
    config: Mapping[str, Any], place: Place, image: str, now: datetime, *, experiment: str | None = None
) -> Job:
    """A search as a tuning job: one training job a trial.

    Args:
        config: A composed configuration.
        place: Where it runs.
        image: Address of the training image.
        now: Goes into the name.
        experiment: The experiment that `config` was composed with.

    Raises:
        DogbreedError: The configuration asks for something that cannot be.
    """
    for name in ("debugger", "profiler"):
        if config["sagemaker"][name]["enabled"]:
            raise DogbreedError(
                f"sagemaker.{name}.enabled cannot go with a tuning job: CreateHyperParameterTuningJob has no such "
                "fields. Tune without, then train with the winner and with it; or search.where=one_job."
            )
    shared = _Shared(config, place, image, experiment, searches=False)
    name = job_name(config, "tune", now, longest=32)
    spans = spans_of(config)
    names = [span["Name"] for kind in spans.values() for span in kind]
    static = {key: value for key, value in shared.hyperparameters.items() if key not in names}
    request: dict[str, Any] = {
        "HyperParameterTuningJobName": name,
        "HyperParameterTuningJobConfig": tuning_config(config, spans),
        "TrainingJobDefinition": {"StaticHyperParameters": static, **shared.definition(name)},
        "Tags": tags(config),
    }
    if parent := config["sagemaker"]["warm_start"]:
        parents = [{"HyperParameterTuningJobName": parent}]
        # The other type wants the very same ranges and data, and a changed archive is another algorithm to it.
        request["WarmStartConfig"] = {"ParentHyperParameterTuningJobs": parents, "WarmStartType": "TransferLearning"}
    return shared.job(TUNING, request)


class _Shared:
    """What both kinds of job are made of."""

    def __init__(
        self, config: Mapping[str, Any], place: Place, image: str, experiment: str | None, searches: bool
    ) -> None:
        self.config, self.place, self.image, self.searches = config, place, image, searches
        self.wanted = config["sagemaker"]
        check_settings(config)
        self.source = stage(config, search=searches)
        folder = f"s3://{place.bucket}/{prefix(config)}"
        self.folder = folder
        self.code_uri = f"{folder}/code/{self.source.name}"
        self.data_uri = data_uri(config, place)
        self.weights_uri, self.sent_along = _weights(config, folder)
        self.hyperparameters = self._hyperparameters(experiment)

    def _hyperparameters(self, experiment: str | None) -> dict[str, str]:
        given = settings(self.config, experiment, with_search=self.searches)
        if self.wanted["instance_count"] > 1:
            given["trainer.num_nodes"] = self.wanted["instance_count"]
        try:
            wire = to_wire(given)
        except DogbreedError as error:
            raise DogbreedError(
                f"{error}. Write it into a file conf/experiment/NAME.yaml and give experiment=NAME: that travels."
            ) from error
        code = f"{CHANNELS}/code/{self.source.name}" if self.wanted["isolate"] else self.code_uri
        toolkit = {
            "sagemaker_program": ENTRY_POINT,
            "sagemaker_submit_directory": code,
            "sagemaker_region": self.place.region,
        }
        if self.wanted["instance_count"] > 1:
            toolkit["sagemaker_torch_distributed_enabled"] = "true"
        return wire | toolkit

    def definition(self, name: str) -> dict[str, Any]:
        wanted, place = self.wanted, self.place
        stopping = {"MaxRuntimeInSeconds": wanted["max_run"]}
        if wanted["spot"]:
            stopping["MaxWaitTimeInSeconds"] = wanted["max_wait"] or 2 * wanted["max_run"]
        machines = {
            "InstanceType": wanted["instance_type"],
            "InstanceCount": wanted["instance_count"],
            "VolumeSizeInGB": wanted["volume_gb"],
        }
        if wanted["volume_kms_key"]:
            machines["VolumeKmsKeyId"] = wanted["volume_kms_key"]
        if wanted["keep_alive"]:
            machines["KeepAlivePeriodInSeconds"] = wanted["keep_alive"]
        output = {"S3OutputPath": f"{self.folder}/jobs"}
        if wanted["kms_key"]:
            output["KmsKeyId"] = wanted["kms_key"]
        metrics = [{"Name": name, "Regex": regex} for name, regex in METRIC_REGEXES.items()]
        found: dict[str, Any] = {
            "AlgorithmSpecification": {
                "TrainingImage": self.image,
                "TrainingInputMode": "File",
                "MetricDefinitions": metrics,
            },
            "RoleArn": place.role,
            "OutputDataConfig": output,
            "ResourceConfig": machines,
            "StoppingCondition": stopping,
            "Environment": self._environment(),
        }
        flags = {
            "EnableManagedSpotTraining": wanted["spot"],
            "EnableNetworkIsolation": wanted["isolate"],
            "EnableInterContainerTrafficEncryption": wanted["encrypt_traffic"],
        }
        found |= {name: True for name, on in flags.items() if on}
        if channels := self._channels():
            found["InputDataConfig"] = channels
        if wanted["spot"]:
            # The service takes the address as a prefix: without its slash, job-1 would fetch what job-10 has left, too.
            found["CheckpointConfig"] = {"S3Uri": f"{self.folder}/checkpoints/{name}/", "LocalPath": CHECKPOINTS}
        if wanted["subnets"]:
            found["VpcConfig"] = {"SecurityGroupIds": wanted["security_groups"], "Subnets": wanted["subnets"]}
        return found

    def _environment(self) -> dict[str, str]:
        found = {"DOGBREED_CHECKPOINTS": CHECKPOINTS, "DOGBREED_CACHE": CACHE}
        if self.wanted["isolate"]:
            found["PIP_NO_INDEX"] = "1"
        if self.wanted["packages"]:
            found["PIP_FIND_LINKS"] = f"{CHANNELS}/packages"
        return found | {str(name): str(value) for name, value in (self.wanted["environment"] or {}).items()}

    def _channels(self) -> list[dict[str, Any]]:
        addresses: dict[str, str] = {}
        if self.data_uri and self.wanted["channels"] == "splits":
            addresses |= {split: f"{self.data_uri}/{split}/" for split in SPLITS}
        elif self.data_uri:
            addresses["training"] = f"{self.data_uri}/"
        if self.weights_uri:
            addresses["weights"] = self.weights_uri
        if self.wanted["packages"]:
            addresses["packages"] = self.wanted["packages"]
        if self.wanted["isolate"]:
            addresses["code"] = self.code_uri
        return [_channel(name, address) for name, address in addresses.items()]

    def job(self, operation: str, request: dict[str, Any]) -> Job:
        return Job(
            operation,
            request,
            self.source,
            self.code_uri,
            self.data_uri,
            self.place,
            self.sent_along,
            self.searches,
        )


def _channel(name: str, address: str) -> dict[str, Any]:
    source = {"S3DataType": "S3Prefix", "S3Uri": address, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "DataSource": {"S3DataSource": source}}


def data_uri(config: Mapping[str, Any], place: Place) -> str | None:
    """Where the photographs are in S3, without a slash at the end; None where the job draws them itself."""
    given = config["sagemaker"]["data"]
    if given:
        split_s3(given, "sagemaker.data")
        return str(given).rstrip("/")
    if config["data"]["source"] == "sample":
        return None
    folder = Path(os.path.abspath(config["data"]["root"])).name  # which . and .. have, too
    return f"s3://{place.bucket}/{prefix(config)}/data/{folder}"


def _weights(config: Mapping[str, Any], folder: str) -> tuple[str | None, dict[str, Path]]:
    """Address of the weights' channel, and the file that has to be sent there."""
    given, weights = config["sagemaker"]["weights"], config["model"]["weights"]
    if given:
        split_s3(given, "sagemaker.weights")
        return given, {}
    if weights in ("imagenet", "none", None):
        return None, {}
    file = Path(weights)
    if not file.is_file():
        raise DogbreedError(f"The weights file {file} does not exist; model.weights is imagenet, none, or a path.")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()[:12]
    address = f"{folder}/weights/{digest}/{file.name}"
    return address, {address: file}


def settings(config: Mapping[str, Any], experiment: str | None, *, with_search: bool = False) -> dict[str, Any]:
    """The settings that travel: what differs from what the job composes by itself, by dotted key.

    Args:
        config: A composed configuration.
        experiment: The experiment that it was composed with.
        with_search: Whether the search group travels too.

    Raises:
        DogbreedError: A key was taken out, which cannot travel.
    """
    given: dict[str, Any] = {}
    if experiment and (conf_dir() / "experiment" / f"{experiment}.yaml").is_file():
        given["experiment"] = experiment
    base = _base(**given)
    source = "dogimages" if config["sagemaker"]["data"] else config["data"]["source"]
    if source != base["data"]["source"]:
        given["data"] = source
        base = _base(**given)
    values = flatten(config)
    stays = (*STAYS_HERE, *(() if with_search else ("search",)))
    for key in diff(base, config):
        if any(key == name or key.startswith(f"{name}.") for name in stays):
            continue
        if key == "model.weights" and values[key] not in ("imagenet", "none"):
            continue  # a file: it has a channel
        if key not in values:
            raise DogbreedError(f"{key} was taken out, which cannot travel as a hyperparameter; use an experiment file")
        given[key] = values[key]
    return given


@cache
def _base(**given: str) -> dict[str, Any]:
    return compose([f"{key}={value}" for key, value in given.items()])
