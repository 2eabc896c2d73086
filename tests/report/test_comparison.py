"""`python -m dogbreed.compare`: settings, figures, the paired test, and the images on which runs disagree."""

import json
import re
from pathlib import Path

import pytest
import yaml
from support import runs
from support.reports import read_page

from dogbreed.compare import main
from dogbreed.core.files import write_csv, write_json
from dogbreed.metrics.classification import PREDICTIONS
from dogbreed.metrics.paired import holm, mcnemar
from dogbreed.report.comparison import compare

LABELS = ["hound", "spitz"] * 10


def write_run(folder: Path, wrong: set[int], *, old: bool = False, start: int = 0, **settings: object) -> Path:
    """A run of twenty images, of which these are misclassified; `old` as before the last two columns."""
    rows = []
    for index, label in enumerate(LABELS, start):
        predicted = "setter" if index in wrong else label
        probability = 0.1 if index in wrong else 0.8
        row = (f"test/{label}/{index}.jpg", label, predicted, int(predicted == label), "0.8", f"{predicted}=0.8")
        rows.append(row if old else (*row, f"{probability}", "0.2"))
    folder.mkdir(parents=True)
    write_csv(folder / "predictions.csv", PREDICTIONS[: 6 if old else None], rows)
    write_json(folder / "metrics.json", {"test_acc": 1 - len(wrong) / 20, "test_loss": 0.5, "seconds": 61.0})
    config = {"output_dir": str(folder), "seed": 0, "model": {"lr": 0.01, "backbone": "vgg16", **settings}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_two_runs(tmp_path, capsys):
    a = write_run(tmp_path / "a", {0, 1, 2}, lr=0.1)
    b = write_run(tmp_path / "b", {2, 3, 4, 5, 6, 7, 8, 9, 10, 11})
    assert main([str(a), str(b / "config.yaml"), "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["a", "b"],
        ["model.lr", "0.1", "0.01"],
        ["test", "accuracy", "85.0", "%", "50.0", "%"],
    ]
    assert ["time", "61", "s", "61", "s"] in [line.split() for line in lines]
    p_value = mcnemar(9, 2)
    assert any(
        f"a against b: 17 and 10 of 20 images correct, 9 by a alone and 2 by b alone; chance alone can explain the "
        f"difference (exact McNemar test, p = {p_value:.2g})." == line
        for line in lines
    )
    assert "The runs disagree on 11 of 20 images." in lines
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["best"] == "a"
    assert content["tests"] == [{"run": "b", "only_best": 9, "only_run": 2, "p_value": p_value, "corrected": p_value}]
    assert [run["settings"] for run in content["runs"]] == [{"model.lr": 0.1}, {"model.lr": 0.01}]
    assert {entry["path"].split("/")[-1] for entry in content["disagreements"]} == {
        f"{i}.jpg" for i in {0, 1} | set(range(3, 12))
    }
    page = read_page(tmp_path / "out" / "comparison.html")
    assert "setter: b (10 %)" in page
    assert "test/spitz/11.jpg" in page
    assert page.count("The image cannot be read any more.") == 11, "they never were"


def test_each_of_several_against_the_best(tmp_path, capsys):
    write_run(tmp_path / "sweep" / "10", set(range(12)))
    write_run(tmp_path / "sweep" / "2", set())
    write_run(tmp_path / "sweep" / "9", {0}, old=True)
    assert main([str(tmp_path / "sweep"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in content["runs"]] == ["sweep/2", "sweep/9", "sweep/10"], "by number"
    assert content["best"] == "sweep/2"
    expected = [mcnemar(1, 0), mcnemar(12, 0)]
    assert [test["p_value"] for test in content["tests"]] == expected
    assert [test["corrected"] for test in content["tests"]] == holm(expected)
    assert content["disagreements"][0]["answers"]["sweep/9"]["probability"] is None, "older runs do not say"
    more_than_chance = [line for line in compare([tmp_path / "sweep"]).lines() if "more than chance" in line]
    assert len(more_than_chance) == 1
    assert more_than_chance[0].startswith("sweep/2 against sweep/10: ")
    assert not (tmp_path / "comparison").exists()


def test_no_test_on_different_images(tmp_path, capsys):
    a, b = write_run(tmp_path / "a", {1}), write_run(tmp_path / "b", {15}, start=10)
    without = write_run(tmp_path / "c", {3})
    (without / "predictions.csv").unlink()
    assert main([str(a), str(b), str(without), "--output", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "No test of b: it was measured on other images: 10 of its 20 images are also those of a." in said
    assert "No test of c: it has no predictions.csv." in said
    assert "p = " not in said
    assert "Paired tests" not in read_page(tmp_path / "out" / "comparison.html")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{a}"], "A comparison takes two different runs or more"),
        (["{a}", "{a}/model"], "A comparison takes two different runs or more"),
        (["{a}", "{empty}"], "empty is no finished run: it has no metrics.json"),
        (["{a}", "{damaged}"], "damaged cannot be read as a run: "),
        (["{a}", "{numbers}"], "numbers cannot be read as a run: metrics.json holds no metrics."),
        (["{a}", "{settings}"], "settings cannot be read as a run: config.yaml holds no settings."),
        (["{a}", "{table}"], "table cannot be read as a run: predictions.csv has no column 'path'."),
    ],
)
def test_bad_use_is_one_sentence(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", set())
    (tmp_path / "a" / "model").mkdir()
    (tmp_path / "empty").mkdir()
    (write_run(tmp_path / "damaged", set()) / "metrics.json").write_text("{")
    (write_run(tmp_path / "numbers", set()) / "metrics.json").write_text("[1]")
    (write_run(tmp_path / "settings", set()) / "config.yaml").write_text("")
    (write_run(tmp_path / "table", set()) / "predictions.csv").write_text("image,label\n1,2\n")
    places = {name: tmp_path / name for name in ("a", "empty", "damaged", "numbers", "settings", "table")}
    assert main([argument.format(**places) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "comparison").exists()


@pytest.mark.slow
def test_a_sweep_ends_with_its_table(tmp_path):
    """Real runs: the table, the new columns of predictions.csv, and the photographs on the page."""
    folder = tmp_path / "sweep"
    ran = runs.run("--multirun", *runs.overrides(folder, "trainer.max_epochs=1"), "model.lr=0.001,0.1")
    assert ran.code == 0, ran.err
    table = ran.out[ran.out.rindex("model.lr") :]
    assert re.match(r"model\.lr +0\.001 +0\.1\n", table)
    assert re.search(r"(sweep/0 against sweep/1|sweep/1 against sweep/0): \d and \d of 9 images correct", table)
    assert f"python -m dogbreed.compare {folder}/0 {folder}/1" in table
    for run in ("0", "1"):
        rows = runs.predictions(folder / run)
        mean = sum(float(row["loss"]) for row in rows) / len(rows)
        assert mean == pytest.approx(runs.metrics(folder / run)["test_loss"], abs=1e-5)
        for row in rows:
            if row["correct"] == "1":
                assert row["true_probability"] == row["probability"]
            else:
                assert float(row["true_probability"]) <= float(row["probability"])
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 0
    page = read_page(tmp_path / "out" / "comparison.html")
    disagreements = json.loads((tmp_path / "out" / "comparison.json").read_text())["disagreements"]
    assert page.count("data:image/jpeg") == len(disagreements)
