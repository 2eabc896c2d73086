"""What SageMaker's inference container calls: `code/inference.py` in the model's archive.

The container gives bytes and headers, `schema` reads them, `Predictor` answers: the same two as in
`python -m dogbreed.serve`. Needs torch, torchvision and what `code/requirements.txt` names, no more.

A request that cannot be answered gets its 4xx status and one sentence in JSON through the container's context. An
exception would become a 500 with a traceback in it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any, NamedTuple

from dogbreed.core.errors import DogbreedError
from dogbreed.inference import schema
from dogbreed.inference.predictor import Predictor
from dogbreed.inference.schema import MOST_SIMILAR, Request, RequestError, Response


class Outcome(NamedTuple):
    """A request with the responses for its images."""

    request: Request
    responses: Sequence[Response | DogbreedError]


def model_fn(model_dir: str) -> Predictor:
    """Return the predictor of the unpacked archive, on a GPU where there is one."""
    return Predictor(model_dir)


def input_fn(
    input_data: bytes | bytearray | str, content_type: str | None, context: Any = None
) -> Request | RequestError:
    """Return the images of a request.

    Raises:
        RequestError: The request is not understood, and there is no context to say so.
    """
    try:
        return schema.read(input_data if isinstance(input_data, str) else bytes(input_data), content_type)
    except RequestError as error:
        return _set_status(error, context)


def predict_fn(data: Request | RequestError, model: Predictor) -> Outcome | RequestError:
    """Return the responses for all images of a request."""
    if isinstance(data, RequestError):
        return data
    # With all classes and similar images: how many are written may yet be said in the Accept header, which comes last.
    everything = replace(data.options, top_k=len(model.class_names), similar=MOST_SIMILAR)
    return Outcome(data, model.respond(replace(data, options=everything)))


def output_fn(prediction: Outcome | RequestError, accept: str | None, context: Any = None) -> tuple[str, str]:
    """Return the body of the response and its content type.

    Raises:
        RequestError: Accept names no type that there is, and there is no context to say so.
    """
    if isinstance(prediction, RequestError):
        return _sentence(prediction)
    try:
        kind, options = schema.negotiate(accept, prediction.request.options)
        return schema.write(replace(prediction.request, options=options), prediction.responses, kind), kind
    except RequestError as error:
        return _sentence(_set_status(error, context))


def _set_status(error: RequestError, context: Any) -> RequestError:
    if context is None:
        raise error
    context.set_response_status(code=error.status, phrase=HTTPStatus(error.status).phrase)
    return error


def _sentence(error: RequestError) -> tuple[str, str]:
    return json.dumps({"error": str(error)}), schema.JSON
