"""A deployment rehearsed for real: SageMaker's toolkit on TorchServe, asked over HTTP, with a model of real dogs."""

import base64
import json
import os
import shutil
import subprocess
import sys
import zipfile
from hashlib import sha256
from http.client import HTTPConnection
from importlib.metadata import distribution
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from support import runs
from support.exports import export_tiny
from support.places import ROOT, SHARED_DATA

from dogbreed import certify
from dogbreed.core.errors import DogbreedError
from dogbreed.data.edge_cases import drawn
from dogbreed.inference import archive
from dogbreed.inference.predictor import Predictor
from dogbreed.serving.client import Endpoint

pytest.importorskip("boto3")
pytest.importorskip("moto")

from launch import sagemaker_deploy
from launch.aws import wheels
from launch.rehearsal import environment, serving_container
from launch.rehearsal.staging import link_subset
from launch.serving import wheels as serving_wheels
from launch.serving.request import LARGE

pytestmark = pytest.mark.slow

WEIGHTS = SHARED_DATA / "weights" / "mobilenet_v2_imagenet_int8.pth"
PHOTOS = SHARED_DATA / "photos"
AFFENPINSCHER = PHOTOS / "Affenpinscher" / "Affenpinscher_00003.jpg"


@pytest.fixture(scope="module")
def java() -> None:
    try:
        serving_container.check_java()
    except DogbreedError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def run(dogs120, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run over three photographs of each of 120 breeds; mirrored views would double its time."""
    if not WEIGHTS.is_file() or not PHOTOS.is_dir():
        pytest.skip("the weights and the photographs are not at hand")
    folder = tmp_path_factory.mktemp("dogs120")
    settings = ("model.backbone=mobilenet_v2", f"model.weights={WEIGHTS}", "model.lr=0.001", "trainer.max_epochs=8")
    link_subset(dogs120, folder / "dogs", 3)
    where = (
        f"data.root={folder / 'dogs'}",
        "test=false",
        f"output_dir={folder / 'run'}",
        f"cache.dir={folder / 'cache'}",
    )
    data = ("data.batch_size=64", "data.augment=none", "data.num_workers=0", "trainer.accelerator=cpu", "loggers=null")
    ran = runs.run(*settings, *where, *data)
    assert ran.code == 0, ran.err
    shutil.rmtree(folder / "cache")
    return folder / "run"


def left_running() -> list[str]:
    """Command lines of processes that belong to a container of ours."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "dogbreed-container-" in line:
            found.append(line)
    return found


def test_certificate_of_real_photographs(run, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert certify.main([str(run), str(PHOTOS)]) == 0
    said = capsys.readouterr().out
    assert "61 photographs and 12 generated files, of which 1 cannot be read" in said
    assert "Certified: no logit differs by more than" in said
    content = json.loads((run / "model" / "certificate.json").read_text())
    assert content["passed"]
    assert content["largest_difference"] < 1e-4
    assert set(content["ways"]) == {"training", "predictor", "server", "handler"}
    (seed,) = [answer for answer in content["answers"] if answer["file"] == str(AFFENPINSCHER)]
    assert (seed["label"], seed["index"]) == ("Affenpinscher", 0)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six photographs of dogs, and 20 pictures without: waves, and noise."""
    folder, random = tmp_path_factory.mktemp("mixed"), np.random.default_rng(0)
    for photo in [AFFENPINSCHER, *sorted(PHOTOS.rglob("*.jpg"))[1::12]]:
        shutil.copy(photo, folder)
    for number in range(20):
        waves = np.sin(np.arange(64)[:, None, None] / (number + 1) + np.arange(3)) * np.ones((1, 64, 1))
        levels = 255 * random.random((8, 8, 3)) if number % 2 else 127.5 * (1 + waves)
        Image.fromarray(levels.astype(np.uint8)).resize((120, 100)).save(folder / f"no_dog_{number:02d}.png")
    return folder


def test_rehearsal(java, run, mixed, capfd):
    """The container answers `set`, `abstain` and `in_domain` as certified, for photographs and for what is no dog."""
    assert sagemaker_deploy.main([str(run), "mode=rehearse", f"photo={mixed}"]) == 0
    entries = json.loads((run / "model" / "certificate.json").read_text())["answers"]
    fields = ("set", "abstain", "in_domain", "margin")
    assert all(field in entry for entry in entries if "label" in entry for field in fields)
    assert {entry["in_domain"] for entry in entries if "label" in entry} == {True, False}
    assert sum(entry.get("margin", 0) > 1e-3 for entry in entries) > len(entries) / 2, "most are compared"
    said = capfd.readouterr().out
    assert f"It answers {len(entries)} files as certified" in said
    assert f"{mixed / AFFENPINSCHER.name} is Affenpinscher, index 0" in said
    assert "as certified" in said
    assert said.endswith("Rehearsed and cleaned up.\n")
    assert left_running() == []


def test_the_container_answers_as_the_contract_says(java, run, tmp_path):
    with archive.assemble(run) as packed:
        packed.write(tmp_path / "model.tar.gz")
    photo = AFFENPINSCHER.read_bytes()
    with serving_container.running(tmp_path / "model.tar.gz", variables=LARGE) as address:
        assert left_running() != []
        reply = Endpoint(address).predict(photo, top_k=3)
        assert (reply.predictions[0].label, reply.predictions[0].index, len(reply.predictions)) == (
            "Affenpinscher",
            0,
            3,
        )

        def post(body: bytes, kind: str, accept: str = "*/*") -> tuple[int, str | None, str]:
            connection = HTTPConnection(urlsplit(address).netloc, timeout=60)
            connection.request("POST", "/invocations", body, {"Content-Type": kind, "Accept": accept})
            response = connection.getresponse()
            return response.status, response.getheader("Content-Type"), response.read().decode()

        status, kind, body = post(photo, "image/jpeg", "text/csv; top_k=1")
        assert (status, kind) == (200, "text/csv")
        assert body.startswith("Affenpinscher,0,")
        request = json.dumps({"images": [base64.b64encode(photo).decode()], "top_k": 1}).encode()
        status, _, body = post(request, "application/json")
        assert json.loads(body)["results"][0]["predictions"][0]["label"] == "Affenpinscher"
        for data, sent, wanted in (
            (b"x", "image/jpeg", 400),
            (b"x" * 7_000_000, "image/jpeg", 400),  # more than TorchServe takes unless told
            (b"x", "text/plain", 415),
            (b"{}", "application/json", 400),
        ):
            status, kind, body = post(data, sent)
            assert (status, kind) == (wanted, "application/json"), body
            assert json.loads(body).keys() == {"error"}, "one sentence, no traceback"
    assert left_running() == []


def test_a_model_that_cannot_be_loaded_is_one_sentence(java, tmp_path):
    with archive.assemble(export_tiny(tmp_path / "model")) as packed:
        files = {name: file for name, file in packed.files.items() if not name.endswith("/schema.py")}
        archive.Archive(files, packed.texts).write(tmp_path / "model.tar.gz")
    sentence = "The model cannot be loaded in the container: ImportError: cannot import name 'schema'"
    with pytest.raises(DogbreedError, match=sentence), serving_container.running(tmp_path / "model.tar.gz"):
        pass
    assert left_running() == []


def test_a_server_of_ones_own_that_does_not_start_is_one_sentence(tmp_path):
    with archive.assemble(export_tiny(tmp_path / "model")) as packed:
        (tmp_path / "model" / "model.safetensors").write_bytes(b"x")
        packed.write(tmp_path / "model.tar.gz")
    with (
        pytest.raises(DogbreedError, match=r"The server did not start: error: .*model\.safetensors"),
        serving_container.running_own(tmp_path / "model.tar.gz"),
    ):
        pass
    assert left_running() == []


ALONE = """
import fcntl, socket, struct, sys
from pathlib import Path
lo = socket.socket()
fcntl.ioctl(lo, 0x8914, struct.pack("16sh14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP: a new namespace has it down
assert [name for _, name in socket.if_nameindex()] == ["lo"]
from dogbreed.data.edge_cases import drawn
from dogbreed.serving.client import Endpoint
from launch.aws import wheels
from launch.rehearsal import environment, serving_container
with serving_container.running(Path(sys.argv[1])) as address:
    print("label:", Endpoint(address).predict(drawn()).label)
"""


def as_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> wheels.Wheel:
    """A wheel of these files, for any Python."""
    info = f"{name}-{version}.dist-info"
    metadata = {
        "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        "WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as packed:
        for path, content in {**files, **{f"{info}/{each}": text.encode() for each, text in metadata.items()}}.items():
            packed.writestr(path, content)
    return wheels.Wheel(f"{name}=={version}", file.name, sha256(file.read_bytes()).hexdigest(), file.stat().st_size)


def test_an_archive_with_its_wheels_starts_without_network(java, tmp_path, monkeypatch):
    """As with sagemaker.isolate=true: no interface but loopback, and what is lacking is installed from the archive."""
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode:
        pytest.skip("a network of its own may not be made here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = distribution("safetensors")
    own = {
        str(file): Path(str(package.locate_file(file))).read_bytes()
        for file in package.files or ()
        if file.parts[0] == "safetensors" and "__pycache__" not in file.parts
    }
    folder, toy = wheels.cached(serving_wheels.WHEELS[0]).parent, f"dogbreed_toy_{os.getpid()}"
    own_wheel = as_wheel(folder, "safetensors", package.version, own)
    monkeypatch.setattr(serving_wheels, "WHEELS", (as_wheel(folder, toy, "1.0", {f"{toy}.py": b""}), own_wheel))
    with archive.assemble(export_tiny(tmp_path / "model")) as packed:
        serving_wheels.carried(packed, "py312").write(tmp_path / "model.tar.gz")
    (expected,) = Predictor(tmp_path / "model").predict([drawn()])
    with environment.ready("serving", serving_container.PACKAGES) as python:
        try:
            command = ["unshare", "-rn", sys.executable, "-c", ALONE, tmp_path / "model.tar.gz"]
            variables = {**runs.environment(), "PYTHONPATH": str(ROOT)}
            done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
            assert done.stdout == f"label: {expected.label}\n"
            assert python.version(toy) == "1.0", "the toolkit has installed it"
        finally:
            subprocess.run([python.python, "-m", "pip", "uninstall", "--yes", "--quiet", toy], capture_output=True)
    assert left_running() == []
