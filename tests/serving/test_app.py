"""The server as its clients see it: answers, refusals, metrics, start and stop."""

import asyncio
import base64
import gzip
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import boto3
import pytest
import torch
from botocore.config import Config
from PIL import Image
from support import runs
from support.exports import NAMES, export_tiny
from support.serving import FRESH, is_refusal, received, request, serving

from dogbreed import Predictor
from dogbreed.serve import main
from dogbreed.serving.app import create_app
from dogbreed.serving.server import bind, make_server
from dogbreed.serving.service import Limits, Service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def server(model):
    limits = ("--max-body", "1", "--max-pixels", "0.5", "--timeout", "2")
    with serving(model, *limits) as running:
        yield running


@pytest.fixture(scope="module")
def photos(dog_tree) -> list[bytes]:
    return [path.read_bytes() for path in sorted(dog_tree.glob("test/*/*.jpg"))]


@pytest.fixture(scope="module")
def expected(model, photos):
    return Predictor(model, device="cpu").predict(photos, top_k=4)


def same(scores: list[dict], prediction) -> bool:
    """Labels in the same order, probabilities to 1e-5."""
    pairs = list(zip(scores, prediction.top, strict=False))
    return len(scores) > 0 and all(
        (one["label"], one["index"]) == (two.label, two.index)
        and one["probability"] == pytest.approx(two.probability, abs=1e-5)
        for one, two in pairs
    )


def test_answers_are_the_predictors(server, photos, expected):
    for photo, prediction in zip(photos, expected, strict=True):
        answer = server.post(photo)
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert len(answer.json()["predictions"]) == 4
        assert same(answer.json()["predictions"], prediction)


def test_every_kind_of_picture(server):
    picture = Image.effect_noise((60, 50), 60).convert("RGB")
    for mode, kind, media in (
        ("L", "JPEG", "image/jpeg"),
        ("CMYK", "JPEG", "application/x-image"),
        ("RGBA", "PNG", "image/png"),
        ("P", "PNG", "application/octet-stream"),
        ("RGB", "WEBP", "image/webp"),
    ):
        file = BytesIO()
        picture.convert(mode).save(file, kind)
        answer = server.post(file.getvalue(), media)
        assert answer.status == 200, answer


def test_options(server, photos, expected):
    for answer in (
        server.post(photos[0], path="/invocations?top_k=2"),
        server.post(photos[0], "image/jpeg; top_k=2"),
        server.post(photos[0], Accept="application/json; top_k=2"),
        server.post(
            json.dumps({"image": base64.b64encode(photos[0]).decode(), "top_k": 2}).encode(), "application/json"
        ),
    ):
        assert len(answer.json()["predictions"]) == 2
        assert same(answer.json()["predictions"], expected[0])
    csv = server.post(photos[0], Accept="text/html\r\nAccept: text/csv").body.decode().splitlines()
    assert [line.split(",")[0] for line in csv] == [guess.label for guess in expected[0].top]


def test_logits_for_whoever_compares(server, photos, model):
    predictor = Predictor(model, device="cpu")
    logits = server.post(photos[3], Accept="application/json; logits=1").json()["logits"]
    assert logits == pytest.approx(predictor.logits(predictor.read(photos[3])[None])[0].tolist(), abs=1e-5)


def test_several_images_one_of_them_bad(server, photos, expected):
    images = [base64.b64encode(data).decode() for data in (photos[0], b"no image", photos[1])]
    one, two, three = server.post(json.dumps({"images": images}).encode(), "application/json").json()["results"]
    assert same(one["predictions"], expected[0])
    assert two == {"error": "The image cannot be used: not an image."}
    assert same(three["predictions"], expected[1])


def test_concurrent_requests_share_passes(server, photos, expected):
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(server.post, photos * 5))
    assert all(same(a.json()["predictions"], e) for a, e in zip(answers, expected * 5, strict=True))
    measured = server.get("/metrics").body.decode()
    passes, images = (
        float(re.search(rf"dogbreed_pass_images_{name} (\S+)", measured).group(1)) for name in ("count", "sum")
    )
    assert passes < images, "some passes held more than one image"
    assert 'dogbreed_model{backbone="squeezenet1_1",classes="4"' in measured


