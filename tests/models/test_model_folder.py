"""The folder `model/`: what is written comes back bit by bit, is plain, replaces only its like, and is checked."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import dogbreed
from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, model_folder
from dogbreed.models.manifest import MANIFEST, NEIGHBOURS, WEIGHTS
from dogbreed.models.model_folder import Exported
from dogbreed.models.neighbours import build

NAMES = ["Affenpinscher", "Löwchen", "Xoloitzcuintli"]


@pytest.fixture(scope="module")
def model() -> Exported:
    network = backbones.create("shufflenet_v2_x0_5", 3, weights="none")
    with torch.no_grad():
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    return Exported(
        network=network.to(memory_format=torch.channels_last),
        backbone="shufflenet_v2_x0_5",
        class_names=NAMES,
        preprocessing=Preprocessing(size=64, resize_size=72, mean=(0.1, 0.2, 0.3), resize="crop"),
        temperature=1.7,
        config={"model": {"lr": 0.1, "backbone_lr": None}, "data": {"root": "dogs"}},
        metrics={"val_loss": 0.25, "test_acc_ci95": [0.1, 0.9]},
        conformal={"least_probability": {"90": 0.25, "95": None}, "images": 12, "abstain_above": 3},
    )


@pytest.fixture
def folder(tmp_path, model) -> Path:
    return model_folder.save(tmp_path / "model", model)


def rewrite(folder: Path, **changes) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest |= {name: value for name, value in changes.items() if value is not ...}
    for name, value in changes.items():
        if value is ...:
            del manifest[name]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_the_logits_come_back_bit_by_bit(folder, model):
    found = model_folder.load(folder)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    model.network.eval()
    with torch.inference_mode():
        assert torch.equal(found.network(images), model.network(images))
    assert replace(found, network=model.network) == model
    assert not any(module.training for module in found.network.modules())
    assert not any(parameter.requires_grad for parameter in found.network.parameters())


def test_only_two_plain_files(folder):
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, WEIGHTS]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert manifest.keys() == {
        "format_version",
        "package_version",
        "backbone",
        "class_names",
        "preprocessing",
        "temperature",
        "conformal",
        "config",
        "metrics",
    }
    assert manifest["format_version"] == 1
    assert manifest["package_version"] == dogbreed.__version__
    assert manifest["class_names"] == NAMES
    assert manifest["preprocessing"]["mean"] == [0.1, 0.2, 0.3]
    assert "Löwchen" in (folder / MANIFEST).read_text(encoding="utf-8"), "legible"
    assert load_file(folder / WEIGHTS).keys() == model_folder.load(folder).network.state_dict().keys()


def test_the_index_of_training_images(tmp_path, model):
    built = build([torch.rand(30, 8, generator=torch.Generator().manual_seed(0))])
    folder = model_folder.save(tmp_path / "model", replace(model, neighbours=replace(built, threshold=0.5, images=99)))
    about = json.loads((folder / MANIFEST).read_text())["neighbours"]
    data = (folder / NEIGHBOURS).read_bytes()
    assert about == {"threshold": 0.5, "nearest": 5, "images": 99, "sha256": hashlib.sha256(data).hexdigest()}
    found = model_folder.load(folder).neighbours
    assert (found.threshold, found.images) == (0.5, 99)
    assert all(torch.equal(getattr(found, name), getattr(built, name)) for name in ("points", "steps", "basis"))
    for changed in (data[:-1] + bytes([data[-1] ^ 1]), data[:-1], b""):
        (folder / NEIGHBOURS).write_bytes(changed)
        with pytest.raises(DogbreedError, match=r"is not the index that model\.json was written with; copy the folder"):
            model_folder.load(folder)
    (folder / NEIGHBOURS).unlink()
    with pytest.raises(DogbreedError, match=r"has no neighbours\.safetensors; copy the whole folder"):
        model_folder.load(folder)
    rewrite(folder, neighbours=...)
    assert model_folder.load(folder).neighbours is None


@pytest.mark.parametrize("neighbours", [None, {}, {"threshold": "0.5", "images": 9, "sha256": ""}, {"threshold": 0.5}])
def test_a_senseless_index(folder, neighbours):
    rewrite(folder, neighbours=neighbours)
    with pytest.raises(DogbreedError, match="has neighbours that are not understood"):
        model_folder.load(folder)


def test_it_can_be_moved_and_needs_nothing_else(folder, tmp_path, cache_dir, no_network, model):
    shutil.move(folder, tmp_path / "elsewhere")
    assert model_folder.load(tmp_path / "elsewhere").class_names == NAMES
    assert list(cache_dir.iterdir()) == []


def test_both_files_can_be_read_by_the_same_people(folder):
    assert (folder / WEIGHTS).stat().st_mode == (folder / MANIFEST).stat().st_mode


def test_an_older_export_is_replaced(folder, model):
    (folder / "notes.txt").write_text("old")
    model_folder.save(folder, replace(model, temperature=2.5))
    assert model_folder.load(folder).temperature == 2.5
    assert sorted(path.name for path in folder.iterdir()) == [MANIFEST, WEIGHTS]
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]


def test_an_empty_folder_may_be_used(tmp_path, model):
    (tmp_path / "model").mkdir()
    assert model_folder.load(model_folder.save(tmp_path / "model", model)).backbone == model.backbone


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_something_else_is_left_alone(tmp_path, model, kind):
    place = tmp_path / "precious"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.txt").write_text("years of work")
    else:
        place.write_text("years of work")
    with pytest.raises(DogbreedError, match=r"precious exists and is no exported model; choose another folder"):
        model_folder.save(place, model)
    assert (place / "thesis.txt" if kind == "folder" else place).read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [place]


def test_a_full_disk_leaves_the_older_export(folder, model, largest_file):
    with largest_file(100_000), pytest.raises(DogbreedError, match="could not be written"):
        model_folder.save(folder, replace(model, temperature=9.0))
    assert model_folder.load(folder).temperature == 1.7
    assert list(folder.parent.iterdir()) == [folder]


def test_a_place_that_cannot_be_written(tmp_path, model):
    (tmp_path / "file").write_text("")
    with pytest.raises(DogbreedError, match="could not be written"):
        model_folder.save(tmp_path / "file" / "model", model)


# Refusals


def test_not_a_model(tmp_path):
    with pytest.raises(DogbreedError, match=r"is no exported model: it has no model\.json \(a run exports"):
        model_folder.load(tmp_path)
    with pytest.raises(DogbreedError, match=r"missing does not exist; give the folder of a run, or its model/"):
        model_folder.load(tmp_path / "missing")


@pytest.mark.parametrize("text", ["", "{", "\xff\xfe", '{"format_version": 1'])
def test_a_damaged_record(folder, text):
    (folder / MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(DogbreedError, match=r"model\.json is not readable as JSON"):
        model_folder.load(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None, ...])
def test_another_format(folder, version):
    rewrite(folder, format_version=version)
    with pytest.raises(DogbreedError, match=r"has format version .*; this is dogbreed .*, which reads version 1"):
        model_folder.load(folder)


@pytest.mark.parametrize("content", ["[]", "3", "null", '"model"'])
def test_a_record_that_is_none(folder, content):
    (folder / MANIFEST).write_text(content)
    with pytest.raises(DogbreedError, match="has format version None"):
        model_folder.load(folder)


@pytest.mark.parametrize("names", [[], "abc", [1, 2, 3], None, ...])
def test_without_class_names(folder, names):
    rewrite(folder, class_names=names)
    with pytest.raises(DogbreedError, match="has no list of class names"):
        model_folder.load(folder)


@pytest.mark.parametrize(
    "conformal",
    [None, {}, {"least_probability": {"90": 2}, "abstain_above": 3}, {"least_probability": {}, "abstain_above": 0}],
)
def test_senseless_thresholds(folder, conformal):
    rewrite(folder, conformal=conformal)
    with pytest.raises(DogbreedError, match="has a conformal that is not understood"):
        model_folder.load(folder)


def test_an_export_of_an_older_version_has_no_thresholds(folder):
    rewrite(folder, conformal=...)
    assert model_folder.load(folder).conformal == {}


@pytest.mark.parametrize("temperature", [0, -1.0, "warm", None, True, float("nan"), float("inf"), ...])
def test_a_senseless_temperature(folder, temperature):
    rewrite(folder, temperature=temperature)
    with pytest.raises(DogbreedError, match=r"has temperature .*; it must be a number above 0"):
        model_folder.load(folder)


def test_a_senseless_preprocessing(folder):
    rewrite(folder, preprocessing={"size": -3})
    with pytest.raises(DogbreedError, match="size is -3"):
        model_folder.load(folder)
    rewrite(folder, preprocessing=None)
    with pytest.raises(DogbreedError, match="does not say its preprocessing"):
        model_folder.load(folder)
    rewrite(folder, preprocessing=...)
    with pytest.raises(DogbreedError, match="does not say its preprocessing"):
        model_folder.load(folder)


@pytest.mark.parametrize("backbone", ["shufflenet", None, ...])
def test_an_unknown_network(folder, backbone):
    rewrite(folder, backbone=backbone)
    with pytest.raises(DogbreedError, match=r"is no classification network of torchvision"):
        model_folder.load(folder)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_weights(folder, share):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DogbreedError, match=r"model\.safetensors is damaged .*copy the folder again"):
        model_folder.load(folder)


def test_without_weights(folder):
    (folder / WEIGHTS).unlink()
    with pytest.raises(DogbreedError, match=r"has no model\.safetensors; copy the whole folder"):
        model_folder.load(folder)


def _without(state):
    del state["conv1.0.weight"]


@pytest.mark.parametrize(
    "change",
    [
        _without,
        lambda state: state.update(other=torch.ones(2)),
        lambda state: state.update({"fc.bias": torch.ones(4)}),
        lambda state: state.update({"conv1.0.weight": torch.ones(24, 3, 5, 5)}),
        lambda state: state.update({name: v.half() for name, v in state.items() if v.is_floating_point()}),
    ],
    ids=["missing", "more", "another head", "another shape", "another precision"],
)
def test_weights_that_do_not_fit(folder, change):
    state = load_file(folder / WEIGHTS)
    change(state)
    save_file(state, folder / WEIGHTS)
    with pytest.raises(DogbreedError, match=r"does not hold a shufflenet_v2_x0_5 with 3 classes, as model\.json says"):
        model_folder.load(folder)


def test_names_and_weights_that_do_not_fit_together(folder):
    rewrite(folder, class_names=[*NAMES, "Poodle"])
    with pytest.raises(DogbreedError, match="does not hold a shufflenet_v2_x0_5 with 4 classes"):
        model_folder.load(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_a_device_that_is_not_there(folder):
    with pytest.raises(DogbreedError, match="device cuda"):
        model_folder.load(folder, "cuda")


def test_a_device_that_nobody_has(folder):
    with pytest.raises(DogbreedError, match="device toaster"):
        model_folder.load(folder, "toaster")
