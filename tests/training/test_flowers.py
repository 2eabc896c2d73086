"""A classifier of flowers: nothing that a run, its pages and its commands say calls them breeds or dogs."""

import re
import shutil
from pathlib import Path

import pytest
from support import runs

from dogbreed.certify import main as certify
from dogbreed.compare import main as compare
from dogbreed.evaluate import main as evaluate
from dogbreed.inspect import main as inspect
from dogbreed.predict import main as predict

pytestmark = pytest.mark.slow

FLOWERS = ("daisy", "rose", "tulip")
OF_DOGS = re.compile(r"\b(breeds?|dogs?|puppy|puppies)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def garden(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """The images, the folder of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("garden")
    root = folder / "flowers"
    for split in sorted(runs.photographs().iterdir()):
        for name, images in zip(FLOWERS, sorted(path for path in split.glob("*/")), strict=False):
            for number, image in enumerate(sorted(images.glob("*.jpg"))):
                target = root / split.name / name / f"{name}{number}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(image, target)
    return root, folder / "run", runs.train_in(folder / "run", data=root).out


def of_dogs(text: str) -> list[str]:
    """Return the lines that speak of dogs, without embedded images."""
    return [line for line in re.sub(r"base64,[^\"]+", "", text).splitlines() if OF_DOGS.search(line)]


def test_a_run_and_its_report(garden):
    _, folder, said = garden
    assert "Learned to tell 3 classes apart" in said
    assert of_dogs(said) == []
    assert of_dogs((folder / "report.html").read_text()) == []


@pytest.mark.slow
def test_its_commands(garden, tmp_path, capsys):
    root, folder, _ = garden
    broken = tmp_path / "flowers" / "cactus"
    broken.mkdir(parents=True)
    shutil.copytree(root / "test" / "rose", tmp_path / "flowers" / "rose")
    assert evaluate([str(folder), f"data.root={tmp_path / 'flowers'}", f"output_dir={tmp_path / 'out'}"]) == 2
    arguments = [f"data.root={tmp_path / 'flowers'}", f"output_dir={tmp_path / 'out'}", "data.on_unknown=skip"]
    assert evaluate([str(folder), *arguments]) == 0
    assert predict([str(folder), str(root / "test")]) == 0
    assert inspect([str(root), "--output", str(tmp_path / "inspected")]) == 0
    assert compare([str(folder), str(tmp_path / "out"), "--output", str(tmp_path / "compared")]) == 0
    captured = capsys.readouterr()
    assert "No images of 2 of the model's classes: daisy, tulip." in captured.out
    assert of_dogs(captured.out + captured.err) == []
    for page in ("out/report.html", "inspected/inspection.html", "compared/comparison.html"):
        assert of_dogs((tmp_path / page).read_text()) == [], page


@pytest.mark.slow
def test_its_certificate(garden, tmp_path, capsys):
    root, folder, _ = garden
    assert certify([str(folder), str(root / "test"), "--output", str(tmp_path / "certificate.json")]) == 0
    assert of_dogs(capsys.readouterr().out + (tmp_path / "certificate.json").read_text()) == []
