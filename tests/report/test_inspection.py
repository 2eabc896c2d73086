"""`python -m dogbreed.inspect`: each kind of trouble is planted once, and exactly that is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from support import runs
from support.browser import Browser

from dogbreed.data.synthetic import BREEDS, draw
from dogbreed.inspect import main

NAMES = ["Brindle_hound", "Cream_spitz", "Harlequin_dane"]


def picture(seed: int) -> Image.Image:
    return draw(BREEDS[seed % 3], np.random.default_rng(seed))


def planted(root: Path) -> dict[str, Path]:
    """Plant one of each kind; return the files by kind."""
    train, test = (
        [root / split / path.name for path in sorted((root / "train").iterdir())] for split in ("train", "test")
    )
    first = sorted(train[0].iterdir())
    files = {
        "within": train[0] / "copy.jpg",
        "leak": test[0] / "leak.jpg",
        "near": test[0] / "near.jpg",
        "labels": train[1] / "other.jpg",
        "dark": train[1] / "dark.jpg",
        "blurred": train[2] / "blurred.jpg",
        "tiny": train[2] / "tiny.png",
        "broken": train[2] / "broken.jpg",
    }
    for number, kind in enumerate(("within", "leak", "labels")):
        shutil.copy(first[number], files[kind])
    with Image.open(first[3]) as image:
        ImageOps.mirror(image).resize((150, 150)).save(files["near"], quality=80)
    ImageEnhance.Brightness(picture(90)).enhance(0.12).save(files["dark"])
    picture(91).filter(ImageFilter.GaussianBlur(8)).save(files["blurred"])
    picture(92).resize((60, 48)).save(files["tiny"])
    files["broken"].write_bytes(first[4].read_bytes()[:1000])
    return {**files, "originals": train[0]}


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], dict[str, Any], Path]:
    """The folder, the planted files, the JSON and the page."""
    folder = tmp_path_factory.mktemp("inspected")
    root = Path(shutil.copytree(runs.photographs(), folder / "dogs"))
    files = {kind: path.relative_to(root).as_posix() for kind, path in planted(root).items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        assert main([str(root), "--output", str(folder / "out")]) == 0
    return root, files, json.loads((folder / "out" / "inspection.json").read_text()), folder / "out" / "inspection.html"


def shown(groups: list[dict[str, Any]]) -> set[tuple[bool, frozenset[str]]]:
    return {(group["exact"], frozenset(image["path"] for image in group["images"])) for group in groups}


@pytest.mark.slow
def test_exactly_what_was_planted_is_found(inspected):
    root, files, content, _ = inspected
    first = [path.relative_to(root).as_posix() for path in sorted((root / files["originals"]).iterdir())]
    first.remove(files["within"])
    assert shown(content["duplicates"]) == {
        (True, frozenset({first[0], files["within"]})),
        (True, frozenset({first[1], files["leak"]})),
        (True, frozenset({first[2], files["labels"]})),
        (False, frozenset({first[3], files["near"]})),
    }
    for kind in ("dark", "blurred", "tiny"):
        assert [image["path"] for image in content[kind]] == [files[kind]], kind
    assert content["tiny"][0] == {"path": files["tiny"], "class": NAMES[2], "split": "train", "value": 48}
    assert content["unusable"] == [
        {"path": files["broken"], "class": NAMES[2], "split": "train", "reason": "truncated"}
    ]
    assert content["images"] == 36 + 7
    assert [content["classes"][name] for name in NAMES] == [
        {"train": 7, "valid": 3, "test": 5}, {"train": 8, "valid": 3, "test": 3}, {"train": 8, "valid": 3, "test": 3}
    ]  # fmt: skip
    assert content["imbalance"] == pytest.approx(8 / 7)
    assert content["sizes"]["height"]["min"] == 48


@pytest.mark.slow
def test_the_page_shows_it(inspected, browser: Browser):
    _, files, _, page = inspected
    text = page.read_text()
    assert "1 picture lies in several classes" in text
    assert "2 pictures lie in several splits" in text
    for kind in ("within", "leak", "near", "labels", "dark", "blurred", "tiny", "broken"):
        assert f"<code>{files[kind]}</code>" in text, kind
    for theme, width in (("light", 1280), ("dark", 390)):
        browser.open(page, theme=theme, width=width)
        assert (browser.errors, browser.outside, browser.broken_pictures()) == ([], [], [])
        assert (browser.too_wide(), browser.poor_contrast()) == ([], [])


def test_other_layouts_and_json(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "flat" / name).mkdir(parents=True)
        picture(ord(name)).save(tmp_path / "flat" / name / "1.png")
    assert main(["flat", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["classes"] == {"a": {"all": 1}, "b": {"all": 1}}
    (tmp_path / "labels.csv").write_text("file,label\na/1.png,x\nb/1.png,x\n")
    assert main(["flat", "--labels", "labels.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == {"x": {"all": 2}}
    (tmp_path / "flat" / "train").mkdir()
    (tmp_path / "flat" / "a").rename(tmp_path / "flat" / "train" / "a")
    (tmp_path / "flat" / "test").mkdir()
    (tmp_path / "flat" / "b").rename(tmp_path / "flat" / "test" / "b")
    assert main(["flat", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["notes"] == ["2 classes not in every split: a, b."]
    assert not (tmp_path / "inspection").exists()
    assert main(["nowhere"]) == 2
    assert "nowhere does not exist" in capsys.readouterr().err
