"""Synthetic dogs: the layout, the same bytes every time, nothing of others lost, and breeds that can be learnt."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dogbreed.core.errors import DogbreedError
from dogbreed.data import synthetic
from dogbreed.data.synthetic import BREEDS, MARKER, make_sample

SMALL = {"classes": 2, "train": 2, "valid": 1, "test": 1}


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_layout_and_determinism(tmp_path):
    make_sample(tmp_path / "a", **SMALL)
    make_sample(tmp_path / "b", **SMALL)
    digests = _digests(tmp_path / "a")
    assert sorted(digests) == [
        "sample.json",
        "test/001.Brindle_hound/Brindle_hound_00001.jpg",
        "test/002.Cream_spitz/Cream_spitz_00001.jpg",
        "train/001.Brindle_hound/Brindle_hound_00001.jpg",
        "train/001.Brindle_hound/Brindle_hound_00002.jpg",
        "train/002.Cream_spitz/Cream_spitz_00001.jpg",
        "train/002.Cream_spitz/Cream_spitz_00002.jpg",
        "valid/001.Brindle_hound/Brindle_hound_00001.jpg",
        "valid/002.Cream_spitz/Cream_spitz_00001.jpg",
    ]
    assert digests == _digests(tmp_path / "b")
    assert len(set(digests.values())) == len(digests), "two pictures are the same"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"], "something was left behind"
    make_sample(tmp_path / "c", **SMALL, seed=1)
    assert not set(digests.values()) & set(_digests(tmp_path / "c").values())


def test_more_pictures_leave_the_others_as_they_are(tmp_path):
    make_sample(tmp_path / "few", **SMALL)
    make_sample(tmp_path / "many", classes=3, train=3, valid=1, test=1)
    few, many = _digests(tmp_path / "few"), _digests(tmp_path / "many")
    assert {name: many[name] for name in few if name != MARKER} == {n: d for n, d in few.items() if n != MARKER}


def test_made_once(tmp_path, monkeypatch):
    make_sample(tmp_path / "dogs", **SMALL)
    monkeypatch.setattr(synthetic, "draw", lambda *_: pytest.fail("drawn again"))
    make_sample(tmp_path / "dogs", **SMALL)


@pytest.mark.parametrize("harm", ["parameters", "picture"])
def test_made_anew_when_it_is_not_what_was_asked_for(tmp_path, harm):
    root = tmp_path / "dogs"
    make_sample(root, **(SMALL | {"train": 1} if harm == "parameters" else SMALL))
    if harm == "picture":
        next(root.glob("valid/*/*.jpg")).unlink()
    make_sample(root, **SMALL)
    assert len(list(root.glob("train/*/*.jpg"))) == 4
    assert len(list(root.glob("valid/*/*.jpg"))) == 2
    assert os.listdir(tmp_path) == ["dogs"]


@pytest.mark.parametrize("marker", [None, "[]", "{broken", '{"made_by": "somebody"}'])
def test_folders_of_others_are_left_alone(tmp_path, marker):
    (tmp_path / "precious.txt").write_text("mine")
    if marker is not None:
        (tmp_path / MARKER).write_text(marker)
    before = _digests(tmp_path)
    with pytest.raises(DogbreedError, match="left alone"):
        make_sample(tmp_path, **SMALL)
    assert _digests(tmp_path) == before


def test_nothing_half_made(tmp_path, monkeypatch):
    drawn = []

    def draw(breed, rng):
        drawn.append(breed)
        if len(drawn) == 3:
            raise OSError(28, "No space left on device")
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(synthetic, "draw", draw)
    with pytest.raises(DogbreedError, match="No space left"):
        make_sample(tmp_path / "dogs", **SMALL)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"classes": len(BREEDS) + 1}, {"train": -1}, {"seed": -1}])
def test_senseless_numbers(tmp_path, wrong):
    with pytest.raises(DogbreedError):
        make_sample(tmp_path / "dogs", **(SMALL | wrong))


@pytest.mark.parametrize("breed", BREEDS, ids=lambda breed: breed.name)
def test_every_breed_can_be_drawn(breed):
    pictures = [synthetic.draw(breed, np.random.default_rng((7, i))) for i in range(5)]
    sizes = {picture.size for picture in pictures}
    assert len(sizes) == 5
    assert all(180 <= side <= 360 for size in sizes for side in size)
    assert all(np.asarray(picture).std() > 8 for picture in pictures)


@pytest.mark.slow
def test_breeds_can_be_learnt_though_not_from_the_mean_colour(tmp_path):
    make_sample(tmp_path / "dogs", classes=6, train=12, valid=0, test=6)
    (train, y), (test, truth) = (_features(tmp_path / "dogs" / split) for split in ("train", "test"))
    colour = slice(0, 3)
    centres = np.stack([train[y == c, colour].mean(0) for c in range(6)])
    by_colour = ((test[:, None, colour] - centres) ** 2).sum(-1).argmin(1)
    assert (by_colour == truth).mean() < 0.6, "the scenery would give the breed away"

    rest = np.c_[train[:, 3:], np.ones(len(train))]
    weights = np.linalg.solve(rest.T @ rest + 0.1 * np.eye(rest.shape[1]), rest.T @ np.eye(6)[y])
    by_all = (np.c_[test[:, 3:], np.ones(len(test))] @ weights).argmax(1)
    assert (by_all == truth).mean() > 0.6, "chance is 0.17"


def _features(split: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mean colour, then a thumbnail and a histogram of colours."""
    features, classes = [], []
    for path in sorted(split.glob("*/*.jpg")):
        small = Image.open(path).resize((32, 32))
        pixels = np.asarray(small, float)
        cells, _ = np.histogramdd(pixels.reshape(-1, 3), bins=(4, 4, 4), range=[(0, 256)] * 3)
        thumbnail = np.asarray(small.resize((8, 8)), float).ravel() / 4096
        features.append(np.concatenate((pixels.mean((0, 1)), thumbnail, np.sqrt(cells.ravel() / 1024))))
        classes.append(int(path.parent.name[:3]) - 1)
    return np.array(features), np.array(classes)


def test_marker_says_how_it_was_made(tmp_path):
    make_sample(tmp_path / "dogs", **SMALL, seed=5)
    marker = json.loads((tmp_path / "dogs" / MARKER).read_text())
    assert {name: marker[name] for name in (*SMALL, "seed")} == SMALL | {"seed": 5}
