"""A training job without network: the wheels it installs, in the request, in S3, and with pip that has no index."""

import hashlib
import subprocess
import sys
import zipfile

import boto3
import pytest
import yaml
from packaging.specifiers import SpecifierSet
from support.cloud import SMALL

from dogbreed.config.compose import compose
from dogbreed.core.errors import DogbreedError
from launch.aws import wheels
from launch.jobs import packages
from launch.jobs.source import PINS, requirements

ISOLATED = ("sagemaker.isolate=true", "model.weights=none", "data=sample")
LACKS = {
    *("absl-py", "grpcio", "hydra-core", "lightning", "lightning-utilities", "markdown", "pytorch-lightning"),
    *("safetensors", "tensorboard", "tensorboard-data-server", "torchmetrics"),
}


def test_they_are_those_that_the_image_lacks():
    assert {wheel.requirement.partition("==")[0] for wheel in packages.WHEELS} == LACKS
    versions = dict(wheel.requirement.split("==") for wheel in packages.WHEELS)
    for line in requirements(compose(())).splitlines():
        name = next((name for name in PINS if line.startswith(name)), "")
        if name in versions:
            assert versions[name] in SpecifierSet(line.removeprefix(name))


@pytest.mark.slow
def test_a_plan_needs_none_of_them_here(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    said = run("train", "mode=plan", *ISOLATED)
    planned = yaml.safe_load(said.out)
    (channel,) = [each for each in planned["InputDataConfig"] if each["ChannelName"] == "packages"]
    address = channel["DataSource"]["S3DataSource"]["S3Uri"]
    assert address.endswith(f"/dogbreed/packages/{packages.digest(packages.WHEELS)}/")
    assert planned["Environment"]["PIP_FIND_LINKS"] == "/opt/ml/input/data/packages"
    assert (planned["Environment"]["PIP_NO_INDEX"], planned["EnableNetworkIsolation"]) == ("1", True)
    for wheel in packages.WHEELS:
        assert f"{wheel.size:,}  {wheels.cached(wheel)} -> {address}{wheel.file}" in said.out
    assert not (tmp_path / "cache").exists()
    for words in (ISOLATED[1:], [*ISOLATED, "sagemaker.image=mine"], [*ISOLATED, "sagemaker.packages=s3://a/b"]):
        assert not packages.carried(compose(words)), "a network, or packages of one's own"


@pytest.fixture
def toy(tmp_path, monkeypatch) -> wheels.Wheel:
    """A wheel in a registry of its own, in place of the real ones."""
    file = tmp_path / "registry" / "toy-1.0-py3-none-any.whl"
    file.parent.mkdir()
    with zipfile.ZipFile(file, "w") as packed:
        packed.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        packed.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr("toy-1.0.dist-info/RECORD", "")
    made = wheels.Wheel("toy==1.0", file.name, hashlib.sha256(file.read_bytes()).hexdigest(), file.stat().st_size)
    monkeypatch.setattr(packages, "WHEELS", (made,))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(file.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return made


@pytest.mark.slow
def test_they_are_fetched_and_sent_before_the_job(cloud, run, toy, monkeypatch):
    words = (*ISOLATED, "sagemaker.role=R", *SMALL)
    monkeypatch.setattr(packages, "WHEELS", (toy._replace(sha256="0" * 64),))
    refused = run("train", *words)
    assert "toy==1.0 could not be fetched for the job: another file than the one that is pinned came" in refused.err
    assert cloud.sent("CreateTrainingJob") == []
    monkeypatch.setattr(packages, "WHEELS", (toy,))
    done = run("train", *words)
    assert done.code == 0, done.err
    (request,) = cloud.sent("CreateTrainingJob")
    channels = {each["ChannelName"]: each["DataSource"]["S3DataSource"]["S3Uri"] for each in request["InputDataConfig"]}
    bucket, _, key = f"{channels['packages']}{toy.file}".removeprefix("s3://").partition("/")
    assert boto3.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read() == wheels.cached(toy).read_bytes()


@pytest.mark.slow
def test_with_no_index_pip_installs_all_of_them(tmp_path):
    """The real ones, by their hashes; what they need besides is in the image, so nothing else is looked for."""
    try:
        wheels.fetch(packages.WHEELS, "job")
    except DogbreedError as error:
        pytest.skip(f"wheels of the registry are not at hand: {error}")
    links = tmp_path / "channel"
    links.mkdir()
    for wheel in packages.WHEELS:
        (links / wheel.file).symlink_to(wheels.cached(wheel))
    target = tmp_path / "target"
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links), "PIP_CONFIG_FILE": "/dev/null", "HOME": str(tmp_path)}
    lines = [line for line in requirements(compose(())).splitlines() if any(line.startswith(name) for name in LACKS)]
    kind = ["--python-version", wheels.PYTHON, "--implementation", "cp", "--only-binary=:all:", "--no-deps"]
    kind += [word for name in wheels.PLATFORMS for word in ("--platform", name)]
    pins = [wheel.requirement for wheel in packages.WHEELS]
    for words in (lines, pins):
        command = [sys.executable, "-m", "pip", "install", "--quiet", *kind, "--target", str(target), *words]
        done = subprocess.run(command, capture_output=True, text=True, env=offline, check=False)
        assert done.returncode == 0, done.stderr
    installed = {folder.name.partition("-")[0].replace("_", "-").lower() for folder in target.glob("*.dist-info")}
    assert installed == LACKS
