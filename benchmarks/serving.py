"""From the bytes of a photograph to its label: VGG16 the published handler's way, this project's, and over HTTP.

What HTTP itself adds is measured with a network that takes a tenth of the time, on a connection that is kept.

The published handler opens the photograph with Pillow, resizes and normalises it with torchvision's transforms, and
calls torchvision's network plainly in float32. The weights are random but for the last layer, which is fitted to the
sample's six breeds in closed form, so that there is a right answer to agree on. Sizes of photographs: 640 x 480, about
dogImages' usual one, and 4032 x 3024, a telephone's.
"""

import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from benchmarks.bench import CLASSES, Bench, has_bfloat16
from dogbreed import Predictor
from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, model_folder

CLIENTS, REQUESTS = 8, 12
SIZES = {"usual": (640, 480), "telephone": (4032, 3024)}
HEAD_SCALE = 20.0  # of the fitted scores, to margins as training leaves them


def serving(bench: Bench) -> None:
    """Latency of one, agreement over all of the sample, and a server with one client and with eight."""
    folder = _exported(bench)
    with Image.open(bench.files[0]) as photograph:
        photographs = {name: _jpeg(photograph, size) for name, size in SIZES.items()}
    _in_this_process(bench, folder, photographs)
    _over_http(bench, folder, photographs["usual"])
    _beside_the_network(bench, photographs["usual"])


def _in_this_process(bench: Bench, folder: Path, photographs: dict[str, bytes]) -> None:
    bench.note("serving_load_seconds", bench.seconds(lambda: Predictor(folder, device=bench.device)))
    names = ("float32", "bfloat16") if has_bfloat16(bench.device) else ("float32",)
    predictors = {name: Predictor(folder, device=bench.device, precision=name) for name in names}
    published = Published(predictors["float32"].model.network)
    for name, data in photographs.items():
        ways = {"published": lambda data=data: published.label(data)} | {
            precision: lambda data=data, one=one: one.predict([data], top_k=1)[0].index
            for precision, one in predictors.items()
        }
        seconds = bench.side_by_side(ways, 7)
        for way, taken in seconds.items():
            bench.note(f"serving_{name}_{way}_seconds", taken)
        for precision in predictors:
            bench.note(f"serving_{name}_{precision}_ratio", seconds["published"] / seconds[precision])

    files = sorted((bench.folder / "sample").rglob("*.jpg"))
    contents = [file.read_bytes() for file in files[::3]]
    labels = np.array([published.label(data) for data in contents])
    inputs = torch.stack([predictors["float32"].read(data) for data in contents])
    plain = published.logits(inputs)
    bench.note("serving_agreement_images", len(contents))
    for precision, one in predictors.items():
        labels_served = np.array([answer.index for answer in one.predict(contents, top_k=1)])
        bench.note(f"serving_{precision}_same_top1_share", float((labels_served == labels).mean()))
        bench.note(f"serving_{precision}_largest_logit_difference", float((one.logits(inputs) - plain).abs().max()))


def _over_http(bench: Bench, folder: Path, photograph: bytes) -> None:
    weights = (folder / model_folder.WEIGHTS).stat().st_size
    servers: dict[str, tuple[str, ...]] = {"batched": (), "alone": ("--max-batch", "1")}
    if has_bfloat16(bench.device):
        servers["bfloat16"] = ("--precision", "bfloat16")
    for name, flags in servers.items():
        with _server(folder, "--device", bench.device.type, *flags) as (port, process, healthy):
            if name == "batched":
                bench.note("serving_start_to_healthy_seconds", healthy)
                bench.note("serving_one_client_p50_seconds", statistics.median(_clients(port, photograph, 1)[0]))
            taken, whole = _clients(port, photograph, CLIENTS)
            bench.note(f"serving_{name}_images_per_second", len(taken) / whole)
            bench.note(f"serving_{name}_p50_seconds", statistics.median(taken))
            bench.note(f"serving_{name}_p99_seconds", float(np.quantile(taken, 0.99)))
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            assert peak
            bench.note(f"serving_{name}_peak_memory_ratio", int(peak.group(1)) * 1024 / weights)


