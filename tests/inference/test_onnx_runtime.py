"""ONNX Runtime in place of torch: the same answers, or one sentence on why not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.exports import NAMES, export_tiny

from dogbreed import Predictor
from dogbreed.core.errors import DogbreedError
from dogbreed.export import main as export
from dogbreed.inference.onnx_runtime import choose
from dogbreed.models.neighbours import build
from dogbreed.predict import main as predict
from dogbreed.serving import certify

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, dog_tree) -> Path:
    """A model with an index of training images, without a file for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("plain")
    first = Predictor(export_tiny(folder / "first", neighbours=build([torch.rand(3, 512)])), device="cpu")
    features = torch.cat([first._compute(first.read(path)[None])[1] for path in sorted(dog_tree.glob("train/*/*.jpg"))])
    index = build([features])
    similarities = sorted(index.similarity(features))
    index = type(index)(index.points, index.steps, index.basis, threshold=similarities[len(similarities) // 2])
    return export_tiny(folder / "model", least=0.1, neighbours=index)


@pytest.fixture(scope="module")
def model(plain, tmp_path_factory, dog_tree) -> Path:
    folder = shutil.copytree(plain, tmp_path_factory.mktemp("onnx") / "model")
    assert export([str(folder), str(dog_tree / "test"), "--runtime", "onnx"]) == 0
    return folder


@pytest.mark.slow
def test_both_runtimes_answer_alike(model, dog_tree):
    photographs = sorted(dog_tree.glob("*/*/*.jpg"))[:12]
    torch_one, onnx_one = Predictor(model, device="cpu", runtime="torch"), Predictor(model, device="cpu")
    assert (torch_one.runtime, onnx_one.runtime) == ("torch", "onnx"), "auto takes what is there"
    inputs = torch.stack([torch_one.read(path) for path in photographs])
    torch.testing.assert_close(onnx_one.logits(inputs), torch_one.logits(inputs), atol=1e-4, rtol=0)
    expected, answers = torch_one.predict(photographs), onnx_one.predict(photographs)
    assert {answer.in_domain for answer in answers} == {True, False}
    for one, other in zip(expected, answers, strict=True):
        assert (one.label, one.set, one.abstain, one.in_domain) == (
            other.label,
            other.set,
            other.abstain,
            other.in_domain,
        )
    (one, maps), (other, same_maps) = (each.explain(inputs[:1], 2) for each in (torch_one, onnx_one))
    assert one.similarity == pytest.approx(other.similarity, abs=1e-6)
    assert (maps is None) == (same_maps is None)


@pytest.mark.slow
def test_the_certificate_covers_it(model, plain):
    assert "onnx" not in certify.inference_paths(plain)
    assert list(certify.inference_paths(model))[-1] == "onnx"


@pytest.mark.slow
def test_another_file_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    with (folder / "model.onnx").open("ab") as file:
        file.write(b"0")
    for runtime in ("auto", "onnx"):
        with pytest.raises(DogbreedError, match=r"model\.onnx is not the file that model\.json lists; write it again"):
            Predictor(folder, device="cpu", runtime=runtime)
    assert Predictor(folder, device="cpu", runtime="torch").runtime == "torch"
    (folder / "model.onnx").unlink()
    assert Predictor(folder, device="cpu").runtime == "torch", "a copy without the file works without it"
    with pytest.raises(DogbreedError, match=r"runtime=onnx needs model\.onnx in .*model: python -m dogbreed\.export"):
        Predictor(folder, device="cpu", runtime="onnx")


@pytest.mark.slow
def test_where_it_cannot_be(model, plain, dog_tree, monkeypatch, capsys):
    photograph = str(next(dog_tree.glob("test/*/*.jpg")))
    assert predict([str(plain), photograph, "--runtime", "onnx"]) == 2
    assert "--runtime onnx writes it." in capsys.readouterr().err
    assert predict([str(plain), photograph, "--runtime", "tflite"]) == 2
    assert "runtime=tflite is unknown; it is one of auto, torch, onnx, int8." in capsys.readouterr().err
    assert choose("auto", model, torch.device("cuda"), "float32") == "torch"
    assert choose("auto", model, CPU, "bfloat16") == "torch"
    for device, precision, said in (("cuda", "float32", "not on cuda"), ("cpu", "bfloat16", "not compute in bfloat16")):
        with pytest.raises(DogbreedError, match=said):
            choose("onnx", model, torch.device(device), precision)
    monkeypatch.setattr("dogbreed.inference.onnx_runtime.find_spec", lambda name: None)
    assert choose("auto", model, CPU, "float32") == "torch"
    with pytest.raises(DogbreedError, match=r"runtime=onnx needs onnxruntime, which is not installed: pip install"):
        choose("onnx", model, CPU, "float32")


@pytest.mark.slow
def test_the_manifest_keeps_what_it_had(model, plain):
    before, after = (json.loads((folder / "model.json").read_text()) for folder in (plain, model))
    listed = after.pop("runtimes")
    assert after == before
    assert list(listed) == ["onnx"]
    assert listed["onnx"]["largest_difference"] < 1e-4
    assert after["class_names"] == list(NAMES)


def test_a_manifest_that_is_not_understood(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "model")
    manifest = json.loads((folder / "model.json").read_text())
    for runtimes in ([], {"onnx": None}, {"onnx": {"sha256": 1}}):
        (folder / "model.json").write_text(json.dumps(manifest | {"runtimes": runtimes}))
        with pytest.raises(DogbreedError, match="has runtimes that are not understood"):
            Predictor(folder, device="cpu")
