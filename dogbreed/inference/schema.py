"""What an endpoint takes and gives, the same on this machine's server and in SageMaker's container.

A request is the bytes of one image, JSON with base64 of one or several, or a form:

    Content-Type: image/jpeg                 the file's bytes; any image/*, whose format the bytes decide
    Content-Type: application/json           {"image": "<base64>", "top_k": 3} or {"images": ["<base64>", ...]}
    Content-Type: multipart/form-data        a file per image (curl -F image=@dog.jpg), options as fields

The base64 may stand in a data URL. A response is JSON or CSV, best class first, with calibrated probabilities:

    {"predictions": [{"label": "Beagle", "index": 12, "probability": 0.93}, ...], "set": ["Beagle"], "abstain": false,
     "in_domain": true, "similar": [{"path": "train/012.Beagle/1.jpg", "label": "Beagle", "cosine": 0.87}, ...]}
    {"results": [{"predictions": [...]}, {"error": "..."}, ...]}        for several images
    Beagle,12,0.93                                                      one line per class in text/csv

Options are `top_k` (5), `logits` (0; 1 adds every class's number before temperature and softmax) and `similar` (0; how
many of the most similar training images to name, where the model knows their names). They may stand in the JSON or the
form, or as parameters of Content-Type or Accept (`Accept: application/json; top_k=3; logits=1`), which reach a model
behind InvokeEndpoint as well. No URL in a request is ever fetched.
"""

import binascii
import csv
import io
import json
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Protocol
from urllib.parse import unquote

from dogbreed.core.errors import DogbreedError

JSON = "application/json"
CSV = "text/csv"
FORM = "multipart/form-data"
# Beside image/*: unknown bytes, as S3 calls them too, and SageMaker's name for an image.
BYTES_TYPES = ("application/octet-stream", "binary/octet-stream", "application/x-image")
TOP_K = 5
MAX_IMAGES = 64  # in one request
MAX_PARTS = 80  # of a form
MAX_HEAD = 8192  # bytes of a part's own headers
MOST_SIMILAR = 50  # training images in one answer
OPTIONS = ("top_k", "logits", "similar")
KEYS = ("image", "images", *OPTIONS)
_PARAMETER = re.compile(r'(?:"[^"]*"|[^;])+')  # a semicolon within quotes ends no parameter


