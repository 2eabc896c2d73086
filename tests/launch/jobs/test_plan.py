"""What a plan shows: the published values, requests that the service's model accepts, and only what was asked for."""

import json
import math
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from support.cloud import SMALL
from support.without_torch import without_torch

from dogbreed.config.compose import compose, diff
from dogbreed.config.overrides import to_overrides
from dogbreed.core.metric_lines import EPOCH_LINE, EXPORT_LINE, METRIC_REGEXES, TEST_LINE
from launch.aws.account import offline_target
from launch.aws.validate import WORDS, check_request
from launch.jobs import debugger
from launch.jobs.hyperparameters import STAYS_HERE, settings
from launch.jobs.request import data_uri, torchvision_names
from launch.jobs.source import requirements

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = ("experiment=published", "search.objective='average test loss'", "search.trials=2", "search.parallel=2")


def request(said) -> dict:
    assert said.code == 0, said.err
    return yaml.safe_load(said.out)


def accepted(operation: str, params: dict) -> None:
    shape = get_session().get_service_model("sagemaker").operation_model(operation).input_shape
    report = ParamValidator().validate(params, shape)
    assert not report.has_errors(), report.generate_report()


@pytest.mark.slow
def test_the_search_as_published(run):
    planned = request(run("tune", "mode=plan", *PUBLISHED))
    accepted("CreateHyperParameterTuningJob", planned)
    tuning = planned["HyperParameterTuningJobConfig"]
    assert tuning["ParameterRanges"] == {
        "ContinuousParameterRanges": [
            {"Name": "lr", "MinValue": "0.001", "MaxValue": "0.1", "ScalingType": "Logarithmic"}
        ],
        "CategoricalParameterRanges": [{"Name": "batch-size", "Values": ["32", "64", "128", "256", "512"]}],
    }
    assert tuning["HyperParameterTuningJobObjective"] == {"Type": "Minimize", "MetricName": "average test loss"}
    assert tuning["ResourceLimits"] == {"MaxNumberOfTrainingJobs": 2, "MaxParallelTrainingJobs": 2}
    assert tuning["Strategy"] == "Bayesian"
    job = planned["TrainingJobDefinition"]
    assert {"Name": "average test loss", "Regex": r"Test set: Average loss: ([0-9\.]+)"} in job[
        "AlgorithmSpecification"
    ]["MetricDefinitions"]
    assert [channel["ChannelName"] for channel in job["InputDataConfig"]] == ["train", "valid", "test"]
    assert job["ResourceConfig"]["InstanceType"] == "ml.g4dn.xlarge"


@pytest.mark.slow
def test_by_default_the_search_looks_at_the_valid_split(run):
    tuning = request(run("tune", "mode=plan"))["HyperParameterTuningJobConfig"]
    assert tuning["HyperParameterTuningJobObjective"] == {"Type": "Minimize", "MetricName": "val_loss"}
    assert "chooses by the test split" in run("tune", "mode=plan", *PUBLISHED).out
    assert "chooses by the test split" not in run("tune", "mode=plan").out


@pytest.mark.slow
def test_debugger_and_profiler_as_published(run):
    planned = request(run("train", "mode=plan", "sagemaker.debugger.enabled=true", "sagemaker.profiler.enabled=true"))
    accepted("CreateTrainingJob", planned)
    rules = [rule["RuleParameters"]["rule_to_invoke"] for rule in planned["DebugRuleConfigurations"]]
    assert rules == ["LossNotDecreasing", "Overfit", "Overtraining", "PoorWeightInitialization"]
    rules = [rule["RuleParameters"]["rule_to_invoke"] for rule in planned["ProfilerRuleConfigurations"]]
    assert rules == ["LowGPUUtilization", "ProfilerReport"]
    assert planned["DebugHookConfig"]["HookParameters"] == {"train.save_interval": "100", "eval.save_interval": "10"}
    assert planned["DebugHookConfig"]["CollectionConfigurations"][0] == {
        "CollectionName": "CrossEntropyLoss_output_0",
        "CollectionParameters": {
            "include_regex": "CrossEntropyLoss_output_0",
            "train.save_interval": "10",
            "eval.save_interval": "1",
        },
    }
    assert planned["ProfilerConfig"]["ProfilingIntervalInMilliseconds"] == 500
    assert '"NumSteps": 10' in planned["ProfilerConfig"]["ProfilingParameters"]["DetailedProfilingConfig"]


