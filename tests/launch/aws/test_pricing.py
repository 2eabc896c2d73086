"""Time and cost, against sums done here by hand."""

import json
import os
from datetime import date, datetime
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from dogbreed.data.samplers import used_views
from dogbreed.data.synthetic import make_sample
from launch.aws.images import patch_notice
from launch.aws.networks import network
from launch.aws.pricing import Prices, check_cost, listed_price
from launch.aws.work import passes
from launch.jobs.estimate import counts, resolved, shares_features
from launch.jobs.receipt import receipt

DOGS = {"train": 6680, "valid": 835, "test": 836}
IMAGES = 6680 + 835
# VGG16's forward passes, by hand, in billions of multiply-adds: its convolutions and its first linear layer, which
# the cache spares; then two linear layers, the second of which trains and so counts thrice.
CONVOLUTIONS = sum(
    9 * wide * deep * side**2
    for wide, deep, side in [
        *((3, 64, 224), (64, 64, 224), (64, 128, 112), (128, 128, 112), (128, 256, 56), (256, 256, 56), (256, 256, 56)),
        *((256, 512, 28), (512, 512, 28), (512, 512, 28), (512, 512, 14), (512, 512, 14), (512, 512, 14)),
    ]
)
FROZEN, MIDDLE, LAST = CONVOLUTIONS + 512 * 49 * 4096, 4096 * 4096, 4096 * 133
ALL = FROZEN + MIDDLE + LAST
STEP, FORWARD = (MIDDLE + 2 * LAST) / ALL, (MIDDLE + LAST) / ALL  # behind the features: the images need no gradient
HOUR = 0.736
DISK = 30 * 0.14 / 730  # an hour of 30 GB


def prices(*words: str) -> Prices:
    return Prices(compose(["sagemaker.images_per_second=100", "sagemaker.max_run=3600", *words]))


def test_a_training_with_features_that_are_computed_once():
    """Five epochs show 31 of 32 images in both views; one of the others; then five epochs of the last layers."""
    work = (2 * 31 / 32 * 6680 + 835 + 836) * FROZEN / ALL + 5 * (6680 * STEP + 835 * FORWARD) + (835 + 836) * FORWARD
    seconds = 180 + work / 100 + (5 * IMAGES + 835 + 836) / 8000
    estimate = prices().training(DOGS)
    assert estimate.seconds == pytest.approx(seconds, abs=0.01)  # a whole number of images
    assert estimate.cost == pytest.approx(seconds / 3600 * (HOUR + DISK), rel=1e-4)
    assert estimate.most == pytest.approx(HOUR + DISK)


@pytest.mark.slow
def test_a_training_of_the_whole_network():
    estimate = prices("model.trainable=all", "sagemaker.instance_count=2").training(DOGS)
    # Each layer's gradients by its weights and by its input take as much as it does forward; images need no gradient.
    step = 3 - 9 * 3 * 64 * 224**2 / ALL
    seconds = 180 + (5 * (6680 * step + 835) + 835 + 836) / 100 / 2
    assert estimate.seconds == pytest.approx(seconds, rel=1e-4)
    assert "a step of training all counted as 3.0" in estimate.because[-1]
    assert estimate.billed_seconds == pytest.approx(2 * seconds)
    assert estimate.most == pytest.approx(2 * (HOUR + DISK))


@pytest.mark.slow
def test_crops_spot_and_a_warm_machine():
    estimate = prices("data.augment=crop", "cache.views=3", "sagemaker.spot=true").training(DOGS)
    work = 3 * (1 - (2 / 3) ** 5) * 6680 + 835 + 836 + 5 * (6680 * STEP + 835 * FORWARD)
    seconds = 180 + work / 100 + (5 * IMAGES + 835 + 836) / 8000
    assert estimate.cost == pytest.approx(seconds / 3600 * (HOUR * 0.4 + DISK), rel=1e-3)
    assert estimate.most == pytest.approx(HOUR + DISK), "spot may cost as much as on demand"
    warm = prices("sagemaker.keep_alive=600").training(DOGS)
    assert warm.billed_seconds - prices().training(DOGS).billed_seconds == pytest.approx(600)
    assert warm.most == pytest.approx((HOUR + DISK) * 4200 / 3600)


