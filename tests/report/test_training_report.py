"""The page: what it tells, that it stands alone, and that it holds for every kind of run."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from support.reports import HISTORY, METRICS, NAMES, PAIRS, SECTIONS, make_run, read_page

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.images import Preprocessing
from dogbreed.metrics.predictions import Predictions
from dogbreed.models import backbones
from dogbreed.report import training_report
from dogbreed.report.inputs import ReportInputs
from dogbreed.report.rendering import fragment


def page_of(run: ReportInputs, folder: Path) -> str:
    training_report.write(folder / "report.html", run)
    page = read_page(folder / "report.html")
    assert "could not be made" not in page
    return page


def headings(page: str) -> list[str]:
    return re.findall(r'<h2 id="([^"]+)">', page)


@pytest.fixture
def network() -> torch.nn.Module:
    return backbones.create("squeezenet1_1", 4, weights="none")


@pytest.mark.slow
def test_a_whole_page(tmp_path, network):
    skipped = [Skipped(tmp_path / "train" / "broken.jpg", "truncated")]
    metrics = {**METRICS, "train_acc": 0.875}
    page = page_of(make_run(tmp_path, PAIRS, NAMES, skipped=skipped, network=network, metrics=metrics), tmp_path)
    assert headings(page) == SECTIONS
    facts = dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]+)</dd>", page))
    # Of 2, 3, 1 and 2 images, 2, 1, 1 and 1 are right; 3, 1, 3 and 1 are predicted.
    f1 = (4 / 5 + 2 / 4 + 2 / 4 + 2 / 3) / 4
    expected = {
        "Chance-level accuracy": 0.25,
        "Training accuracy": 0.875,
        "Balanced accuracy": (1 + 1 / 3 + 1 + 0.5) / 4,
    }
    for name, value in {**expected, "Macro F1": f1}.items():
        assert facts[name] == f"{100 * value:.1f} %", name
    always, never = (sum(share**images for images in (2, 3, 1, 2)) for share in (5 / 8, 3 / 8))
    chance = f"If all had the same accuracy, chance alone would give {always:.0f} and {never:.0f}."
    assert f"2 were always classified correctly, 0 never. {chance}" in page
    precision = (2 / 3 + 1 + 1 / 3 + 1) / 4
    assert f"a precision of {100 * precision:.1f} % and an F1 of {100 * f1:.1f} %." in page
    assert re.search(r'<td class="number">67 %</td><td>[^<]*</td></tr>', page), "the precision of Amber_hound"
    assert "<h1>squeezenet1_1 trained on" in page
    assert "62.5" in page
    assert "Test accuracy: 5 of 8 images, 95 % CI 30.6 to 86.3 %." in page
    assert "Overfitting from epoch 3" in page
    assert "2 of 3 images of Blue spitz classified as Green-eyed setter" in page
    assert "Grad-CAM" in page
    assert "train/broken.jpg" in page
    assert "truncated" in page
    assert "python -m dogbreed.train data.root=" in page
    assert "model.backbone=squeezenet1_1 model.lr=0.01" in page
    assert page.count("<svg") == 5
    # One mistaken photograph of each pair with an example, and every mistake with its heat map.
    assert page.count("data:image/jpeg") == 2 * 2 + 3 * 2


@pytest.mark.slow
def test_the_planted_pair_is_on_top(tmp_path):
    pairs = [(label, label) for label in range(4) for _ in range(5)] + [(2, 3)] * 3 + [(0, 1)]
    page = page_of(make_run(tmp_path, pairs, NAMES), tmp_path)
    section = page[page.index('id="confused"') : page.index('id="matrix"')]
    assert re.findall(r"<h3>([^<]+)</h3>", section)[0] == "Green-eyed setter and Red terrier"


@pytest.mark.slow
def test_names_are_escaped(tmp_path):
    names = ["<script>alert(1)</script>", 'quo"te', "a&b", "</title><b>bold"]
    root = tmp_path / "<i>dogs"
    run = make_run(root, PAIRS, names, skipped=[Skipped(root / "<img src=x>.jpg", "<b>bad</b>")])
    page = page_of(run, tmp_path)
    for name in [*names, "<img src=x", "<b>bad", "<i>dogs"]:
        assert name not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "a&amp;b" in page


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([(0, 0)], "Test accuracy: 1 of 1 image, "),
        ([(0, 1)], "0 were always classified correctly, 1 never"),
        ([(0, 0), (1, 1)], "None: every image was classified correctly."),
        ([(0, 0), (1, 0), (2, 0)], "3 classes"),
    ],
)
@pytest.mark.slow
def test_degenerate_results(pairs, said, tmp_path):
    page = page_of(make_run(tmp_path, pairs, NAMES), tmp_path)
    assert said in page
    assert headings(page) == SECTIONS


@pytest.mark.slow
def test_without_a_test_split(tmp_path):
    page = page_of(make_run(tmp_path, PAIRS, NAMES, split="valid"), tmp_path)
    assert "Validation accuracy: 5 of 8 images" in page
    assert "The test split was not evaluated" in page


def test_an_evaluation_has_no_curves(tmp_path):
    run = make_run(tmp_path, PAIRS, NAMES, history=(), config={}, command="python -m dogbreed.evaluate 'my model'")
    page = page_of(run, tmp_path)
    assert headings(page) == SECTIONS[1:]
    assert "python -m dogbreed.evaluate &#39;my model&#39;" in page
    assert "evaluated on" in page


def test_nothing_but_names(tmp_path):
    page = page_of(ReportInputs(NAMES, "vit_b_16", Preprocessing(), tmp_path, {}), tmp_path)
    assert headings(page) == ["images", "reproduce"]
    assert "No split was evaluated" in page


@pytest.mark.slow
def test_losses_that_are_no_numbers(tmp_path):
    history = [*HISTORY, {**HISTORY[0], "epoch": 4, "train_loss": float("nan"), "val_loss": float("nan")}]
    metrics = {**METRICS, "train_loss": float("nan"), "val_loss": float("inf")}
    page = page_of(make_run(tmp_path, PAIRS, NAMES, history=history, metrics=metrics), tmp_path)
    assert "training diverged" in page


@pytest.mark.slow
def test_photographs_that_have_gone(tmp_path, network):
    page = page_of(make_run(tmp_path, PAIRS, NAMES, files=False, network=network), tmp_path)
    assert "The image cannot be read any more." in page


@pytest.mark.slow
def test_networks_without_heat_maps_say_so(tmp_path):
    run = make_run(tmp_path, PAIRS, NAMES, network=torch.nn.Linear(1, 1))
    page = page_of(ReportInputs(**{**vars(run), "backbone": "vit_b_16"}), tmp_path)
    assert "There are no heat maps: vit_b_16 has no spatial feature map" in page


@pytest.mark.slow
def test_a_thousand_breeds(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"Breed_number_{i}_of_a_thousand" for i in range(1000)]
    pairs = [(label, label if rng.random() < 0.8 else int(rng.integers(1000))) for label in range(1000) for _ in "ab"]
    page = page_of(make_run(tmp_path, pairs, names, files=False), tmp_path)
    assert len(page) < 5_000_000
    assert "The other 980 classes" in page


@pytest.mark.slow
def test_a_leak_is_told_at_the_top(tmp_path):
    run = make_run(tmp_path, PAIRS, NAMES)
    run.photos["test"].paths[3].write_bytes(run.photos["train"].paths[1].read_bytes())
    page = page_of(run, tmp_path)
    top = page[: page.index("<nav")]
    assert "1 image of the test split also lies in another split" in top
    assert "may look worse than it is; without it the accuracy is 71.4 % of 7." in top
    assert "test/3.jpg" in page[page.index('id="images"') :]


@pytest.mark.slow
def test_a_leak_of_what_is_classified_correctly_flatters(tmp_path):
    """One that is not, such as the same image under another label in the training, does the opposite."""
    run = make_run(tmp_path, PAIRS, NAMES)
    right = next(index for index, (truth, said) in enumerate(PAIRS) if truth == said)
    run.photos["test"].paths[right].write_bytes(run.photos["train"].paths[1].read_bytes())
    (leak, *_), _, _ = training_report.caveats(run)
    assert "so the result may look better than it is; without it the accuracy is 57.1 % of 7." in leak


def test_a_section_that_fails_costs_only_itself(tmp_path, monkeypatch, capsys):
    def fail(predictions: Predictions) -> None:
        raise RuntimeError("<no> reason")

    monkeypatch.setattr("dogbreed.metrics.classification.per_class", fail)
    training_report.write(tmp_path / "report.html", make_run(tmp_path, PAIRS, NAMES))
    page = (tmp_path / "report.html").read_text()
    assert headings(page) == SECTIONS
    assert "This part could not be made: &lt;no&gt; reason" in page
    assert "RuntimeError" in capsys.readouterr().err


@pytest.mark.slow
def test_a_report_that_cannot_be_written_does_not_fail_the_run(tmp_path, capsys):
    run = make_run(tmp_path, PAIRS, NAMES)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(DogbreedError):
        training_report.write(tmp_path / "report.html", run)
    training_report.write_safely(tmp_path / "report.html", run)
    assert capsys.readouterr().err.startswith("The report could not be written: ")


def test_names_that_are_not_utf8_can_be_written():
    assert (
        fragment("macros.html.j2", "failed", "caf\udce9 <b>")
        == '<p class="alarm">This part could not be made: caf? &lt;b&gt;</p>\n'
    )


@pytest.mark.slow
def test_real_photographs(dogs120, tmp_path, network):
    """The size of a page with real photographs, which weigh more than drawn ones."""
    folders = sorted((dogs120 / "test").iterdir())
    names = [folder.name.partition(".")[2] for folder in folders]
    paths = [path for folder in folders for path in sorted(folder.iterdir())]
    labels = np.array([label for label, folder in enumerate(folders) for _ in folder.iterdir()])
    logits = torch.randn(len(paths), len(names), generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(paths)), torch.from_numpy(labels)] += 3
    network = backbones.create("squeezenet1_1", len(names), weights="none")
    photos = {"test": SplitFiles(paths, labels, [], [])}
    predictions = Predictions("test", logits, torch.from_numpy(labels), paths)
    run = ReportInputs(
        names, "squeezenet1_1", Preprocessing(), dogs120, photos, predictions, METRICS, HISTORY, network=network
    )
    page = page_of(run, tmp_path)
    assert page.count("data:image/jpeg") == 9 * 2 + 12 * 2
    assert len(page) < 2_000_000
