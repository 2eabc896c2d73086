"""`set`, `abstain`, `in_domain`: the same from Predictor, command, handler, server and client; absent without."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.exports import NAMES, export_tiny
from support.places import SHARED_DATA
from support.serving import serving

from dogbreed.data.edge_cases import drawn
from dogbreed.inference import handler
from dogbreed.inference.predictor import Predictor
from dogbreed.models.manifest import NEIGHBOURS
from dogbreed.models.neighbours import DOGS, DogClasses, Neighbours, build
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
    assert {(answer.set, answer.abstain, answer.in_domain) for answer in answers} == {(None, None, None)}
    thirds = sorted(answer.top[2].probability for answer in answers)
    least = (thirds[len(thirds) // 2] + thirds[len(thirds) // 2 + 1]) / 2
    return export_tiny(folder / "model", least=least, neighbours=index(folder / "plain", photos))


def head_inputs(model: Path, photos: list[Path]) -> torch.Tensor:
    """What SqueezeNet's last layer takes, averaged over the pixels as its outputs are."""
    predictor = Predictor(model)
    with torch.no_grad():
        maps = predictor.model.network.features(torch.stack([predictor.read(photo) for photo in photos]))
    return maps.mean((2, 3))


def index(model: Path, photos: list[Path]) -> Neighbours:
    """Of every other photo, with a threshold between two of the photos."""
    features = head_inputs(model, photos)
    built = build([features[::2]])
    ordered = sorted(built.similarity(features))
    return replace(built, threshold=(ordered[9] + ordered[10]) / 2, images=len(photos))


def similarities(model: Path, photos: list[Path]) -> list[float]:
    """By hand from the file and the head's input."""
    stored = load_file(model / NEIGHBOURS)
    points = stored["points"].double().numpy() * stored["steps"].double().numpy()
    rows = head_inputs(model, photos).double().numpy()
    cosines = rows / np.linalg.norm(rows, axis=1, keepdims=True) @ stored["basis"].double().numpy() @ points.T
    return np.sort(cosines, axis=1)[:, -5:].mean(1).tolist()


@pytest.fixture(scope="module")
def expected(model: Path, photos: list[Path]) -> list[tuple[list[str], bool, bool]]:
    """By hand from the logits and the index."""
    predictor = Predictor(model)
    least, answers = predictor.model.conformal["least_probability"]["90"], []
    threshold = json.loads((model / "model.json").read_text())["neighbours"]["threshold"]
    for photo, similarity in zip(photos, similarities(model, photos), strict=True):
        powers = np.exp(predictor.logits(predictor.read(photo)[None])[0].double().numpy() / 0.7)
        shares = powers / powers.sum()
        order = [index for index in np.argsort(-shares) if shares[index] >= least] or [shares.argmax()]
        answers.append(([NAMES[index] for index in order], len(order) > 2, similarity >= threshold))
    assert {abstain for _, abstain, _ in answers} == {in_domain for _, _, in_domain in answers} == {True, False}
    return answers


@pytest.mark.slow
def test_predictor_command_and_handler(model, photos, expected, capsys):
    predictor = Predictor(model)
    for top_k in (1, 4):
        predictions = predictor.predict(photos, top_k=top_k, batch_size=7)
        assert [(list(one.set), one.abstain, one.in_domain) for one in predictions] == expected
        assert {len(one.top) for one in predictions} == {top_k}
    assert main([str(model), *map(str, photos), "--json", "--top-k", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["set"], line["abstain"], line["in_domain"]) for line in lines] == expected
    assert list(lines[0]) == ["path", "label", "index", "probability", "top", "set", "abstain", "in_domain"]
    for photo, answer in zip(photos, expected, strict=True):
        asked = handler.predict_fn(handler.input_fn(photo.read_bytes(), BYTES), predictor)
        content = json.loads(handler.output_fn(asked, "application/json; top_k=1; logits=1")[0])
        assert (content["set"], content["abstain"], content["in_domain"]) == answer
        assert list(content) == ["predictions", "logits", "set", "abstain", "in_domain"]


