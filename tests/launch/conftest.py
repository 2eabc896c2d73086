"""An account on loopback, and no other."""

from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import botocore.session
import pytest
from support.cloud import Cloud

from launch import sagemaker_train, sagemaker_tune, sagemaker_upload
from launch.jobs import follow


class Said(NamedTuple):
    """A command that has ended."""

    code: int
    out: str
    err: str


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No account, no region, no proxy, a folder of its own."""
    here = tmp_path_factory.mktemp("here")
    for name in (
        *("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        *("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"),
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(here / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(here / "no-credentials"))
    monkeypatch.chdir(here)


@pytest.fixture(scope="session", autouse=True)
def one_loader() -> Iterator[None]:
    """Every command has a session of its own; what describes AWS's services, several MB, is read once for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", cache(botocore.session.create_loader))
        yield


@pytest.fixture(scope="session")
def amazon() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.close()


@pytest.fixture
def cloud(amazon: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """An empty account with credentials for it; jobs there end at once."""
    amazon.reset()
    monkeypatch.setenv("AWS_ENDPOINT_URL", amazon.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.01)
    return amazon


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`run("train", "mode=plan", ...)` runs a command of launch/ in this process."""

    def command(kind: str, *words: str) -> Said:
        capsys.readouterr()
        scripts = {"upload": sagemaker_upload, "train": sagemaker_train, "tune": sagemaker_tune}
        code = scripts[kind].main(list(words))
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return command