def test_boto3_speaks_to_it(server, photos, expected):
    client = boto3.client(
        "sagemaker-runtime",
        endpoint_url=server.address,
        region_name="us-east-1",
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106
        config=Config(retries={"max_attempts": 1}),
    )
    answer = client.invoke_endpoint(
        EndpointName="dogs", ContentType="image/jpeg", Accept="application/json; top_k=3", Body=photos[2]
    )
    assert answer["ContentType"] == "application/json"
    content = json.loads(answer["Body"].read())["predictions"]
    assert len(content) == 3
    assert same(content, expected[2])
    with pytest.raises(client.exceptions.ModelError, match="not an image") as refused:
        client.invoke_endpoint(EndpointName="dogs", ContentType="image/jpeg", Body=b"no image")
    assert refused.value.response["OriginalStatusCode"] == 400
    assert refused.value.response["OriginalMessage"] == "The image cannot be used: not an image."


def test_explain_gives_a_map_for_each_breed(server, photos, expected):
    content = server.post(photos[0], path="/explain?top_k=3").json()
    assert same(content["predictions"], expected[0])
    assert len(content["predictions"]) == 3
    for guess in content["predictions"]:
        values = [value for row in guess["heat_map"] for value in row]
        assert len(values) == 9
        assert max(values) in (0, 1)
        assert min(values) >= 0
    assert (content["resize"], content["seen"]) == ("squash", 1)
    refused = server.post(b"", path="/explain")
    assert refused.status == 400
    assert refused.json() == {"error": "The image cannot be used: empty file."}


def test_ping_model_and_page(server):
    assert server.get("/ping").json() == {"status": "healthy"}
    content = server.get("/model").json()
    assert (content["class_names"], content["noun"]) == (list(NAMES), "class")
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    for name in re.findall(rb'(?:src|href)="(/[^"]+)"', page.body):
        assert server.get(name.decode()).status == 200


def wide_png(width: int, height: int) -> bytes:
    file = BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("status", "sent", "said"),
    [
        (400, {"body": b"GIF89a no picture"}, "cannot be used"),
        (400, {"body": b""}, "empty file"),
        (400, {"body": wide_png(1000, 1000), "kind": "image/png"}, "too many pixels (1000 x 1000)"),
        (400, {"body": b"{", "kind": "application/json"}, "not JSON"),
        (400, {"body": b"", "path": "/invocations?top_k=none"}, "top_k is 'none'"),
        (404, {"body": b"", "path": "/predict"}, "nothing at this address"),
        (405, {"body": b"", "path": "/ping"}, "does not take this method"),
        (406, {"body": b"", "Accept": "text/html"}, "Accept names neither"),
        (413, {"body": bytes(1_000_001)}, "larger than 1 MB"),
        (415, {"body": b"dog", "kind": "text/plain"}, "'text/plain' is not supported"),
        (415, {"body": b"", "kind": "text/plain", "path": "/explain"}, "is not supported"),
        (415, {"body": gzip.compress(b"dog"), "Content-Encoding": "gzip"}, "Content-Encoding 'gzip' is not supported"),
    ],
)
def test_refusals_are_sentences(server, status, sent, said):
    answer = server.post(**sent)
    assert answer.status == status
    assert is_refusal(answer)
    assert said in answer.json()["error"]


def test_a_body_without_a_length_is_limited_as_well(server):
    head = request("POST", "/invocations", None, "image/jpeg", Transfer_Encoding="chunked")
    answer = server.send(head + b"".join(b"20000\r\n" + bytes(0x20000) + b"\r\n" for _ in range(10)) + b"0\r\n\r\n")
    assert answer.status == 413
    assert is_refusal(answer)


def test_a_client_that_asks_first_need_not_send(server):
    with server.connect() as connection:
        head = request("POST", "/invocations", None, "image/jpeg", Expect="100-continue", Content_Length="5000000")
        connection.sendall(head)
        assert received(connection).status == 413


@pytest.mark.slow
def test_a_body_that_arrives_slowly_is_given_up(server):
    with server.connect() as connection:
        connection.sendall(request("POST", "/invocations", b"x" * 100, "image/jpeg")[:-50])
        answer = received(connection)
        assert answer.status == 408
        assert "did not arrive within 2 seconds" in answer.json()["error"]


