"""The command that names breeds: what it takes, what it prints, how it ends."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import runs
from support.exports import NAMES, export_tiny
from support.places import SHARED_DATA

from dogbreed import Predictor
from dogbreed.core.errors import DogbreedError
from dogbreed.inference.photographs import find_photographs
from dogbreed.models.manifest import find_model
from dogbreed.predict import main


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def photos(dog_tree: Path, tmp_path: Path) -> Path:
    """A folder in a folder, with images and other files."""
    folder = tmp_path / "photos"
    shutil.copytree(dog_tree / "test", folder / "deep")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "Z.JPG").write_bytes(next((dog_tree / "test").rglob("*.jpg")).read_bytes())
    return folder


def first_photo(folder: Path) -> Path:
    return min(file for file in folder.rglob("*.jpg") if not file.name.startswith("."))


def test_json_lines_agree_with_the_predictor(model, photos, capsys):
    assert main([str(model), str(photos), "--json", "--top-k", "2", "--batch-size", "5"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["path"] for line in lines] == sorted(line["path"] for line in lines)
    assert len(lines) == 13
    expected = Predictor(model).predict([line["path"] for line in lines], top_k=2)
    for line, prediction in zip(lines, expected, strict=True):
        assert line.keys() == {"path", "label", "index", "probability", "top"}
        assert line["label"] == prediction.label == NAMES[line["index"]]
        assert line["probability"] == pytest.approx(prediction.probability, abs=1e-6)
        assert len(line["top"]) == 2


def test_the_table_is_plain_and_aligned_outside_a_terminal(model, photos, capsys):
    assert main([str(model), str(photos)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["file", "class", "probability", "next"]
    assert len(rows) == 13
    assert "\x1b" not in head + "".join(rows)
    column = head.index("class")
    assert all(row[column - 2 : column] == "  " and row[column:].startswith(NAMES) for row in rows)
    assert all("%" in row for row in rows)


def test_a_bad_file_among_others(model, photos, capsys, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(first_photo(photos).read_bytes()[:300])
    good = str(first_photo(photos))
    assert main([str(model), good, str(broken), good, "--json"]) == 1
    one, error, other = map(json.loads, capsys.readouterr().out.splitlines())
    assert one == other
    assert error.keys() == {"path", "error"}
    assert error["path"] == str(broken)
    assert error["error"].startswith(f"{broken} cannot be used: ")
    assert main([str(model), str(broken), good]) == 1
    assert re.search(r"broken.jpg +cannot be used: ", capsys.readouterr().out)


def test_a_folder_of_an_iphone(model, photos, capsys):
    """What cannot be used is named, with its format, though it is called as no photograph was before."""
    (photos / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(20_000))
    assert main([str(model), str(photos)]) == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "IMG_0001" in line]
    assert "HEIC" in line.partition("cannot be used: ")[2]


def test_a_table_in_a_file_and_a_submission(model, photos, capsys, tmp_path):
    """Every class has its column, in the data's order; a file that cannot be used has a row as well."""
    broken = photos / "deep" / "broken.jpg"
    broken.write_bytes(b"nothing")
    table, submission = tmp_path / "out" / "table.csv", tmp_path / "submission.csv"
    assert main([str(model), str(photos), "--csv", str(table), "--submission", str(submission), "--top-k", "2"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"Wrote {table}: 14 images.",
        f"Wrote {submission}: 14 images. Equal probabilities, since they could not be used: {broken}.",
    ]
    with table.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    predictor = Predictor(model)
    names = find_photographs([str(photos)])
    assert [row["path"] for row in rows] == names
    with submission.open(newline="") as stream:
        header, *submitted = list(csv.reader(stream))
    assert header == ["id", *NAMES]
    assert [row[0] for row in submitted] == [Path(name).stem for name in names]
    for name, row, (_, *values) in zip(names, rows, submitted, strict=True):
        if row["error"]:
            assert (row["path"], row["error"]) == (str(photos / "deep" / "broken.jpg"), "not an image")
            assert values == ["0.25000000"] * 4
            continue
        logits = predictor.logits(predictor.read(name)[None])
        expected = (logits.double() / 0.7).softmax(1)[0].tolist()  # the temperature of the export
        assert [float(value) for value in values] == pytest.approx(expected, abs=1e-5)
        assert row["label"] == NAMES[expected.index(max(expected))]
        assert float(row["probability"]) == pytest.approx(max(expected), abs=1e-5)
        assert len(row["top"].split()) == 2
    assert main([str(model), str(names[0]), "--json", "--submission", str(submission), "--top-k", "2"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["top"]) == 2
    assert captured.err == f"Wrote {submission}: 1 image.\n"


def test_where_they_are_dogs_a_class_is_a_breed(photos, capsys, tmp_path):
    dogs = export_tiny(tmp_path / "dogs", ["Afghan_hound", "Beagle", "Boxer", "Mutt"])
    assert main([str(dogs), str(first_photo(photos))]) == 0
    assert capsys.readouterr().out.split()[:3] == ["file", "breed", "probability"]


def test_standard_input(model, photos, capsys, monkeypatch):
    content = first_photo(photos).read_bytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    assert main([str(model), "-", "--json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert line.pop("path") == "-"
    assert line == Predictor(model).predict([content])[0].to_dict()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{model}", "missing.jpg"], "missing.jpg does not exist"),
        (["{model}", "{empty}"], "holds no image"),
        (["{empty}", "{photos}"], "is no exported model"),
        (["{model}", "{photos}", "--top-k", "0"], "top_k=0 is out of range"),
        (["{model}", "{photos}", "--batch-size", "0"], "batch_size=0 is out of range"),
        (["{model}", "{photos}", "--device", "abacus"], "The device abacus cannot be used"),
        (["{model}", "-", "-"], "Standard input can be read once"),
        (["{photos}/Z.JPG", "{model}"], "is an exported model; the model comes first, then photographs"),
        (["{photos}/Z.JPG", "{model}/model.json"], "model.json is an exported model; the model comes first"),
        (["{photos}", "{photos}/Z.JPG", "{model}"], "python -m dogbreed.predict {model} {photos}"),
        (
            ["{model}", "{photos}/Z.JPG", "{photos}", "--submission", "s.csv"],
            "have the same id, Z; a submission has one row each",
        ),
        (["{model}", "{photos}", "{empty}/../ids.csv", "--submission", "s.csv"], "ids.csv is no file of an image; a"),
        (["{model}", "{photos}", "--submission", "{empty}/../Sample.csv"], "is the sample of the competition; give"),
    ],
)
def test_bad_use_is_one_sentence(arguments, said, model, photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for table in ("ids.csv", "Sample.csv"):
        (tmp_path / table).write_text("id\n")
    places = {"model": model, "photos": photos, "empty": tmp_path / "empty"}
    assert main([argument.format(**places) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert said.format(**places) in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == "", "no head of a table that never comes"


@pytest.mark.slow
def test_what_one_photograph_does_not_load(model, photos):
    """What costs seconds and has no part in an answer."""
    program = (
        "import sys; from dogbreed.inference.photographs import find_model, find_photographs\n"
        "from dogbreed import Predictor; Predictor(sys.argv[1]).predict(sys.argv[2])\n"
        "print(*sorted({'lightning', 'hydra', 'omegaconf', 'matplotlib', 'scipy', 'optuna', 'onnx', 'pandas'} "
        "& sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, str(model), str(first_photo(photos))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=runs.environment())
    assert done.stdout == "\n"


def test_a_run_stands_for_its_model(model):
    assert find_model(model.parent) == find_model(model) == model


def test_what_is_found(photos, tmp_path):
    note = str(photos / "notes.txt")
    found = find_photographs([note, str(photos)])
    assert found[0] == note  # a file that was named is tried, whatever it is called
    assert note not in found[1:]
    assert found[1:] == sorted(found[1:])
    assert str(photos / "Z.JPG") in found
    assert not any("hidden" in name for name in found)


def test_names_that_would_move_the_cursor_are_escaped(model, photos, capsys, tmp_path):
    odd = tmp_path / "red\x1b[31m\n.jpg"
    shutil.copy(first_photo(photos), odd)
    assert main([str(model), str(odd)]) == 0
    captured = capsys.readouterr().out
    assert len(captured.splitlines()) == 2
    assert "\\x1b[31m\\n.jpg" in captured


@pytest.mark.skipif(sys.platform != "linux", reason="file names are UTF-8 elsewhere")
def test_names_that_are_no_utf8(model, photos, capsys, tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")
    shutil.copy(first_photo(photos), odd)
    assert main([str(model), odd]) == 0
    assert "caf\\udce9.jpg" in capsys.readouterr().out
    assert main([str(model), odd, "--json"]) == 0
    assert os.fsencode(json.loads(capsys.readouterr().out)["path"]).endswith(b"caf\xe9.jpg")


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    page = capsys.readouterr().out
    assert ended.value.code == 0
    assert page.count("python -m dogbreed.predict") >= 4  # usage and three examples
    assert "exit codes:" in page


@pytest.mark.slow
def test_head_ends_it_quietly(model, photos):
    command = (
        f'"{sys.executable}" -m dogbreed.predict "{model}" {" ".join([str(photos)] * 60)} --batch-size 1 | head -1'
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=runs.environment())
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_real_photographs_are_all_answered(model, capsys):
    photos = SHARED_DATA / "photos"
    if not photos.is_dir():
        pytest.skip("the photographs are not at hand")
    assert main([str(model), str(photos), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 61
    assert "of 61 images" in captured.err  # more than a few: it says how far it has come


def test_pipes_and_devices_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "endless.jpg").symlink_to("/dev/zero")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert find_photographs([str(tmp_path)]) == [str(tmp_path / "a.jpg")]
    for path in (tmp_path / "pipe.jpg", tmp_path / "endless.jpg", "/dev/zero"):
        with pytest.raises(DogbreedError, match=f"{path} is no regular file"):
            find_photographs([str(path)])
