"""Imports run downwards only, and who needs no torch does not wait for it."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import dogbreed

HOUSE = Path(dogbreed.__file__).parent
LAUNCH = HOUSE.parent / "launch"
ROOMS = sorted(path.stem for path in HOUSE.glob("*.py") if path.stem not in ("__init__", "__main__"))

FLOORS = {
    0: {
        *("errors", "hyperparameters", "config", "help", "lines", "progress", "files", "record", "certificate"),
        *("rules", "machine_rules", "system_metrics", "contract", "client"),
    },
    1: {
        *("cli", "download", "sample", "images", "scan", "backbones", "confidence", "checkpoints", "tensors"),
        *("metrics", "listening", "formats", "archive", "threads"),
    },
    2: {"data", "prefix", "export", "winograd", "predictor", "oddities"},
    3: {"store", "features", "model", "batching", "attribution"},
    4: {
        *("heads", "callbacks", "hook", "report", "run", "server", "service"),
        *("recording", "live_rules", "profiling", "profile_plots", "profile_report", "ways"),
    },
    5: {"train", "tune", "evaluate", "predict", "debug", "serve", "certify"},
}
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
WITHOUT_TORCH = (*sorted(FLOORS[0]), "cli", "download", "sample", "archive")
READS_HYDRA = {"config", "cli"}


def imports(file: Path) -> set[str]:
    """Every module that a file names in an import, anywhere in it, in full; packages' members as their modules."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            module = node.module or ""
            found |= {f"dogbreed.{alias.name}" for alias in node.names} if module == "dogbreed" else {module}
    return found


def used(room: str) -> set[str]:
    """Rooms of the house that a room imports."""
    names = {name.split(".")[1] for name in imports(HOUSE / f"{room}.py") if name.startswith("dogbreed.")}
    return names & set(ROOMS)


def outside(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(file)}


@pytest.mark.parametrize("room", sorted(FLOOR.keys() & set(ROOMS)))
def test_nobody_climbs_stairs(room):
    above = {other for other in used(room) if FLOOR.get(other, -1) > FLOOR[room]}
    assert not above, f"{room} is on floor {FLOOR[room]}"


def test_no_room_needs_itself():
    graph = {room: used(room) for room in ROOMS}
    assert graph["train"] > {"data", "model", "features"}, "the reader of imports sees something"
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(ROOMS)


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in FLOORS[5]])
def test_commands_are_at_the_top(room):
    assert not used(room) & FLOORS[5]


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in READS_HYDRA])
def test_hydra_stays_with_the_configuration(room):
    assert not outside(HOUSE / f"{room}.py") & {"hydra", "omegaconf"}


@pytest.mark.parametrize("room", ROOMS)
def test_the_house_does_not_know_who_stands_on_it(room):
    assert not outside(HOUSE / f"{room}.py") & {"launch", "sagemaker", "boto3", "tests", "benchmarks"}


def test_launching_needs_no_torch():
    heavy = {"torch", "torchvision", "lightning", "torchmetrics"}
    assert {file.name: outside(file) & heavy for file in LAUNCH.rglob("*.py") if outside(file) & heavy} == {}


def loaded_after(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has loaded."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=HOUSE.parent)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing():
    loaded = loaded_after("import dogbreed; assert 'train' in dir(dogbreed); dogbreed.__version__")
    assert not loaded & {"torch", "lightning", "torchvision", "numpy", "hydra", "PIL", "rich"}
    assert "dogbreed" in loaded


def test_rooms_without_torch():
    loaded = loaded_after("import " + ", ".join(f"dogbreed.{room}" for room in WITHOUT_TORCH))
    assert not loaded & {"torch", "lightning", "torchvision", "torchmetrics"}
    assert {"dogbreed", "hydra", "numpy"} <= loaded


def test_public_names():
    assert set(dogbreed.__all__) == {"DogBreedClassifier", "DogImages", "Predictor", "train"}
    assert set(dogbreed.__all__) <= set(dir(dogbreed))
    assert dogbreed.Predictor.__module__ == "dogbreed.predictor"
    assert dogbreed.DogBreedClassifier.__module__ == "dogbreed.model"
    assert dogbreed.DogImages.__module__ == "dogbreed.data"
    assert callable(dogbreed.train)
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        dogbreed.Trainer  # noqa: B018
