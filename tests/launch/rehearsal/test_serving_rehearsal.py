"""A deployment rehearsed for real: SageMaker's toolkit on TorchServe, asked over HTTP, with a model of real dogs."""

import base64
import json
import shutil
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support import runs
from support.exports import export_tiny
from support.places import SHARED_DATA

from dogbreed import certify
from dogbreed.core.errors import DogbreedError
from dogbreed.inference import archive
from dogbreed.serving.client import Endpoint

pytest.importorskip("boto3")
pytest.importorskip("moto")

from launch import sagemaker_deploy
from launch.rehearsal import serving_container
from launch.rehearsal.staging import link_subset
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


def test_rehearsal(java, run, capfd):
    """Uses the certificate of the test before, or has one made."""
    assert sagemaker_deploy.main([str(run), "mode=rehearse", f"photo={AFFENPINSCHER}"]) == 0
    said = capfd.readouterr().out
    assert f"{AFFENPINSCHER} is Affenpinscher, index 0" in said
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