@pytest.mark.parametrize(("augment", "epochs"), [("none", 5), ("flip", 5), ("flip", 1), ("crop", 3), ("crop", 20)])
@pytest.mark.slow
def test_views_are_those_that_a_run_computes(augment, epochs):
    """A run draws them; of 6,680 images that comes to what is expected, within a percent."""
    views = {"none": 1, "flip": 2, "crop": 4}[augment]
    computed = used_views(0, epochs, views, DOGS["train"]).sum() + DOGS["valid"] + DOGS["test"]
    done = passes(compose([f"data.augment={augment}", f"trainer.max_epochs={epochs}"]), DOGS)
    assert done.shared_images == pytest.approx(computed, rel=0.01)
    assert done.shared == pytest.approx(computed * FROZEN / ALL, rel=0.01)
    assert (done.whole_images, done.head) == (0, epochs * IMAGES + 835 + 836)


@pytest.mark.slow
def test_two_stages():
    """The head alone for 20 epochs on one view, then ten epochs of the last stage on four crops of each image."""
    first, both = (passes(compose(words), DOGS) for words in ([*HEAD_ALONE], ["schedule=finetune"]))
    assert (first.shared_images, first.head) == (6680 + 835 + 836, 20 * IMAGES + 835 + 836)
    assert both.head - first.head == 10 * IMAGES + 835 + 836
    crops = 4 * (1 - (3 / 4) ** 10) * 6680 + 835 + 836
    assert both.shared_images - first.shared_images == round(crops)
    row = network("vgg16").row
    assert both.shared - first.shared == pytest.approx(crops * row["block_frozen"] / row["macs"], rel=1e-4)
    off = passes(compose(["schedule=finetune", "cache.mode=off"]), DOGS)
    assert (off.shared, off.head, off.whole_images) == (0, 0, both.head)
    assert off.whole > both.shared + both.whole


HEAD_ALONE = ("data.augment=none", "trainer.max_epochs=20")


@pytest.mark.slow
def test_what_no_feature_can_spare():
    drawn_anew = "data.transforms=[torchvision.transforms.v2.RandAugment]"
    assert passes(compose([drawn_anew, "model.trainable=block"]), DOGS).shared == 0
    too_large = compose(["cache.max_gb=0.1", "model.trainable=block"])
    assert passes(too_large, DOGS) == passes(compose(["cache.mode=off", "model.trainable=block"]), DOGS)
    one = prices("model.trainable=all").training(DOGS)
    search = prices("model.trainable=all").training(DOGS, trials=3, one_job=True)
    assert search.seconds - 180 == pytest.approx(4 * (one.seconds - 180)), "the winner trains once more"
    pooled = passes(compose(["data.folds=5"]), DOGS)
    assert (pooled.shared_images, pooled.head) == (2 * IMAGES + 835 + 836, 6 * 5 * IMAGES + 835 + 836)
    assert passes(compose(["model.optimizer=lbfgs", "data.augment=none"]), DOGS).head == 6680 + 2 * 835 + 836


@pytest.mark.slow
def test_a_search_by_jobs_against_a_search_in_one():
    words = ("search.trials=20", "search.parallel=4")
    one = prices(*words).training(DOGS)
    many = prices(*words).training(DOGS, trials=20)
    assert many.cost == pytest.approx(20 * one.cost)
    assert many.seconds == pytest.approx(5 * one.seconds)  # four at a time
    assert many.most == pytest.approx(20 * one.most)
    together = prices(*words).training(DOGS, trials=20, one_job=True)
    assert together.most == pytest.approx(one.most)
    assert one.cost < together.cost < many.cost / 10


