"""Measuring an exported model: the same figures as the run that made it, by the way that an endpoint takes."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import runs
from support.exports import NAMES, export_tiny

from dogbreed import FeatureCache, Predictor, evaluate
from dogbreed.core.metric_lines import METRIC_REGEXES
from dogbreed.data.datamodule import DogImages
from dogbreed.evaluate import HELP, known_settings, main
from dogbreed.training.evaluation_files import _same_but_for_writing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run, and what it printed."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    return folder, runs.train_in(folder).out


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("exported") / "model")


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_it_is_what_the_run_measured(trained, tmp_path, capsys):
    folder, said = trained
    assert main([str(folder), f"output_dir={tmp_path / 'out'}", "device=cpu"]) == 0  # the data are those of the run
    captured = capsys.readouterr().out
    ours, theirs = runs.metrics(tmp_path / "out"), runs.metrics(folder)
    for name in ("test_loss", "test_acc", "test_top5", "test_acc_ci95", "test_ece", "temperature"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-4), name
    pattern = METRIC_REGEXES["average test loss"]
    assert float(re.findall(pattern, captured)[0]) == pytest.approx(float(re.findall(pattern, said)[0]), abs=1e-4)
    mine, original = rows(tmp_path / "out" / "predictions.csv"), rows(folder / "predictions.csv")
    assert len(mine) == len(original)
    for one, other in zip(mine, original, strict=True):
        rounded = ("probability", "top5", "true_probability", "loss")
        assert [one[key] for key in one if key not in rounded] == [other[key] for key in one if key not in rounded]
        for key in ("true_probability", "loss"):
            assert float(one[key]) == pytest.approx(float(other[key]), abs=1e-4), key
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-4)
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "predictions.csv",
        "report.html",
    ]


def test_another_split(trained, tmp_path, capsys):
    folder, _ = trained
    result = evaluate(folder, split="valid", output_dir=tmp_path)
    said = capsys.readouterr().out
    assert "Valid set: Average loss: " in said
    assert not re.search(METRIC_REGEXES["average test loss"], said)
    assert result.metrics["val_loss"] == pytest.approx(runs.metrics(folder)["val_loss"], abs=1e-4)
    assert not [key for key in result.metrics if key.startswith("test_")]
    assert "Validation accuracy " in said
    assert "\n27 images of test and train not measured; split= chooses another split.\n" in said
    assert result.metrics["split"] == "valid"
    assert result.predictions.split == "valid"


def test_breeds_are_matched_by_name(model, dog_tree, tmp_path, capsys):
    photos = tmp_path / "photos" / "unpacked"  # a folder around the classes is none of them
    shutil.copytree(dog_tree / "test" / "004.Red_terrier", photos / "Red_terrier")
    shutil.copytree(dog_tree / "test" / "002.Blue_spitz", photos / "17.Blue_spitz")
    assert main([str(model), f"data.root={photos.parent}", f"output_dir={tmp_path / 'out'}"]) == 0
    assert {row["label"] for row in rows(tmp_path / "out" / "predictions.csv")} == {"Red_terrier", "Blue_spitz"}
    assert "No images of 2 of the model's classes: Amber_hound, Green-eyed_setter." in capsys.readouterr().out
    assert runs.metrics(tmp_path / "out")["classes_without_images"] == 2


def test_a_file_that_is_no_image(model, write_tree, tmp_path, capsys):
    root = write_tree(tmp_path / "dogs")
    bad = root / "test" / "001.Amber_hound" / "Amber_hound_00000.jpg"
    bad.write_bytes(b"nothing")
    assert main([str(model), f"data.root={root}", f"output_dir={tmp_path / 'out'}"]) == 0
    assert f"Skipped 1 files, such as {bad} (not an image)" in capsys.readouterr().out
    assert "not an image" in (tmp_path / "out" / "report.html").read_text()
    assert runs.metrics(tmp_path / "out")["images"] == 11
    arguments = [str(model), f"data.root={root}", f"output_dir={tmp_path / 'no'}", "data.on_bad_image=error"]
    assert main(arguments) == 2
    assert f"{bad} cannot be used: not an image." in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_it_finds_what_was_trained_on(model, write_tree, tmp_path):
    root = write_tree(tmp_path / "dogs")
    twin = root / "test" / "001.Amber_hound" / "again.jpg"
    shutil.copy(next((root / "train" / "001.Amber_hound").iterdir()), twin)
    evaluate(model, root, output_dir=tmp_path / "out", quiet=True)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 image of the test split also lies in another split" in page
    assert "test/001.Amber_hound/again.jpg" in page


def test_a_class_called_train_is_no_split(model, dog_tree, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(dog_tree / "test" / "004.Red_terrier", photos / "train")
    shutil.copytree(dog_tree / "test" / "002.Blue_spitz", photos / "Blue_spitz")
    assert (
        main([str(model), f"data.root={photos}", f"output_dir={tmp_path / 'out'}", "data.names={train:Red_terrier}"])
        == 0
    )
    labels = {row["label"] for row in rows(tmp_path / "out" / "predictions.csv")}
    assert labels == {"Red_terrier", "Blue_spitz"}


def test_classes_under_other_names(model, dog_tree, tmp_path, capsys):
    photos = tmp_path / "photos"
    shutil.copytree(dog_tree / "test" / "004.Red_terrier", photos / "7.terrier, red")
    shutil.copytree(dog_tree / "test" / "002.Blue_spitz", photos / "Blue_spitz")
    shutil.copytree(dog_tree / "test" / "001.Amber_hound", photos / "Poodle")
    arguments = [str(model), f"data.root={photos}", f"output_dir={tmp_path / 'out'}", "data.on_unknown=skip"]
    assert main([*arguments, "data.names={'terrier, red':Red_terrier}"]) == 0
    read = rows(tmp_path / "out" / "predictions.csv")
    assert {(row["path"].split("/")[0], row["label"]) for row in read} == {
        ("7.terrier, red", "Red_terrier"),
        ("Blue_spitz", "Blue_spitz"),
    }
    assert "Left out, since the model does not know them: Poodle." in capsys.readouterr().out
    assert runs.metrics(tmp_path / "out")["classes_unknown"] == 1


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("Boston_terrier", ["Bedlington_terrier", "Border_terrier"], None),
        ("Norwich_terrier", ["Norfolk_terrier"], None),
        ("Irish_setter", ["Irish_terrier", "English_setter"], None),
        ("german-shepherd dog", ["German_shepherd_dog", "Boxer"], "German_shepherd_dog"),
        ("021.Boxer", ["Boxer"], "Boxer"),
        ("Afgan_hound", ["Afghan_hound"], "Afghan_hound"),
        ("Afghan_hounds", ["Afghan_hound", "Ibizan_hound"], "Afghan_hound"),
        ("rose", ["nose"], None),
        ("Brittany1", ["Brittany2", "Brittany3"], None),
    ],
)
def test_names_that_are_merely_alike_are_not_suggested(name, known, meant):
    assert _same_but_for_writing(name, known) == meant


def test_features_come_from_the_cache(trained, tmp_path):
    """Those of the run's own images are there; those of a new image are computed, and kept; figures are the same."""
    folder, _ = trained
    cache = folder.parent / "cache"
    kept = evaluate(folder, output_dir=tmp_path / "kept", cache=FeatureCache("require", folder=cache), quiet=True)
    assert kept.metrics["cache"] == "hit"
    assert main([str(folder), f"output_dir={tmp_path / 'off'}", "cache.mode=off"]) == 0
    off = runs.metrics(tmp_path / "off")
    assert off["cache"] == "off"
    assert kept.metrics["test_loss"] == pytest.approx(off["test_loss"], abs=1e-4)
    root = Path(shutil.copytree(runs.photographs(), tmp_path / "dogs"))
    other = next((root / "train").rglob("*.jpg"))
    with Image.open(other) as image:
        image.rotate(90).save(next((root / "test").rglob("*.jpg")))
    for state in ("built", "hit"):
        result = evaluate(
            folder, root, output_dir=tmp_path / state, cache=FeatureCache(folder=cache, quiet=True), quiet=True
        )
        assert result.metrics["cache"] == state
    plain = Predictor(folder)
    assert torch.allclose(
        result.predictions.logits,
        plain.logits(torch.stack([plain.read(path) for path in result.predictions.paths])),
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}"], "Give the folder of photographs with data.root=FOLDER"),
        (["{model}", "data.root=nowhere"], "The data folder nowhere does not exist"),
        (
            ["{model}", "data.root={unknown}"],
            "unknown has 3 classes that the model does not know (it knows 4): Blue_spits (perhaps Blue_spitz), Poodle, "
            "Red_setter. Leave them out with data.on_unknown=skip, or give the names that it knows them by: "
            "'data.names={Blue_spits: Blue_spitz, Poodle: NAME, Red_setter: NAME}'.",
        ),
        (["{model}", "data.root={tree}", "data.on_unknown=cry"], "data.on_unknown=cry is unknown"),
        (["{model}", "data.root={tree}", "data.names={{Rex}}"], "data.names={Rex} is no list of pairs"),
        (["{model}", "data.root={tree}", "data.names={{Rex: Blue_spitz}}"], "data.names: Rex is no class in"),
        (
            ["{model}", "data.root={tree}", "data.names={{Blue_spitz: Red-Terrier}}"],
            "data.names: Red-Terrier is no class of the model, which knows 4; perhaps Red_terrier.",
        ),
        (["{model}", "data.root={empty}"], "holds no class folders with images"),
        (["{model}", "data.root={tree}", "split=exam"], "split=exam is unknown"),
        (["{model}", "data.root={tree}", "model.lr=1"], "model.lr is not a setting of an evaluation"),
        (["{model}", "data.root={tree}", "device=abacus"], "The device abacus cannot be used"),
        (["{model}", "data.root={tree}", "data.batch_size=0"], "data.batch_size is a whole number from 1"),
        (["{model}", "data.root={tree}", "data.num_workers=many"], "data.num_workers one from 0"),
        (["{model}", "data.root={tree}", "data.on_bad_image=cry"], "data.on_bad_image=cry is unknown"),
        (["{empty}", "data.root={tree}"], "is no exported model"),
        (["{model}", "{tree}"], "Give one exported model, then settings"),
    ],
)
def test_bad_use_is_one_sentence(arguments, said, model, dog_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("003.Blue_spits", "Poodle", "Red_setter", "4.Amber_hound"):
        (tmp_path / "unknown" / name).mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    places = {"model": model, "tree": dog_tree, "unknown": tmp_path / "unknown", "empty": tmp_path / "empty"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "evaluation").exists()


def test_help_names_every_setting(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP
    assert [key for key in known_settings() if f"{key}=" not in HELP] == []


def test_the_default_folder(model, dog_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(model), f"data.root={dog_tree}", "--batch-size", "5"]) == 0
    (folder,) = tmp_path.glob("evaluation/*/*")
    assert json.loads((folder / "metrics.json").read_text())["images"] == 12


def test_names_and_folders_come_as_in_training(dog_tree):
    data = DogImages(dog_tree, quiet=True)
    data.setup()
    assert tuple(data.classes) == NAMES


@pytest.fixture(scope="module")
def flat_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """Class folders without splits, the folder of a run on them, and what it printed."""
    folder = tmp_path_factory.mktemp("flat")
    root = folder / "dogs"
    for path in sorted(runs.photographs().glob("*/*/*.jpg")):
        target = root / path.parent.name / f"{path.parts[-3]}-{path.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return root, folder / "run", runs.train_in(folder / "run", "data.split=0.5,0.2,0.3", data=root).out


def test_without_splits_only_what_was_kept_from_the_training_is_evaluated(flat_run, tmp_path):
    root, folder, said = flat_run
    split = rows(folder / "split.csv")
    tested = [row["path"] for row in split if row["split"] == "test"]
    assert f"{root} has no splits: 36 images split by content (data.split=0.5,0.2,0.3)" in said
    result = evaluate(folder, output_dir=tmp_path / "own", device="cpu", quiet=True)
    assert [path.relative_to(root).as_posix() for path in result.predictions.paths] == tested
    assert result.metrics["test_loss"] == pytest.approx(runs.metrics(folder)["test_loss"], abs=1e-4)
    elsewhere = Path(shutil.copytree(root, tmp_path / "dogs"))
    table = evaluate(
        folder, elsewhere, labels=folder / "split.csv", split="valid", output_dir=tmp_path / "t", quiet=True
    )
    assert table.metrics["images"] == sum(row["split"] == "valid" for row in split)
    assert evaluate(folder, elsewhere, output_dir=tmp_path / "all", quiet=True).metrics["images"] == 36


def test_the_split_of_a_run_is_repeated_from_its_table(flat_run, tmp_path):
    root, folder, _ = flat_run
    runs.train_in(tmp_path / "again", f"data.labels={folder / 'split.csv'}", "data.split=[0.5,0.2,0.3]", data=root)
    assert not (tmp_path / "again" / "split.csv").exists()
    for name, value in runs.metrics(folder).items():
        if name not in runs.NOT_THE_RESULT:
            assert runs.metrics(tmp_path / "again")[name] == value, name


def test_what_training_left_out_is_left_out_here_too(tmp_path, write_tree):
    root = write_tree(tmp_path / "dogs")
    shutil.rmtree(root / "train" / "002.Blue_spitz")
    said = runs.train_in(tmp_path / "run", "data.class_mismatch=drop", data=root).out
    assert "Left out 1 class not in every split (data.class_mismatch=drop): 002.Blue_spitz." in said
    result = evaluate(tmp_path / "run", output_dir=tmp_path / "out", device="cpu", quiet=True)
    assert result.metrics["images"] == 9
    assert result.metrics["test_loss"] == pytest.approx(runs.metrics(tmp_path / "run")["test_loss"], abs=1e-4)
