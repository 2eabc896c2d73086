"""`similar`: the nearest training images by name, the same from every way to a model, where it is asked for."""

import base64
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.exports import NAMES, export_tiny
from support.serving import serving

from dogbreed.data.layout import list_images
from dogbreed.inference import handler
from dogbreed.inference.formats import add_onnx
from dogbreed.inference.predictor import Predictor
from dogbreed.models import model_folder
from dogbreed.models.neighbours import build
from dogbreed.predict import main
from dogbreed.serving.client import Endpoint
from launch import sagemaker_invoke

SENTENCE = (
    "The model does not know what its training images are called; one trained with export.similar=true and at least 99 "
    "validation images does."
)
NOT_UTF8 = "test/\udcff.jpg"
RANGE = "it must be a whole number from 0 to 50."
BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def photos(dog_tree: Path) -> list[Path]:
    return list_images(dog_tree / "test")[:5]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("plain") / "model", neighbours=build([torch.rand(9, 512)]))


@pytest.fixture(scope="module")
def model(plain: Path, dog_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the test images as its training images; the name of the last one is not UTF-8."""
    predictor, files = Predictor(plain), list_images(dog_tree / "test")
    with torch.no_grad():
        maps = predictor.model.network.features(torch.stack([predictor.read(file) for file in files]))
    paths = [*(file.relative_to(dog_tree).as_posix() for file in files[:-1]), NOT_UTF8]
    index = build([maps.mean((2, 3))]).with_names(paths, torch.arange(len(files)) % len(NAMES))
    return export_tiny(tmp_path_factory.mktemp("named") / "model", neighbours=index)


@pytest.fixture(scope="module")
def expected(model: Path, photos: list[Path], dog_tree: Path) -> list[list[dict[str, Any]]]:
    """Three of each; every photograph is the nearest to itself."""
    answers = Predictor(model).predict(photos, similar=3)
    for answer, photo in zip(answers, photos, strict=True):
        assert answer.similar is not None
        first, *others = answer.similar
        assert first.path == photo.relative_to(dog_tree).as_posix()
        assert first.cosine == pytest.approx(1, abs=0.02)
        assert len(others) == 2
        assert first.cosine >= others[0].cosine >= others[1].cosine
        place = list_images(dog_tree / "test").index(photo)
        assert first.label == NAMES[place % len(NAMES)]
    return [answer.to_dict()["similar"] for answer in answers]  # type: ignore[misc]


def test_the_command(model: Path, photos: list[Path], expected: Any, tmp_path: Path, capsys: Any) -> None:
    paths = [str(photo) for photo in photos]
    assert main([str(model), *paths, "--json", "--similar", "3"]) == 0
    assert [json.loads(line)["similar"] for line in capsys.readouterr().out.splitlines()] == expected
    assert main([str(model), *paths, "--similar", "2"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 * len(paths)
    for number, similar in enumerate(expected):
        for line, one in zip(lines[3 * number + 1 :], similar[:2], strict=False):
            assert line.split() == [f"{one['cosine']:.2f}", one["label"], one["path"]]
    assert main([str(model), *paths, "--csv", str(tmp_path / "a.csv"), "--similar", "1"]) == 0
    header, *rows = csv.reader((tmp_path / "a.csv").open(encoding="utf-8"))
    assert header[-2:] == ["in_domain", "similar"]
    assert [row[-1] for row in rows] == [f"{one['path']}={one['cosine']:.4f}" for one, *_ in expected]


def test_the_handler(model: Path, photos: list[Path], expected: Any) -> None:
    predictor = Predictor(model)
    for kind, accept in ((f"{BYTES}; similar=3", "*/*"), (BYTES, "application/json; similar=3")):
        asked = handler.predict_fn(handler.input_fn(photos[0].read_bytes(), kind), predictor)
        assert json.loads(handler.output_fn(asked, accept)[0])["similar"] == expected[0]
    assert "similar" not in json.loads(handler.output_fn(asked, "application/json")[0])
    images = [base64.b64encode(photo.read_bytes()).decode() for photo in photos]
    asked = handler.predict_fn(
        handler.input_fn(json.dumps({"images": images, "similar": 3}), handler.schema.JSON), predictor
    )
    results = json.loads(handler.output_fn(asked, None)[0])["results"]
    assert [result["similar"] for result in results] == expected


def test_onnx_runtime(model: Path, photos: list[Path], expected: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    loaded = model_folder.load(model)
    folder = model_folder.save(tmp_path / "model", loaded)
    add_onnx(folder, loaded, torch.rand(2, 3, 64, 64))
    predictor = Predictor(folder, runtime="onnx")
    answers = predictor.predict(photos, similar=3)
    for answer, similar in zip(answers, expected, strict=True):
        assert answer.similar is not None
        assert [one.path for one in answer.similar] == [one["path"] for one in similar]
        assert [one.cosine for one in answer.similar] == pytest.approx([one["cosine"] for one in similar], abs=2e-4)


@pytest.mark.slow
def test_server_and_clients(model: Path, photos: list[Path], expected: Any, capsys: Any) -> None:
    with serving(model) as running:
        assert running.get("/model").json()["similar"] is True
        client = Endpoint(running.address)
        replies = [client.predict(photo, similar=3).similar for photo in photos]
        assert [[vars(one) for one in reply or ()] for reply in replies] == expected
        assert client.predict(photos[0]).similar is None
        for path in ("/invocations?similar=3", "/explain?similar=3"):
            assert running.post(photos[0].read_bytes(), path=path).json()["similar"] == expected[0]
            everything = running.post(photos[0].read_bytes(), path=path.replace("3", "50")).json()["similar"]
            assert NOT_UTF8 in [one["path"] for one in everything]
        assert sagemaker_invoke.main([running.address, str(photos[0]), "--json", "--similar", "3"]) == 0
        assert json.loads(capsys.readouterr().out)["similar"] == expected[0]
        refused = running.post(photos[0].read_bytes(), path="/invocations?similar=51")
        assert (refused.status, refused.json()["error"]) == (400, f"similar is '51'; {RANGE}")


@pytest.mark.slow
def test_a_model_without_names_says_so(plain: Path, photos: list[Path], capsys: Any) -> None:
    assert main([str(plain), str(photos[0]), "--similar", "5"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.strip().endswith(SENTENCE)) == ("", True)
    assert main([str(plain), str(photos[0]), "--similar", "-1"]) == 2
    assert f"similar is -1; {RANGE}" in capsys.readouterr().err
    asked = handler.predict_fn(handler.input_fn(photos[0].read_bytes(), BYTES), Predictor(plain))
    with pytest.raises(handler.RequestError, match="at least 99 validation images does"):
        handler.output_fn(asked, "application/json; similar=1")
    assert "similar" not in json.loads(handler.output_fn(asked, "application/json")[0])
    with serving(plain) as running:
        assert running.get("/model").json()["similar"] is False
        for path in ("/invocations?similar=1", "/explain?similar=1"):
            refused = running.post(photos[0].read_bytes(), path=path)
            assert (refused.status, refused.json()["error"]) == (400, SENTENCE)
        assert sagemaker_invoke.main([running.address, str(photos[0]), "--similar", "1"]) == 1
        assert SENTENCE in capsys.readouterr().out
    assert sagemaker_invoke.main(["http://127.0.0.1:9", str(photos[0]), "--similar", "51"]) == 2
