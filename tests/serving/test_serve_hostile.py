"""Five thousand hostile requests, then many honest ones: the server answers all, and is as it was."""

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.exports import export_tiny
from support.serving import FRESH, Answer, Server, is_refusal, received, request, serving

HOSTILE, WARM_UP, SOAK, AT_ONCE = 5000, 1000, 600, 8
TYPES = ("image/jpeg", "image/png", "image/webp", "application/octet-stream", "application/json")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    model = export_tiny(tmp_path_factory.mktemp("run") / "model")
    limits = ("--max-body", "0.3", "--max-pixels", "0.25", "--timeout", "3", "--threads", "2")
    with serving(model, *limits, program=FRESH) as running:  # whose memory is its own
        yield running


def pictures(rng: np.random.Generator) -> dict[str, bytes]:
    image = Image.fromarray(rng.integers(0, 255, (72, 96, 3), dtype=np.uint8))
    found = {}
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        file = BytesIO()
        image.save(file, kind)
        found[kind] = file.getvalue()
    return found


def bomb(kind: str) -> bytes:
    file = BytesIO()
    Image.new("1", (3000, 3000)).save(file, kind, compression="tiff_deflate")
    return file.getvalue()


BOMBS = [bomb("PNG"), bomb("TIFF"), bomb("GIF")]


