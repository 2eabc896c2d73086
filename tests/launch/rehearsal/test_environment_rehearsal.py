"""Environments for other people's tools: our torch without our packages, made once, whole or not at all."""

import subprocess
import sys
from pathlib import Path

import pytest
from support import runs

from launch.rehearsal import environment
from launch.rehearsal.environment import Environment, EnvironmentFailed, ready


def output(environment: Environment, code: str) -> str:
    """Run a program in the environment; return its output."""
    return subprocess.run(
        [environment.python, "-c", code],
        cwd="/",
        env=environment.variables(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("venvs")


@pytest.mark.slow
def test_what_is_linked_is_here_and_nothing_else(home: Path) -> None:
    with ready("tool", [], linked=["numpy"], folder=home) as environment:
        import numpy

        assert output(environment, "import numpy; print(numpy.__version__)") == numpy.__version__
        find = "from importlib.util import find_spec; print(*map(find_spec, ('torch', 'hydra', 'dogbreed', 'pytest')))"
        assert output(environment, find) == "None None None None"
        listed = subprocess.run(
            [environment.python, "-m", "pip", "list"], env=environment.variables(), capture_output=True, text=True
        )
        assert "numpy" in listed.stdout, "pip takes it for installed"


@pytest.mark.slow
def test_two_who_ask_at_once_get_the_same_which_is_made_once(home: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from launch.rehearsal.environment import ready\n"
        "def step(new): print('made'); (new.folder / 'stepped').touch()\n"
        f"with ready('shared', [], linked=[], variant='x', step=step, folder=Path({str(home)!r})) as found:\n"
        "    assert (found.folder / 'stepped').exists(); print(found.folder)"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", program], cwd=runs.ROOT, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(map(len, said)) == [1, 2], "one of them made it"
    assert said[0][-1] == said[1][-1]


@pytest.mark.slow
def test_a_step_that_fails_leaves_nothing_in_use(home: Path) -> None:
    tries = []

    def step(new: Environment) -> None:
        tries.append(new)
        if len(tries) == 1:
            raise EnvironmentFailed("no luck")

    def ask() -> Path:
        with ready("unlucky", [], linked=[], variant="y", step=step, folder=home) as environment:
            return environment.folder

    with pytest.raises(EnvironmentFailed, match="no luck"):
        ask()
    assert not tries[0].folder.exists()
    assert ask().is_dir()
    assert len(tries) == 2


@pytest.mark.slow
def test_without_a_network_it_says_so(home: Path, no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    wanted = ready("alone", ["sagemaker-training>=5.1,<6"], linked=[], folder=home)
    with pytest.raises(EnvironmentFailed, match="no answer from the package index"), wanted:
        pass
    assert not [path for path in (home / "alone").iterdir() if path.is_dir()]


def test_a_package_that_is_not_here_cannot_be_linked(tmp_path: Path) -> None:
    wanted = ready("x", [], linked=["no-such-package-here"], folder=tmp_path)
    with pytest.raises(EnvironmentFailed, match="no-such-package-here is not installed here"), wanted:
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wanted = ready("x", [], linked=[], folder=tmp_path / "file")
    with pytest.raises(EnvironmentFailed, match="cannot be written"), wanted:
        pass


def test_what_pip_says_becomes_a_sentence() -> None:
    said = "WARNING: x\nERROR: No matching distribution found for nonsense==9\n"
    assert environment.why("pip failed", said) == "pip failed: No matching distribution found for nonsense==9"
