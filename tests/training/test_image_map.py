"""The map of a study: similar images are neighbours on it, it repeats itself, and the page says what it needs."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import runs
from torch.nn.functional import normalize

from dogbreed.report import study_page
from dogbreed.report.study import Label, Point, Spot, Study
from dogbreed.training import image_map as module
from dogbreed.training.image_map import image_map

pytest.importorskip("sklearn", reason="the map needs scikit-learn: pip install 'dogbreed[map]'")


def groups(number: int, images: int, width: int = 64) -> torch.Tensor:
    """Features of groups of similar images, [number * images, width]."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(number, 1, width, generator=generator)
    spread = 0.2 * torch.randn(number, images, width, generator=generator)
    return normalize((centres + spread).flatten(0, 1), dim=1)


@pytest.mark.slow
def test_similar_images_are_neighbours_and_a_map_repeats_itself() -> None:
    inputs = groups(6, 15)
    drawn, again = image_map(inputs, 3), image_map(inputs, 3)
    assert drawn is not None
    assert again is not None
    rows, places = drawn
    assert rows.tolist() == list(range(90))
    assert places.min() == 0
    assert places.max() == 1
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (distances.argmin(1) // 15 == np.arange(90) // 15).all()
    np.testing.assert_array_equal(again[1], places)


@pytest.mark.slow
def test_of_many_images_some_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 40)
    drawn, other = image_map(groups(6, 15), 0), image_map(groups(6, 15), 1)
    assert drawn is not None
    assert other is not None
    assert len(drawn[0]) == len(drawn[1]) == 40
    assert drawn[0].tolist() == sorted(set(drawn[0].tolist()))
    assert drawn[0].tolist() != other[0].tolist()


@pytest.mark.slow
def test_three_images_are_a_map() -> None:
    drawn = image_map(groups(1, 3), 0)
    assert drawn is not None
    assert np.isfinite(drawn[1]).all()


def test_without_scikit_learn_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    assert image_map(groups(2, 5), 0) is None


def page_of(folder: Path, *, with_map: bool, images: int = 6) -> str:
    root = runs.photographs()
    paths = sorted(path.relative_to(root).as_posix() for path in (root / "train").glob("*/*"))[:images]
    labels = [
        Label(path, path.split("/")[1], "train", "other" if number == 0 else path.split("/")[1], 0.5, 0.5)
        for number, path in enumerate(paths)
    ]
    spots = [Spot(label, number / 10, 0.5) for number, label in enumerate(labels[:-1])] if with_map else None
    study = Study(folder, root, labels, [Point(6, [[0.5]], [0.5], 0.5)], spots=spots)
    study_page.write(folder / "study.html", study)
    return (folder / "study.html").read_text()


def test_the_page_has_a_dot_with_its_photograph_for_each_image(tmp_path: Path) -> None:
    page = page_of(tmp_path, with_map=True)
    section = page[page.index('<h2 id="map">') :]
    assert "5 of 6 images, drawn at random" in section
    assert section.count('<span class="spot"') == section.count("data:image/jpeg") == 5
    assert section.count('class="wrong"') == 1
    assert "classified as other" in section
    assert re.search(r"--x: 0\.4000; --y: 0\.5000", section)
    assert "<script" not in page


def test_the_page_says_what_a_map_needs(tmp_path: Path) -> None:
    page = page_of(tmp_path, with_map=False)
    assert re.search(r"needs scikit-learn: <code>pip install .*\[map\]", page)
    assert "could not be" not in page
