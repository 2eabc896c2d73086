"""AWS on loopback for the tests of launch/: moto behind a server that notes requests, and misbehaves on demand."""

import io
import json
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qs

import boto3
from moto.moto_api._internal import moto_api_backend
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import run_wsgi_app
from werkzeug.wrappers import Request, Response

ACCOUNT = "123456789012"  # of moto
# Settings that make a job small to describe and its data quick to send.
SMALL = ("model.weights=none", "model.backbone=squeezenet1_1")
ROLE = f"arn:aws:iam::{ACCOUNT}:role/DogbreedExecution"

# A response, or what makes one of the request's body and of what moto answers; None leaves it to moto.
Answer = Response | Callable[[dict[str, Any], Callable[[], dict[str, Any]]], Response | None]


class Cloud:
    """Amazon, as far as the tests need it.

    Attributes:
        requests: What was sent: operation, body and headers.
        address: Where it listens.
        breaks_after: Files that S3 takes before the line is cut; None for all.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.breaks_after: int | None = None
        self._answers: dict[str, list[Answer | None]] = {}
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=_Quiet)
        self.address = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self) -> None:
        """An empty account, in which all works."""
        self.requests.clear()
        self.breaks_after = None
        self._answers.clear()
        self.answer("GetProducts", refused("AccessDeniedException", "no"))  # moto has no price list
        moto_api_backend.reset()

    def answer(self, operation: str, *answers: Answer | None) -> None:
        """The next calls of an operation get these answers, the last of them from then on."""
        self._answers[operation] = list(answers)

    def sent(self, operation: str) -> list[dict[str, Any]]:
        """The bodies of all calls of an operation."""
        return [body for name, body, _ in self.requests if name == operation]

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        request = Request(environ)
        operation, body = _read(request)
        self.requests.append((operation, body, dict(request.headers)))
        if self.breaks_after is not None and operation.startswith("PUT"):
            self.breaks_after -= 1
            if self.breaks_after < 0:
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionAbortedError
        queue = self._answers.get(operation)
        answer = None if not queue else queue.pop(0) if len(queue) > 1 else queue[0]
        if callable(answer) and not isinstance(answer, Response):

            def ask() -> dict[str, Any]:
                pieces, _, _ = run_wsgi_app(self._moto, environ, buffered=True)
                return json.loads(b"".join(pieces))

            answer = answer(body, ask)
        return self._moto(environ, start) if answer is None else answer(environ, start)


class _Quiet(WSGIRequestHandler):
    def log(self, type: str, message: str, *args: Any) -> None:
        pass


def _read(request: Request) -> tuple[str, dict[str, Any]]:
    """The operation's name, and its parameters; S3's are named by method and path."""
    if "/s3/" in request.headers.get("Authorization", ""):
        return f"{request.method} {request.path}", {}
    text = request.get_data()
    request.environ["wsgi.input"] = io.BytesIO(text)  # moto reads it again
    target = request.headers.get("X-Amz-Target")
    if target:
        return target.rpartition(".")[2], json.loads(text or b"{}")
    form = parse_qs(text.decode("utf-8", "replace"))
    return form.get("Action", [f"{request.method} {request.path}"])[0], {}


def said(**body: Any) -> Response:
    """A good answer of a service that speaks JSON."""
    return Response(json.dumps(body), content_type="application/x-amz-json-1.1")


def refused(code: str, message: str, status: int = 400) -> Response:
    """An error of a service that speaks JSON."""
    return Response(json.dumps({"__type": code, "message": message}), status, content_type="application/x-amz-json-1.1")


def refused_xml(code: str, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """An error of STS."""
    text = f"<ErrorResponse><Error><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
    return Response(text, status, headers=headers, content_type="text/xml")


def refused_s3(code: str, message: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """An error of S3."""
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return Response(text, status, headers=headers, content_type="application/xml")


def put_photographs(bucket: str, folder: str) -> None:
    """A bucket in which each split has a file, as far as a job's sender looks."""
    client = boto3.client("s3")
    client.create_bucket(Bucket=bucket)
    for split in ("train", "valid", "test"):
        client.put_object(Bucket=bucket, Key=f"{folder}/{split}/001.Dog/a.jpg", Body=b"a photograph")