class RequestError(DogbreedError):
    """A request that cannot be answered.

    Attributes:
        status: The HTTP status of the response.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class ClassScore:
    """The probability of one class.

    Attributes:
        label: The class, a breed where the model knows dogs.
        index: Its index among the class names.
        probability: Calibrated, from 0 to 1.
    """

    label: str
    index: int
    probability: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Similar:
    """A training image that is like the photograph.

    Attributes:
        path: From the folder of the data that the model was trained on.
        label: Its class.
        cosine: Of the features of both, from -1 to 1.
    """

    path: str
    label: str
    cosine: float


@dataclass(frozen=True)
class Options:
    """What a request may choose.

    Attributes:
        top_k: Classes in the response; all of them if there are fewer.
        logits: Whether to add the logits of all classes.
        similar: Number of the most similar training images to name.
    """

    top_k: int = TOP_K
    logits: bool = False
    similar: int = 0

    def merge(self, values: Mapping[str, Any]) -> "Options":
        """Return these options with those among `values` in their place; other names are ignored.

        Raises:
            RequestError: A value out of its range.
        """
        options = self
        if "top_k" in values:
            top_k = _whole_number(values["top_k"])
            if top_k is None or top_k < 1:
                raise RequestError(400, f"top_k is {_quote(values['top_k'])}; it must be a whole number from 1.")
            options = replace(options, top_k=top_k)
        if "logits" in values:
            logits = {"0": False, "false": False, "1": True, "true": True}.get(str(values["logits"]).lower())
            if logits is None:
                raise RequestError(400, f"logits is {_quote(values['logits'])}; it must be 0 or 1.")
            options = replace(options, logits=logits)
        if "similar" in values:
            similar = _whole_number(values["similar"])
            if similar is None or not 0 <= similar <= MOST_SIMILAR:
                said = _quote(values["similar"])
                raise RequestError(400, f"similar is {said}; it must be a whole number from 0 to {MOST_SIMILAR}.")
            options = replace(options, similar=similar)
        return options


@dataclass(frozen=True)
class Request:
    """A request that was understood.

    Attributes:
        images: Bytes of image files, at least one.
        several: Whether the response is a list, though it may be of one.
        options: What was chosen.
    """

    images: Sequence[bytes]
    several: bool = False
    options: Options = Options()


@dataclass(frozen=True)
class Response:
    """The answer for one image.

    Attributes:
        predictions: Classes, best first.
        logits: Of all classes in their order, before temperature and softmax.
        set: The classes of the 90 % set, best first; None where the model has no thresholds.
        abstain: Whether the set says too little; None without a set.
        in_domain: Whether the image is like the training images; None where the model has no index of them.
        similar: The most similar training images, the nearest first; None where the model does not know their names, or
            nobody has asked.
    """

    predictions: Sequence[ClassScore]
    logits: Sequence[float] = ()
    set: Sequence[str] | None = None
    abstain: bool | None = None
    in_domain: bool | None = None
    similar: Sequence[Similar] | None = None

    @property
    def label(self) -> str:
        """The most probable class."""
        return self.predictions[0].label


def read(body: bytes | str, content_type: str | None = None, options: Options | None = None) -> Request:
    """Return the request that a body holds.

    Args:
        body: As it came; text only where the server has decoded JSON already.
        content_type: The header; without it the body is taken for the bytes of an image.
        options: Those given outside the body; the content type's parameters and the body's own take precedence.

    Raises:
        RequestError: 415 for another type, 400 for what cannot be understood.
    """
    kind, parameters = parse_media_type(content_type or BYTES_TYPES[0])
    options = (options or Options()).merge(parameters)
    if kind == JSON:
        return _read_json(body, options)
    content = body.encode("latin-1", "replace") if isinstance(body, str) else body
    if kind == FORM:
        return _read_form(content, parameters.get("boundary", ""), options)
    if kind not in BYTES_TYPES and (not kind.startswith("image/") or kind == "image/svg+xml"):
        raise RequestError(
            415,
            f"The content type {_quote(kind)} is not supported; send the bytes of an image "
            "(curl --data-binary @dog.jpg -H 'Content-Type: image/jpeg'), JSON with base64, or multipart/form-data.",
        )
    return Request([content], options=options)


def negotiate(accept: str | None, options: Options | None = None) -> tuple[str, Options]:
    """Return the type of the response that an Accept header asks for, and the options with its parameters.

    Raises:
        RequestError: 406, neither JSON nor CSV will do.
    """
    options = options or Options()
    ranges = [parse_media_type(part) for part in (accept or "*/*").split(",")]
    ranges = [entry for entry in ranges if _quality(entry[1]) > 0]  # 0 is what the client does not take
    ranges.sort(key=lambda entry: -_quality(entry[1]))
    for kind, parameters in ranges:
        if kind in (JSON, "application/*", "*/*", ""):
            return JSON, options.merge(parameters)
        if kind in (CSV, "text/*"):
            return CSV, options.merge(parameters)
    raise RequestError(406, f"Responses are {JSON} or {CSV}, and Accept names neither.")


def write(request: Request, responses: Sequence[Response | DogbreedError], kind: str = JSON) -> str:
    """Return the body of a response.

    Args:
        request: What is answered.
        responses: For each of its images, or why it cannot be used.
        kind: `application/json` or `text/csv`, from `negotiate`.

    Raises:
        RequestError: 400, the only image cannot be used; 406, several images in CSV.
    """
    options = request.options
    if request.several:
        if kind != JSON:
            raise RequestError(406, f"Several images are answered in {JSON}; send one image for {CSV}.")
        return json.dumps({"results": [_result(response, options) for response in responses]})
    (response,) = responses
    if isinstance(response, DogbreedError):
        raise RequestError(400, str(response))
    if kind == JSON:
        return json.dumps(_result(response, options))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(astuple(score) for score in response.predictions[: options.top_k])
    return text.getvalue()


class Certainty(Protocol):
    """An answer that may say how sure it is."""

    @property
    def set(self) -> Sequence[str] | None: ...
    @property
    def abstain(self) -> bool | None: ...
    @property
    def in_domain(self) -> bool | None: ...


def certainty_fields(answer: Certainty) -> dict[str, Any]:
    """Return what stands behind the other fields of an answer, as far as the model has thresholds."""
    sets = {} if answer.set is None else {"set": list(answer.set), "abstain": answer.abstain}
    return sets if answer.in_domain is None else {**sets, "in_domain": answer.in_domain}


class NamesSimilar(Protocol):
    """An answer that may name similar training images."""

    @property
    def similar(self) -> Sequence[Similar] | None: ...


def similar_field(answer: NamesSimilar, most: int) -> dict[str, Any]:
    """Return the similar images of an answer, at most so many; nothing for 0.

    Raises:
        RequestError: 400, the model does not know what its training images are called.
    """
    if not most:
        return {}
    if answer.similar is None:
        raise no_names()
    return {"similar": [asdict(one) for one in answer.similar[:most]]}


def no_names() -> RequestError:
    """Return the error of a model that cannot name similar images."""
    return RequestError(
        400,
        "The model does not know what its training images are called; one trained with export.similar=true and at "
        "least 99 validation images does.",
    )


def parse_media_type(header: str) -> tuple[str, dict[str, str]]:
    """Return a media type and its parameters.

    `application/json; top_k=3` is `application/json` and `{"top_k": "3"}`.
    """
    kind, _, rest = header.partition(";")
    pairs = (part.partition("=") for part in _PARAMETER.findall(rest))
    return kind.strip().lower(), {name.strip().lower(): value.strip().strip('"') for name, _, value in pairs}


def _read_json(body: bytes | str, options: Options) -> Request:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise RequestError(400, f"The body is not JSON: {_why_not_json(error)}.") from error
    if not isinstance(content, dict) or ("image" in content) == ("images" in content):
        raise RequestError(400, 'The JSON is an object with "image" (base64 of a file) or "images" (a list of them).')
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise RequestError(400, f"The JSON has the unknown key {_quote(unknown[0])}; known are {', '.join(KEYS)}.")
    options = options.merge(content)
    if "image" in content:
        return Request([_decode(content["image"])], options=options)
    images = content["images"]
    if not isinstance(images, list) or not 1 <= len(images) <= MAX_IMAGES:
        raise RequestError(400, f'"images" is a list of 1 to {MAX_IMAGES} images in base64.')
    return Request([_decode(image) for image in images], several=True, options=options)


def _why_not_json(error: Exception) -> str:
    match error:
        case json.JSONDecodeError():
            return str(error)
        case UnicodeDecodeError():
            return f"byte {error.start} is not {error.encoding.upper()}"
        case RecursionError():
            return "nested too deeply"
    return "a number with too many digits"


def _decode(value: object) -> bytes:
    """Return the bytes of base64, plain or in a data URL, in either alphabet and with line breaks."""
    if isinstance(value, str):
        head, comma, text = value.partition(",") if value[:5].lower() == "data:" else (";base64", ",", value)
        if comma and head.rstrip().lower().endswith(";base64"):
            text = unquote(text)  # in a URL + / = may be written as %2B %2F %3D
            try:
                return b64decode("".join(text.split()).translate(str.maketrans("-_", "+/")), validate=True)
            except (binascii.Error, ValueError):
                pass
    raise RequestError(400, "An image in JSON is the base64 of the file's bytes; addresses are not fetched.")


def _read_form(body: bytes, boundary: str, options: Options) -> Request:
    """Return the request of a form: its files and whatever is called `image`, options, and fields that say nothing.

    A part with an empty file name and no content is a browser's for an input where nobody chose a file.
    """
    images, fields = [], {}
    for name, file, content in _parts(body, boundary):
        if name in OPTIONS:
            fields[name] = content[:100].decode("utf-8", "replace").strip()
        elif content if file == "" else file is not None or name in KEYS or not _is_text(content):
            images.append(content)
    options = options.merge(fields)
    if not 1 <= len(images) <= MAX_IMAGES:
        raise RequestError(400, f"The form has {len(images)} images; send 1 to {MAX_IMAGES} (curl -F image=@dog.jpg).")
    return Request(images, several=len(images) > 1, options=options)


def _parts(body: bytes, boundary: str) -> Iterator[tuple[str, str | None, bytes]]:
    """Yield the name, the file name (None where it is no file) and the content of each part of a form."""
    delimiter = b"\r\n--" + boundary.encode("latin-1", "replace")
    sections = (b"\r\n" + body).split(delimiter, MAX_PARTS + 1)
    if not boundary or len(sections) < 2 or not sections[-1].startswith(b"--"):
        raise RequestError(
            400, f"The form is incomplete (its boundary is missing at the end) or over {MAX_PARTS} parts."
        )
    for section in sections[1:-1]:
        head, _, content = section.partition(b"\r\n\r\n")
        names: dict[str, str] = {}
        for line in head[:MAX_HEAD].decode("utf-8", "replace").split("\r\n"):
            if line.lower().startswith("content-disposition:"):
                names = parse_media_type(line)[1]
        yield names.get("name", ""), names.get("filename", names.get("filename*")), content


def _is_text(content: bytes) -> bool:
    try:
        return content.decode() is not None
    except UnicodeDecodeError:
        return False


def _result(response: Response | DogbreedError, options: Options) -> dict[str, Any]:
    if isinstance(response, DogbreedError):
        return {"error": str(response)}
    predictions = [score.to_dict() for score in response.predictions[: options.top_k]]
    logits = {"logits": list(response.logits)} if options.logits else {}
    return {
        "predictions": predictions,
        **logits,
        **certainty_fields(response),
        **similar_field(response, options.similar),
    }


def _whole_number(value: object) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _quality(parameters: Mapping[str, str]) -> float:
    try:
        return float(parameters.get("q", 1))
    except ValueError:
        return 0.0


def _quote(value: object) -> str:
    """Return the value within a sentence, short and without control characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