class Attacker:
    """Makes up requests and sends them; the same ones for the same seed."""

    def __init__(self, server: Server, seed: int) -> None:
        self.server, self.rng = server, np.random.default_rng(seed)
        self.pictures = pictures(self.rng)
        self.ways: list[Callable[[], Answer | None]] = [
            self.noise, self.mutated, self.mutated, self.mutated, self.spliced, self.wrong_type, self.huge, self.bomb,
            self.odd_json, self.deep_json, self.too_large, self.no_http, self.odd_head, self.odd_address, self.leaves,
        ]  # fmt: skip

    def attack(self, number: int) -> tuple[str, Answer | None]:
        way = self.ways[number % len(self.ways)]
        return way.__name__, way()

    def bytes(self, most: int) -> bytes:
        return self.rng.bytes(int(self.rng.integers(0, most)))

    def kind(self) -> str:
        return str(self.rng.choice(TYPES))

    def picture(self) -> bytearray:
        return bytearray(self.pictures[str(self.rng.choice(list(self.pictures)))])

    def path(self) -> str:
        return str(self.rng.choice(["/invocations", "/invocations", "/endpoints/x/invocations", "/explain"]))

    def noise(self):
        return self.server.post(self.bytes(5000), self.kind(), self.path())

    def mutated(self):
        data = self.picture()
        for place in self.rng.integers(0, len(data), int(self.rng.integers(1, 20))):
            data[place] = int(self.rng.integers(0, 256))
        if self.rng.random() < 0.3:
            del data[int(self.rng.integers(0, len(data))) :]
        return self.server.post(bytes(data), self.kind(), self.path())

    def spliced(self):
        one, two = self.picture(), self.picture()
        return self.server.post(bytes(one[: len(one) // 2] + two[len(two) // 2 :]), self.kind(), self.path())

    def wrong_type(self):
        kinds = ["text/html", "multipart/form-data", "image/svg+xml", "", ";;;", "application/json;top_k=\x7f", "*/*"]
        return self.server.post(bytes(self.picture()), str(self.rng.choice(kinds)))

    def huge(self):
        """A head that promises 65,000 x 65,000 pixels."""
        data = bytearray(self.pictures["PNG" if self.rng.random() < 0.5 else "JPEG"])
        if data[1:4] == b"PNG":
            data[16:24] = (65_000).to_bytes(4, "big") * 2
        else:
            frame = data.index(b"\xff\xc0")
            data[frame + 5 : frame + 9] = (65_000).to_bytes(2, "big") * 2
        return self.server.post(bytes(data), "image/jpeg", self.path())

    def bomb(self):
        """A few kB that are millions of pixels."""
        return self.server.post(BOMBS[int(self.rng.integers(0, len(BOMBS)))], "image/png", self.path())

    def odd_json(self):
        photo = base64.b64encode(bytes(self.picture())).decode()
        bodies = [
            {"image": "http://127.0.0.1:1/dog.jpg"}, {"image": photo[:-3]}, {"image": photo, "url": "file:///etc/passwd"},
            {"images": [photo, "", None]}, {"images": [photo] * 65}, {"image": photo, "top_k": 10**30}, {"image": {}},
            {"image": photo, "top_k": -1}, [photo], None, "x", {"image": photo}, {"images": [photo, photo]},
        ]  # fmt: skip
        body = json.dumps(bodies[int(self.rng.integers(0, len(bodies)))]).encode()
        return self.server.post(body, "application/json", self.path())

    def deep_json(self):
        depth = int(self.rng.integers(1000, 100_000))
        return self.server.post((b"[" if self.rng.random() < 0.5 else b'{"a":') * depth, "application/json")

    def too_large(self):
        return self.server.post(bytes(400_000), self.kind(), self.path())

    def no_http(self):
        return self.server.send(b"\x16\x03\x01" + self.bytes(300) + b"\r\n\r\n")

    def odd_head(self):
        heads = [
            b"GET / HTTP/9.9\r\nConnection: close\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzzz\r\n",
            b"POST /invocations HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX: " + b"a" * 100_000 + b"\r\n\r\n",
            b"POST /invocations HTTP/1.1\r\n\r\n",
        ]
        return self.server.send(heads[int(self.rng.integers(0, len(heads)))])

    def odd_address(self):
        paths = [
            "/ping",
            "/invocations",
            "/../../etc/passwd",
            "/page.css/../../serve.py",
            "/%00",
            "/endpoints//invocations",
            "//ping",
            "/" + "a" * 3000,
        ]
        method = str(self.rng.choice(["GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW"]))
        return self.server.send(request(method, str(self.rng.choice(paths)), b"x", "image/jpeg"))

    def leaves(self):
        """Closes before the request is whole, or before the answer."""
        with self.server.connect() as connection:
            whole = request("POST", "/invocations", bytes(self.picture()), "image/jpeg")
            connection.sendall(whole[: int(self.rng.integers(1, len(whole) + 1))])


def bombard(server: Server, numbers: range) -> Counter:
    """Sends the requests of these numbers from several clients at once; counts what came back."""
    counts: Counter = Counter()

    def client(which: int) -> None:
        attacker = Attacker(server, seed=numbers.start + which)
        for number in numbers[which::AT_ONCE]:
            way, answer = attacker.attack(number)
            if way == "leaves":
                counts["left"] += 1
                continue
            assert answer is not None, f"{way} got no answer"
            no_http = way in ("no_http", "odd_head") and answer.status == 400  # uvicorn's own sentence, in plain text
            assert no_http or answer.status == 200 or is_refusal(answer), f"{way}: {answer}"
            counts[answer.status] += 1

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(client, range(AT_ONCE)))
    return counts


def slow_clients(server: Server, count: int) -> list[Answer | None]:
    """Clients that stop in the middle of their body, all at once."""
    connections = [server.connect() for _ in range(count)]
    for connection in connections:
        connection.sendall(request("POST", "/invocations", b"x" * 1000, "image/jpeg")[:-10])
    answers = [received(connection) for connection in connections]
    for connection in connections:
        connection.close()
    return answers


def test_five_thousand_hostile_requests(server):
    pings, stop = [], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            pings.append(server.get("/ping").status)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        counts = bombard(server, range(WARM_UP))
        before = server.memory()
        started = time.monotonic()
        counts += bombard(server, range(WARM_UP, HOSTILE))
        slow = slow_clients(server, 60)
    finally:
        stop.set()
        watcher.join()
    assert sum(counts.values()) == HOSTILE
    assert {200, 400, 404, 405, 413, 415, 424} <= counts.keys(), counts
    assert all(answer.status == 408 and is_refusal(answer) for answer in slow)
    assert len(pings) > 5
    assert set(pings) == {200}, f"healthy throughout the {time.monotonic() - started:.0f} s"
    assert server.memory() < 1.1 * before, f"{before:.0f} MB before"
    assert "Traceback" not in "".join(server.log)


def test_then_a_soak_without_one_error(server, dog_tree: Path):
    photos = [path.read_bytes() for path in sorted(dog_tree.glob("test/*/*.jpg"))]
    first = [server.post(photo).json()["predictions"] for photo in photos]
    before = server.memory()

    def ask(number: int) -> bool:
        answer = server.post(photos[number % len(photos)])
        assert answer.status == 200
        pairs = zip(answer.json()["predictions"], first[number % len(photos)], strict=True)
        return all(a["label"] == b["label"] and abs(a["probability"] - b["probability"]) < 1e-4 for a, b in pairs)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        assert all(pool.map(ask, range(SOAK)))
    assert server.memory() < 1.1 * before
    assert server.get("/ping").status == 200
    assert server.stop() == 0
