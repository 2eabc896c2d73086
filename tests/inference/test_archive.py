"""The archive that an endpoint is made of: what is in it, that equal content gives equal bytes, what is refused."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from support.exports import export_tiny

import dogbreed
from dogbreed.core.errors import DogbreedError
from dogbreed.inference import archive

ROOT = Path(dogbreed.__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("run") / "model")


def write(source: Path, file: Path) -> bytes:
    with archive.assemble(source) as packed:
        return packed.write(file).read_bytes()


def test_layout(model, tmp_path):
    write(model, tmp_path / "model.tar.gz")
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        names = tar.getnames()
        assert {entry.mtime for entry in tar} == {0}
    assert {"model.safetensors", "model.json", "code/inference.py", "code/requirements.txt"} < set(names)
    package = {name.removeprefix("code/dogbreed/") for name in names if name.startswith("code/dogbreed/")}
    assert {"__init__.py", "inference/predictor.py", "inference/schema.py", "data/images.py"} < package
    files = [file for file in (ROOT / "dogbreed").rglob("*.*") if file.suffix in (".py", ".c")]
    assert package == {file.relative_to(ROOT / "dogbreed").as_posix() for file in files}
    assert len(names) == len(package) + 4, "nothing else"


def test_equal_content_gives_equal_bytes(model, tmp_path):
    first = write(model, tmp_path / "a" / "model.tar.gz")
    for file in model.iterdir():
        os.utime(file, (1, 1))
    assert write(model, tmp_path / "b" / "other.tar.gz") == first
    with archive.assemble(model) as packed:
        digest, code = packed.digest, packed.code_digest
    other = export_tiny(tmp_path / "other", temperature=0.9)
    with archive.assemble(other) as packed:
        assert packed.digest != digest
        assert packed.code_digest == code


@pytest.mark.slow
def test_a_run_an_artefact_and_an_archive_are_taken_too(model, tmp_path):
    expected = write(model, tmp_path / "expected.tar.gz")
    assert write(model.parent, tmp_path / "of_run.tar.gz") == expected
    for name, top in (("flat", ""), ("nested", "model/")):  # as a training job may leave it
        with tarfile.open(tmp_path / f"{name}.tar.gz", "w:gz") as tar:
            for file in model.iterdir():
                tar.add(file, f"{top}{file.name}")
        assert write(tmp_path / f"{name}.tar.gz", tmp_path / "of_job.tar.gz") == expected
    assert write(tmp_path / "expected.tar.gz", tmp_path / "again.tar.gz") == expected, "its code is ours, not the old"


def test_requirements_are_those_of_the_package():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(archive.REQUIREMENTS) < set(wanted)
    assert not [line for line in archive.REQUIREMENTS if line.startswith(("torch", "numpy"))]


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda folder: folder / "nowhere", "does not exist; give an exported model"),
        (lambda folder: folder, "holds no exported model"),
        (lambda folder: _damaged(folder), "is no readable model.tar.gz"),
        (lambda folder: _escaping(folder), "is no readable model.tar.gz"),
    ],
)
def test_bad_sources(make, sentence, tmp_path):
    with pytest.raises(DogbreedError, match=sentence), archive.assemble(make(tmp_path)):
        pass
    assert not (tmp_path.parent / "escaped").exists()


def _damaged(folder: Path) -> Path:
    file = folder / "model.tar.gz"
    file.write_bytes(gzip.compress(os.urandom(5000))[:2000])
    return file


def _escaping(folder: Path) -> Path:
    file = folder / "model.tar.gz"
    with tarfile.open(file, "w:gz") as tar:
        entry = tarfile.TarInfo("../escaped")
        entry.size = 1
        tar.addfile(entry, io.BytesIO(b"x"))
    return file


def test_weights_missing(model, tmp_path):
    (tmp_path / "model.json").write_bytes((model / "model.json").read_bytes())
    with pytest.raises(DogbreedError, match=r"has no model\.safetensors"), archive.assemble(tmp_path):
        pass


@pytest.mark.slow
def test_the_handlers_need_no_more_than_the_image_has(model, tmp_path):
    write(model, tmp_path / "model.tar.gz")
    archive.unpack(tmp_path / "model.tar.gz", tmp_path / "model")
    program = (
        "import json, sys\n"
        "sys.path.insert(0, sys.argv[1] + '/code')\n"
        "before = set(sys.modules)\n"
        "import inference\n"
        "inference.model_fn(sys.argv[1])\n"
        "files = {getattr(sys.modules[name], '__file__', None) or '' for name in set(sys.modules) - before}\n"
        "inside = [file.split('site-packages/')[1] for file in files if 'site-packages/' in file]\n"
        "print(json.dumps(sorted({name.split('/')[0] for name in inside})))\n"
    )
    command = [sys.executable, "-I", "-c", program, str(tmp_path / "model")]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for strange in ("lightning", "hydra", "omegaconf", "rich", "torchmetrics", "matplotlib", "starlette", "uvicorn"):
        assert f'"{strange}' not in said
    assert '"torchvision"' in said
    assert '"safetensors"' in said
