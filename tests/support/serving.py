"""A server in a process of its own, and clients that send it anything."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support import forks, runs
from support.forks import Forked

FRESH = ("-m", "dogbreed.serve")


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self):
        return json.loads(self.body)


class Server:
    """`python -m dogbreed.serve` on a free port of this machine; with `program`, what a fresh interpreter runs."""

    def __init__(self, model: Path, *flags: str, program: tuple[str, ...] = ()) -> None:
        arguments = [str(model), "--port", "0", "--device", "cpu", *flags]
        self.process: subprocess.Popen[str] | Forked
        if program or not forks.SAFE:
            command, pipe = [sys.executable, *(program or FRESH), *arguments], subprocess.PIPE
            self.process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=runs.environment())
        else:
            self.process = Forked(forks.command, ["dogbreed.serve", *arguments], runs.environment(), apart=True)
        self.said: list[str] = []
        self.log: list[str] = []
        assert self.process.stdout
        for line in self.process.stdout:
            self.said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:(\d+)/invocations", line):
                break
        else:
            raise AssertionError(f"not started: {self.process.stderr.read()}")
        self.port = int(found.group(1))
        self.address = f"http://127.0.0.1:{self.port}"
        self._readers = [
            threading.Thread(target=kept.extend, args=(stream,), daemon=True)
            for kept, stream in ((self.said, self.process.stdout), (self.log, self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def connect(self, timeout: float = 30) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def send(self, raw: bytes, timeout: float = 30) -> Answer | None:
        """What comes back for bytes; nothing if the server just closes."""
        with self.connect(timeout) as connection:
            connection.sendall(raw)
            return received(connection)

    def post(self, body: bytes, kind: str | None = "image/jpeg", path: str = "/invocations", **headers: str) -> Answer:
        answer = self.send(request("POST", path, body, kind, **headers))
        assert answer is not None, "the server answers"
        return answer

    def get(self, path: str) -> Answer:
        answer = self.send(request("GET", path))
        assert answer is not None, "the server answers"
        return answer

    def memory(self) -> float:
        """MB that are resident, without what is read from files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status).group(1)) / 1000

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        for reader in self._readers:
            reader.join(5)
        return code


@contextmanager
def serving(model: Path, *flags: str, program: tuple[str, ...] = ()) -> Iterator[Server]:
    """A server that is gone afterwards, whatever happens."""
    server = Server(model, *flags, program=program)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()


def request(method: str, path: str, body: bytes | None = None, kind: str | None = None, **headers: str) -> bytes:
    """The bytes of a request."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + (body or b"")


def received(connection: socket.socket) -> Answer | None:
    """Reads an answer to the end of the connection."""
    data = b""
    while part := connection.recv(1 << 16):
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if not head:
        return None
    first, *rest = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)}
    return Answer(int(first.split()[1]), headers, body)


def is_refusal(answer: Answer | None) -> bool:
    """A 4xx that says why in JSON."""
    return (
        answer is not None
        and 400 <= answer.status < 500
        and answer.headers["content-type"] == "application/json"
        and answer.json()["error"].endswith(".")
    )


def cores() -> int:
    return len(os.sched_getaffinity(0))
