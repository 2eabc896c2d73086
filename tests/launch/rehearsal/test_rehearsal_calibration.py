"""The receipt of a rehearsal: seconds of a machine that is known, from which its figures come back."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("moto")

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from dogbreed.core.machine import cpu_count
from launch.aws.networks import network
from launch.aws.pricing import REHEARSALS, Prices
from launch.jobs.estimate import resolved
from launch.rehearsal import calibration
from launch.rehearsal.container import Outcome

IMAGES = {"train": 144, "valid": 48, "test": 48}  # of data=sample
WORDS = ("data=sample", "data.root=nowhere/sample", "data.augment=none", "trainer.max_epochs=5")
# This machine, in seconds: an image's decoding on one core, a multiply-add and a number that a layer writes.
DECODING, MAC, WRITTEN = 0.003, 1 / 75e9, 8 / 17e9
START = 11.0
SLOWER: dict[str, float] = {}  # than these figures say, by network


def one_pass(backbone: str) -> float:
    row = network(backbone).row
    return SLOWER.get(backbone, 1) * (row["macs"] * 1e6 * MAC + row["outputs"] * 1e6 * WRITTEN)


def metrics(backbone: str, **changed: Any) -> dict[str, Any]:
    """What a run of the head on this machine measures."""
    row = network(backbone).row
    views = sum(IMAGES.values())
    computing = views * one_pass(backbone) * row["head_frozen"] / row["macs"]
    features = {
        "features_computed": views,
        "features_seconds": computing + views * DECODING / cpu_count(),
        "decoding_seconds": views * DECODING,
    }
    epochs = {"images_seen": 5 * 144, "images_per_second": 3000.0}
    return {**features, **epochs, "device": "cpu", "cache": "built", **changed}


def seconds(backbone: str) -> float:
    """What that run takes, by the same figures."""
    run = metrics(backbone)
    row = network(backbone).row
    steps = 5 * 144 * (row["head_step"] - row["head_frozen"]) / row["macs"]
    forward = (5 * 48 + 48 + 48) * (1 - row["head_frozen"] / row["macs"])
    head = (5 * 192 + 96) / 4000  # of 192 images in an epoch, 144 train
    return START + run["features_seconds"] + (steps + forward) * one_pass(backbone) + head


def outcome(backbone: str, **changed: Any) -> Outcome:
    return Outcome("one", seconds=seconds(backbone), result=metrics(backbone, **changed))


def write(file: Path, backbone: str, *words: str, **changed: Any) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    config = compose(["mode=rehearse", *WORDS, f"model.backbone={backbone}", *words])
    return calibration.receipt(config, outcome(backbone, **changed), Path("nowhere"), file)


def planned(backbone: str, *words: str) -> float | None:
    here = ("mode=plan", *WORDS, f"model.backbone={backbone}", "sagemaker.instance_type=local", *words)
    return Prices(compose(here)).training(IMAGES).seconds


def test_figures_come_back_and_foretell_another_network() -> None:
    file = REHEARSALS / "one" / "receipt.json"
    assert write(file, "resnet18").endswith("sagemaker.instance_type=local in a plan uses them.")
    row = json.loads(file.read_text())["prices"]["machines"]["local"]
    assert row["gmacs"] == pytest.approx(75, rel=0.01)
    assert row["gb_per_second"] == pytest.approx(17, rel=0.01)
    assert row["decoded_per_vcpu"] == pytest.approx(1 / DECODING, rel=0.01)
    assert row["head_images_per_second"] == pytest.approx(4000, rel=0.01)
    assert row["start_seconds"] == pytest.approx(START, rel=0.01)
    for backbone in ("resnet18", "mobilenet_v2", "vgg16"):
        assert planned(backbone) == pytest.approx(seconds(backbone), rel=0.01)
    elsewhere = file.rename(file.parents[2] / "kept.json")
    assert planned("mobilenet_v2", f"sagemaker.prices={elsewhere}") == pytest.approx(seconds("mobilenet_v2"), rel=0.01)


@pytest.mark.parametrize(("first", "unlike"), [("resnet18", "efficientnet_b0"), ("mobilenet_v2", "vit_b_16")])
def test_two_networks_tell_arithmetic_and_memory(monkeypatch: pytest.MonkeyPatch, first: str, unlike: str) -> None:
    """This machine's memory is a third as fast beside its arithmetic as in the table, so that one network misjudges."""
    monkeypatch.setitem(globals(), "WRITTEN", 3 * WRITTEN)
    for number, backbone in enumerate(sorted(["resnet18", "mobilenet_v2"], key=first.__ne__)):
        file = REHEARSALS / str(number) / "receipt.json"
        write(file, backbone)
        os.utime(file, (number, number))
        if not number:
            assert abs((planned(unlike) or 0) / seconds(unlike) - 1) > 0.1
    row = json.loads(file.read_text())["prices"]["machines"]["local"]
    assert row["gmacs"] == pytest.approx(75, rel=0.01)
    assert row["gb_per_second"] == pytest.approx(17 / 3, rel=0.01)
    for backbone in ("resnet18", "mobilenet_v2", "efficientnet_b0", "vit_b_16"):
        assert planned(backbone) == pytest.approx(seconds(backbone), rel=0.01)


