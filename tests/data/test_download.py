"""Downloads over a real, and sometimes misbehaving, server; archives that are damaged or hostile."""

import errno
import io
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.archives import dog_images, make_zip

from dogbreed.core.errors import DogbreedError
from dogbreed.data import archives, download

BODY = random.Random(3).randbytes(600_000)


class Server(ThreadingHTTPServer):
    """Serves `body`; `plan` says what goes wrong with each request, in turn, and then nothing does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.tag, self.modified = BODY, '"one"', ""
        self.ranges, self.url = True, f"http://127.0.0.1:{self.server_port}/dogImages.zip"
        self.plan: list[str] = []
        self.requests: list[str] = []

    def handle_error(self, request, client_address) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format, *args) -> None:
        pass

    def do_GET(self) -> None:
        server, body = self.server, self.server.body
        wanted = self.headers.get("Range")
        server.requests.append(wanted or "all")
        fault = server.plan.pop(0) if server.plan else ""
        if fault.isdigit():
            return self.send_error(int(fault))
        if fault.startswith("to "):
            self.send_response(302)
            self.send_header("Location", fault[3:])
            return self.end_headers()
        if fault == "silent":
            return time.sleep(1.5)
        start, unchanged = 0, self.headers.get("If-Range") in (server.tag, server.modified, None)
        if wanted and server.ranges and (unchanged or fault == "blind"):
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                return self.end_headers()
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if server.tag:
            self.send_header("ETag", server.tag)
        if server.modified:
            self.send_header("Last-Modified", server.modified)
        promised = len(body) - start + (1000 if fault == "long" else 0)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(body[start : (start + len(body)) // 2] if fault in ("cut", "reset") else body[start:])
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.wfile.close()
            self.rfile.close()
            self.connection.close()
        return None


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "PAUSE", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "data" / "dogImages.zip"


def _left(file: Path) -> list[str]:
    return sorted(os.listdir(file.parent))


def test_whole(server, file, capsys):
    assert download.download(server.url, file) == file
    assert file.read_bytes() == BODY
    assert _left(file) == ["dogImages.zip"]
    assert "600 kB of 600 kB" in capsys.readouterr().err
    download.download(server.url, file)
    assert server.requests == ["all"], "a file that is there was asked for again"


@pytest.mark.parametrize("fault", ["cut", "reset"])
@pytest.mark.parametrize("dated", [False, True])
def test_broken_connections_are_taken_up_again(server, file, fault, dated):
    if dated:
        server.tag, server.modified = 'W/"weak"', "Wed, 21 Oct 2015 07:28:00 GMT"
    server.plan = [fault, fault, "500", "429"]
    download.download(server.url, file, quiet=True)
    assert file.read_bytes() == BODY
    assert server.requests[0] == "all"
    assert all(request.startswith("bytes=") for request in server.requests[2:])


def test_the_next_run_goes_on(server, file, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.plan = ["cut"]
    with pytest.raises(DogbreedError, match="300,000 bytes already here"):
        download.download(server.url, file, quiet=True)
    assert _left(file) == ["dogImages.zip.part", "dogImages.zip.part.tag"]
    download.download(server.url, file, quiet=True)
    assert server.requests == ["all", "bytes=300000-"]
    assert file.read_bytes() == BODY
    assert _left(file) == ["dogImages.zip"]


@pytest.mark.parametrize("plan", [[], ["blind"]], ids=["obeys If-Range", "does not know If-Range"])
def test_a_file_that_changed_meanwhile_is_not_pieced_together(server, file, monkeypatch, plan):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    server.plan = ["cut"]
    with pytest.raises(DogbreedError):
        download.download(server.url, file, quiet=True)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.body, server.tag, server.plan = BODY[::-1], '"two"', plan
    download.download(server.url, file, quiet=True)
    assert file.read_bytes() == BODY[::-1]


@pytest.mark.parametrize("ranges", [True, False])
def test_servers_that_cannot_resume_start_over(server, file, ranges):
    server.tag, server.ranges = ("" if ranges else '"one"'), ranges
    server.plan = ["cut", "reset"]
    download.download(server.url, file, quiet=True)
    assert file.read_bytes() == BODY


@pytest.mark.parametrize("same", [True, False])
def test_a_part_that_is_complete(server, file, monkeypatch, same):
    with monkeypatch.context() as killed:
        killed.setattr(download.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download.download(server.url, file, quiet=True)
    if not same:
        server.body, server.tag = BODY[:1000], '"two"'
    download.download(server.url, file, quiet=True)
    assert server.requests == ["all", "bytes=600000-"]
    assert file.read_bytes() == server.body


def test_wrong_length(server, file, monkeypatch):
    server.plan = ["long"] * 20
    with pytest.raises(DogbreedError, match=r"after 600,000 of 601,000 bytes|has changed"):
        download.download(server.url, file, quiet=True)
    assert not file.exists()
    assert len(server.requests) == download.ATTEMPTS


def test_missing(server, file):
    server.plan = ["404"] * 9
    with pytest.raises(DogbreedError, match="answered 404 Not Found"):
        download.download(server.url, file, quiet=True)
    assert server.requests == ["all"]
    assert not file.exists()


def test_a_server_that_stays_broken(server, file):
    server.plan = ["503"] * 9
    with pytest.raises(DogbreedError, match="answered 503"):
        download.download(server.url, file, quiet=True)
    assert len(server.requests) == download.ATTEMPTS


def test_a_silent_server_does_not_hang(server, file, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    server.plan = ["silent"] * 2
    with pytest.raises(DogbreedError, match="no answer within"):
        download.download(server.url, file, quiet=True)


def test_redirections_lead_to_http_only(server, file, tmp_path):
    (tmp_path / "secret").write_text("secret")
    server.plan = [f"to {server.url}"]
    assert download.download(server.url, file, quiet=True).read_bytes() == BODY
    for target in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/secret"):
        server.plan = [f"to {target}"] * 9
        with pytest.raises(DogbreedError):
            download.download(server.url, file.with_name("other"), quiet=True)
    assert not file.with_name("other").exists()


@pytest.mark.parametrize("url", ["file:///etc/hosts", "ftp://host/file", "dogImages.zip", ""])
def test_only_http(file, url):
    with pytest.raises(DogbreedError, match="https://"):
        download.download(url, file)
    assert not file.parent.exists()


def test_two_at_once(server, file):
    file.parent.mkdir()
    part = file.with_name("dogImages.zip.part")
    with archives.locked(part):
        with pytest.raises(DogbreedError, match="Another process"):
            download.download(server.url, file, quiet=True)
        assert server.requests == []
    download.download(server.url, file, quiet=True)
    assert file.read_bytes() == BODY


def test_full_disk(server, file, monkeypatch):
    class Full(io.FileIO):
        def write(self, data, /):
            raise OSError(errno.ENOSPC, "No space left on device")

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *a, **k: (Full if path.suffix == ".part" else opened)(path, *a, **k))
    with pytest.raises(DogbreedError, match="is full"):
        download.download(server.url, file, quiet=True)
    assert server.requests == ["all"], "a full disk is no reason to ask again"


def test_no_room_is_seen_before_the_download(server, file, monkeypatch):
    usage = download.shutil.disk_usage(file.parent.parent)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DogbreedError, match="is full"):
        download.download(server.url, file, quiet=True)
    assert not list(file.parent.iterdir())


# The dataset


@pytest.fixture
def small(monkeypatch) -> None:
    monkeypatch.setattr(download, "DOG_IMAGES_COUNTS", {"train": 4, "valid": 4, "test": 4})
    monkeypatch.setattr(download, "DOG_IMAGES_CLASSES", 2)


def test_fetch(server, small, tmp_path):
    root, server.body = tmp_path / "data" / "dogImages", make_zip(dog_images())
    download.fetch_dog_images(root, server.url, quiet=True)
    assert len(list(root.glob("*/*/*.jpg"))) == 12
    assert os.listdir(root.parent) == ["dogImages"]
    download.fetch_dog_images(root, server.url, quiet=True)
    assert server.requests == ["all"]
    next(root.rglob("*.jpg")).unlink()
    with pytest.raises(DogbreedError, match="not the whole of dogImages"):
        download.fetch_dog_images(root, server.url, quiet=True)


@pytest.mark.parametrize(("classes", "images", "found"), [(1, 4, "4 train images of 1"), (2, 1, "2 train images of 2")])
def test_fetch_counts(server, small, tmp_path, classes, images, found):
    root, server.body = tmp_path / "data" / "dogImages", make_zip(dog_images(classes, images))
    with pytest.raises(DogbreedError, match=f"should hold 4 train images of 2 .*but holds {found}") as caught:
        download.fetch_dog_images(root, server.url, quiet=True)
    assert "delete it" in str(caught.value)
    assert os.listdir(root.parent) == ["dogImages.zip"]


@pytest.mark.parametrize("how", ["refused", "unknown host", "503", "404"])
def test_without_network_the_ways_out_are_named(server, tmp_path, monkeypatch, how):
    url, server.plan = server.url, [how] * 9
    if how == "refused":
        with socket.create_server(("127.0.0.1", 0)) as unused:
            url = f"http://127.0.0.1:{unused.getsockname()[1]}/dogImages.zip"
    elif how == "unknown host":
        url = "http://dogs.invalid/dogImages.zip"
    with pytest.raises(DogbreedError) as caught:
        download.fetch_dog_images(tmp_path / "dogImages", url, quiet=True)
    assert "data=sample" in str(caught.value)
    assert "data.root=" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dogImages").exists()
