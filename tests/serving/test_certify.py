"""`python -m dogbreed.certify` over real servers and handlers: what passes, and that a tampered way does not."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.exports import NAMES, export_tiny

import dogbreed
from dogbreed import certify as command
from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, model_folder
from dogbreed.serving import certify, parity

ROOT = Path(dogbreed.__file__).parents[1]
PHOTOS = ROOT.parent / "shared" / "data" / "photos"


def environment(root: Path = ROOT) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}


@pytest.mark.slow
def test_vgg16(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    network = backbones.create("vgg16", 133, weights="none", seed=1)
    names = [f"breed {number}" for number in range(133)]
    model = model_folder.save(tmp_path / "model", model_folder.Exported(network, "vgg16", names, Preprocessing()))
    del network
    photos = [str(PHOTOS / "Beagle")] if PHOTOS.is_dir() else []
    content = certify.certify(model, photos)
    assert content["passed"], content["fault"]
    assert list(content["ways"]) == ["training", "predictor", "server", "handler"]
    assert 0 <= content["largest_difference"] < 1e-4
    assert (content["generated"], content["refused"]) == (12, 1)
    assert content == json.loads((model / "certificate.json").read_text())


@pytest.mark.slow
def test_a_tampered_way_is_refused_and_not_deployed(tmp_path):
    """In a copy of the checkout, the handlers look at photographs another way: upside down."""
    copy = tmp_path / "checkout"
    for name in ("dogbreed", "conf", "launch"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    handlers = copy / "dogbreed" / "inference" / "handler.py"
    text = handlers.read_text()
    own = "    return Predictor(model_dir)\n"
    assert own in text
    tampered = "    predictor = Predictor(model_dir)\n    read = predictor.read\n"
    tampered += "    predictor.read = lambda source: read(source).flip(1)\n    return predictor\n"
    handlers.write_text(text.replace(own, tampered))
    model = export_tiny(tmp_path / "model", NAMES)
    command = [sys.executable, "launch/sagemaker_deploy.py", str(model), "mode=rehearse"]
    done = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: No certificate: the logits of odd/")
    assert "between training and handler" in done.stderr
    assert "This model must not be deployed with this version" in done.stderr
    content = json.loads((model / "certificate.json").read_text())
    assert not content["passed"]
    assert content["ways"]["handler"]["largest_difference"] > 1e-4
    assert content["ways"]["server"]["largest_difference"] < 1e-4


@pytest.mark.slow
def test_other_preprocessing_is_refused(tmp_path, capsys):
    """Without processes: another normalisation in one way, and a way that answers what the others refuse."""
    model = export_tiny(tmp_path / "model")
    manifest = json.loads((model / "model.json").read_text())
    manifest["preprocessing"]["mean"] = [0.5, 0.5, 0.5]
    other = shutil.copytree(model, tmp_path / "other")
    (other / "model.json").write_text(json.dumps(manifest))
    skipped = {"server": parity.predictor, "handler": parity.predictor}

    content = certify.certify(model, others=skipped)
    assert content["passed"]
    assert content["model"]["model.safetensors"] == _sha256(model / "model.safetensors")
    assert content["model"]["model.json"] == _sha256(model / "model.json")
    entry = next(answer for answer in content["answers"] if answer["file"] == "odd/truncated.jpg")
    assert entry["refused"] == "truncated"

    def elsewhere(folder, files, tick):
        return parity.predictor(other, files, tick)

    content = certify.certify(model, others={**skipped, "server": elsewhere}, output=tmp_path / "c.json")
    assert not content["passed"]
    assert content["fault"].endswith("between training and server")
    assert json.loads((tmp_path / "c.json").read_text())["fault"] == content["fault"]

    def lenient(folder, files, tick):
        whole = {name: data if "truncated" not in name else files["odd/grey.jpg"] for name, data in files.items()}
        return parity.predictor(folder, whole, tick)

    content = certify.certify(model, others={**skipped, "handler": lenient})
    assert content["fault"] == "training refuses odd/truncated.jpg (truncated) and handler answers it"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "error: nowhere does not exist; give an exported model"),
        (["MODEL", "no.jpg"], "error: no.jpg does not exist; give photographs"),
        (["MODEL", "-"], "error: A certificate is not made from standard input; give photographs"),
    ],
)
def test_bad_use(arguments, sentence, tmp_path, capsys):
    model = export_tiny(tmp_path / "model")
    assert command.main([word.replace("MODEL", str(model)) for word in arguments]) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not (model / "certificate.json").exists()


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_gpu_is_one_path_more(monkeypatch) -> None:
    on_cpu = ["training", "predictor", "server", "handler"]
    for available, names in ((False, on_cpu), (True, [*on_cpu, "gpu"])):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert list(certify.inference_paths()) == names
