"""The image of launch/Dockerfile, without Docker: its steps run here, and its server answers as the handlers do."""

import base64
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from http.client import HTTPConnection
from importlib.metadata import distribution, distributions
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from packaging.requirements import Requirement
from support.exports import export_tiny
from support.places import ROOT

from dogbreed.data.edge_cases import drawn, edge_case_files
from dogbreed.inference import archive, handler
from dogbreed.inference.predictor import Predictor
from dogbreed.serving.client import Endpoint

DOCKERFILE, SCRIPT = ROOT / "launch" / "Dockerfile", ROOT / "launch" / "container.sh"
LOCK = (ROOT / "launch" / "container.lock").read_text(encoding="utf-8")
SCRIPTS = Path(sysconfig.get_path("scripts"))
linux = pytest.mark.skipif(sys.platform != "linux", reason="the image is of Linux")


def pins() -> dict[str, str]:
    """Versions by name: of the lock, and of torch, which the script installs."""
    torch = re.search(r'^TORCH_PACKAGES="(.*)"$', SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert torch
    return dict(re.findall(r"^([a-z\d-]+)==([\w.]+)", "\n".join([LOCK, *torch[1].split()]), re.MULTILINE))


def environment(scripts: Path, **more: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return clean | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"} | more


def step(*words: str | Path, scripts: Path, folder: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(SCRIPT), *map(str, words)]
    return subprocess.run(
        command, cwd=folder, env=environment(scripts, **more), capture_output=True, text=True, timeout=300
    )


def lend(environment: Path) -> None:
    """What the lock names, from the environment of the tests, and nothing else of it: no Lightning, no Hydra."""
    (packages,) = environment.glob("lib/python*/site-packages")
    drivers = [d.name for d in distributions() if d.name.startswith(("nvidia", "triton", "cuda"))]  # of torch
    for name in {*pins(), *drivers}:
        for top in {file.parts[0] for file in distribution(name).files or ()} - {"..", "__pycache__"}:
            source = Path(str(distribution(name).locate_file(top)))
            if source.exists() and not (packages / top).exists():
                (packages / top).symlink_to(source)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environment as the first stage makes it, from what Docker is sent and copies."""
    folder = tmp_path_factory.mktemp("image")
    context, source, packages = folder / "context", folder / "src", folder / "opt"
    for line in (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines():
        if line.startswith("!"):
            _copy(ROOT / line[1:], context / line[1:])
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE.read_text().partition("\nFROM")[2], re.MULTILINE):
        *names, target = line.split()
        for name in names:
            _copy(context / name, source / (target + Path(name).name if target.endswith("/") else target))
    venv.create(packages, with_pip=False, symlinks=True)
    lend(packages)
    done = step("package", packages, scripts=SCRIPTS, folder=source, PIP_NO_BUILD_ISOLATION="0")
    assert done.returncode == 0, done.stdout + done.stderr
    return packages


def _copy(source: Path, target: Path) -> None:
    target = target / source.name if target.name in (".", "") else target
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    else:
        shutil.copy(source, target)


@pytest.fixture(scope="module")
def server(image, model, tmp_path_factory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """What `docker run IMAGE serve` starts, with the archive unpacked as SageMaker does it; and its address."""
    base = tmp_path_factory.mktemp("ml")
    with archive.assemble(model) as packed:
        archive.unpack(packed.write(base / "model.tar.gz"), base / "model")
    command = ["sh", str(SCRIPT), "serve", "--host", "127.0.0.1", "--port", "0", "--device", "cpu"]
    variables = environment(image / "bin", SAGEMAKER_BASE_DIR=str(base))
    with subprocess.Popen(
        command, cwd=base, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if address := re.search(r"(http://127\.0\.0\.1:\d+)/invocations", line):
                    break
            else:
                raise AssertionError("".join(lines))
            yield process, address[1]
        finally:
            process.kill()


class Context:
    """Takes the status, as SageMaker's toolkit does."""

    status = 200

    def set_response_status(self, code: int, phrase: str) -> None:
        self.status = code


def by_handlers(predictor: Predictor, body: bytes, kind: str, accept: str) -> tuple[int, str, Any]:
    """What SageMaker's own image makes of a request: status, content type, and content."""
    context = Context()
    outcome = handler.predict_fn(handler.input_fn(body, kind, context), predictor)
    text, media_type = handler.output_fn(outcome, accept, context)
    return context.status, media_type, content(text, media_type)


def by_server(address: str, body: bytes, kind: str, accept: str) -> tuple[int, str, Any]:
    connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
    connection.request("POST", "/invocations", body, {"Content-Type": kind, "Accept": accept})
    response = connection.getresponse()
    media_type = str(response.getheader("Content-Type")).partition(";")[0]
    return response.status, media_type, content(response.read().decode(), media_type)


def content(text: str, media_type: str) -> Any:
    """Probabilities without their last digits, in which other batches differ."""
    if media_type == "application/json":
        return json.loads(text, parse_float=lambda number: round(float(number), 5))
    return re.sub(r"\d+\.\d+(e-\d+)?", lambda number: f"{float(number[0]):.5f}", text)


@linux
@pytest.mark.slow
def test_the_server_of_the_image_answers_as_the_model_and_as_the_handlers(server, image, model):
    process, address = server
    predictor, photo = Predictor(model, device="cpu"), drawn()
    (expected,) = predictor.predict([photo])
    answer = Endpoint(address).predict(photo)
    assert (answer.label, answer.predictions[0].index) == (expected.label, expected.index)
    assert answer.predictions[0].probability == pytest.approx(expected.probability, abs=1e-6)

    encoded = base64.b64encode(photo).decode()
    damaged = edge_case_files(photo)["truncated.jpg"]
    both = json.dumps({"images": [encoded, base64.b64encode(damaged).decode()]}).encode()
    for body, kind, accept, status in (
        (photo, "image/jpeg", "application/json", 200),
        (photo, "application/x-image", "text/csv; top_k=1", 200),
        (json.dumps({"image": encoded, "top_k": 2}).encode(), "application/json", "*/*", 200),
        (both, "application/json", "*/*", 200),
        (damaged, "image/jpeg", "*/*", 400),
        (b"x" * 21_000_000, "image/jpeg", "*/*", 400),  # a batch sends 20 MiB
        (b"{}", "application/json", "*/*", 400),
        (b"x", "text/plain", "*/*", 415),
        (photo, "image/jpeg", "image/png", 406),
    ):
        served = by_server(address, body, kind, accept)
        assert served == by_handlers(predictor, body, kind, accept)
        assert served[0] == status

    port = address.rpartition(":")[2]
    assert step("check", port, scripts=image / "bin").returncode == 0
    process.send_signal(signal.SIGTERM)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, "the shell gave way to the server"
    assert "Stopped. All requests were answered." in rest
    assert step("check", port, scripts=image / "bin").returncode == 1


@linux
def test_a_model_that_is_not_there_is_one_sentence(tmp_path):
    (tmp_path / "model").mkdir()
    done = step("serve", scripts=Path(sys.executable).parent, SAGEMAKER_BASE_DIR=str(tmp_path), PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert re.fullmatch(r"error: .*model.*\n", done.stderr), done.stderr
    assert step("train", scripts=SCRIPTS).returncode == 2


def test_the_lock_is_of_what_the_server_needs():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {"torch", "torchvision", "numpy", "pillow", "safetensors"}
    requirements = [r for r in map(Requirement, project["dependencies"]) if r.name in needed]
    requirements += map(Requirement, project["optional-dependencies"]["serve"])
    assert len(requirements) == 8
    for requirement in requirements:
        assert requirement.specifier.contains(pins()[requirement.name]), requirement
    packages = re.split(r"\n(?=\S)", LOCK.strip())
    assert not [package for package in packages if package[0] != "#" and "--hash=sha256:" not in package]


def test_the_dockerfile_has_no_lint():
    if sys.platform != "linux" or platform.machine() != "x86_64":
        pytest.skip("hadolint is not made for this machine")
    done = subprocess.run([SCRIPTS / "hadolint", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
