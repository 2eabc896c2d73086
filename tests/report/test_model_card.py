"""The card beside an exported model: what the Hub reads in it, and that it stays text whatever the names are."""

from dataclasses import replace

import pytest
from support.reports import METRICS, NAMES, PAIRS, make_run

from dogbreed.report import model_card

repocard = pytest.importorskip("huggingface_hub.repocard")


def test_the_hub_reads_its_figures(tmp_path):
    run = make_run(tmp_path, PAIRS, NAMES, metrics=METRICS)
    model_card.write(tmp_path / "README.md", run)
    data = repocard.ModelCard.load(tmp_path / "README.md").data
    correct = sum(actual == predicted for actual, predicted in PAIRS)
    by_metric = {result.metric_type: result for result in data.eval_results}
    assert by_metric["accuracy"].metric_value == pytest.approx(correct / len(PAIRS), abs=1e-6)
    assert by_metric["f1"].metric_args == {"average": "macro"}
    assert (by_metric["f1"].dataset_split, by_metric["f1"].task_type) == ("test", "image-classification")
    assert data.pipeline_tag == "image-classification"
    assert repocard.RepoCard((tmp_path / "README.md").read_text()).content.startswith("---")


def test_what_is_to_be_known_is_in_it(tmp_path):
    run = make_run(tmp_path, PAIRS, NAMES, metrics=METRICS)
    text = model_card.card(replace(run, doubts=["a.jpg lies under two labels."]))
    assert "- a.jpg lies under two labels." in text
    assert "62.5 %" in text or "5 of 8" in text
    assert str(tmp_path.parent) not in text, "no path of the machine"


def test_names_stay_names(tmp_path):
    names = ["<script>", "a|b", "*bold*", "---\nlicense: mit"]
    run = make_run(tmp_path, PAIRS, names, metrics=METRICS)
    text = model_card.card(run)
    assert "\\<script\\>, a\\|b, \\*bold\\*, --- license: mit" in text
    assert repocard.ModelCard(text).data.license is None