def test_a_search_whose_trials_find_features():
    """Of 20 trials, the first four compute features or, where that costs less, one training job before them."""
    computing, priced = prices(), prices("search.parallel=4")
    long = computing.training(DOGS).seconds
    rows = 2 * 31 / 32 * 6680 + 835 + 836
    last = 5 * (6680 * STEP + 835 * FORWARD) + (835 + 836) * FORWARD
    fetching = rows * 4096 * 4 / 1e9 / 0.1
    short = 180 + fetching + last / 100 + (5 * IMAGES + 835 + 836) / 8000
    each = priced.training(DOGS, trials=20, shares=True)
    assert each.billed_seconds == pytest.approx(4 * long + 16 * short, abs=0.1)
    assert each.seconds == pytest.approx(long + 4 * short, abs=0.1)
    first = priced.training(DOGS, trials=20, shares=True, first=True)
    assert first.billed_seconds == pytest.approx(long + 20 * short, abs=0.1)
    assert first.seconds == pytest.approx(long + 5 * short, abs=0.1)
    assert first.most == pytest.approx(21 * computing.training(DOGS).most), "at its limits, it counts too"
    chosen = priced.training(DOGS, trials=20, shares=True, first=None)
    assert chosen == min(each, first, key=lambda estimate: estimate.cost)
    alone = prices("search.parallel=1").training(DOGS, trials=20, shares=True, first=None)
    assert alone.billed_seconds == pytest.approx(long + 19 * short, abs=0.1), "the first trial fills them"
    assert not priced.training(DOGS, trials=20, first=None).first, "nothing is shared"


@pytest.mark.parametrize(
    ("words", "shares"),
    [
        ([], True),
        (["sagemaker.features=false"], False),
        (["sagemaker.isolate=true"], False),
        (["cache.mode=off"], False),
        (["search.space.model.trainable.choices=[head,block]"], False),
        (["search.space.data.augment.choices=[none,flip]"], False),
    ],
)
def test_when_trials_share_features(words, shares):
    assert shares_features(compose(words)) is shares


def test_the_published_search_for_less_than_a_dollar():
    config = resolved(compose(["mode=plan", "data.root=nowhere/dogImages"]), "tune")
    assert config["sagemaker"]["features_first"] is True
    found = Prices(config).training(DOGS, trials=20, parallel=4, shares=True, first=True)
    assert found.cost < 0.90
    assert Prices(config).training(DOGS, trials=20, parallel=4).cost > 2.3


def test_the_limit_counts_what_it_could_cost():
    config = compose(
        ["sagemaker.max_cost=10", "sagemaker.images_per_second=100", "search.trials=20", "sagemaker.max_run=3600"]
    )
    check_cost(config, Prices(config).training(DOGS))
    with pytest.raises(DogbreedError, match=r"This could cost \$14.84, more than sagemaker.max_cost=10"):
        check_cost(config, Prices(config).training(DOGS, trials=20))


def test_prices_of_ones_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "as_of: 2027-01-01\nhour: {ml.g5.2xlarge: 1.515}\nimages_per_second: {ml.g5.2xlarge: {vgg16: 300}}\n"
    )
    own = Prices(compose([f"sagemaker.prices={file}", "sagemaker.instance_type=ml.g5.2xlarge"]))
    assert own.hour("ml.g5.2xlarge") == 1.515
    assert own.hour("ml.g4dn.xlarge") == HOUR
    assert own.speed("ml.g5.2xlarge") == (300.0, None, "table of 2027-01-01")
    file.write_text("hours: {}\n")
    with pytest.raises(DogbreedError, match="has hours; it may have as_of"):
        Prices(compose([f"sagemaker.prices={file}"]))


def test_what_is_not_known_is_said():
    estimate = prices().training(None)
    assert (estimate.seconds, estimate.cost) == (None, None)
    assert estimate.most == pytest.approx(HOUR + DISK)
    assert "the number of images is not known" in estimate.because
    config = compose(["sagemaker.instance_type=ml.p4d.24xlarge", "sagemaker.max_cost=5"])
    with pytest.raises(DogbreedError, match=r"price of ml\.p4d\.24xlarge is not known, so sagemaker\.max_cost=5"):
        check_cost(config, Prices(config).training(DOGS))