def _beside_the_network(bench: Bench, photograph: bytes) -> None:
    """Measure what a request takes beside the answer: server and Predictor take turns, so that neither disturbs."""
    network = backbones.create("mobilenet_v2", CLASSES, weights="none").eval()
    names = [f"breed {i}" for i in range(CLASSES)]
    folder = model_folder.save(
        bench.folder / "small", model_folder.Exported(network, "mobilenet_v2", names, Preprocessing())
    )
    predictor = Predictor(folder, device=bench.device)
    with _server(folder, "--device", bench.device.type) as (port, _, _):
        connection = HTTPConnection("127.0.0.1", port)
        taken = bench.side_by_side(
            {"request": lambda: _ask(connection, photograph), "answer": lambda: predictor.predict([photograph])}, 60
        )
    bench.note("serving_small_request_seconds", taken["request"])
    bench.note("serving_small_answer_seconds", taken["answer"])
    bench.note("serving_http_milliseconds", 1000 * (taken["request"] - taken["answer"]))


class Published:
    """The published handler's way."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.to(memory_format=torch.contiguous_format)
        self.device = next(network.parameters()).device
        self.transform = transforms.Compose(
            [
                transforms.Resize((224, 224)),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def label(self, data: bytes) -> int:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        return int(self.logits(self.transform(image)[None]).argmax())

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.network(inputs.to(self.device)).cpu()
        return logits


def _exported(bench: Bench) -> Path:
    """VGG16 with a last layer that knows the sample's breeds: ridge regression on the training split's features."""
    network: Any = backbones.create("vgg16", CLASSES, weights="none").eval()
    folder = model_folder.save(
        bench.folder / "served",
        model_folder.Exported(network, "vgg16", [f"breed {i}" for i in range(CLASSES)], Preprocessing()),
    )
    predictor = Predictor(folder, device="cpu")
    breeds = sorted({file.parent.name for file in bench.files})
    inputs = torch.stack([predictor.read(file) for file in bench.files])
    wanted = torch.tensor([breeds.index(file.parent.name) for file in bench.files])
    body, head = (
        nn.Sequential(network.features, network.avgpool, nn.Flatten(), network.classifier[:6]),
        network.classifier[6],
    )
    with torch.inference_mode():
        features = torch.cat([body(part) for part in inputs.split(8)]).double()
        mean = features.mean(0)
        centred = features - mean
        gram = centred @ centred.T
        gram += 0.01 * gram.trace() / len(gram) * torch.eye(len(gram))
        weight = HEAD_SCALE * centred.T @ torch.linalg.solve(gram, nn.functional.one_hot(wanted).double())
        head.weight.zero_()[: len(breeds)] = weight.T.float()
        head.bias.fill_(-HEAD_SCALE)[: len(breeds)] = -(mean @ weight).float()
    return model_folder.save(folder, model_folder.Exported(network, "vgg16", predictor.class_names, Preprocessing()))


def _jpeg(image: Image.Image, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    return file.getvalue()


@contextmanager
def _server(folder: Path, *flags: str) -> Any:
    """Yield a port, its process, and the seconds from nothing to the first good answer of /ping."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "dogbreed.serve", str(folder), "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        port = 0
        for line in process.stdout:
            if match := re.search(r":(\d+)/invocations", line):
                port = int(match.group(1))
                break
        connection = HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/ping")
        assert connection.getresponse().status == 200
        yield port, process, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait()


def _clients(port: int, data: bytes, clients: int) -> tuple[Sequence[float], float]:
    """Seconds of each request by clients that ask one after the other, and of all together."""

    def client(_: int) -> list[float]:
        connection = HTTPConnection("127.0.0.1", port)
        taken = []
        for _number in range(REQUESTS + 1):
            started = time.perf_counter()
            _ask(connection, data)
            taken.append(time.perf_counter() - started)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        client(0)
        started = time.perf_counter()
        per_client = list(pool.map(client, range(clients)))
        whole = time.perf_counter() - started
    return [seconds for one in per_client for seconds in one], whole


def _ask(connection: HTTPConnection, photograph: bytes) -> None:
    connection.request("POST", "/invocations", photograph, {"Content-Type": "image/jpeg"})
    answer = connection.getresponse()
    assert answer.status == 200
    assert json.loads(answer.read())["predictions"]
