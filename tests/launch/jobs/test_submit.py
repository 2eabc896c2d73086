"""Submission against moto through the real SDK: what is sent is what was planned, and what comes back is said."""

import json
import shlex
import time
from datetime import datetime
from pathlib import Path

import boto3
import pytest
import yaml
from support.cloud import ACCOUNT, ROLE, SMALL, Cloud, put_photographs, refused, said

from dogbreed.config.compose import compose
from dogbreed.config.overrides import to_overrides

MACHINE = ("sagemaker.bucket=mine", f"sagemaker.role={ROLE}", *SMALL)
NOW = datetime(2026, 11, 25, 12, 0, 0).timestamp()

pytestmark = pytest.mark.slow


# Forward passes of SqueezeNet 1.1 that a training of 24, 12 and 12 images takes: all but the last convolution of each
# image, 512 to 133 channels on 13 x 13 pixels, once; then that in each of five epochs, with the gradient in steps.
LAST = 512 * 133 * 13**2 / 274.13e6
WORK = 48 * (1 - LAST) + LAST * (5 * (24 * 2 + 12) + 24)


@pytest.fixture
def sent_data(cloud: Cloud, dog_tree) -> tuple[str, ...]:
    """Settings under which the photographs are in S3 already."""
    put_photographs("mine", "dogbreed/data/dogImages")
    cloud.requests.clear()
    return (*MACHINE, f"data.root={dog_tree}")


def planned(run, kind: str, *words: str) -> dict:
    """The request, as a plan without an account shows it."""
    return yaml.safe_load(run(kind, "mode=plan", *words).out)


EVERY_TRAINING = {
    "as it comes": [],
    "managed": ["sagemaker.debugger.enabled=true", "sagemaker.profiler.enabled=true"],
    "spot and closed": [
        *("sagemaker.spot=true", "sagemaker.kms_key=alias/a", "sagemaker.subnets=[subnet-1]"),
        *("sagemaker.security_groups=[sg-1]", "sagemaker.encrypt_traffic=true", "sagemaker.isolate=true"),
        *("sagemaker.packages=s3://mine/wheels", "sagemaker.instance_count=2", "sagemaker.tags={a: b}"),
    ],
    "warm": ["sagemaker.keep_alive=60", "sagemaker.channels=root", "model.lr=0.01", "early_stopping=null"],
}


@pytest.mark.parametrize("words", EVERY_TRAINING.values(), ids=EVERY_TRAINING.keys())
def test_a_training_is_sent_as_planned(cloud, run, sent_data, words):
    words = (*sent_data, *words, "sagemaker.job_name=one")
    plan = planned(run, "train", *words)
    assert cloud.requests == [], "a plan asks nobody"
    done = run("train", *words)
    assert done.code == 0, done.err
    assert cloud.sent("CreateTrainingJob") == [plan]
    assert "s3://mine/dogbreed/jobs/one" in done.out
    archive = plan["HyperParameters"]["sagemaker_submit_directory"].rpartition("/")[2]
    head = boto3.client("s3").head_object(Bucket="mine", Key=f"dogbreed/code/{archive}")
    assert ("sagemaker.kms_key=alias/a" in words) == (head.get("ServerSideEncryption") == "aws:kms")
    kept = Path("outputs/sagemaker/one")
    assert yaml.safe_load((kept / "request.yaml").read_text()) == plan


def test_a_job_that_resumes_needs_checkpoints(cloud, run, sent_data):
    words = (*sent_data, "sagemaker.job_name=two", "sagemaker.resume_from=one")
    refused = run("train", *words)
    assert refused.code == 2
    assert "There are no checkpoints in s3://mine/dogbreed/checkpoints/one/one/checkpoints/" in refused.err
    assert cloud.sent("CreateTrainingJob") == []
    key = "dogbreed/checkpoints/one/one/checkpoints/last.ckpt"
    boto3.client("s3").put_object(Bucket="mine", Key=key, Body=b"a checkpoint")
    assert run("train", *words).code == 0


