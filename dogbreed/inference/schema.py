"""What an endpoint takes and gives, the same on this machine's server and in SageMaker's container.

A request is the bytes of one image, or JSON with base64 of one or several:

    Content-Type: image/jpeg                 the file's bytes
    Content-Type: application/json           {"image": "<base64>", "top_k": 3} or {"images": ["<base64>", ...]}

An answer is JSON or CSV, best breed first, with calibrated probabilities:

    {"predictions": [{"label": "Beagle", "index": 12, "probability": 0.93}, ...]}
    {"results": [{"predictions": [...]}, {"error": "..."}, ...]}        for several images
    Beagle,12,0.93                                                      one line a breed in text/csv

Options are `top_k` (5) and `logits` (0; 1 adds every class's number before temperature and softmax). They may stand in
the JSON, or as parameters of Content-Type or Accept (`Accept: application/json; top_k=3; logits=1`), which reach a
model behind InvokeEndpoint as well. No address in a request is ever fetched.
"""

import binascii
import csv
import io
import json
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

from dogbreed.core.errors import DogbreedError

JSON = "application/json"
CSV = "text/csv"
IMAGE_TYPES = (
    "image/jpeg",
    "image/jpg",
    "image/png",
    "image/webp",
    "image/gif",
    "image/bmp",
    "image/tiff",
    "image/avif",
    "application/x-image",
    "application/octet-stream",
)
TOP_K = 5
MAX_IMAGES = 64  # in one JSON request
KEYS = ("image", "images", "top_k", "logits")


