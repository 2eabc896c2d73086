"""int8: kept where the accuracy holds, with figures that another count confirms; else no file is left."""

import copy
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from dogbreed import Predictor
from dogbreed.data.images import Preprocessing, load
from dogbreed.export import main as export
from dogbreed.inference import quantize
from dogbreed.models import backbones, model_folder
from dogbreed.models.manifest import list_runtime
from dogbreed.predict import main as predict

pytestmark = pytest.mark.slow
INPUT = Preprocessing(size=64)
NAMES = ["one", "other", "third"]


@pytest.fixture(scope="module")
def network(dog_tree) -> nn.Module:
    """Random weights, with classes that are about equally frequent; the first input of the head makes no difference."""
    network = backbones.create("mobilenet_v3_small", 3, weights="none", seed=1).eval()
    with torch.no_grad():
        network.classifier[-1].weight[:, 0] = 0
        logits = network(torch.stack([load(path, INPUT) for path in sorted(dog_tree.glob("*/*/*.jpg"))]))
        network.classifier[-1].bias.sub_(logits.median(0).values)
    return network


def save(network: nn.Module, folder: Path) -> Path:
    return model_folder.save(folder, model_folder.Exported(network, "mobilenet_v3_small", NAMES, INPUT))


@pytest.fixture(scope="module")
def model(network, tmp_path_factory) -> Path:
    return save(network, tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def data(model, dog_tree, tmp_path_factory) -> Path:
    """The images of valid in the classes that the model sees in them: in float32 its accuracy is 100 %."""
    root, paths = tmp_path_factory.mktemp("data") / "dogs", sorted(dog_tree.glob("*/*/*.jpg"))
    answers = Predictor(model, device="cpu", runtime="torch").predict(paths)
    assert len({answer.label for answer in answers}) > 1
    for path, answer in zip(paths, answers, strict=True):
        for split in ("train", "valid"):
            (root / split / answer.label).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / split / answer.label / f"{path.parent.parent.name}_{path.parent.name}_{path.name}")
    return root


def test_kept(model, data, capsys):
    assert export([str(model), str(data), "--runtime", "int8", "--max-loss", "100"]) == 0
    said = capsys.readouterr().out
    listed = json.loads((model / "model.json").read_text())["runtimes"]
    assert list(listed) == ["onnx", "int8"]
    images = sorted((data / "valid").rglob("*.jpg"))
    one, exact = (Predictor(model, device="cpu", runtime=name) for name in ("int8", "onnx"))
    labels = [[answer.label for answer in each.predict(images)] for each in (one, exact)]
    right = np.mean([label == path.parent.name for label, path in zip(labels[0], images, strict=True)])
    assert labels[1] == [path.parent.name for path in images]
    assert listed["int8"]["images"] == len(images)
    assert listed["int8"]["valid_acc_float32"] == 1
    assert listed["int8"]["valid_acc"] == listed["int8"]["same_top1"] == pytest.approx(right)
    assert f"its accuracy on {len(images)} images of valid is {right:.1%}" in said
    assert (model / "model.int8.onnx").stat().st_size < 0.5 * (model / "model.onnx").stat().st_size
    assert Predictor(model, device="cpu").runtime == "onnx", "int8 has to be asked for"

    assert predict([str(model), str(images[0]), "--json", "--runtime", "int8"]) == 0
    assert json.loads(capsys.readouterr().out)["runtime"] == "int8"
    assert predict([str(model), str(images[0]), "--json"]) == 0
    assert "runtime" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("least", "share"), [(0.0, 0), (1.01, 0.25)], ids=["all agree", "too few agree"])
def test_the_first_layers_stay_in_float32_where_too_few_agree(least, share, model, data, monkeypatch, capsys):
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(quantize, "LEAST_SAME", least)
    assert export([str(model), str(data), "--runtime", "int8", "--max-loss", "100"]) == 0
    graph = onnx.load(str(model / "model.int8.onnx")).graph
    exact = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    kept = [index for index, node in enumerate(layers) if node.input[1] in exact]
    assert kept == list(range(int(share * len(layers))))
    assert json.loads((model / "model.json").read_text())["runtimes"]["int8"]["float32_layers"] == len(kept)
    assert (f"with the first {len(kept)} layers in float32" in capsys.readouterr().out) == bool(kept)


def test_images_that_gave_ranges_are_not_measured_on(model, data, monkeypatch, capsys):
    monkeypatch.setattr(quantize, "CALIBRATION_IMAGES", 3)
    assert export([str(model), str(data), "--runtime", "int8", "--max-loss", "100"]) == 0
    images = sorted((data / "valid").rglob("*.jpg"))
    step = -(-len(images) // 3)
    others = [path for number, path in enumerate(images) if number % step]
    listed = json.loads((model / "model.json").read_text())["runtimes"]["int8"]
    assert listed["images"] == len(others)
    labels = [answer.label for answer in Predictor(model, device="cpu", runtime="int8").predict(others)]
    right = np.mean([label == path.parent.name for label, path in zip(labels, others, strict=True)])
    assert listed["valid_acc"] == pytest.approx(right)
    assert f"its accuracy on {len(others)} images of valid is {right:.1%}" in capsys.readouterr().out


def test_not_kept_where_the_accuracy_falls(network, data, tmp_path, capsys):
    broken = copy.deepcopy(network)
    with torch.no_grad():
        broken.classifier[0].bias[0] = 1e5  # of 256 steps up to here, none is left for what makes a difference
    folder = save(broken, tmp_path / "model")
    assert export([str(folder), str(data), "--runtime", "int8"]) == 2
    said = capsys.readouterr().err
    assert "model.int8.onnx was not kept: its accuracy on" in said
    assert "that of float32 100.0% (95 % interval" in said
    assert said.endswith("; allowed are 1 points less (--max-loss).\n")
    assert [file.name for file in folder.glob("*int8*")] + [file.name for file in folder.glob(".*")] == []
    assert "int8" not in json.loads((folder / "model.json").read_text()).get("runtimes", {})


def test_another_float32_file_than_the_listed_one_is_written_again(network, data, tmp_path):
    folder = save(network, tmp_path / "model")
    list_runtime(folder, "onnx", {"sha256": "0" * 64})
    (folder / "model.onnx").write_bytes(b"damaged")
    assert export([str(folder), str(data), "--runtime", "int8", "--max-loss", "100"]) == 0
    assert {Predictor(folder, runtime=name).runtime for name in ("int8", "onnx")} == {"int8", "onnx"}


def test_bad_use(model, data, tmp_path, capsys):
    assert export([str(model), "--runtime", "int8"]) == 2
    assert "Give the folder of the data set too" in capsys.readouterr().err
    assert export([str(model), str(data), "--runtime", "int8", "--max-loss", "-1"]) == 2
    assert "--max-loss -1 is out of range" in capsys.readouterr().err
    for flags in (["--runtime", "onnx"], [str(data), "--runtime", "int8", "--onnx", str(tmp_path / "dogs.onnx")]):
        with pytest.raises(SystemExit):
            export([str(model), *flags])