def test_a_search_is_sent_as_planned(cloud, run, sent_data):
    words = (*sent_data, "search.trials=3", "sagemaker.job_name=search", "sagemaker.warm_start=earlier", "seed=0")
    plan = planned(run, "tune", *words)
    trials = [
        _trial(1, "Completed", {"lr": "0.0123", "batch-size": "64"}, 0.9),
        _trial(2, "Completed", {"lr": "0.0456", "batch-size": '"128"'}, 0.7),
        _trial(3, "Failed", {"lr": "0.09", "batch-size": "32"}, None),
    ]
    # moto has no such list: two pages, as AWS gives them.
    pages = [said(TrainingJobSummaries=trials[:2], NextToken="x"), said(TrainingJobSummaries=trials[2:])]
    cloud.answer("ListTrainingJobsForHyperParameterTuningJob", *pages)
    cloud.answer("DescribeHyperParameterTuningJob", _counted("InProgress", 1), _counted("Completed", 2))
    done = run("tune", *words)
    assert done.code == 0, done.err
    assert cloud.sent("CreateHyperParameterTuningJob") == [plan]
    assert cloud.sent("ListTrainingJobsForHyperParameterTuningJob")[1]["NextToken"] == "x"
    assert "[search: InProgress] 1 of 3 trials done, 1 running, 1 failed; best val_loss=0.700000" in done.out
    assert "Best: val_loss=0.700000 with data.batch_size=128 model.lr=0.0456 (search-002)" in done.out

    folder = Path("outputs/sagemaker/search")
    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best == {"data": {"batch_size": 128}, "model": {"lr": 0.0456}}
    rows = (folder / "trials.csv").read_text().splitlines()
    assert rows[0] == "trial,state,data.batch_size,model.lr,objective,seconds"
    assert rows[2] == "search-002,Completed,128,0.0456,0.7,100.0"
    assert rows[3].startswith("search-003,Failed,32,0.09,,")
    assert (folder / "search.png").read_bytes().startswith(b"\x89PNG")

    (line,) = [line for line in done.out.splitlines() if line.startswith("Train with it: ")]
    words = shlex.split(line.removeprefix("Train with it: python launch/sagemaker_train.py "))
    winner = compose(to_overrides(words))
    assert (winner["model"]["lr"], winner["data"]["batch_size"]) == (0.0456, 128)
    assert winner["sagemaker"]["role"] == ROLE
    assert winner["sagemaker"]["job_name"] is None
    again = run("train", *words)
    assert again.code == 0, again.err
    assert cloud.sent("CreateTrainingJob")[0]["HyperParameters"]["lr"] == "0.0456"


def test_a_job_that_fills_the_features_goes_before_its_search(cloud, run, sent_data):
    words = (*sent_data, "search.trials=3", "sagemaker.job_name=search", "sagemaker.features_first=true")
    cloud.answer("ListTrainingJobsForHyperParameterTuningJob", said(TrainingJobSummaries=[]))
    plan = planned(run, "tune", *words)
    run("tune", *words)
    assert [name for name, _, _ in cloud.requests if name.startswith("Create")] == [
        *("CreateTrainingJob", "CreateHyperParameterTuningJob"),
    ]
    (first,) = cloud.sent("CreateTrainingJob")
    assert first["TrainingJobName"] == "search-features"
    definition = plan["TrainingJobDefinition"]
    for field in ("Environment", "InputDataConfig", "ResourceConfig", "OutputDataConfig", "AlgorithmSpecification"):
        assert first[field] == definition[field]
    assert definition["StaticHyperParameters"].items() <= first["HyperParameters"].items()
    cloud.requests.clear()
    cloud.answer("CreateTrainingJob", refused("ResourceLimitExceeded", "no more"))
    assert run("tune", *words).code == 2
    assert not cloud.sent("CreateHyperParameterTuningJob"), "without its features no search"


def _trial(number: int, status: str, tuned: dict[str, str], value: float | None) -> dict:
    found = {
        "TrainingJobName": f"search-{number:03d}",
        "TrainingJobArn": f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:training-job/search-{number:03d}",
        "CreationTime": NOW,
        "TrainingStartTime": NOW,
        "TrainingEndTime": NOW + 100,
        "TrainingJobStatus": status,
        "TunedHyperParameters": tuned,
    }
    if value is not None:
        metric = {"MetricName": "val_loss", "Value": value}
        found["FinalHyperParameterTuningJobObjectiveMetric"] = metric
    return found


def _counted(status: str, done: int):
    def answer(body, ask):
        job = ask()
        job["HyperParameterTuningJobStatus"] = status
        running = int(status == "InProgress")
        counters = {"Completed": done, "InProgress": running, "RetryableError": 0, "NonRetryableError": 1, "Stopped": 0}
        job["TrainingJobStatusCounters"] = counters
        job["BestTrainingJob"] = _trial(2, "Completed", {}, 0.7)
        return said(**job)

    return answer


def test_a_search_in_one_job_is_a_training(cloud, run, sent_data):
    words = (*sent_data, "search.where=one_job", "search.trials=4", "sagemaker.job_name=all")
    plan = planned(run, "tune", *words)
    assert run("tune", *words).code == 0
    assert cloud.sent("CreateTrainingJob") == [plan]
    assert cloud.sent("CreateHyperParameterTuningJob") == []


