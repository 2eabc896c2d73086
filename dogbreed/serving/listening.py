"""HTTP connections that end: in time, in order, and with a sentence.

uvicorn's connections with what it leaves to a proxy: a request has to arrive within a time, what is no HTTP is answered
in JSON too, and on SIGTERM whatever has been sent is answered before the process ends with 0.
"""

import asyncio
import json
import logging
import signal
import socket
from collections.abc import Callable, Generator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from dogbreed.core.errors import DogbreedError, Interrupted

IDLE_SECONDS = 10  # how long a connection is kept between two requests
STOP_SECONDS = 22  # SageMaker and Kubernetes kill after 30, and the process itself takes some to end
ON_ITS_WAY = 0.5  # seconds in which a request that was sent before the end still arrives

log = logging.getLogger(__name__)


class Connection(H11Protocol):
    """One client's connection; `request_seconds` is how long a request may take to arrive."""

    request_seconds = 30.0
    _late: asyncio.TimerHandle | None = None
    _began = False

    def connection_made(self, transport: Any) -> None:
        """Starts the clock for the first request."""
        super().connection_made(transport)
        self._start_clock()

    def data_received(self, data: bytes) -> None:
        """Stops the clock when a request has come whole, and starts it with the first bytes of the next."""
        self._began = True
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._start_clock()
        else:
            self._stop_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP."""
        self._refuse(HTTPStatus.BAD_REQUEST, "This is not a request in HTTP/1.1.")

    def shutdown(self) -> None:
        """Lets a request in that is on its way, answers it, then closes."""
        if self.cycle is None or self.cycle.response_complete:
            self.loop.call_later(ON_ITS_WAY, self._close_if_idle)
        else:
            super().shutdown()

    def _close_if_idle(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _start_clock(self) -> None:
        if self._late is None:
            # A second more than the application gives a body, so that the application's answer comes first.
            self._late = self.loop.call_later(self.request_seconds + 1, self._too_late)

    def _stop_clock(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _too_late(self) -> None:
        if self._began:
            sentence = f"The request did not arrive within {self.request_seconds:g} seconds."
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, sentence)
        else:  # browsers open connections that they may need later
            self.transport.close()

    def _refuse(self, status: HTTPStatus, sentence: str) -> None:
        self._stop_clock()
        if self.transport.is_closing():
            return
        if self.cycle is None or not self.cycle.response_started or self.conn.our_state is h11.IDLE:
            body = json.dumps({"error": sentence})
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
            log.info("status=%d reason=%r", status.value, sentence)
        self.transport.close()


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, answers what has been asked, and says which it was."""

    stopped_by = 0

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Says that it is ready when it is, and not before signals are heard."""
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Lets in what has been sent; a closed listener would reset connections that wait to be accepted."""
        await asyncio.sleep(ON_ITS_WAY)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """uvicorn's own raises the signal once more at the end, and the process would not exit with 0."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        """The first signal ends it in order, a second Ctrl-C at once."""
        self.stopped_by = sig
        super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address, so that what is wrong with it shows before anything is loaded.

    Raises:
        DogbreedError: The port is in use or forbidden, or the host is not of this machine.
    """
    if not 0 <= port <= 65_535:
        raise DogbreedError(f"--port {port} is out of range; it is a number from 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise DogbreedError(f"--host {host} is no address of this machine ({error.strerror}).") from error
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise DogbreedError(
            f"Port {port} of {host} cannot be used ({error.strerror}); choose another with --port."
        ) from error
    listener.set_inheritable(False)
    return listener


def serve(app: Any, listener: socket.socket, *, request_seconds: float, ready: Callable[[], None]) -> None:
    """Serves until it is told to stop.

    Args:
        app: The ASGI application.
        listener: From `bind`.
        request_seconds: How long a request may take to arrive.
        ready: Called when requests are answered from now on.

    Raises:
        Interrupted: It was stopped with Ctrl-C.
    """
    protocol = type("Connection", (Connection,), {"request_seconds": request_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = Server(config, ready)
    asyncio.run(server.serve(sockets=[listener]))
    if server.stopped_by == signal.SIGINT:
        raise Interrupted("Stopped.")