def test_a_network_that_was_measured_is_not_judged_by_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that need fewer multiply-adds are in nobody's count."""
    monkeypatch.setitem(SLOWER, "vgg16", 0.4)
    for number, backbone in enumerate(["vgg16", "resnet18", "resnet34"]):
        file = REHEARSALS / str(number) / "receipt.json"
        write(file, backbone)
        os.utime(file, (number, number))
    assert planned("vgg16") == pytest.approx(seconds("vgg16"), rel=0.01)
    assert planned("resnet18") == pytest.approx(seconds("resnet18"), rel=0.01)


def test_another_machine_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    file = REHEARSALS / "0" / "receipt.json"
    write(file, "mobilenet_v2")
    record = json.loads(file.read_text())
    record["prices"]["machines"]["local"]["vcpus"] += 1
    file.write_text(json.dumps(record))
    write(REHEARSALS / "1" / "receipt.json", "resnet18")
    row = json.loads((REHEARSALS / "1" / "receipt.json").read_text())["prices"]["machines"]["local"]
    assert row["passes"].keys() == {"resnet18"}


def test_a_graphics_card_reads_images_beside() -> None:
    """Decoding that is hidden behind the computing is in none of its seconds."""
    file = REHEARSALS / "one" / "receipt.json"
    write(file, "resnet50", device="cuda:0", decoding_seconds=0.1)
    row = json.loads(file.read_text())["prices"]["machines"]["local"]
    assert row["gpu"] is True
    features = metrics("resnet50")["features_seconds"]
    assert planned("resnet50") == pytest.approx(outcome("resnet50").seconds, rel=0.01)
    estimate = Prices(compose(["mode=plan", *WORDS, "model.backbone=resnet50", "sagemaker.instance_type=local"]))
    frozen = network("resnet50").frozen("head")
    assert sum(IMAGES.values()) * frozen / estimate.speed("local").passes == pytest.approx(features, rel=0.01)


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ([], {"features_computed": 100}),  # the others were there
        (["cache.mode=off"], {}),
        (["model.trainable=block", "head_stage.epochs=3"], {}),
        (["data.folds=3"], {}),
    ],
)
def test_what_a_job_does_not_tell(words: list[str], changed: dict[str, Any]) -> None:
    file = REHEARSALS / "one" / "receipt.json"
    assert "has no figures of this machine" in write(file, "resnet18", *words, **changed)
    assert "prices" not in json.loads(file.read_text())
    with pytest.raises(DogbreedError, match=r"local is this machine, which no rehearsal has measured; rehearse a"):
        planned("resnet18")


def test_this_machine_is_none_of_aws() -> None:
    with pytest.raises(DogbreedError, match=r"local is this machine, which AWS does not have"):
        resolved(compose([*WORDS, "mode=submit", "sagemaker.instance_type=local"]), "train")
