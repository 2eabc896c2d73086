"""`import dogbreed`: light, with names that are loaded on first use and functions that stay functions."""

import inspect
import json
import subprocess
import sys

import pytest
from support.places import ROOT

import dogbreed


def loaded_after(code: str) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_the_package_loads_nothing():
    loaded = loaded_after("import dogbreed; assert 'train' in dir(dogbreed); dogbreed.__version__")
    assert not loaded & {"torch", "lightning", "torchvision", "numpy", "hydra", "PIL", "rich"}
    assert "dogbreed" in loaded


def test_classes_are_those_of_the_packages():
    assert set(dogbreed.__all__) <= set(dir(dogbreed))
    homes = {
        "DogBreedClassifier": "dogbreed.models.classifier",
        "DogImages": "dogbreed.data.datamodule",
        "Endpoint": "dogbreed.serving.client",
        "FeatureCache": "dogbreed.cache.callback",
        "Predictor": "dogbreed.inference.predictor",
    }
    assert {name: getattr(dogbreed, name).__module__ for name in homes} == homes
    with pytest.raises(AttributeError, match="has no attribute 'Trainer'"):
        dogbreed.Trainer  # noqa: B018


@pytest.mark.parametrize("name", ["train", "tune", "evaluate"])
def test_functions_have_the_signature_of_what_they_call(name):
    import dogbreed.search.run
    import dogbreed.training.evaluate
    import dogbreed.training.run

    homes = {"train": dogbreed.training.run, "tune": dogbreed.search.run, "evaluate": dogbreed.training.evaluate}
    function = getattr(dogbreed, name)
    ours, theirs = (inspect.signature(f).parameters for f in (function, getattr(homes[name], name)))
    ours, theirs = ([(p.name, p.kind, p.default) for p in parameters.values()] for parameters in (ours, theirs))
    assert ours == theirs
    for parameter, _, _ in ours:
        assert f"        {parameter}: " in function.__doc__, "help() explains every parameter"


@pytest.mark.parametrize("name", ["train", "tune", "evaluate"])
@pytest.mark.parametrize(
    "before",
    [
        "",
        "import dogbreed.{name}",
        "import dogbreed; dogbreed.{name}; import dogbreed.{name}",
        "import importlib; importlib.import_module('dogbreed.{name}')",
        "from dogbreed.{name} import main; assert callable(main)",
    ],
)
def test_functions_stay_functions_after_the_command_of_their_name_was_imported(name, before):
    program = before.format(name=name) + (
        f"\nimport types, dogbreed\nfrom dogbreed import {name}"
        f"\nassert isinstance({name}, types.FunctionType) and dogbreed.{name} is {name}"
        f"\nfrom dogbreed.{name} import main\nassert main.__module__ == 'dogbreed.{name}'"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_one_limit_of_pixels_for_every_way():
    """Or a photograph that was trained on would be refused by the server, and the certificate with it."""
    from dogbreed import serve
    from dogbreed.config.compose import compose
    from dogbreed.data.images import MAX_PIXELS
    from dogbreed.training.evaluate import evaluate

    served = serve._parser().parse_args(["model"]).max_pixels * 1e6
    defaults = [
        inspect.signature(way).parameters["max_pixels"].default
        for way in (dogbreed.DogImages, dogbreed.Predictor, dogbreed.evaluate, evaluate)
    ]
    assert {served, compose([])["data"]["max_pixels"], *defaults} == {MAX_PIXELS}
