"""ONNX and torch.export: other runtimes give the same answers, or there is no file."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from support.exports import NAMES, export_tiny

from dogbreed import Predictor
from dogbreed.export import main
from dogbreed.inference import formats

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def written(model, dog_tree, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    flags = ["--onnx", str(folder / "dogs.onnx"), "--torch-export", str(folder / "dogs.pt2")]
    run = model.parent  # which stands for its model
    with warnings.catch_warnings():  # none of the exporters' own reaches whoever asked
        warnings.simplefilter("error")
        assert main([str(run), str(dog_tree / "test"), *flags]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["dogs.onnx", "dogs.pt2"]
    return folder


@pytest.fixture(scope="module")
def asked(model, dog_tree):
    """Inputs of a size of batch that no export has seen, with the right logits and probabilities."""
    predictor = Predictor(model, device="cpu")
    inputs = torch.stack([predictor.read(path) for path in sorted(dog_tree.glob("valid/*/*.jpg"))[:5]])
    logits = predictor.logits(inputs)
    return inputs, logits, (logits / 0.7).softmax(1)


def test_onnx_answers_the_same(written, asked):
    import onnx
    import onnxruntime

    session = onnxruntime.InferenceSession(str(written / "dogs.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["logits", "probabilities"], {"images": asked[0].numpy()})
    np.testing.assert_allclose(found[0], asked[1].numpy(), atol=1e-4)
    np.testing.assert_allclose(found[1], asked[2].numpy(), atol=1e-4)
    metadata = {entry.key: entry.value for entry in onnx.load(written / "dogs.onnx").metadata_props}
    assert json.loads(metadata["model.json"])["class_names"] == list(NAMES)


def test_torch_export_answers_the_same(written, asked):
    extra = {"model.json": ""}
    loaded = torch.export.load(written / "dogs.pt2", extra_files=extra).module()
    with torch.no_grad():
        logits, probabilities = loaded(asked[0].contiguous())
    torch.testing.assert_close(logits, asked[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(probabilities, asked[2], atol=1e-4, rtol=0)
    assert json.loads(extra["model.json"])["temperature"] == 0.7


def test_a_file_that_answers_otherwise_is_not_kept(model, dog_tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)  # nothing is that close
    assert main([str(model), str(dog_tree / "test"), "--torch-export", str(tmp_path / "dogs.pt2")]) == 2
    assert "dogs.pt2 was not kept: its logits differ by up to" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_bad_use(model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for path, said in (("missing", "does not exist"), ("empty", "None of the photographs can be read")):
        assert main([str(model), str(tmp_path / path), "--onnx", str(tmp_path / "dogs.onnx")]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(model), str(tmp_path)])
    assert "nothing to write" in capsys.readouterr().err
