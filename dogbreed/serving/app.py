"""The web application of `dogbreed.serve`: addresses, the page, errors as sentences, and the access log.

GET  /ping                             200 while requests would be answered, else 503
POST /invocations                      SageMaker's contract: `dogbreed.inference.schema`
POST /endpoints/NAME/invocations       the same where boto3's sagemaker-runtime client sends it
POST /explain                          breeds of one image, and where the network looked
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

from dogbreed.inference.schema import RequestError
from dogbreed.serving.batcher import Closed
from dogbreed.serving.service import Service

STATIC = Path(__file__).parent / "static"
PAGE = {"/": "page.html", "/page.css": "page.css", "/page.js": "page.js", "/icon.svg": "icon.svg"}
DEAD = "The thread that runs the network has ended or does not answer; start the server again."
CLIENT_LEFT = 499  # nginx' number for it; nobody receives it

# The page takes nothing from elsewhere, and nobody may put it into a page of theirs.
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

    async def ping(request: Request) -> Response:
        if service.batcher.alive:
            return JSONResponse({"status": "healthy"})
        return refusal(503, DEAD)

    async def invocations(request: Request) -> Response:
        body, kind = await service.predict(request)
        return Response(body, media_type=kind)

    async def endpoint(request: Request) -> Response:
        try:
            return await invocations(request)
        except RequestError as error:
            if error.status >= 500:
                raise  # the client waits and tries again
            return _model_error(error)

    async def explain(request: Request) -> Response:
        return JSONResponse(await service.explain(request))

    async def model(request: Request) -> Response:
        served = service.predictor.model
        told = {name: getattr(served, name) for name in ("backbone", "class_names", "temperature")}
        told |= {"preprocessing": served.preprocessing.to_dict(), "test_acc": served.metrics.get("test_acc")}
        return JSONResponse(told | {"max_body_bytes": service.limits.body_bytes})

    async def page(request: Request) -> Response:
        return FileResponse(STATIC / PAGE[request.scope["path"]], headers=SECURITY | {"cache-control": "no-cache"})

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.media_type)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        ready()
        yield
        await asyncio.to_thread(service.close)  # requests that are cut off get their 503 meanwhile

    routes = [
        Route("/ping", ping),
        Route("/invocations", invocations, methods=["POST"]),
        Route("/endpoints/{name}/invocations", endpoint, methods=["POST"]),
        Route("/explain", explain, methods=["POST"]),
        Route("/model", model),
        Route("/metrics", metrics),
        *(Route(path, page) for path in PAGE),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={RequestError: _refused, Closed: _closed, HTTPException: _http_error},
    )
    app.router.redirect_slashes = False
    app.add_middleware(_Watched, service=service)
    return app


def refusal(status: int, sentence: str, headers: dict[str, str] | None = None) -> Response:
    """An error: one sentence in JSON."""
    return JSONResponse({"error": sentence}, status, headers=headers)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    # A client that was too slow once would go on being so; one that is turned away comes back.
    headers = {408: {"connection": "close"}, 503: {"retry-after": "1"}}.get(error.status)
    return refusal(error.status, str(error), headers)


async def _closed(request: Request, error: Exception) -> Response:
    return refusal(503, DEAD)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "There is nothing at this address; POST an image to /invocations, or open / in a browser.",
        405: "This address does not take this method; images are POSTed to /invocations.",
    }
    return refusal(error.status_code, sentences.get(error.status_code, error.detail), dict(error.headers or {}))


def _model_error(error: RequestError) -> Response:
    """What InvokeEndpoint says of a model's refusal, so that one client understands both."""
    told = {
        "ErrorCode": "CLIENT_ERROR_FROM_MODEL",
        "Message": f"Received client error ({error.status}) from primary with message {json.dumps(str(error))}.",
        "OriginalMessage": str(error),
        "OriginalStatusCode": error.status,
        "error": str(error),
    }
    return JSONResponse(told, 424, headers={"x-amzn-errortype": "ModelError"})


def _asks_before_sending(scope: dict[str, Any]) -> bool:
    """Whether the client sends its body only when told to (`Expect: 100-continue`)."""
    return any(name == b"expect" for name, _ in scope["headers"])


class _Watched:
    """Logs and counts every request; what nobody expected becomes a 500 in JSON, with its traceback in the log."""

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status, received, whole = time.perf_counter(), CLIENT_LEFT, 0, False
        stopping = False

        async def counted() -> Any:
            nonlocal received, whole
            message = await receive()
            received += len(message.get("body", b""))
            whole = message["type"] == "http.disconnect" or not message.get("more_body", False)
            return message

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                asked_first = received == 0 and _asks_before_sending(scope)
                if message["status"] != 408 and not stopping and not asked_first:
                    await drain()
                status = message["status"]
            await send(message)

        async def drain() -> None:
            """Takes what is still coming and forgets it: many clients read no answer before they have sent all."""
            with suppress(TimeoutError):
                async with asyncio.timeout(self.service.limits.body_seconds):
                    while not whole:
                        await counted()

        try:
            await self.app(scope, counted, watched)
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # the server ends, and has waited for this request as long as it may
            stopping = True
            self.service.cut_off += 1
            if status == CLIENT_LEFT:
                headers = {"retry-after": "1", "connection": "close"}
                await refusal(503, "The server is stopping; try again in a moment.", headers)(scope, counted, watched)
        except Exception:
            log.exception("This should not have happened")
            if status == CLIENT_LEFT:
                await refusal(500, "Something went wrong in the server; its log says what.")(scope, counted, watched)
        finally:
            seconds = time.perf_counter() - started
            # Unknown addresses share one name: whoever makes them up does not fill the memory.
            route = scope.get("route")
            self.service.metrics.answered(getattr(route, "path", "other"), status, seconds)
            path = scope.get("raw_path", b"").decode("ascii", "backslashreplace")[:200]
            client = (scope.get("client") or ("-",))[0]
            log.info(
                "client=%s method=%s path=%s status=%d ms=%.1f bytes=%d",
                client, scope["method"], path, status, 1000 * seconds, received,
            )  # fmt: skip
