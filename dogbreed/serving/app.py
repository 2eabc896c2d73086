"""The web application of `dogbreed.serve`: routes, the page, errors as sentences, and the access log.

GET  /ping                             200 while requests would be answered, else 503
POST /invocations                      as SageMaker's endpoints: `dogbreed.inference.schema`
POST /endpoints/NAME/invocations       the same where boto3's sagemaker-runtime client sends it
POST /explain                          classes of one image, and where the network looked
GET  /model /metrics /                 what is served, Prometheus' metrics, the page
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from dogbreed.data.vocabulary import noun_of
from dogbreed.inference.schema import JSON, RequestError
from dogbreed.serving.batcher import Closed
from dogbreed.serving.service import Service

STATIC = Path(__file__).parent / "static"
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
DEAD = "The thread that runs the network has ended or does not answer; start the server again."
CLIENT_LEFT = 499  # nginx' number for it; nobody receives it

# The page makes no request to other servers, and no other site may embed it.
SECURITY = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

log = logging.getLogger(__name__)


def create_app(service: Service, ready: Callable[[], None] = lambda: None) -> Starlette:
    """Return the ASGI application of a service.

    Args:
        service: What answers; it is closed when the application ends.
        ready: Called when the application starts.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        ready()
        yield
        await asyncio.to_thread(service.close)  # requests that are cut off get their 503 meanwhile

    routes = _Routes(service)
    app = Starlette(
        routes=[
            Route("/ping", routes.ping),
            Route("/invocations", routes.invocations, methods=["POST"]),
            Route("/endpoints/{name}/invocations", routes.endpoint, methods=["POST"]),
            Route("/explain", routes.explain, methods=["POST"]),
            Route("/model", routes.model),
            Route("/metrics", routes.metrics),
            *(Route(path, routes.page) for path in PAGE),
        ],
        lifespan=lifespan,
        exception_handlers={RequestError: _request_error, Closed: _closed, HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    app.add_middleware(_AccessLog, service=service)
    return app


class _Routes:
    def __init__(self, service: Service) -> None:
        self.service = service

    async def ping(self, request: Request) -> Response:
        return JSONResponse({"status": "healthy"}) if self.service.batcher.alive else error_response(503, DEAD)

    async def invocations(self, request: Request) -> Response:
        body, kind = await self.service.predict(request)
        return Response(body, media_type=kind)

    async def endpoint(self, request: Request) -> Response:
        try:
            return await self.invocations(request)
        except RequestError as error:
            if error.status >= 500:
                raise  # the client waits and tries again
            return _model_error(error)

    async def explain(self, request: Request) -> Response:
        answer = json.dumps(await self.service.explain(request), separators=(",", ":"))
        return Response(answer, media_type=JSON)  # ASCII: a training image's name need not be UTF-8

    async def model(self, request: Request) -> Response:
        served = self.service.predictor.model
        facts = {name: getattr(served, name) for name in ("backbone", "class_names", "temperature")}
        facts |= {"preprocessing": served.preprocessing.to_dict()}
        facts |= {name: served.metrics.get(name) for name in ("test_acc", "test_acc_ci95")}
        facts["runtime"] = self.service.predictor.runtime
        facts["noun"] = noun_of(served.class_names)
        facts["similar"] = self.service.predictor.names_images
        return JSONResponse(facts | {"max_body_bytes": self.service.limits.body_bytes})

    async def page(self, request: Request) -> Response:
        return FileResponse(STATIC / PAGE[request.scope["path"]], headers=SECURITY | {"cache-control": "no-cache"})

    async def metrics(self, request: Request) -> Response:
        return Response(self.service.metrics.text(), media_type=self.service.metrics.media_type)


def error_response(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """Return an error: one sentence in JSON."""
    return JSONResponse({"error": sentence}, status, headers=headers)


async def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    # A slow client stays slow; one that comes at a busy moment may try again.
    headers = {408: {"connection": "close"}, 503: {"retry-after": "1"}}.get(error.status)
    return error_response(error.status, str(error), headers)


async def _closed(request: Request, error: Exception) -> Response:
    return error_response(503, DEAD)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "There is nothing at this address; POST an image to /invocations, or open / in a browser.",
        405: "This address does not take this method; images are POSTed to /invocations.",
    }
    return error_response(error.status_code, sentences.get(error.status_code, error.detail), dict(error.headers or {}))


def _model_error(error: RequestError) -> Response:
    """Return what InvokeEndpoint makes of a model's error, so that one client understands both."""
    content = {
        "ErrorCode": "CLIENT_ERROR_FROM_MODEL",
        "Message": f"Received client error ({error.status}) from primary with message {json.dumps(str(error))}.",
        "OriginalMessage": str(error),
        "OriginalStatusCode": error.status,
        "error": str(error),
    }
    return JSONResponse(content, 424, headers={"x-amzn-errortype": "ModelError"})


def _expects_continue(scope: dict[str, Any]) -> bool:
    """Return whether the client sends its body only after a 100 (`Expect: 100-continue`)."""
    return any(name == b"expect" for name, _ in scope["headers"])


class _AccessLog:
    """Logs and counts every request; an unhandled exception becomes a 500 in JSON, with its traceback in the log."""

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self.service.limits.body_seconds)
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # the server stops, and has waited for this request as long as it may
            self.service.cut_off += 1
            headers = {"retry-after": "1", "connection": "close"}
            exchange.drains = False
            await exchange.fail(error_response(503, "The server is stopping; try again in a moment.", headers))
        except Exception:
            log.exception("Unhandled exception")
            await exchange.fail(error_response(500, "The server failed; its log says why."))
        finally:
            self._record(exchange, time.perf_counter() - started)

    def _record(self, exchange: "_Exchange", seconds: float) -> None:
        scope, status = exchange.scope, exchange.status
        # Unknown paths share one name, so that made-up ones do not fill the memory.
        self.service.metrics.count_request(getattr(scope.get("route"), "path", "other"), status, seconds)
        path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]
        client = (scope.get("client") or ("-",))[0]
        log.info(
            "client=%s method=%s path=%s status=%d ms=%.1f bytes=%d",
            client, scope["method"], path, status, 1000 * seconds, exchange.received,
        )  # fmt: skip


class _Exchange:
    """One request and its response, as the access log follows them."""

    def __init__(
        self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any], seconds: float
    ) -> None:
        self.scope, self._receive, self._send, self._seconds = scope, receive, send, seconds
        self.status, self.received, self.complete, self.drains = CLIENT_LEFT, 0, False, True

    async def receive(self) -> Any:
        message = await self._receive()
        self.received += len(message.get("body", b""))
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            if self.drains and message["status"] != 408 and (self.received or not _expects_continue(self.scope)):
                await self._drain()
            self.status = message["status"]
        await self._send(message)

    async def fail(self, response: Response) -> None:
        """Send an error where no response has begun."""
        if self.status == CLIENT_LEFT:
            await response(self.scope, self.receive, self.send)

    async def _drain(self) -> None:
        """Receive and discard the rest of the body: many clients read no response before they have sent all."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._seconds):
                while not self.complete:
                    await self.receive()