def test_a_receipt_goes_before_the_table():
    newer, older = Path("outputs/sagemaker/b"), Path("outputs/sagemaker/a")
    for number, folder in enumerate((older, newer)):
        folder.mkdir(parents=True)
        receipt = {"job": folder.name, "instance_type": "ml.g4dn.xlarge", "backbone": "vgg16"}
        receipt["images_per_second"] = 100 + number
        (folder / "receipt.json").write_text(json.dumps(receipt))
        os.utime(folder / "receipt.json", (number, number))
    assert Prices(compose(())).speed("ml.g4dn.xlarge") == (101, None, "the receipt of b")
    (newer / "receipt.json").write_text("half-writ")
    assert Prices(compose(())).speed("ml.g4dn.xlarge") == (100, None, "the receipt of a")
    other = Prices(compose(["model.backbone=resnet50"])).speed("ml.g4dn.xlarge")
    vgg16, resnet50 = (
        macs / 603e9 + 8e6 * network(name).row["outputs"] / 320e9
        for name, macs in (("vgg16", ALL), ("resnet50", 4.089e9))
    )
    assert other.passes == pytest.approx(100 * vgg16 / resnet50, rel=1e-3), "in proportion to sums and memory"
    assert other.source == "in proportion to vgg16 in the receipt of a"


def test_the_speed_of_a_job_that_was_interrupted_counts_all_its_work(tmp_path):
    def stage(status, start, end):
        return {
            "Status": status,
            "StartTime": datetime(2026, 5, 1, 10, start),
            "EndTime": datetime(2026, 5, 1, 10, end),
        }

    stages = [stage("Training", 0, 5), stage("Interrupted", 5, 9), stage("Training", 10, 15)]
    machine = {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1}
    job = {"TrainingJobName": "one", "ResourceConfig": machine, "SecondaryStatusTransitions": stages}
    config = compose(["cache.mode=off"])
    (tmp_path / "expected.json").write_text(json.dumps({"cost": 1.0, "counts": DOGS}))
    receipt(config, job, Prices(config), tmp_path)
    work = 5 * IMAGES + 835 + 836 + 5 * 6680 * LAST / ALL  # a step's last layer computes its gradient, too
    assert json.loads((tmp_path / "receipt.json").read_text())["images_per_second"] == round(work / 600, 1)
    (tmp_path / "metrics.json").write_text('{"cache": "hit"}')
    receipt(config, job, Prices(config), tmp_path)
    assert json.loads((tmp_path / "receipt.json").read_text())["images_per_second"] is None, "it computed no features"


@pytest.mark.slow
def test_photographs_are_counted_where_they_are(dog_tree):
    assert counts(compose([f"data.root={dog_tree}"])) == {"train": 24, "valid": 12, "test": 12}
    flat = compose([f"data.root={dog_tree / 'train'}", "data.split=0.5,0.25,0.25"])
    assert counts(flat) == {"train": 12, "valid": 6, "test": 6}
    assert counts(compose(["data.root=nowhere/dogImages"])) == DOGS
    assert counts(compose(["data.root=nowhere/mine"])) is None


@pytest.mark.slow
def test_the_sample_has_the_counts_that_plans_take(tmp_path):
    make_sample(tmp_path / "sample")
    drawn = {split: len(list((tmp_path / "sample" / split).rglob("*.jpg"))) for split in DOGS}
    assert counts(compose(["data=sample"])) == drawn


def test_the_price_list_is_asked_for_one_price():
    client = boto3.client("pricing", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="y")  # noqa: S106
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "0.7364000000"}}
    product = {"terms": {"OnDemand": {"a": {"priceDimensions": {"b": dimension}}}}}
    filters = [
        {"Type": "TERM_MATCH", "Field": "instanceName", "Value": "ml.g4dn.xlarge"},
        {"Type": "TERM_MATCH", "Field": "regionCode", "Value": "us-east-1"},
        {"Type": "TERM_MATCH", "Field": "component", "Value": "Training"},
    ]
    asked = {"ServiceCode": "AmazonSageMaker", "Filters": filters, "MaxResults": 10}
    with Stubber(client) as stub:
        stub.add_response("get_products", {"PriceList": [json.dumps(product)]}, asked)
        assert listed_price(client, "ml.g4dn.xlarge", "us-east-1") == 0.7364
        stub.add_response("get_products", {"PriceList": []}, asked)
        assert listed_price(client, "ml.g4dn.xlarge", "us-east-1") is None


def test_images_past_their_end():
    old = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-gpu-py312-cu124-ubuntu22.04-sagemaker"
    assert "no patches since 2026-06-30" in patch_notice(old, date(2026, 7, 1))
    assert patch_notice(old, date(2026, 6, 30)) is None
    new = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13-cpu-amzn2023-sagemaker"
    assert patch_notice(new, date(2027, 7, 1)) is None
