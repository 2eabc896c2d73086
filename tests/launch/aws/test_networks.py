"""The table of multiply-adds that plans read, against torchvision's own figures, a count and a real cut."""

import csv
import re

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model_weights

from benchmarks.count_networks import count
from dogbreed.config.compose import compose
from dogbreed.models import backbones
from dogbreed.models.cut import cut
from launch.aws.networks import TABLE, network
from launch.aws.pricing import Prices

DOGS = {"train": 6680, "valid": 835, "test": 836}
NAMES = ("vgg16", "resnet50", "mobilenet_v2", "vit_b_16")


def test_every_network_of_torchvision_as_torchvision_counts_it():
    """Its own records name the multiply-adds of the published weights, in billions to three places."""
    names = torchvision.models.list_models(module=torchvision.models)
    with TABLE.open(newline="") as file:
        rows = {row["network"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"efficientnet_lite0", "efficientnet_lite1", *names}
    for name in names:
        meta = next(w.meta for w in get_model_weights(name) if w.transforms().crop_size[0] == int(rows[name]["pixels"]))
        assert float(rows[name]["macs"]) / 1000 == pytest.approx(meta["_ops"], rel=0.01, abs=6e-4), name
        if name != "inception_v3":  # published with a second head, which a run leaves out
            assert float(rows[name]["parameters"]) * 1e6 == pytest.approx(meta["num_params"], rel=0.01), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "alexnet", "mobilenet_v2"])
def test_counting_again_gives_the_table(name):
    with TABLE.open(newline="") as file:
        (row,) = [row for row in csv.DictReader(file) if row["network"] == name]
    assert {key: str(value) for key, value in count(name).items()} == row


@pytest.mark.slow
@pytest.mark.parametrize(("name", "trainable"), [("alexnet", "head"), ("mobilenet_v2", "head"), ("resnet18", "block")])
def test_the_frozen_part_is_what_a_run_computes_once(name, trainable):
    """Where the network is cut really, its first part has the multiply-adds and the features of the table."""
    built = backbones.create(name, 1000, weights="none")
    backbones.freeze(built, name, trainable)
    parts = cut(built, 224)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        features = parts.prefix(torch.zeros(1, 3, 224, 224))
    figures = network(name)
    assert counter.get_total_flops() / 2e6 == pytest.approx(figures.row[f"{trainable}_frozen"], abs=0.01)
    assert features.numel() * 4 == pytest.approx(figures.features_gb(trainable) * 1e9, abs=100)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_more_that_trains_takes_more(name):
    """Of a step, of its memory, and of the whole estimate; less of it is computed once."""
    figures = network(name)
    choices = ("head", "block", "all")
    for rising in (figures.step, lambda choice: figures.memory_gb(choice, 64), lambda choice: -figures.frozen(choice)):
        values = [rising(choice) for choice in choices]
        assert values == sorted(set(values))
    assert figures.step("all") == pytest.approx(3, abs=0.05), "backward takes twice as long as forward"
    estimates = [
        Prices(compose([f"model.backbone={name}", f"model.trainable={choice}", f"sagemaker.instance_type={machine}"]))
        .training(DOGS)
        .cost
        for machine in ("ml.g5.xlarge", "ml.m5.xlarge")
        for choice in choices
    ]
    assert None not in estimates
    for costs in (estimates[:3], estimates[3:]):
        assert costs == sorted(costs)


def test_a_network_that_is_not_in_the_table_has_the_figures_of_one_that_is():
    for backbone, name in (
        ("timm/resnet50.a1_in1k", "resnet50"),
        ("timm/mobilenetv2_100.ra_in1k", "mobilenet_v2"),
        ("timm/vit_base_patch16_224.augreg_in21k", "vit_b_16"),
        ("timm/vit_giant_patch14_dinov2", "vgg16"),
        ("my.networks:small", "vgg16"),
    ):
        figures = network(backbone)
        assert figures.row == network(name).row
        assert f"{backbone} is not in the table of networks, and is counted with the figures of" in figures.assumed
    assert re.search(r"15\.5 billion .*, more than [67]\d% of its networks need", network("timm/other").assumed)
    estimate = Prices(compose(["model.backbone=timm/other"])).training(DOGS)
    assert estimate.cost > 0
    assert "timm/other is not in the table" in estimate.because[-1]


def test_larger_images_take_more_in_proportion():
    assert network("resnet50", 448).gmacs == pytest.approx(4 * network("resnet50").gmacs)
    assert network("resnet50", 448).row["parameters"] == network("resnet50").row["parameters"]


def test_a_machine_that_is_not_in_the_table_is_as_slow_as_the_slowest():
    for machine, name in (("ml.g6.xlarge", "ml.g4dn.xlarge"), ("ml.r5.xlarge", "ml.m5.large")):
        prices = Prices(compose(["model.backbone=resnet50"]))
        assert prices.speed(machine)[:2] == prices.speed(name)[:2]
        assert f"{name} by the table of {prices.table['as_of']}, which has no {machine}" in prices.speed(machine).source