def test_the_log_the_receipt_and_the_results(cloud, run, sent_data):
    """A job that runs for a while: its log is streamed, its metrics and results fetched, its price held against."""
    logs = boto3.client("logs")
    logs.create_log_group(logGroupName="/aws/sagemaker/TrainingJobs")
    logs.create_log_stream(logGroupName="/aws/sagemaker/TrainingJobs", logStreamName="one/algo-1-1")

    def running(body, ask):
        lines = [{"timestamp": int(time.time() * 1000), "message": "epoch=1 train_loss=1.0 val_loss=0.9"}]
        logs.put_log_events(logGroupName="/aws/sagemaker/TrainingJobs", logStreamName="one/algo-1-1", logEvents=lines)
        return said(**{**ask(), "TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"})

    def done(body, ask):
        job = {**ask(), "TrainingJobStatus": "Completed", "SecondaryStatus": "Completed"}
        job |= {"BillableTimeInSeconds": 490, "TrainingTimeInSeconds": 980}
        job["FinalMetricDataList"] = [{"MetricName": "val_loss", "Value": 0.5, "Timestamp": NOW}]
        job["SecondaryStatusTransitions"] = [
            {"Status": "Training", "StartTime": NOW, "EndTime": NOW + 20, "StatusMessage": ""}
        ]
        return said(**{**job, "EnableManagedSpotTraining": True})

    _put_results("dogbreed/jobs/one/output/output.tar.gz")
    cloud.answer("DescribeTrainingJob", running, done)
    said_ = run(
        "train",
        *sent_data,
        "sagemaker.job_name=one",
        "sagemaker.spot=true",
        "data.augment=none",
        "sagemaker.images_per_second=10",
    )
    assert said_.code == 0, said_.err
    assert said_.out.count("epoch=1 train_loss=1.0 val_loss=0.9") == 1
    assert "[one: Training]" in said_.out
    assert "val_loss           0.5" in said_.out
    assert "cost     490 s billed, $0.10 at 0.736 $/h" in said_.out  # 490 / 3600 * 0.736
    assert "were expected" in said_.out
    assert "spot     saved 50%" in said_.out
    folder = Path("outputs/sagemaker/one")
    assert json.loads((folder / "metrics.json").read_text()) == {"test_acc": 1.0}
    receipt = json.loads((folder / "receipt.json").read_text())
    assert receipt["billed_seconds"] == 490
    # 24 photographs to train on, 12 and 12 others, once each, in 20 s; the head's share is nothing here
    assert receipt["images_per_second"] == pytest.approx(WORK / 20, rel=0.05)
    later = run("train", "mode=plan", *sent_data).out
    assert f"at {receipt['images_per_second']:,.0f} per second (the receipt of one)" in later


def _put_results(key: str) -> None:
    import io
    import tarfile

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("metrics.json")
        content = b'{"test_acc": 1.0}'
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    boto3.client("s3").put_object(Bucket="mine", Key=key, Body=packed.getvalue())


def test_following_a_job_that_is_there(cloud, run, sent_data):
    assert run("train", *sent_data, "sagemaker.job_name=one").code == 0
    cloud.requests.clear()
    again = run("train", *MACHINE, "job=one")
    assert again.code == 0
    assert "one is done." in again.out
    assert cloud.sent("CreateTrainingJob") == []


def test_following_tells_of_the_job_as_it_was_sent(cloud, run, sent_data):
    """Not with the settings of the command that follows: another network's speed would be a lie in the next plan."""
    assert run("train", *sent_data, "sagemaker.job_name=one").code == 0
    receipt = Path("outputs/sagemaker/one/receipt.json")
    receipt.unlink()
    assert run("train", "job=one").code == 0
    assert json.loads(receipt.read_text())["backbone"] == "squeezenet1_1"


def test_commands_to_copy_name_a_region_that_is_not_the_usual_one(cloud, run, monkeypatch):
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    words = ("data=sample", *MACHINE[1:], "sagemaker.job_name=one", "sagemaker.region=us-east-1")
    done = run("train", *words)
    assert done.code == 0, done.err
    assert "sagemaker_deploy.py mode=plan job=one sagemaker.region=us-east-1" in done.out

    def interrupt(body, ask):
        import _thread

        _thread.interrupt_main()
        return said(**{**ask(), "TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"})

    cloud.answer("DescribeTrainingJob", interrupt)
    left = run("train", "job=one", "sagemaker.region=us-east-1")
    assert left.code == 130
    assert "sagemaker_train.py job=one sagemaker.region=us-east-1\n" in left.err
    assert "stop-training-job --training-job-name one --region us-east-1\n" in left.err


def test_nothing_is_sent_that_could_not_be_kept(cloud, run, sent_data):
    Path("outputs").write_text("a file, where the folder should be")
    refused = run("train", *sent_data)
    assert refused.code == 2
    assert "so nothing was sent" in refused.err
    assert cloud.sent("CreateTrainingJob") == []


