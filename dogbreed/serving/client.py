"""A client for other code: predictions from a server or a SageMaker endpoint, without torch.

Endpoint("http://127.0.0.1:8080").predict("photo.jpg")
Endpoint("dogbreed-vgg16", boto3.client("sagemaker-runtime")).predict(data)
"""

import http.client
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dogbreed.core.errors import DogbreedError
from dogbreed.inference.schema import JSON, TOP_K, ClassScore, Response, Similar

MAX_BYTES = 6_291_456  # of a request to InvokeEndpoint, as botocore's model of the service has it
BYTES = "application/octet-stream"


class PredictionError(DogbreedError):
    """There is no prediction.

    Attributes:
        status: HTTP status of the model's server; None where it was not reached. 4xx: the photograph is at fault.
    """

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class Endpoint:
    """A model behind HTTP.

    Args:
        name: Name of a SageMaker endpoint, or the URL of a server: `http://127.0.0.1:8080`.
        runtime: boto3's client of `sagemaker-runtime`, for the name of an endpoint.
        timeout: Seconds to wait for a server at a URL; boto3's client has its own.
    """

    def __init__(self, name: str, runtime: Any = None, *, timeout: float = 60) -> None:
        self.name = name
        self.runtime = runtime
        self.timeout = timeout
        # A client that sends photographs by other means than InvokeEndpoint says how large they may be.
        self.max_bytes: int = getattr(runtime, "max_bytes", MAX_BYTES)
        if not is_address(name) and runtime is None:
            raise DogbreedError(
                f"{name} is no URL such as http://127.0.0.1:8080; for the name of an endpoint give "
                'boto3.client("sagemaker-runtime") too.'
            )

    def predict(
        self,
        photograph: bytes | str | os.PathLike[str],
        *,
        top_k: int = TOP_K,
        logits: bool = False,
        similar: int = 0,
    ) -> Response:
        """Return what the model says of a photograph.

        Args:
            photograph: The file's bytes, or its path.
            top_k: Classes in the response.
            logits: Whether to return the logits of all classes too.
            similar: Number of the most similar training images to name.

        Raises:
            PredictionError: It cannot be used, or the model cannot be reached or failed.
        """
        data = photograph if isinstance(photograph, bytes) else _read(photograph)
        if len(data) > self.max_bytes:
            raise PredictionError(
                f"The photograph has {len(data):,} bytes, and an endpoint takes {self.max_bytes:,}.", 413
            )
        accept = f"{JSON}; top_k={top_k}" + ("; logits=1" if logits else "")
        accept += f"; similar={similar}" if similar else ""
        body = self._over_http(data, accept) if is_address(self.name) else self._through_aws(data, accept)
        try:
            content = json.loads(body)
            scores = [ClassScore(**score) for score in content["predictions"]]
            sure = {name: content.get(name) for name in ("set", "abstain", "in_domain")}
            like = [Similar(**one) for one in content["similar"]] if similar else None
            return Response(scores, content.get("logits", []), **sure, similar=like)
        except (ValueError, LookupError, TypeError) as error:
            raise PredictionError(f"{self.name} gave no prediction: {_short(body)}", 200) from error

    def _over_http(self, data: bytes, accept: str) -> bytes:
        parts = urlsplit(self.name)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        try:
            connection = kind(parts.netloc, timeout=self.timeout)
            try:
                path = f"{parts.path.rstrip('/')}/invocations"
                connection.request("POST", path, data, {"Content-Type": BYTES, "Accept": accept})
                response = connection.getresponse()
                body = response.read()
            finally:
                connection.close()
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise PredictionError(f"{self.name} cannot be reached ({error or type(error).__name__}).") from error
        if response.status != 200:
            raise PredictionError(_reason(body, response.status), response.status)
        return body

    def _through_aws(self, data: bytes, accept: str) -> bytes:
        try:
            response = self.runtime.invoke_endpoint(EndpointName=self.name, Body=data, ContentType=BYTES, Accept=accept)
            return bytes(response["Body"].read())
        except self.runtime.exceptions.ModelError as error:
            status = int(error.response.get("OriginalStatusCode", 500))
            message = error.response.get("OriginalMessage") or error.response["Error"]["Message"]
            raise PredictionError(_reason(message.encode(), status), status) from error


def is_address(name: str) -> bool:
    """Return whether this is the URL of a server rather than the name of an endpoint."""
    return name.startswith(("http://", "https://"))


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise PredictionError(f"{os.fspath(path)} cannot be read: {(error.strerror or 'unknown').lower()}.") from error


def _reason(body: bytes, status: int) -> str:
    """Return the server's sentence, where it has sent one."""
    try:
        return str(json.loads(body)["error"])
    except (ValueError, LookupError, TypeError):
        return f"The server answered {status}: {_short(body)}"


def _short(body: bytes) -> str:
    text = " ".join(body.decode("utf-8", "replace").split())
    return text if len(text) <= 200 else f"{text[:197]}..."
