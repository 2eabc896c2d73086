"""A plan that chooses a machine: what each takes and costs, and the cheapest that fits."""

import math

import pytest
from support.without_torch import without_torch

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from launch.aws.pricing import Prices
from launch.jobs import choose, estimate
from launch.jobs.choose import Limits, Offer

CHEAP, FAST = Offer("ml.m5.large", 7200, 0.23, 0.10), Offer("ml.g5.xlarge", 600, 0.30, 0.12)
BROKEN = Offer("ml.p3.2xlarge", math.inf, math.inf, None, "it cannot")


def add(limits: Limits, *offers: Offer) -> tuple[str, bool]:
    offer, spot = choose.cheapest(offers or (CHEAP, FAST, BROKEN), limits)
    return offer.machine, spot


def test_the_cheapest_that_fits():
    assert add(Limits(1, None)) == add(Limits(None, 7200)) == (CHEAP.machine, False)
    assert add(Limits(1, 1800)) == (FAST.machine, False)
    assert add(Limits(0.15, None)) == (CHEAP.machine, True), "on spot alone"
    assert add(Limits(0.15, 1800)) == (FAST.machine, True)
    verdicts = [line.split("  ")[-1] for line in choose.table((CHEAP, FAST, BROKEN), Limits(0.25, 1800))]
    assert verdicts == ["fits under $0.25 and within 30 min", "no: too slow", "on spot", "no: it cannot"]


def test_where_none_fits_the_nearest_is_named():
    with pytest.raises(
        DogbreedError, match=r"^No machine does this within 5\.0 min; the nearest is .*g5.xlarge, .*10 m"
    ):
        add(Limits(None, 300))
    with pytest.raises(DogbreedError, match=r"under \$0\.02 and within 60 min; the nearest is .*m5.large, .* \$0\.23"):
        add(Limits(0.02, 3600), CHEAP, FAST._replace(cost=3.0, spot=None))
    with pytest.raises(DogbreedError, match=r"No machine can carry this out: ml\.p3\.2xlarge, it cannot"):
        add(Limits(1, None), BROKEN)


@pytest.mark.slow
def test_each_machine_has_the_costs_and_the_obstacles_of_its_own_plan(run):
    """A batch that is too large for a GPU, a GPU that the image has no code for, a limit that is too short."""
    words = ["data.root=nowhere/dogImages", "model.trainable=block", "data.batch_size=4096", "sagemaker.max_run=2400"]
    offers = {offer.machine: offer for offer in choose.offers(compose(["mode=plan", *words]), "train", None)}
    costs = [offer.cost for offer in offers.values()]
    assert costs == sorted(costs)
    for machine in ("ml.g5.xlarge", "ml.m5.2xlarge"):
        plan = run("train", "mode=plan", *words, f"sagemaker.instance_type={machine}").out
        assert f"${offers[machine].cost:,.2f}; at its limits" in plan
        assert offers[machine].spot < offers[machine].cost
        assert offers[machine].why_not in plan, "which warns of the same"
    assert offers["ml.g5.xlarge"].why_not == ""
    assert offers["ml.m5.xlarge"].why_not.endswith("sagemaker.max_run=2400 would stop it after 40 min, unfinished")
    assert "has no code for" in offers["ml.p3.2xlarge"].why_not
    assert "data.batch_size=4096 takes about" in offers["ml.c5.xlarge"].why_not
    assert offers["ml.c5.xlarge"].why_not.endswith("GB of memory, ml.c5.xlarge has 8, 2048 fits")


def test_memory_is_that_of_the_batch_that_the_run_will_take():
    """Of the 144 images of the sample it takes 32 at a time, whatever is the default."""
    words = ["data=sample", "data.root=nowhere/sample", "model.trainable=all", "sagemaker.instance_type=ml.m5.large"]
    assert estimate.memory_shortage(compose(words)) == ""
    assert "data.batch_size=512 takes about" in estimate.memory_shortage(compose([*words, "data.batch_size=512"]))


@pytest.mark.slow
def test_it_needs_no_torch():
    words = ("mode=plan", "under=$2", "within=2h", "model.backbone=resnet50")
    done = without_torch("sagemaker_train.py", *words, offline=True)
    assert done.returncode == 0, done.stderr
    *_, last, machine = done.stdout.splitlines()
    assert "The cheapest that fits, " in last
    assert machine.startswith("  sagemaker.instance_type=ml.")
    assert done.stdout.count("\nml.") == 10


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["under=much"], "under=much is no amount of US dollars; it looks like under=1 or under='$1.50'."),
        (["under=0"], "under=0 is no amount"),
        (["under=-1"], "under=-1 is no amount"),
        (["within=30"], "within=30 is no span of time; it looks like 30m, 2h or 7d."),
        (["under=1", "within=soon"], "within=soon is no span of time"),
        (["under=1", "mode=submit"], "under and within choose a machine in a plan: give mode=plan"),
        (["under=1", "data.root=nowhere"], "nowhere does not exist here; give data.root=FOLDER."),
        (["under=1", "sagemaker.channels=both"], "sagemaker.channels=both is unknown"),
    ],
)
@pytest.mark.slow
def test_bad_use_is_one_sentence(run, words, says):
    said = run("train", "mode=plan", *words)
    assert said.err.startswith("error: ")
    assert says in said.err
    assert (said.err.count("\n"), said.out, said.code) == (1, "", 2)


def test_time_and_cost_are_known_on_every_machine():
    """Of four networks, however much of them trains: nothing is left open, and what trains more takes longer,
    but for a block where decoding is what takes the time."""
    config = compose(["mode=plan", "data.root=nowhere/dogImages"])
    images = estimate.counts(config)
    for machine in Prices(config).table["hour"]:
        for backbone in ("vgg16", "resnet50", "mobilenet_v2", "vit_b_16"):
            found = []
            for trainable in ("head", "block", "all"):
                model = {**config["model"], "backbone": backbone, "trainable": trainable}
                on_it = {**config, "model": model, "sagemaker": {**config["sagemaker"], "instance_type": machine}}
                found.append(Prices(on_it).training(images))
            assert all(0 < each.cost <= each.most for each in found), (machine, backbone)
            assert found[0].seconds <= found[1].seconds < found[2].seconds, (machine, backbone)