@pytest.mark.slow
def test_managed_blocks_are_those_of_the_sdks_builders(monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    from sagemaker.core import image_uris
    from sagemaker.core.debugger import (
        CollectionConfig,
        DebuggerHookConfig,
        FrameworkProfile,
        ProfilerConfig,
        ProfilerRule,
        Rule,
        rule_configs,
    )

    image = image_uris.retrieve("debugger", "us-east-1")
    config = compose(["sagemaker.debugger.enabled=true", "sagemaker.profiler.enabled=true"])
    ours = debugger.managed(config, "s3://b", image)
    folders = ours["DebugHookConfig"]["S3OutputPath"], ours["ProfilerConfig"]["S3OutputPath"]
    assert folders == ("s3://b/debugger", "s3://b/profiler")
    names = ("loss_not_decreasing", "overfit", "overtraining", "poor_weight_initialization")
    rules = [Rule.sagemaker(getattr(rule_configs, name)()) for name in names]
    profiler_rules = [
        ProfilerRule.sagemaker(rule_configs.LowGPUUtilization()),
        ProfilerRule.sagemaker(rule_configs.ProfilerReport()),
    ]
    for rule in (*rules, *profiler_rules):
        rule.image_uri = image
    loss = CollectionConfig(
        name="CrossEntropyLoss_output_0",
        parameters={
            "include_regex": "CrossEntropyLoss_output_0",
            "train.save_interval": "10",
            "eval.save_interval": "1",
        },
    )
    hook = DebuggerHookConfig(
        s3_output_path="s3://b/debugger",
        hook_parameters={"train.save_interval": "100", "eval.save_interval": "10"},
        collection_configs=[loss, *(collection for rule in rules for collection in rule.collection_configs)],
    )
    profile = ProfilerConfig(
        s3_output_path="s3://b/profiler",
        system_monitor_interval_millis=500,
        framework_profile_params=FrameworkProfile(num_steps=10),
    )._to_request_dict()
    assert profile.pop("DisableProfiler") is False
    assert ours["DebugHookConfig"] == hook._to_request_dict()
    assert ours["DebugRuleConfigurations"] == [rule.to_debugger_rule_config_dict() for rule in rules]
    assert ours["ProfilerConfig"] == profile
    assert ours["ProfilerRuleConfigurations"] == [rule.to_profiler_rule_config_dict() for rule in profiler_rules]


@pytest.mark.slow
def test_managed_blocks_are_off_and_the_reason_is_told(run):
    plain = run("train", "mode=plan")
    assert not {"DebugHookConfig", "ProfilerConfig"} & request(plain).keys()
    assert "2026-07-30" not in plain.out
    asked = run("train", "mode=plan", "sagemaker.debugger.enabled=true", "sagemaker.profiler.enabled=true").out
    assert "closed to new accounts since 2026-07-30" in asked
    assert "ends on 2027-06-30" in asked


EVERYTHING = (
    *("sagemaker.spot=true", "sagemaker.max_wait=9000", "sagemaker.instance_count=2", "sagemaker.volume_gb=50"),
    "sagemaker.instance_type=ml.m5.xlarge",
    *("sagemaker.kms_key=alias/a", "sagemaker.volume_kms_key=alias/b", "sagemaker.subnets=[subnet-1]"),
    *("sagemaker.security_groups=[sg-1,sg-2]", "sagemaker.isolate=true", "sagemaker.encrypt_traffic=true"),
    *("sagemaker.weights=s3://mine/w/vgg16.pth", "sagemaker.packages=s3://mine/wheels", "sagemaker.channels=root"),
    *("sagemaker.tags={owner: me}", "sagemaker.environment={NCCL_DEBUG: INFO}", "sagemaker.role=service-role/Mine"),
    *("sagemaker.bucket=mine", "sagemaker.region=eu-central-1", "sagemaker.prefix=dogs/v2", "sagemaker.max_run=3600"),
)


@pytest.mark.slow
def test_every_setting_finds_its_field(run):
    planned = request(run("train", "mode=plan", *EVERYTHING, "sagemaker.job_name=one"))
    accepted("CreateTrainingJob", planned)
    assert planned["TrainingJobName"] == "one"
    assert planned["EnableManagedSpotTraining"]
    assert planned["EnableNetworkIsolation"]
    assert planned["EnableInterContainerTrafficEncryption"]
    assert planned["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 9000}
    assert planned["ResourceConfig"] == {
        "InstanceType": "ml.m5.xlarge",
        "InstanceCount": 2,
        "VolumeSizeInGB": 50,
        "VolumeKmsKeyId": "alias/b",
    }
    assert planned["CheckpointConfig"] == {
        "S3Uri": "s3://mine/dogs/v2/checkpoints/one/",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert planned["OutputDataConfig"] == {"S3OutputPath": "s3://mine/dogs/v2/jobs", "KmsKeyId": "alias/a"}
    assert planned["VpcConfig"] == {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1", "sg-2"]}
    assert planned["Tags"] == [{"Key": "created-by", "Value": "dogbreed"}, {"Key": "owner", "Value": "me"}]
    assert planned["RoleArn"] == "arn:aws:iam::000000000000:role/service-role/Mine"
    assert ".eu-central-1." in planned["AlgorithmSpecification"]["TrainingImage"]
    channels = {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in planned["InputDataConfig"]
    }
    code = channels.pop("code")
    assert channels == {
        "training": "s3://mine/dogs/v2/data/dogImages/",
        "weights": "s3://mine/w/vgg16.pth",
        "packages": "s3://mine/wheels",
    }
    wire = planned["HyperParameters"]
    # Without network the container cannot fetch its code either: it comes through a channel.
    assert wire["sagemaker_submit_directory"] == f"/opt/ml/input/data/code/{code.rpartition('/')[2]}"
    assert wire["trainer__num_nodes"] == "2"
    assert wire["sagemaker_torch_distributed_enabled"] == "true"
    assert planned["Environment"]["NCCL_DEBUG"] == "INFO"
    assert planned["Environment"]["PIP_NO_INDEX"] == "1"


def test_features_have_a_home_in_s3(run):
    words = ("mode=plan", *SMALL, "sagemaker.bucket=mine")
    said = run("train", *words, "sagemaker.kms_key=alias/a")
    planned = request(said)
    names = {name.removeprefix("DOGBREED_FEATURES"): value for name, value in planned["Environment"].items()}
    assert (names[""], names["_OWNER"], names["_KMS_KEY"]) == (
        *("s3://mine/dogbreed/features", "000000000000", "alias/a"),
    )
    assert "# Features: s3://mine/dogbreed/features, " in said.out
    given = run("train", *words, "sagemaker.features=s3://shared/dogs/")
    assert request(given)["Environment"]["DOGBREED_FEATURES"] == "s3://shared/dogs"
    for off in ("sagemaker.features=false", "cache.mode=off"):
        said = run("train", *words, off)
        assert not [name for name in request(said)["Environment"] if name.startswith("DOGBREED_FEATURES")]
        assert "# Features:" not in said.out


def test_a_job_goes_first_where_that_costs_less(run):
    words = ("mode=plan", "model.weights=none", "sagemaker.job_name=search")
    said = run("tune", *words)
    assert "filled by search-features, a training job that is sent first" in said.out
    assert "a training job before them computes the features" in said.out
    said = run("tune", *words, "sagemaker.features_first=false")
    assert "sent first" not in said.out
    assert "each of the first 4 trials computes the features" in said.out
    assert "sent first" not in run("tune", *words, "sagemaker.parallel=1").out, "one trial fills them for the rest"


@pytest.mark.slow
def test_a_search_carries_what_a_training_carries(run):
    words = (*EVERYTHING, "search.parallel=30", "search.trials=50", "sagemaker.warm_start=earlier")
    planned = request(run("tune", "mode=plan", *words, "sagemaker.strategy=random", "search.prune=false"))
    accepted("CreateHyperParameterTuningJob", planned)
    one = request(
        run("train", "mode=plan", *EVERYTHING, f"sagemaker.job_name={planned['HyperParameterTuningJobName']}")
    )
    definition = planned["TrainingJobDefinition"]
    assert definition.pop("StaticHyperParameters") == one.pop("HyperParameters")
    assert definition == {name: value for name, value in one.items() if name not in ("TrainingJobName", "Tags")}
    assert planned["HyperParameterTuningJobConfig"]["Strategy"] == "Random"
    assert planned["HyperParameterTuningJobConfig"]["TrainingJobEarlyStoppingType"] == "Off"
    assert planned["WarmStartConfig"] == {
        "ParentHyperParameterTuningJobs": [{"HyperParameterTuningJobName": "earlier"}],
        "WarmStartType": "TransferLearning",
    }


@pytest.mark.slow
def test_an_older_image_for_an_older_gpu(run):
    words = ("sagemaker.instance_type=ml.p3.2xlarge", "sagemaker.pytorch_version='2.6'")
    image = request(run("train", "mode=plan", *words))["AlgorithmSpecification"]["TrainingImage"]
    assert image.endswith("/pytorch-training:2.6-gpu-py312")


@pytest.mark.slow
def test_a_job_that_resumes_has_the_run_of_the_earlier_one_in_a_channel(run):
    planned = request(run("train", "mode=plan", "sagemaker.resume_from=one", "sagemaker.bucket=mine"))
    channels = {
        channel["ChannelName"]: channel["DataSource"]["S3DataSource"]["S3Uri"] for channel in planned["InputDataConfig"]
    }
    # The run lies in a folder of its job's name, in the folder that the job's checkpoints are kept in.
    first = request(run("train", "mode=plan", "sagemaker.job_name=one", "sagemaker.bucket=mine"))
    assert channels["resume"] == f"{first['CheckpointConfig']['S3Uri']}one/"
    assert planned["CheckpointConfig"]["S3Uri"] != first["CheckpointConfig"]["S3Uri"], "each keeps its own"


@pytest.mark.slow
def test_a_search_in_rounds_from_which_it_learns(run):
    said = run("tune", "mode=plan", "sagemaker.keep_alive=60")
    planned = request(said)
    assert planned["HyperParameterTuningJobConfig"]["ResourceLimits"]["MaxParallelTrainingJobs"] == 4
    assert "a Bayesian search learns over 5 rounds" in said.out
    assert "KeepAlivePeriodInSeconds" not in planned["TrainingJobDefinition"]["ResourceConfig"]
    assert "sagemaker.keep_alive is left out" in said.out
    assert planned["TrainingJobDefinition"]["CheckpointConfig"]["S3Uri"].endswith("/")


@pytest.mark.slow
def test_a_search_that_may_end_before_its_last_trial(run):
    end = ("sagemaker.stop_search={at: 0.4, not_improving: 5, converged: true}", "sagemaker.max_search=7200")
    said = run("tune", "mode=plan", *PUBLISHED, *end, "sagemaker.scaling=Auto", "sagemaker.warm_start=[one,two]")
    planned = request(said)
    accepted("CreateHyperParameterTuningJob", planned)
    tuning = planned["HyperParameterTuningJobConfig"]
    assert tuning["TuningJobCompletionCriteria"] == {
        "TargetObjectiveMetricValue": 0.4,
        "BestObjectiveNotImproving": {"MaxNumberOfTrainingJobsNotImproving": 5},
        "ConvergenceDetected": {"CompleteOnConvergence": "Enabled"},
    }
    assert tuning["ResourceLimits"]["MaxRuntimeInSeconds"] == 7200
    assert tuning["ParameterRanges"]["ContinuousParameterRanges"][0]["ScalingType"] == "Auto"
    parents = planned["WarmStartConfig"]["ParentHyperParameterTuningJobs"]
    assert [parent["HyperParameterTuningJobName"] for parent in parents] == ["one", "two"]
    assert tuning["TrainingJobEarlyStoppingType"] == "Off"
    assert "average test loss has one value per job" in said.out


@pytest.mark.slow
def test_a_plan_says_first_what_it_costs(run):
    said = run("train", "mode=plan", "sagemaker.region=eu-west-1").out
    assert said.index("Expected, the job") < said.index("Sent along") < said.index("Installed in the container: ")
    assert "lightning~=" in said
    assert "data/dogImages does not exist here" in said
    assert "(table of 2026-11-01 for us-east-1; eu-west-1 may differ by up to 30 %)" in said


@pytest.mark.slow
def test_what_is_tuned_is_not_fixed_as_well(run):
    words = ("model.lr=0.02", "data.batch_size=64", "model.weight_decay=0.1")
    planned = request(run("tune", "mode=plan", *words))
    static = planned["TrainingJobDefinition"]["StaticHyperParameters"]
    assert static["weight-decay"] == "0.1"
    assert not {"lr", "batch-size"} & static.keys()


@pytest.mark.slow
def test_hyperband_and_grid(run):
    tuning = request(run("tune", "mode=plan", "sagemaker.strategy=hyperband", "trainer.max_epochs=9"))
    tuning = tuning["HyperParameterTuningJobConfig"]
    assert tuning["StrategyConfig"]["HyperbandStrategyConfig"] == {"MinResource": 1, "MaxResource": 9}
    assert tuning["TrainingJobEarlyStoppingType"] == "Off"
    space = "search.space={model: {lr: {choices: [0.001, 0.01]}}}"
    tuning = request(run("tune", "mode=plan", "sagemaker.strategy=grid", space))["HyperParameterTuningJobConfig"]
    assert tuning["ParameterRanges"] == {"CategoricalParameterRanges": [{"Name": "lr", "Values": ["0.001", "0.01"]}]}


@pytest.mark.slow
def test_a_grid_has_as_many_jobs_as_combinations(run):
    """AWS, ResourceLimits: for Grid, MaxNumberOfTrainingJobs has to be the number of combinations, if it is given."""
    words = ("mode=plan", "sagemaker.strategy=grid", "sagemaker.instance_type=ml.m5.large", "sagemaker.volume_gb=1")
    space = "search.space={model: {lr: {choices: [0.001, 0.01]}}, data: {batch_size: {choices: [32, 64, 128]}}}"
    alone = ("sagemaker.max_run=3600", "sagemaker.features_first=false")
    said = run("tune", *words, space, "search.trials=20", "sagemaker.max_cost=0.6", *alone)
    limits = request(said)["HyperParameterTuningJobConfig"]["ResourceLimits"]
    assert limits == {"MaxNumberOfTrainingJobs": 6, "MaxParallelTrainingJobs": 6}
    assert "A grid tries every combination: 6 training jobs, not search.trials=20." in said.out
    assert "This could cost $0.69, more than sagemaker.max_cost=0.6" in said.out, "six hours at 0.115 $/h"


@pytest.mark.slow
def test_a_search_in_one_job(run):
    said = run("tune", "mode=plan", "search.where=one_job", "search.trials=7")
    planned = request(said)
    accepted("CreateTrainingJob", planned)
    assert planned["HyperParameters"]["search__where"] == "one_job"
    assert planned["HyperParameters"]["search__trials"] == "7"
    assert "a job per trial" in said.out
    assert "all trials in one job" in said.out
    assert "optuna" in requirements(compose(()), search=True)
    assert "optuna" not in requirements(compose(()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        ("experiment=published", "model.lr=0.01", "data.batch_size=64"),
        ("experiment=finetune", "seed=7", "trainer.precision=bf16-mixed", "data.size=null"),
        ("experiment=quickstart", "model.weights=none"),
        ("data=sample", "model.weights=none", "trainer.max_epochs=2"),
        ("model.backbone=resnet50", "trainer.enable_model_summary=true", "model.backbone_lr=1e-05", "test=false"),
        ("early_stopping=3", "cache.mode=off", "trainer.limit_train_batches=0.5"),
    ],
)
def test_the_job_composes_the_same_configuration(run, given):
    """What travels through the container's own reading of values gives the same settings there."""
    wire = request(run("train", "mode=plan", *given))["HyperParameters"]
    words = []
    for name, value in wire.items():
        if not name.startswith("sagemaker_"):
            with suppress(ValueError):
                value = str(json.loads(value))
            words += [f"--{name}", value]
    differ = diff(compose(given), compose(to_overrides(words)))
    assert [key for key in differ if not any(key == stays or key.startswith(f"{stays}.") for stays in STAYS_HERE)] == []


@pytest.mark.slow
def test_a_job_that_cannot_finish_in_time(run):
    """200 epochs of all 7,515 images, a step three forward passes, at 39 per second take over a day."""
    words = ("model.trainable=all", "trainer.max_epochs=200", "sagemaker.images_per_second=39")
    seconds = 180 + (200 * (6680 * 2.9944 + 835) + 835 + 836) / 39
    give = 60 * math.ceil(3 * seconds / 60)
    short = run("train", "mode=plan", *words, "sagemaker.max_run=3600")
    assert (
        "mode=submit would refuse this. A job takes about 29 h 45 min, and sagemaker.max_run=3600 would stop"
        in short.out
    )
    assert f"give sagemaker.max_run={give}, or null" in short.out
    enough = run("train", "mode=plan", *words)
    assert request(enough)["StoppingCondition"]["MaxRuntimeInSeconds"] == give
    assert "would refuse" not in enough.out
    unknown = run("train", "mode=plan", "data.root=nowhere/mine")
    assert request(unknown)["StoppingCondition"]["MaxRuntimeInSeconds"] == 3600
    assert "Nobody knows how long this takes, and it is stopped after sagemaker.max_run=3600 seconds" in unknown.out


@pytest.mark.slow
def test_only_differences_travel():
    assert settings(compose(["model.lr=0.01", "data.root=/x", "sagemaker.spot=true", "output_dir=o"]), None) == {
        "model.lr": 0.01
    }
    assert settings(compose(["experiment=finetune"]), "finetune") == {"experiment": "finetune"}
    assert settings(compose(["data.root=/x", "search.trials=3"]), None, with_search=True) == {"search.trials": 3}


def test_expressions_find_one_number_a_line():
    row = {"epoch": 3, "train_loss": 0.8, "val_loss": 0.7, "val_acc": 0.5, "best_val_loss": 0.6}
    epoch, exported = EPOCH_LINE.format(**row), EXPORT_LINE.format(**row)
    test = TEST_LINE.format(loss=0.463112, correct=713, total=836, percent=85.3)
    found = {
        name: [re.findall(regex, line) for line in (epoch, exported, test)] for name, regex in METRIC_REGEXES.items()
    }
    assert found == {
        "train_loss": [["0.800000"], [], []],
        "val_loss": [["0.700000"], ["0.700000"], []],
        "val_acc": [["0.5000"], ["0.5000"], []],
        "best_val_loss": [["0.600000"], [], []],
        "average test loss": [[], [], ["0.463112"]],
    }


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sagemaker_train.py", "sagemaker_tune.py"])
def test_planning_needs_no_account_no_network_and_no_torch(script):
    done = without_torch(script, "mode=plan", offline=True)
    assert done.returncode == 0, done.stderr
    planned = yaml.safe_load(done.stdout)
    accepted("CreateTrainingJob" if "train" in script else "CreateHyperParameterTuningJob", planned)
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("script", ["sagemaker_upload.py", "sagemaker_train.py"])
def test_submitting_needs_no_torch(script, cloud, write_tree, tmp_path, run):
    root = write_tree(tmp_path / "dogs")
    words = (f"data.root={root}", "sagemaker.role=R", *SMALL)
    if script == "sagemaker_train.py":
        assert run("upload", *words).code == 0
    done = without_torch(script, *words, offline=False)
    assert done.returncode == 0, done.stderr
    assert script == "sagemaker_upload.py" or len(cloud.sent("CreateTrainingJob")) == 1


@pytest.mark.slow
def test_the_stand_ins_are_named(run):
    said = run("train", "mode=plan")
    for stand_in in ("region: us-east-1", "account: 000000000000", "bucket: sagemaker-us-east-1-000000000000"):
        assert f"#   {stand_in}" in said.out
    role = "sagemaker.role=arn:aws:iam::111122223333:role/R"
    said = run("train", "mode=plan", role, "sagemaker.region=eu-west-1")
    assert "Not known without an account" not in said.out
    assert "s3://sagemaker-eu-west-1-111122223333/dogbreed/jobs" in said.out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "words", "says"),
    [
        ("train", ["sagemaker.features=mine"], "sagemaker.features=mine is no address in S3"),
        ("train", ["sagemaker.features=true"], "sagemaker.features=True is no text"),
        ("tune", ["sagemaker.features_first=maybe"], "sagemaker.features_first=maybe is neither true nor false"),
        (
            "tune",
            ["sagemaker.features_first=true", "sagemaker.features=false"],
            "sagemaker.features_first=true needs the cache, and S3 for it",
        ),
        ("tune", ["sagemaker.debugger.enabled=true"], "sagemaker.debugger.enabled cannot go with a tuning job"),
        ("tune", ["sagemaker.profiler.enabled=true"], "sagemaker.profiler.enabled cannot go with a tuning job"),
        (
            "train",
            ["sagemaker.debugger.enabled=true", "sagemaker.region=ap-south-2"],
            "no image for the rules of sagemaker.debugger and sagemaker.profiler in ap-south-2",
        ),
        ("train", ["loggers.csv={}"], "loggers.csv={} cannot travel as a hyperparameter"),
        ("train", ["trainer.devices=[0,1]"], "Write it into a file conf/experiment/NAME.yaml"),
        ("train", ["~loggers.tensorboard"], "cannot travel as a hyperparameter"),
        ("train", ["model.weights=missing.pth"], "The weights file missing.pth does not exist"),
        ("train", ["sagemaker.spot=true", "sagemaker.keep_alive=60"], "sagemaker.keep_alive cannot go with"),
        ("train", ["sagemaker.max_wait=100"], "sagemaker.max_wait is for spot jobs"),
        ("train", ["sagemaker.spot=true", "sagemaker.max_wait=100"], "it must be at least as long"),
        ("train", ["sagemaker.isolate=true"], "it cannot fetch the ImageNet weights"),
        (
            "train",
            ["sagemaker.isolate=true", "model.weights=none", "sagemaker.debugger.enabled=true"],
            "sagemaker.isolate=true: the managed Debugger needs smdebug, for which there are no wheels here",
        ),
        (
            "tune",
            ["sagemaker.isolate=true", "model.weights=none", "search.where=one_job"],
            "sagemaker.isolate=true: the job needs optuna, for which there are no wheels here",
        ),
        (
            "train",
            ["sagemaker.isolate=true", "model.weights=none", "sagemaker.pytorch_version='2.6'"],
            "the image of PyTorch 2.6 has other packages, for which there are no wheels here",
        ),
        ("train", ["sagemaker.subnets=[subnet-1]"], "sagemaker.subnets and sagemaker.security_groups go together"),
        ("train", ["sagemaker.instance_type=ml.g4dn.xlrge"], "did you mean ml.g4dn.xlarge?"),
        ("train", ["sagemaker.instance_count=0"], "sagemaker.instance_count=0 is out of range"),
        ("train", ["sagemaker.keep_alive=99999"], "is 99999, and may be 21600 at most"),
        ("train", ["sagemaker.role=a b"], "is neither a role's name nor its ARN"),
        ("train", ["sagemaker.role='arn:aws:iam::12:role/x'"], "is neither a role's name nor its ARN"),
        ("train", ["sagemaker.region=frankfurt"], "sagemaker.region=frankfurt is no AWS region"),
        ("train", ["sagemaker.bucket=s3://mine/x"], "leave the s3:// out: sagemaker.bucket=mine"),
        ("train", ["sagemaker.data=mine/x"], "sagemaker.data=mine/x is no address in S3"),
        ("train", ["sagemaker.prefix="], "is no folder's name"),
        ("train", ["sagemaker.job_name=a--"], "a-- is no name for a job"),
        ("train", [f"sagemaker.job_name={'a' * 64}"], "has 64 characters, and the name of such a job may have 63"),
        ("tune", ["sagemaker.prefix=quite-a-long-prefix"], "may have 32; give a shorter sagemaker.prefix"),
        ("train", ["sagemaker.pytorch_version='1.0'"], "AWS has no image of PyTorch 1.0"),
        ("train", ["sagemaker.channels=both"], "sagemaker.channels=both is unknown"),
        ("train", ["sagemaker.tags={a: b}", "sagemaker.environment={1x: b}"], "does not have the form"),
        ("train", ["sagemaker.prices=none.yaml"], "sagemaker.prices=none.yaml is no YAML file that can be read"),
        ("train", ["mode=rehears"], "mode=rehears is unknown"),
        ("tune", ["search.where=here"], "search.where=here is unknown"),
        ("tune", ["sagemaker.strategy=guess"], "sagemaker.strategy=guess is unknown"),
        ("tune", ["sagemaker.strategy=grid"], "takes choices only"),
        ("tune", ["sagemaker.strategy=hyperband", "sagemaker.warm_start=old"], "with bayesian and random alone"),
        ("train", ["sagemaker.region=5"], "sagemaker.region=5 is no text"),
        ("train", ["sagemaker.instance_type=5"], "sagemaker.instance_type=5 is no text"),
        ("train", ["sagemaker.data=5"], "sagemaker.data=5 is no text"),
        ("upload", ["sagemaker.bucket=5"], "sagemaker.bucket=5 is no text"),
        ("train", ["sagemaker.max_cost=five"], "sagemaker.max_cost=five is out of range; it is a number above 0"),
        ("train", ["sagemaker.images_per_second=-3"], "sagemaker.images_per_second=-3 is out of range"),
        ("train", ["sagemaker.spot=true", "sagemaker.max_wait=1h"], "sagemaker.max_wait=1h is out of range"),
        ("train", ["sagemaker.max_run=0"], "sagemaker.max_run=0 is out of range"),
        ("train", ["sagemaker.max_run=1h"], "sagemaker.max_run=1h is out of range"),
        ("train", ["sagemaker.subnets=a", "sagemaker.security_groups=[b]"], "it looks like sagemaker.subnets=[a,b]"),
        ("train", ["sagemaker.tags={created-by: me}"], "sagemaker.tags may not have created-by"),
        ("train", ["data.batch_size=0"], "data.batch_size=0 is out of range"),
        ("train", ["trainer.max_epochs=-1"], "trainer.max_epochs=-1 is out of range"),
        ("train", ["trainer.max_epochs=null"], "trainer.max_epochs=None is out of range"),
        ("train", ["data.augment=flop"], "data.augment=flop is unknown; it is one of none, flip, crop"),
        ("train", ["data.labels=/tmp/labels.csv"], "data.labels=/tmp/labels.csv would not be there for a job"),
        ("train", ["data.labels=labels.csv"], "data.labels needs sagemaker.channels=root"),
        (
            "train",
            ["data.labels=labels.csv", "sagemaker.channels=root", "mode=rehearse"],
            "sagemaker.rehearsal.images=0",
        ),
        ("train", ["model.backbone=mobilnet_v2"], "did you mean mobilenet_v2?"),
        ("tune", ["search.objective=train_loss"], "search.objective=train_loss is unknown"),
        ("tune", ["search.trials=0"], "search.trials=0 is out of range"),
        ("tune", ["search.backbones=[resnet18]"], "search.backbones compares networks where"),
        (
            "tune",
            ["search.where=one_job", "search.objective='average test loss'"],
            "here it is one of val_loss, val_acc",
        ),
        ("tune", ["search.where=one_job", "search.direction=down"], "search.direction=down is unknown"),
        ("tune", ["search.direction=maximize"], "does not fit search.objective=val_loss"),
        ("upload", ["data.root=nowhere"], "The data folder nowhere does not exist"),
        ("upload", ["data=sample"], "a job draws it itself"),
        ("upload", ["mode=rehears"], "mode=rehears is unknown; it is one of submit, plan, rehearse"),
        ("train", ["sagemaker.instance_type=ml.p3.2xlarge"], "(CUDA 13 has left out V100 and older)"),
        ("train", ["sagemaker.volume_kms_key=alias/a"], "sagemaker.volume_kms_key cannot go with ml.g4dn.xlarge"),
        ("train", ["sagemaker.volume_gb=50"], "sagemaker.volume_gb=50 has no effect with ml.g4dn.xlarge"),
        ("train", ["sagemaker.job_name='s3://mine/jobs/one'"], "It is an address in S3; a job's name is its last part"),
        ("train", ["sagemaker.profile=5"], "sagemaker.profile=5 is no text"),
        ("tune", ["sagemaker.resume_from=a"], "sagemaker.resume_from is for a training job"),
        ("tune", ["sagemaker.scaling=Log"], "sagemaker.scaling=Log is unknown; it is one of Auto, Linear"),
        ("tune", ["sagemaker.parallel=many"], "sagemaker.parallel=many is out of range; it is a whole number from 1"),
        ("tune", ["sagemaker.stop_search.at=good"], "sagemaker.stop_search.at=good is no number"),
        ("tune", ["sagemaker.warm_start=5"], "sagemaker.warm_start=5 is no list of names"),
        (
            "tune",
            ["sagemaker.strategy=random", "sagemaker.stop_search.converged=true"],
            "are for a Bayesian search, not for sagemaker.strategy=random",
        ),
    ],
)
def test_bad_use_is_one_sentence(run: Callable, kind, words, says):
    said = run(kind, *(["mode=plan"] if not any("mode=" in word for word in words) else []), *words)
    assert says in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert said.code == 2
    assert list(Path.cwd().iterdir()) == [], "a plan leaves nothing behind"


def test_the_words_are_those_of_the_training_code():
    from dogbreed.cache import callback, extract
    from dogbreed.data import datamodule
    from dogbreed.models import backbones, optim

    assert WORDS["data.augment"] == datamodule.CHOICES["augment"]
    assert WORDS["model.trainable"] == backbones.TRAINABLE
    assert WORDS["model.optimizer"] == optim.OPTIMIZERS
    assert WORDS["model.schedule"] == optim.SCHEDULES
    assert WORDS["cache.mode"] == callback.MODES
    assert WORDS["cache.precision"] == tuple(extract.PRECISIONS)


def test_the_networks_are_those_that_torchvision_registers():
    import torchvision

    assert torchvision_names() == set(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.slow
def test_a_folder_has_its_own_name(tmp_path, monkeypatch):
    (tmp_path / "dogs" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "dogs" / "inner")
    for given, name in ((".", "inner"), ("..", "dogs"), ("../../dogs/", "dogs"), ("inner", "inner")):
        config = compose([f"data.root={given}"])
        assert data_uri(config, offline_target(config)).endswith(f"/dogbreed/data/{name}")


@pytest.mark.slow
def test_thirty_ranges_and_no_more(run):
    names = [f"a{number}" for number in range(31)]
    ranges = [{"Name": name, "MinValue": "0", "MaxValue": "1", "ScalingType": "Linear"} for name in names]
    planned = request(run("tune", "mode=plan"))
    planned["HyperParameterTuningJobConfig"]["ParameterRanges"] = {"ContinuousParameterRanges": ranges[:30]}
    check_request("CreateHyperParameterTuningJob", planned)
    planned["HyperParameterTuningJobConfig"]["ParameterRanges"] = {"ContinuousParameterRanges": ranges}
    with pytest.raises(Exception, match="has 31"):
        check_request("CreateHyperParameterTuningJob", planned)


@pytest.mark.slow
def test_weights_of_ones_own_get_a_channel(run, tmp_path):
    file = tmp_path / "mine.pth"
    file.write_bytes(b"weights")
    said = run("train", "mode=plan", f"model.weights={file}")
    planned = request(said)
    (channel,) = [c for c in planned["InputDataConfig"] if c["ChannelName"] == "weights"]
    address = channel["DataSource"]["S3DataSource"]["S3Uri"]
    assert re.fullmatch(r"s3://.*/dogbreed/weights/[0-9a-f]{12}/mine\.pth", address)
    assert f"{file} -> {address}" in said.out
    assert "weights" not in planned["HyperParameters"]


@pytest.mark.slow
def test_a_folder_without_splits_is_sent_as_it_is_or_not_at_all(run, tmp_path):
    (tmp_path / "dogs" / "Beagle").mkdir(parents=True)
    words = ["mode=plan", f"data.root={tmp_path / 'dogs'}"]
    warning = f"{tmp_path / 'dogs'} has no folder train/, so it would not be sent; sagemaker.channels=root sends it"
    assert warning in run("train", *words).out
    assert warning not in run("train", *words, "sagemaker.channels=root").out


def test_nan_is_no_metric():
    line = EPOCH_LINE.format(epoch=1, train_loss=math.nan, val_loss=math.nan, val_acc=0, best_val_loss=1)
    assert re.findall(METRIC_REGEXES["val_loss"], line) == []
