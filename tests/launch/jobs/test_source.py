"""The archive: equal content, equal name; nothing but source; small; and whole enough to run from."""

import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from launch.jobs import source
from launch.jobs.source import stage

ROOT = Path(__file__).resolve().parents[3]


def members(archive: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        return packed.getmembers()


@pytest.mark.slow
def test_equal_content_gives_an_equal_archive(monkeypatch):
    config = compose(())
    first, second = stage(config), stage(compose(["model.lr=0.5", "data.root=/elsewhere", "sagemaker.spot=true"]))
    assert first.archive == second.archive
    assert first.name == second.name
    assert re.fullmatch(r"dogbreed-[0-9a-f]{12}\.tar\.gz", first.name)
    searching = stage(config, search=True)
    assert searching.name != first.name
    monkeypatch.setitem(source.PINS, "lightning", "~=2.5.0")
    assert stage(config).name != first.name


@pytest.mark.slow
def test_times_and_owners_do_not_matter(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    files = subprocess.run(
        ["git", "ls-files", "dogbreed", "conf", "launch/jobs/entry.py", "pyproject.toml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    for name in files:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    here = stage(compose(()))
    monkeypatch.setattr(source, "ROOT", copy)
    monkeypatch.setattr(source, "conf_dir", lambda: copy / "conf")
    (copy / "dogbreed" / "__pycache__").mkdir(exist_ok=True)
    for stray in ("dogbreed/.hidden.py", "dogbreed/notes.txt", "dogbreed/__pycache__/x.py", "conf/big.zip", "x.py"):
        (copy / stray).write_bytes(b"stray")
    there = stage(compose(()))
    assert there.archive == here.archive
    (copy / "dogbreed" / "core" / "errors.py").write_text("changed = 1\n")
    assert stage(compose(())).name != here.name


def test_nothing_but_the_named_files():
    source = stage(compose(()))
    names = [member.name for member in members(source.archive)]
    assert names == sorted(names) == list(source.files)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "dogbreed", "conf"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert set(names) - set(tracked) == {"entry.py", "requirements.txt"}
    assert {name for name in tracked if name.endswith((".py", ".yaml"))} <= set(names)
    assert "setup.py" not in names, "the toolkit would install it instead of running the entry point"
    for member in members(source.archive):
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
    assert len(source.archive) < 1_000_000


def test_an_archive_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(source, "MAX_BYTES", 10_000)
    with pytest.raises(DogbreedError, match="more than 10,000; the largest file in it is"):
        stage(compose(()))


def test_requirements_are_pyprojects_without_what_the_image_has():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {Requirement(text).name.lower(): Requirement(text) for text in project["dependencies"]}
    lines = [Requirement(line) for line in source.requirements(compose(())).splitlines()]
    assert {line.name.lower() for line in lines} == wanted.keys() - {"torch", "torchvision"}
    for line in lines:
        floor = next(Version(part.version) for part in wanted[line.name.lower()].specifier if part.operator == ">=")
        lowest = [Version(part.version) for part in line.specifier if part.operator in (">=", "~=")]
        assert max(lowest) >= floor, line
    exact = {line.name for line in lines if any(part.operator == "~=" for part in line.specifier)}
    assert {"lightning", "hydra-core", "torchmetrics"} <= exact


@pytest.mark.slow
def test_smdebug_replaces_nothing_of_the_image():
    """It wants protobuf 3.20 and the image has 6, which TensorBoard needs: none is installed, beside it or apart."""
    staged = stage(compose(["sagemaker.debugger.enabled=true"]))
    beside = [Requirement(line).name for line in staged.files["requirements.txt"].decode().splitlines()]
    assert not {"smdebug", "protobuf", "setuptools"} & set(beside)
    assert {"pandas", "psutil", "requests"} <= set(beside), (
        "what smdebug imports and does not declare; the image has it"
    )
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["debugger"]
    apart = staged.files["apart.txt"].decode().splitlines()
    assert extra[0] in apart, "the version that the tests ran with"
    assert not {"protobuf", "numpy", "boto3"} & {Requirement(line).name for line in apart}
    assert "apart.txt" not in stage(compose(())).files


@pytest.mark.slow
def test_what_is_apart_goes_before_the_image_and_into_no_folder_of_it(tmp_path):
    (tmp_path / "entry.py").write_bytes((ROOT / "launch" / "jobs" / "entry.py").read_bytes())
    (tmp_path / "apart.txt").write_text("safetensors==99.0\n")
    with zipfile.ZipFile(tmp_path / "safetensors-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("safetensors/__init__.py", "")
        wheel.writestr(
            "safetensors-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: safetensors\nVersion: 99.0\n"
        )
        wheel.writestr(
            "safetensors-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr("safetensors-99.0.dist-info/RECORD", "")
    code = "import entry; entry.install_apart(); import safetensors; print(safetensors.__file__)"
    own = {"PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))), "TMPDIR": str(tmp_path)}
    own |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **own}, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).is_relative_to(tmp_path)
    assert version("safetensors") != "99.0", "this environment is as it was"


@pytest.mark.slow
def test_the_archive_runs_where_there_is_no_checkout(tmp_path):
    """Unpacked, the entry point imports the package beside it and finds its configuration."""
    with tarfile.open(fileobj=io.BytesIO(stage(compose(())).archive)) as packed:
        packed.extractall(tmp_path, filter="data")
    code = (
        "import dogbreed, entry; from dogbreed.config.compose import conf_dir, compose; print(dogbreed.__file__); "
        "print(entry.__file__); print(conf_dir()); compose(['experiment=published'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [Path(line).is_relative_to(tmp_path) for line in done.stdout.split()] == [True] * 3