@pytest.mark.slow
def test_of_dogs_by_the_published_head(model, photos, tmp_path):
    features = head_inputs(model, photos).double().numpy()
    centred = features - features.mean(0)
    weight = torch.randn(1000, features.shape[1], generator=torch.Generator().manual_seed(0)) / np.abs(centred).max()
    bias = -(weight.double().numpy() @ features.mean(0))
    logits = features @ weight.half().double().numpy().T + torch.from_numpy(bias).half().double().numpy()
    powers = np.exp(logits - logits.max(1, keepdims=True))
    assert len(DOGS) == 121
    dogs = powers[:, list(DOGS)].sum(1) / powers.sum(1)
    ordered = sorted(dogs)
    head = DogClasses(weight.half(), torch.from_numpy(bias).half(), threshold=(ordered[9] + ordered[10]) / 2, images=99)
    folder = export_tiny(tmp_path / "model", least=0.3, neighbours=head)
    assert json.loads((folder / "model.json").read_text())["neighbours"]["kind"] == "dogs"
    predictor = Predictor(folder)
    answers = predictor.predict(photos)
    assert [answer.in_domain for answer in answers] == [bool(share >= head.threshold) for share in dogs]
    for photo, answer in zip(photos[:3], answers, strict=False):
        content = handler.output_fn(
            handler.predict_fn(handler.input_fn(photo.read_bytes(), BYTES), predictor), "application/json"
        )
        assert json.loads(content[0])["in_domain"] == answer.in_domain
    with serving(folder) as running:
        served = [Endpoint(running.address).predict(photo).in_domain for photo in photos[:3]]
    assert served == [answer.in_domain for answer in answers[:3]]


def test_a_table_in_a_file(model, photos, expected, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert main([str(model), *map(str, photos), str(tmp_path / "broken.jpg"), "--csv", str(tmp_path / "a.csv")]) == 1
    header, *rows = list(csv.reader((tmp_path / "a.csv").open(encoding="utf-8")))
    assert header == ["path", "label", "probability", "top", "error", "in_domain"]
    assert [row[5] for row in rows] == [*({True: "true", False: "false"}[in_domain] for *_, in_domain in expected), ""]


def test_the_table_says_it_in_words(model, photos, expected, capsys):
    assert main([str(model), *map(str, photos)]) == 0
    _, *rows = capsys.readouterr().out.splitlines()
    for row, (labels, abstain, in_domain) in zip(rows, expected, strict=True):
        assert row.endswith("; unlike the training images") == (not in_domain)
        assert row.endswith(f"; not sure, {len(labels)} are possible") == (abstain and in_domain)
        assert row.endswith(f"; one of: {', '.join(labels)}") == (len(labels) == 2 and in_domain)


@pytest.mark.slow
def test_server_and_client(model, photos, expected):
    with serving(model) as running:
        client = Endpoint(running.address)
        for photo, answer in zip(photos, expected, strict=True):
            response = client.predict(photo, top_k=1)
            assert (response.set, response.abstain, response.in_domain) == answer
        explained = running.post(photos[0].read_bytes(), path="/explain").json()
    assert (explained["set"], explained["abstain"], explained["in_domain"]) == expected[0]


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beyond", "fault"), [(5e-5, None), (5e-4, "handler answers in_domain=True for odd/drawn.jpg")]
)
def test_a_certificate_covers_what_is_unlike(photos, tmp_path, beyond, fault):
    (tmp_path / "drawn.jpg").write_bytes(drawn())
    near = index(export_tiny(tmp_path / "plain"), photos)
    (similarity,) = near.similarity(head_inputs(tmp_path / "plain", [tmp_path / "drawn.jpg"]))
    model = export_tiny(tmp_path / "model", neighbours=replace(near, threshold=similarity + beyond))

    def other(folder, files, tick):
        answers = dict(zip(files, parity.predictor(folder, files, tick), strict=True))
        assert answers["odd/drawn.jpg"].in_domain is False
        return [*({**answers, "odd/drawn.jpg": replace(answers["odd/drawn.jpg"], in_domain=True)}).values()]

    content = certify.certify(model, others={"server": parity.predictor, "handler": other}, output=tmp_path / "c.json")
    assert content["passed"] == (fault is None), content["fault"]
    assert fault is None or content["fault"].startswith(fault)
    assert content["model"].keys() == {"model.json", "model.safetensors", NEIGHBOURS}
    assert {entry["in_domain"] for entry in content["answers"] if "label" in entry} <= {True, False}