class RequestError(DogbreedError):
    """A request that gets no answer.

    Attributes:
        status: The HTTP status that says so.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class ClassScore:
    """One breed of an answer.

    Attributes:
        label: The breed.
        index: Its place among the class names.
        probability: Calibrated, from 0 to 1.
    """

    label: str
    index: int
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Options:
    """What a request may choose.

    Attributes:
        top_k: Breeds in the answer; all of them if there are fewer.
        logits: Whether to add the logits of all classes.
    """

    top_k: int = TOP_K
    logits: bool = False

    def having(self, given: Mapping[str, Any]) -> "Options":
        """These with what is given in place; other names are somebody else's.

        Raises:
            RequestError: A value out of its range.
        """
        options = self
        if "top_k" in given:
            top_k = _whole(given["top_k"])
            if top_k is None or top_k < 1:
                raise RequestError(400, f"top_k is {_shown(given['top_k'])}; it is a whole number from 1.")
            options = replace(options, top_k=top_k)
        if "logits" in given:
            chosen = {"0": False, "false": False, "1": True, "true": True}.get(str(given["logits"]).lower())
            if chosen is None:
                raise RequestError(400, f"logits is {_shown(given['logits'])}; it is 0 or 1.")
            options = replace(options, logits=chosen)
        return options


@dataclass(frozen=True)
class Request:
    """A request that was understood.

    Attributes:
        images: Bytes of image files, at least one.
        several: Whether the answer is a list, though it may be of one.
        options: What was chosen.
    """

    images: Sequence[bytes]
    several: bool = False
    options: Options = Options()


@dataclass(frozen=True)
class Response:
    """What is known of one image.

    Attributes:
        predictions: Breeds, best first.
        logits: Of all classes in their order, before temperature and softmax.
    """

    predictions: Sequence[ClassScore]
    logits: Sequence[float] = ()

    @property
    def label(self) -> str:
        """The most probable breed."""
        return self.predictions[0].label


def read(body: bytes | str, content_type: str | None = None, options: Options | None = None) -> Request:
    """Understands a request.

    Args:
        body: As it came; text only where the server has decoded JSON already.
        content_type: The header; without it the body is taken for the bytes of an image.
        options: Chosen by other ways; the content type's parameters and the JSON's keys go before them.

    Raises:
        RequestError: 415 for another type, 400 for what cannot be understood.
    """
    kind, parameters = parse(content_type or "application/octet-stream")
    options = (options or Options()).having(parameters)
    if kind == JSON:
        return _read_json(body, options)
    if kind not in IMAGE_TYPES:
        raise RequestError(
            415,
            f"The content type {_shown(kind)} is not supported; send the bytes of an image as image/jpeg, image/png, "
            "image/webp or application/octet-stream, or JSON with base64.",
        )
    return Request([body.encode("latin-1", "replace") if isinstance(body, str) else body], options=options)


def accepted(accept: str | None, options: Options | None = None) -> tuple[str, Options]:
    """The type of the answer that an Accept header asks for, and the options in its parameters.

    Raises:
        RequestError: 406, neither JSON nor CSV will do.
    """
    options = options or Options()
    ranges = [parse(part) for part in (accept or "*/*").split(",")]
    ranges.sort(key=lambda entry: -_quality(entry[1]))
    for kind, parameters in ranges:
        if kind in (JSON, "application/*", "*/*", ""):
            return JSON, options.having(parameters)
        if kind in (CSV, "text/*"):
            return CSV, options.having(parameters)
    raise RequestError(406, f"The answer is {JSON} or {CSV}, and Accept names neither.")


def write(asked: Request, answers: Sequence[Response | DogbreedError], kind: str = JSON) -> str:
    """The body of an answer.

    Args:
        asked: The request.
        answers: For each of its images, or why it cannot be used.
        kind: `application/json` or `text/csv`, from `accepted`.

    Raises:
        RequestError: 400, the only image cannot be used; 406, several images in CSV.
    """
    options = asked.options
    if asked.several:
        if kind != JSON:
            raise RequestError(406, f"Several images are answered in {JSON}; send one image for {CSV}.")
        results = [{"error": str(a)} if isinstance(a, DogbreedError) else _told(a, options) for a in answers]
        return json.dumps({"results": results})
    (answer,) = answers
    if isinstance(answer, DogbreedError):
        raise RequestError(400, str(answer))
    if kind == JSON:
        return json.dumps(_told(answer, options))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(astuple(guess) for guess in answer.predictions[: options.top_k])
    return text.getvalue()


def parse(header: str) -> tuple[str, dict[str, str]]:
    """A media type and its parameters: `application/json; top_k=3` is `application/json` and `{"top_k": "3"}`."""
    kind, *rest = header.split(";")
    pairs = (part.partition("=") for part in rest)
    return kind.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _read_json(body: bytes | str, options: Options) -> Request:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        cause = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise RequestError(400, f"The body is not JSON: {cause}.") from error
    if not isinstance(content, dict) or ("image" in content) == ("images" in content):
        raise RequestError(400, 'The JSON is an object with "image" (base64 of a file) or "images" (a list of them).')
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise RequestError(400, f"The JSON has the unknown key {_shown(unknown[0])}; known are {', '.join(KEYS)}.")
    options = options.having(content)
    if "image" in content:
        return Request([_decoded(content["image"])], options=options)
    images = content["images"]
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_IMAGES:
        raise RequestError(400, f'"images" is a list of 1 to {MAX_IMAGES} images in base64.')
    return Request([_decoded(image) for image in images], several=True, options=options)


def _decoded(value: object) -> bytes:
    if isinstance(value, str):
        try:
            return b64decode("".join(value.split()), validate=True)  # many tools break its lines
        except (binascii.Error, ValueError):
            pass
    raise RequestError(400, "An image in JSON is the base64 of the file's bytes; addresses are not fetched.")


def _told(answer: Response, options: Options) -> dict[str, Any]:
    told: dict[str, Any] = {"predictions": [guess.to_dict() for guess in answer.predictions[: options.top_k]]}
    if options.logits:
        told["logits"] = list(answer.logits)
    return told


def _whole(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _quality(parameters: Mapping[str, str]) -> float:
    try:
        return float(parameters.get("q", 1))
    except ValueError:
        return 0.0


def _shown(value: object) -> str:
    """The value within a sentence, short, with nothing in it that moves a cursor."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
