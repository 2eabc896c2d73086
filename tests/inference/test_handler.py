"""The handlers that SageMaker's container calls, held against the package's own answers."""

import base64
import inspect
import json
from pathlib import Path

import pytest
from support.exports import NAMES, export_tiny

from dogbreed.data.edge_cases import drawn, edge_case_files
from dogbreed.inference import handler
from dogbreed.inference.predictor import Predictor
from dogbreed.inference.schema import RequestError

ODD = edge_case_files(drawn())
BYTES = "application/octet-stream"


class Context:
    """Keeps the status as TorchServe's does."""

    status = 200

    def set_response_status(self, code: int, phrase: str) -> None:
        self.status, self.phrase = code, phrase


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def model(folder) -> Predictor:
    return handler.model_fn(str(folder))


def ask(model, data, kind=BYTES, accept="application/json", context=None):
    asked = handler.input_fn(data, kind, context)
    return handler.output_fn(handler.predict_fn(asked, model), accept, context)


@pytest.mark.parametrize("name", sorted(ODD.keys() - {"truncated.jpg"}))
def test_answers_are_the_predictors(name, folder, model):
    body, kind = ask(model, ODD[name], accept="application/json; logits=1")
    predictor = Predictor(folder)
    expected = predictor.logits(predictor.read(ODD[name])[None])
    (prediction,) = predictor.predictions(expected)
    assert kind == "application/json"
    content = json.loads(body)
    assert content["logits"] == expected[0].tolist()
    assert content["predictions"] == [
        {"label": guess.label, "index": guess.index, "probability": guess.probability} for guess in prediction.top
    ]


def test_top_k_may_come_in_either_header(model):
    for kind, accept in ((f"{BYTES}; top_k=2", "*/*"), (BYTES, "application/json; top_k=2")):
        assert len(json.loads(ask(model, drawn(), kind, accept)[0])["predictions"]) == 2


def test_csv(model):
    body, kind = ask(model, drawn(), accept="text/csv")
    assert kind == "text/csv"
    assert len(body.splitlines()) == len(NAMES)


def test_json_of_several_as_the_container_hands_it(model):
    images = [base64.b64encode(data).decode() for data in (drawn(), ODD["truncated.jpg"], ODD["grey.jpg"])]
    body, _ = ask(model, json.dumps({"images": images, "top_k": 1}), "application/json")
    one, two, three = json.loads(body)["results"]
    assert len(one["predictions"]) == len(three["predictions"]) == 1
    assert "truncated" in two["error"]


@pytest.mark.parametrize(
    ("data", "kind", "accept", "status", "words"),
    [
        (b"nonsense", BYTES, "*/*", 400, "not an image"),
        (ODD["truncated.jpg"], "image/jpeg", "*/*", 400, "truncated"),
        (b"x", "text/plain", "*/*", 415, "content type"),
        ('{"image": "http://example.org/dog.jpg"}', "application/json", "*/*", 400, "not fetched"),
        (drawn(), BYTES, "image/png", 406, "Accept"),
    ],
)
def test_what_cannot_be_answered_has_a_status_and_a_sentence(data, kind, accept, status, words, model):
    context = Context()
    body, answered = ask(model, data, kind, accept, context)
    assert (context.status, answered) == (status, "application/json")
    assert words in json.loads(body)["error"]
    with pytest.raises(RequestError, match=words) as refused:
        ask(model, data, kind, accept)
    assert refused.value.status == status


def test_the_toolkit_finds_what_it_looks_for():
    """It counts parameters to know whether a handler wants the context, and takes no `transform_fn` beside them."""
    counts = {
        name: len(inspect.signature(getattr(handler, name)).parameters)
        for name in vars(handler)
        if name.endswith("_fn")
    }
    assert counts == {"model_fn": 1, "input_fn": 3, "predict_fn": 2, "output_fn": 3}
