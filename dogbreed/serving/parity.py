"""The inference paths from a file's bytes to its logits, each as it runs in practice: for `dogbreed.certify`.

Each takes an exported model's folder, files by name, and a call for progress, and returns one answer per file, on the
CPU unless another device is set.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from safetensors.torch import load_file

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import BadImage, Preprocessing
from dogbreed.data.layout import SPLITS
from dogbreed.inference import archive
from dogbreed.inference.archive import CODE
from dogbreed.inference.predictor import Predictor
from dogbreed.inference.schema import JSON
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.manifest import WEIGHTS, read_manifest
from dogbreed.serving.certificate import Answer
from dogbreed.training.build import prepare_process

Tick = Callable[[], None]

BYTES = "application/octet-stream"
WITH_LOGITS = f"{JSON}; logits=1"
START_SECONDS = 120
ANSWER_SECONDS = 120


def training(folder: Path, files: Mapping[str, bytes], tick: Tick) -> list[Answer]:
    """Answer as the evaluation that ends a training: `DogImages`, `DogBreedClassifier`, and Lightning's Trainer."""
    prepare_process()
    manifest = read_manifest(folder)
    names, preprocessing = manifest["class_names"], manifest["preprocessing"]
    model = DogBreedClassifier(
        len(names), backbone=manifest["backbone"], weights=None, class_names=names, preprocessing=preprocessing
    )
    model.load_network(load_file(folder / WEIGHTS))
    with tempfile.TemporaryDirectory(prefix="dogbreed-certify-") as root:
        paths = [f"{number:06d}{Path(name).suffix}" for number, name in enumerate(files)]
        for split in SPLITS:  # all splits need an image that can be read
            (Path(root) / split / "dogs").mkdir(parents=True)
            for path, content in zip(paths, files.values(), strict=True):
                (Path(root) / split / "dogs" / path).write_bytes(content)
        data = DogImages(
            root, batch_size=8, num_workers=0, preprocessing=Preprocessing.from_dict(preprocessing), quiet=True
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.test(model, data, verbose=False)
        assert model.predictions is not None
        rows = model.predictions.logits.tolist()
        answered = {path.name: Answer(row) for path, row in zip(data.samples["test"].paths, rows, strict=True)}
        refused = {skipped.path.name: Answer(None, skipped.reason) for skipped in data.skipped}
    for _ in files:
        tick()
    return [answered.get(path) or refused[path] for path in paths]


def predictor(
    folder: Path, files: Mapping[str, bytes], tick: Tick, device: str = "cpu", runtime: str = "torch"
) -> list[Answer]:
    """Answer with `Predictor` in this process."""
    model = Predictor(folder, device=device, runtime=runtime)
    answers = []
    for data in files.values():
        try:
            (output,) = model.outputs(model.read(data)[None])
            (answer,) = model.answers([output], 1)
            answers.append(Answer(output.logits.tolist(), "", answer.set, answer.abstain, answer.in_domain))
        except BadImage as error:
            answers.append(Answer(None, error.reason))
        tick()
    return answers


def server(folder: Path, files: Mapping[str, bytes], tick: Tick) -> list[Answer]:
    """Answer over HTTP with `python -m dogbreed.serve` as a process of its own.

    Raises:
        DogbreedError: It did not start, or its response is none.
    """
    port = _free_port()
    command = ["-m", "dogbreed.serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with _process(*command) as (process, log):
        _wait_until_healthy(process, log, port)
        answers = []
        for name, data in files.items():
            answers.append(_post(port, name, data))
            tick()
    return answers


def handler(folder: Path, files: Mapping[str, bytes], tick: Tick) -> list[Answer]:
    """Answer with the handlers of a packed archive, in a process that takes our code from the archive alone.

    Raises:
        DogbreedError: They could not be loaded, or failed.
    """
    with tempfile.TemporaryDirectory(prefix="dogbreed-certify-") as temporary:
        root = Path(temporary)
        with archive.assemble(folder) as packed:
            packed.write(root / "model.tar.gz")
        archive.unpack(root / "model.tar.gz", root / "model")
        (root / "model.tar.gz").unlink()
        requests = root / "requests"
        requests.mkdir()
        for number, data in enumerate(files.values()):
            (requests / f"{number:06d}").write_bytes(data)
        # -I: neither the current folder nor PYTHONPATH lead to another copy of the package.
        with _process("-I", "-c", _CALLER, str(root / "model"), str(requests), BYTES, WITH_LOGITS) as (process, log):
            assert process.stdout is not None
            answers = []
            for line in process.stdout:
                answers.append(_answer(json.loads(line)))
                tick()
            if process.wait() or len(answers) != len(files):
                raise DogbreedError(f"The packed handlers failed: {_last_line(log)}")
    return answers


_CALLER = f"""
import json, sys
from pathlib import Path
model_dir, requests, content_type, accept = sys.argv[1:]
sys.path.insert(0, str(Path(model_dir) / "{CODE}"))
import dogbreed, inference
for module in (dogbreed, inference):
    assert Path(module.__file__).is_relative_to(Path(model_dir)), f"{{module.__name__}} comes from {{module.__file__}}"
model = inference.model_fn(model_dir)
for request in sorted(Path(requests).iterdir()):
    try:
        content = inference.input_fn(request.read_bytes(), content_type)
        body, _ = inference.output_fn(inference.predict_fn(content, model), accept)
    except inference.RequestError as error:
        body = json.dumps({{"error": str(error)}})
    print(body, flush=True)
"""


def _answer(content: Mapping[str, Any]) -> Answer:
    if "error" in content:
        return Answer(None, str(content["error"]))
    return Answer(content["logits"], "", content.get("set"), content.get("abstain"), content.get("in_domain"))


def _post(port: int, name: str, data: bytes) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("POST", "/invocations", data, {"Content-Type": BYTES, "Accept": WITH_LOGITS})
        response = connection.getresponse()
        content = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DogbreedError(f"The server gave no answer for {name}: {error!r}.") from error
    finally:
        connection.close()
    if response.status not in (200, 400):
        raise DogbreedError(f"The server answered {response.status} for {name}: {content}.")
    return _answer(content)


def _wait_until_healthy(process: subprocess.Popen[str], log: Path, port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    error = _last_line(log).removeprefix("error: ")
    raise DogbreedError(f"The server did not start: {error or f'not healthy within {START_SECONDS} s'}")


@contextmanager
def _process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Run this environment's Python without a GPU; give it with the file of its standard error, and stop it."""
    with tempfile.NamedTemporaryFile(prefix="dogbreed-certify-", suffix=".log") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *arguments],
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        try:
            yield process, Path(log.name)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""