@pytest.mark.parametrize(
    ("kind", "stop"), [("train", "stop-training-job"), ("tune", "stop-hyper-parameter-tuning-job")]
)
def test_ctrl_c_leaves_the_job_alone(cloud, run, sent_data, kind, stop):
    operation = "DescribeTrainingJob" if kind == "train" else "DescribeHyperParameterTuningJob"
    asked = []

    def describe(body, ask):
        asked.append(body)
        status = "TrainingJobStatus" if kind == "train" else "HyperParameterTuningJobStatus"
        if len(asked) == 3:
            import _thread

            _thread.interrupt_main()
        return said(**{**ask(), status: "InProgress", "SecondaryStatus": "Training"})

    cloud.answer(operation, describe)
    left = run(kind, *sent_data, "sagemaker.job_name=one")
    assert left.code == 130
    assert "one continues, and is billed until it ends." in left.err
    assert f"Follow it: python launch/sagemaker_{kind}.py job=one" in left.err
    assert f"Stop it:   aws sagemaker {stop}" in left.err
    assert not [name for name, _, _ in cloud.requests if name.startswith("Stop")]


def test_what_may_cost_too_much_is_not_sent(cloud, run, sent_data):
    before = len(cloud.requests)
    for words in (
        ["sagemaker.max_cost=0.5", "sagemaker.max_run=3600"],
        ["sagemaker.max_cost=5", "sagemaker.instance_type=ml.p4d.24xlarge"],
    ):
        refused = run("train", *sent_data, *words)
        assert refused.code == 2
        assert "sagemaker.max_cost" in refused.err
    assert {name for name, _, _ in cloud.requests[before:]} <= {"GetCallerIdentity", "GetProducts"}
    assert run("train", *sent_data, "sagemaker.max_cost=0.8", "sagemaker.max_run=3600").code == 0


def test_what_cannot_finish_is_not_sent(cloud, run, sent_data):
    before = len(cloud.requests)
    refused = run("train", *sent_data, "sagemaker.images_per_second=0.01", "sagemaker.max_run=600", "data.augment=none")
    assert refused.code == 2
    assert round((180 + WORK / 0.01) / 60) == 102
    assert "A job takes about 1 h 42 min, and sagemaker.max_run=600 would stop it after 10 min" in refused.err
    assert {name for name, _, _ in cloud.requests[before:]} <= {"GetCallerIdentity", "GetProducts"}


def test_the_price_list_goes_before_the_table(cloud, run, sent_data):
    term = {"OnDemand": {"a": {"priceDimensions": {"b": {"unit": "Hrs", "pricePerUnit": {"USD": "2.5"}}}}}}
    cloud.answer("GetProducts", said(PriceList=[json.dumps({"terms": term})], FormatVersion="aws_v1"))
    done = run("train", *sent_data)
    assert "ml.g4dn.xlarge 2.500 $/h on demand (AWS Price List)" in done.out
    filters = {entry["Field"]: entry["Value"] for entry in cloud.sent("GetProducts")[0]["Filters"]}
    assert filters == {"instanceName": "ml.g4dn.xlarge", "regionCode": "us-east-1", "component": "Training"}


def test_code_and_data_are_sent_once(cloud, run, sent_data):
    assert run("train", *sent_data).code == 0
    cloud.requests.clear()
    assert run("train", *sent_data).code == 0
    assert [name for name, _, _ in cloud.requests if name.startswith("PUT")] == []


def test_weights_are_sent_along(cloud, run, sent_data, tmp_path):
    file = tmp_path / "mine.pth"
    file.write_bytes(b"w" * (9 << 20))  # more than one part
    words = [word for word in sent_data if not word.startswith("model.weights")]
    assert run("train", *words, f"model.weights={file}").code == 0
    (request,) = cloud.sent("CreateTrainingJob")
    (address,) = [
        channel["DataSource"]["S3DataSource"]["S3Uri"]
        for channel in request["InputDataConfig"]
        if channel["ChannelName"] == "weights"
    ]
    body = boto3.client("s3").get_object(Bucket="mine", Key=address.removeprefix("s3://mine/"))["Body"].read()
    assert body == file.read_bytes()


def test_without_photographs_nothing_is_sent(cloud, run, dog_tree):
    refused = run("train", f"data.root={dog_tree}", f"sagemaker.role={ROLE}", *SMALL)
    assert refused.code == 2
    assert "There are no images in s3://sagemaker-us-east-1-123456789012/dogbreed/data/dogImages/train/" in refused.err
    assert "python launch/sagemaker_upload.py data.root=" in refused.err
    assert not [name for name, _, _ in cloud.requests if name.startswith(("PUT", "POST", "Create"))]


def test_the_sample_needs_no_upload(cloud, run):
    done = run("train", "data=sample", "model.weights=none", f"sagemaker.role={ROLE}")
    assert done.code == 0, done.err
    (request,) = cloud.sent("CreateTrainingJob")
    assert "InputDataConfig" not in request
    assert request["HyperParameters"]["data"] == "sample"