@pytest.mark.slow
def test_answers_leave_at_once(model):
    """Without TCP_NODELAY each answer on a kept connection waits 40 ms for the client's acknowledgement."""

    async def options() -> list[int]:
        listener = bind("127.0.0.1", 0)
        server = make_server(create_app(Service(Predictor(model, device="cpu"))))
        running = asyncio.create_task(server._serve([listener]))
        reader, writer = await asyncio.open_connection(*listener.getsockname())
        writer.write(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        sockets = [connection.transport.get_extra_info("socket") for connection in server.server_state.connections]
        found = [one.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in sockets]
        writer.close()
        server.should_exit = True
        await running
        return found

    (option,) = asyncio.run(options())
    assert option != 0


def test_the_log_tells_no_secrets(server, photos):
    server.post(photos[0], path="/invocations?top_k=1&token=secret", Authorization="Bearer secret")
    server.send(b"POST /%1b[31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    time.sleep(0.2)
    line = next(line for line in reversed(server.log) if "path=/invocations status=200" in line)
    assert re.search(
        r"client=127\.0\.0\.1 method=POST path=/invocations status=200 ms=\d+\.\d bytes=\d+$", line.strip()
    )
    assert not any("secret" in line or "\x1b" in line for line in server.log)


@pytest.mark.slow
def test_too_many_wait(model, photos):
    with serving(model, "--max-queue", "1", "--max-wait", "0") as server, ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(server.post, photos * 8))
        busy = [answer for answer in answers if answer.status != 200]
        assert busy, "16 at once do not fit into a queue of one"
        for answer in busy:
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert "try again in a moment" in answer.json()["error"]
        assert server.post(photos[0]).status == 200


@pytest.mark.slow
def test_sigterm_answers_what_was_asked(model, photos):
    with serving(model, "--max-batch", "1") as server:
        connections = [server.connect() for _ in range(40)]
        for connection, photo in zip(connections, photos * 4, strict=False):
            connection.sendall(request("POST", "/invocations", photo, "image/jpeg"))
        assert server.stop() == 0
        for connection in connections:
            assert received(connection).status == 200
            connection.close()
        assert "Stopped. All requests were answered." in "".join(server.said)
        assert "Traceback" not in "".join(server.log)


IMPATIENT = """
import sys
from dogbreed import serve
from dogbreed.serving import server
server.SHUTDOWN_SECONDS = 1
sys.exit(serve.main())
"""


@pytest.mark.slow
def test_sigterm_tells_who_takes_too_long(model):
    with serving(model, program=("-c", IMPATIENT)) as server, server.connect() as slow, server.connect() as refused:
        slow.sendall(request("POST", "/invocations", b"x" * 100, "image/jpeg")[:-50])
        refused.sendall(request("POST", "/nowhere", b"x" * 100, "image/jpeg")[:-50])
        server.get("/ping")  # they were heard before it
        assert server.stop() == 0
        for connection in (slow, refused):
            answer = received(connection)
            assert answer.status == 503
            assert answer.headers["retry-after"] == "1"
            assert "stopping" in answer.json()["error"]
        assert "Stopped. 2 requests exceeded the shutdown timeout and got 503." in "".join(server.said)
        assert "All requests" not in "".join(server.said)
        assert "Traceback" not in "".join(server.log)


@pytest.mark.slow
def test_ctrl_c(model):
    with serving(model, program=FRESH) as server:
        assert server.stop(signal.SIGINT) == 130
        assert "Traceback" not in "".join(server.log)


# Starts that do not


def damaged(model: Path, folder: Path, change) -> Path:
    shutil.copytree(model, folder)
    change(folder)
    return folder


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def manifest(**changes):
    def change(folder: Path) -> None:
        file = folder / "model.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (truncate, "model.safetensors is damaged"),
        (manifest(format_version=99), "has format version 99; this is dogbreed"),
        (manifest(class_names=None), "has no list of class names"),
        (manifest(metrics=None), "has no mapping of names to values as its metrics"),
        (lambda folder: (folder / "model.json").unlink(), "is no exported model"),
    ],
    ids=["weights", "version", "labels", "metrics", "nothing"],
)
def test_a_model_that_cannot_be_served(model, tmp_path, change, said, capfd):
    assert main([str(damaged(model, tmp_path / "model", change)), "--port", "0", "--device", "cpu"]) == 2
    captured = capfd.readouterr()
    assert captured.err.startswith("error: ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.slow
def test_a_process_that_cannot_start(model, tmp_path):
    command = [sys.executable, "-m", "dogbreed.serve", str(damaged(model, tmp_path / "model", truncate)), "--port", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=runs.environment(), timeout=60)
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*model\.safetensors is damaged .*\n", done.stderr)
    assert done.stdout == ""


def test_a_port_that_is_taken(model, capfd):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main([str(model), "--port", str(taken.getsockname()[1])]) == 2
    said = r"error: Port \d+ of 127\.0\.0\.1 cannot be used \(Address already in use\); choose another with --port\.\n"
    assert re.fullmatch(said, capfd.readouterr().err)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "192.0.2.1"), "cannot be used (Cannot assign requested address)"),
        (("--port", "70000"), "--port 70000 is out of range"),
        (("--max-batch", "0"), "--max-batch 0 is out of range"),
        (("--precision", "float8"), "precision=float8 is unknown"),
    ],
)
def test_senseless_flags(model, flags, said, capfd):
    assert main([str(model), *flags]) == 2
    assert said in capfd.readouterr().err


