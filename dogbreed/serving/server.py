"""uvicorn around the application: the socket, the limits of a connection, and an end in which nobody is cut off.

A head that arrives slowly is left to a reverse proxy; a body has its time limit in the application.
"""

import asyncio
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from dogbreed.core.errors import DogbreedError

IDLE_SECONDS = 10  # between two requests of a connection
SHUTDOWN_SECONDS = 22  # SageMaker and Kubernetes kill after 30, and the process itself takes some to end
IN_FLIGHT_SECONDS = 0.5  # in which a request that was sent before the signal still arrives


class Server(uvicorn.Server):
    """uvicorn's server, which answers on its way out what has been sent but not yet read."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener after a moment: closed at once, it would reset connections that wait to be accepted."""
        await asyncio.sleep(IN_FLIGHT_SECONDS)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket; it is made first, so that a wrong address shows before a model is loaded.

    Raises:
        DogbreedError: The port is in use or forbidden, or the host does not belong to this machine.
    """
    if not 0 <= port <= 65_535:
        raise DogbreedError(f"--port {port} is out of range; it is a number from 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise DogbreedError(f"--host {host} is no address of this machine ({error.strerror}).") from error
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer waits 40 ms for the client.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(512)
    except OSError as error:
        listener.close()
        raise DogbreedError(
            f"Port {port} of {host} cannot be used ({error.strerror}); choose another with --port."
        ) from error
    return listener


def make_server(app: Any) -> Server:
    """Return the server of an ASGI application."""
    return Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )


def serve(app: Any, listener: socket.socket) -> None:
    """Serve until SIGTERM.

    Raises:
        KeyboardInterrupt: It was stopped with Ctrl-C.
    """
    with _sigterm_ends_with_0():
        make_server(app).run([listener])


@contextmanager
def _sigterm_ends_with_0() -> Iterator[None]:
    """Ignore the SIGTERM that uvicorn raises once more when it has stopped."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
