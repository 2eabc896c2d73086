"""Every command: help and usage errors load nothing heavy, and `python -m dogbreed` lists them all."""

import json
import subprocess
import sys

import pytest
from support.places import ROOT

from dogbreed.__main__ import COMMANDS
from dogbreed.core.version import __version__

HEAVY = {"torch", "torchvision", "lightning", "torchmetrics", "matplotlib", "numpy", "PIL", "optuna", "rich", "uvicorn"}
HYDRA = {"hydra", "omegaconf"}
SCRIPTS = [*sorted(file.stem for file in (ROOT / "launch").glob("sagemaker_*.py")), "policies"]
MODULES = {name: f"dogbreed.{name}" for name in COMMANDS} | {"cache": "dogbreed.cache.__main__"}
# What a person gets wrong, and what the sentence names.
MISTAKES = {
    "inspect": (["dogs", "--page"], "--page"),
    "train": (["--lr"], "--lr needs a value"),
    "tune": (["-x"], "names take two dashes"),
    "evaluate": (["model", "shade=1"], "shade is not a setting"),
    "study": (["--fold", "1", "run", "--folders"], "--folders"),
    "compare": (["--jsn", "a", "b"], "--jsn"),
    "predict": (["model", "a.jpg", "--top-k", "many"], "--top-k"),
    "serve": (["model", "--port", "http"], "--port"),
    "export": (["model", "a.jpg"], "nothing to write"),
    "certify": (["model", "--outputs", "x"], "--outputs"),
    "debug": ([], "TENSOR_DIR"),
    "cache": (["clean"], "clean"),
}


def call(module: str, arguments: list[str]) -> tuple[int, str, set[str]]:
    """Return the exit code, what was printed, and the top-level packages that the command loaded."""
    program = (
        f"import json, sys\nfrom {module} import main\n"
        f"try:\n    code = main({arguments!r})\nexcept SystemExit as end:\n    code = end.code\n"
        "print(json.dumps([code, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    code, loaded = json.loads(done.stdout.splitlines()[-1])
    return code or 0, done.stdout + done.stderr, set(loaded)


def test_the_list_of_commands_is_whole():
    files = {file.stem for file in (ROOT / "dogbreed").glob("[a-z]*.py")} | {"cache"}
    assert set(COMMANDS) == files == set(MISTAKES)
    code, text, loaded = call("dogbreed.__main__", [])
    assert code == 0
    assert all(f"python -m dogbreed.{name} " in text for name in COMMANDS)
    assert not loaded & (HEAVY | HYDRA)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing(command):
    code, text, loaded = call(MODULES[command], ["--help"])
    assert code == 0
    assert f"python -m dogbreed.{command}" in text
    assert not loaded & (HEAVY | HYDRA)


@pytest.mark.parametrize("command", [*COMMANDS, *SCRIPTS])
def test_the_version_is_everywhere(command):
    code, text, _ = call(MODULES.get(command, f"launch.{command}"), ["--version"])
    assert code == 0
    assert text.startswith(f"dogbreed {__version__}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_usage_error_loads_nothing(command):
    arguments, words = MISTAKES[command]
    code, text, loaded = call(MODULES[command], arguments)
    assert code == 2
    assert words in text
    assert not loaded & (HEAVY | HYDRA)


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.slow
def test_an_unknown_key_needs_hydra_alone(command):
    code, text, loaded = call(MODULES[command], ["modell.lr=1"])
    assert code == 2
    assert "Unknown key modell.lr; did you mean model.lr?" in text
    assert not loaded & HEAVY


# What lies nowhere, and how the sentence begins.
MISSING = {
    "train": (["data.root=nowhere"], "The data folder nowhere does not exist"),
    "tune": (["data.root=nowhere"], "The data folder nowhere does not exist"),
    "inspect": (["nowhere"], "The data folder nowhere does not exist"),
    "evaluate": (["nowhere"], "nowhere does not exist; give the folder of a run, or its model/"),
    "predict": (["nowhere", "a.jpg"], "nowhere does not exist; give the folder of a run, or its model/"),
    "serve": (["nowhere"], "nowhere does not exist; give the folder of a run, or its model/"),
    "compare": (["nowhere", "elsewhere"], "nowhere is no finished run"),
}


@pytest.mark.parametrize("command", MISSING)
@pytest.mark.slow
def test_a_wrong_path_is_named_before_anything_heavy_is_loaded(command):
    arguments, words = MISSING[command]
    code, text, loaded = call(MODULES[command], arguments)
    assert code == 2
    assert f"error: {words}" in text
    assert not loaded & {"torch", "lightning", "matplotlib"}
