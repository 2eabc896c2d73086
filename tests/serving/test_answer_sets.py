"""`set` and `abstain`: the same from Predictor, the command, the handler, the server and the client; absent without."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.exports import NAMES, export_tiny
from support.places import SHARED_DATA
from support.serving import serving

from dogbreed.inference import handler
from dogbreed.inference.predictor import Predictor
from dogbreed.predict import main
from dogbreed.serving import certify, parity
from dogbreed.serving.certificate import Answer
from dogbreed.serving.client import Endpoint

BYTES = "application/octet-stream"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Photographs, where there are some, and 20 pictures of noise."""
    folder, generator = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number in range(20):
        grain = generator.integers(0, 256, (4 + 3 * number, 60, 3), dtype=np.uint8)
        Image.fromarray(grain).resize((80, 90)).save(folder / f"{number:02d}.png")
    return [*sorted((SHARED_DATA / "photos").rglob("*.jpg"))[:6], *sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def model(photos: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose sets hold one class, two or more, depending on the photograph."""
    folder = tmp_path_factory.mktemp("run")
    answers = Predictor(export_tiny(folder / "plain")).predict(photos, top_k=4)
    assert all(answer.set is None and answer.abstain is None for answer in answers)
    thirds = sorted(answer.top[2].probability for answer in answers)
    return export_tiny(folder / "model", least=(thirds[len(thirds) // 2] + thirds[len(thirds) // 2 + 1]) / 2)


@pytest.fixture(scope="module")
def expected(model: Path, photos: list[Path]) -> list[tuple[list[str], bool]]:
    """By hand from the logits."""
    predictor = Predictor(model)
    least, answers = predictor.model.conformal["least_probability"]["90"], []
    for photo in photos:
        powers = np.exp(predictor.logits(predictor.read(photo)[None])[0].double().numpy() / 0.7)
        shares = powers / powers.sum()
        order = [index for index in np.argsort(-shares) if shares[index] >= least] or [shares.argmax()]
        answers.append(([NAMES[index] for index in order], len(order) > 2))
    assert {abstain for _, abstain in answers} == {True, False}
    return answers


@pytest.mark.slow
def test_predictor_command_and_handler(model, photos, expected, capsys):
    predictor = Predictor(model)
    for top_k in (1, 4):
        predictions = predictor.predict(photos, top_k=top_k, batch_size=7)
        assert [(list(one.set), one.abstain) for one in predictions] == expected
        assert {len(one.top) for one in predictions} == {top_k}
    assert main([str(model), *map(str, photos), "--json", "--top-k", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["set"], line["abstain"]) for line in lines] == expected
    assert list(lines[0]) == ["path", "label", "index", "probability", "top", "set", "abstain"]
    for photo, answer in zip(photos, expected, strict=True):
        asked = handler.predict_fn(handler.input_fn(photo.read_bytes(), BYTES), predictor)
        content = json.loads(handler.output_fn(asked, "application/json; top_k=1; logits=1")[0])
        assert (content["set"], content["abstain"]) == answer
        assert list(content) == ["predictions", "logits", "set", "abstain"]


def test_the_table_says_it_in_words(model, photos, expected, capsys):
    assert main([str(model), *map(str, photos)]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    for row, (labels, abstain) in zip(rows, expected, strict=True):
        assert row.endswith(f"; not sure, {len(labels)} are possible") == abstain
        assert row.endswith(f"; one of: {', '.join(labels)}") == (len(labels) == 2)


@pytest.mark.slow
def test_server_and_client(model, photos, expected):
    with serving(model) as running:
        client = Endpoint(running.address)
        for photo, answer in zip(photos, expected, strict=True):
            response = client.predict(photo, top_k=1)
            assert (response.set, response.abstain) == answer
        explained = running.post(photos[0].read_bytes(), path="/explain").json()
    assert (explained["set"], explained["abstain"]) == expected[0]


@pytest.mark.slow
def test_a_certificate_covers_them(model, tmp_path):
    same = {"server": parity.predictor, "handler": parity.predictor}
    content = certify.certify(model, others=same, output=tmp_path / "same.json")
    assert content["passed"], content["fault"]
    entry = next(entry for entry in content["answers"] if "label" in entry)
    assert entry["set"][0] == entry["label"]
    assert entry["abstain"] == (len(entry["set"]) > 2)

    def without(folder, files, tick):
        return [Answer(answer.logits, answer.reason) for answer in parity.predictor(folder, files, tick)]

    content = certify.certify(model, others={**same, "handler": without}, output=tmp_path / "other.json")
    assert not content["passed"]
    assert "handler answers no set for odd/" in content["fault"]
