"""The YAML files and the typed settings say the same: keys, kinds of values, and a sentence per key."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import pytest
import yaml

from dogbreed.config.compose import ConfigError, completed, compose, conf_dir, diff
from dogbreed.config.settings import Config, accepts, hints_of

FILES = [conf_dir() / "config.yaml", conf_dir() / "data/dogimages.yaml", *sorted(conf_dir().glob("*/default.yaml"))]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SM_CHANNEL_TRAINING", "DOGBREED_CACHE"):
        monkeypatch.delenv(name, raising=False)


def groups(kind: Any, values: Any, above: str = "") -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Every typed group with its values."""
    yield above, kind, values
    for name, hint in hints_of(kind):
        if is_dataclass(hint):
            yield from groups(hint, values[name], f"{above}{name}.")


def test_keys_and_defaults_are_those_of_the_classes() -> None:
    typed = list(groups(Config, compose()))
    assert [name for name, _, _ in typed] == [
        "",
        "data.",
        "model.",
        "cache.",
        "debugger.",
        "search.",
        "head_stage.",
        "export.",
    ]
    for name, kind, values in typed:
        assert {field for field, _ in hints_of(kind)} == set(values), name
        for field, hint in hints_of(kind):
            assert is_dataclass(hint) or isinstance(values[field], Mapping) or accepts(hint, values[field]), field


def test_the_models_own_defaults_are_those_of_the_file() -> None:
    from dogbreed import DogBreedClassifier

    own = inspect.signature(DogBreedClassifier.__init__).parameters
    settings = compose()["model"]
    shared = settings.keys() & own.keys()
    assert settings.keys() - shared == {"class_weights", "prior"}
    assert {key: own[key].default for key in shared} == {key: settings[key] for key in shared}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.parent.name)
def test_every_key_has_a_sentence(file: Any) -> None:
    text = file.read_text().partition("\nhydra:")[0].partition("\ncollections:")[0].partition("\nspace:")[0]
    lines = [line for line in text.splitlines() if re.match(r" *[a-z_0-9]+: *[^ #]", line)]
    assert lines
    assert [line for line in lines if not re.search(r" # .{3,}", line)] == []


def test_what_an_older_version_wrote_is_completed() -> None:
    kept = compose(["model.lr=0.5", "loggers=null"])
    for key in ("refit", "overwrite", "callbacks"):
        del kept[key]
    kept["model"] = {key: value for key, value in kept["model"].items() if key not in ("class_weights", "prior")}
    assert diff(completed(kept), compose(["model.lr=0.5", "loggers=null"])) == []
    assert yaml.safe_load(yaml.safe_dump(Config.from_dict(completed(kept)).to_dict())) == completed(kept)
    with pytest.raises(ConfigError, match=r"Unknown key model\.lrr; did you mean model\.lr\?"):
        completed({"model": {"lrr": 1}})


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("logger=csv", {"csv": {}}),
        ("logger=[wandb,mlflow]", {"wandb": {}, "mlflow": {}}),
        ("loggers.csv.name=a", {"tensorboard": {}, "csv": {"name": "a"}}),
    ],
)
def test_loggers_are_chosen_by_their_group(override: str, values: dict[str, Any]) -> None:
    assert compose([override])["loggers"] == values


@pytest.mark.slow
def test_trainers_are_chosen_by_their_group() -> None:
    chosen = {name: compose([f"trainer={name}"]) for name in ("gpu", "cpu", "mps", "ddp")}
    assert {name: config["trainer"]["accelerator"] for name, config in chosen.items()} == {
        "gpu": "gpu",
        "cpu": "cpu",
        "mps": "mps",
        "ddp": "gpu",
    }
    assert diff(compose(), chosen["ddp"]) == ["trainer.accelerator", "trainer.strategy"]


def test_a_drawn_seed_is_asked_for_with_null() -> None:
    assert compose(["seed=null"])["seed"] is None
    with pytest.raises(ConfigError, match="seed must be a whole number, not 'x'"):
        compose(["seed=x"])


@pytest.mark.slow
def test_a_resumed_run_brings_its_settings(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from dogbreed.config.compose import to_yaml

    monkeypatch.chdir(tmp_path)
    kept = compose(["model.lr=0.25", "loggers={csv: {}}", "data.root=/photos", "output_dir=outputs/dogs"])
    run = tmp_path / "outputs" / "dogs"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    (run / "config.yaml").write_text(to_yaml(kept))
    for resume in (str(run), "outputs/dogs/checkpoints/last.ckpt", "last"):
        config = compose([f"resume={resume}", "trainer.max_epochs=9"])
        assert diff(kept, config) == ["output_dir", "resume", "trainer.max_epochs"]
    assert compose([f"resume={run}", "model.lr=0.5", "logger=wandb"])["loggers"] == {"wandb": {}}
    assert compose([f"resume={run}", "model.lr=0.5"])["model"]["lr"] == 0.5
    assert diff(compose(), compose(["resume=auto"])) == ["resume"], "it may start from scratch, so it has its settings"
    (run / "config.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"outputs/dogs/config\.yaml cannot be read"):
        compose([f"resume={run}"])