def test_the_network_has_the_threads_and_each_decoder_one(model, photos):
    service = Service(Predictor(model, device="cpu"), threads=2)
    try:
        inputs = service.decoders.submit(service.predictor.read, photos[0]).result(20)
        service.batcher.submit(inputs).result(20)
        assert service.batcher.run(torch.get_num_threads).result(20) == 2
        assert service.decoders.submit(torch.get_num_threads).result(20) == 1
    finally:
        service.close()


def many(count: int, side: int = 5000) -> bytes:
    """A small request with large images."""
    file = BytesIO()
    Image.new("RGB", (side, side), "brown").save(file, "PNG")
    return json.dumps({"images": [base64.b64encode(file.getvalue()).decode()] * count}).encode()


@pytest.mark.slow
def test_many_large_images_do_not_keep_others_waiting(model, photos):
    with serving(model, "--threads", "1") as server, ThreadPoolExecutor(1) as pool:
        large = pool.submit(server.post, many(8), "application/json")
        while b"dogbreed_requests_running 1.0" not in server.get("/metrics").body:
            time.sleep(0.01)
        assert server.post(photos[0]).status == 200
        decoded = re.search(rb"dogbreed_decode_seconds_count (\d+)", server.get("/metrics").body)
        assert int(decoded[1]) < 1 + 8, "the one image did not wait for all of the eight"
        assert len(large.result().json()["results"]) == 8


async def asked(app, method: str, path: str, body: bytes, kind: bytes = b"image/jpeg") -> int:
    """The status that an application in this process answers with."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    headers = [(b"content-type", kind)]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    return sent[0]["status"]


@pytest.mark.slow
def test_decoding_counts_as_waiting_for_the_answer(model):
    service = Service(Predictor(model, device="cpu"), Limits(answer_seconds=0.2))
    try:
        assert asyncio.run(asked(create_app(service), "POST", "/invocations", many(64), b"application/json")) == 503
        assert service.running == service.held == 0
        assert service.metrics.registry.get_sample_value("dogbreed_decode_seconds_count") < 64, "the rest is let be"
    finally:
        service.close()


def test_a_dead_network_is_not_healthy(model, photos):
    """In this process: the thread dies as it would of a fault in torch, and every client gets a 503."""
    service = Service(Predictor(model, device="cpu"))
    app = create_app(service)

    assert asyncio.run(asked(app, "GET", "/ping", b"")) == 200
    assert asyncio.run(asked(app, "POST", "/invocations", photos[0])) == 200
    threading.excepthook, hook = (lambda args: None), threading.excepthook
    try:
        with pytest.raises(SystemExit):
            service.batcher.run(lambda: sys.exit(1)).result(5)
        service.batcher._thread.join(5)
    finally:
        threading.excepthook = hook
    assert asyncio.run(asked(app, "GET", "/ping", b"")) == 503
    assert asyncio.run(asked(app, "POST", "/invocations", photos[0])) == 503
    service.close()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    page = capsys.readouterr().out
    assert page.count("python -m dogbreed.serve") >= 3
    assert "exit codes:" in page
