"""What a search may vary, and whether that makes sense."""

from collections.abc import Mapping
from typing import Any

from dogbreed.config.compose import check, flatten
from dogbreed.config.search_space import check_search as check_group
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.models.optim import check_training
from dogbreed.training.build import build_data
from dogbreed.training.stacked_heads import Head

# What may differ between heads that train side by side; the batch size makes groups of them.
STACKED = ("model.lr", "model.weight_decay", "model.label_smoothing")
BATCH_SIZE = "data.batch_size"
OBJECTIVES = ("val_loss", "val_acc")
TRAINING_KEYS = (
    "lr",
    "backbone_lr",
    "weight_decay",
    "label_smoothing",
    "optimizer",
    "schedule",
    "layer_decay",
    "ema_decay",
)

Space = Mapping[str, Mapping[str, Any]]
Parameters = dict[str, Any]


def check_search(config: Config, space: Space) -> None:
    """Check the search group, and every range against what a run would accept.

    Raises:
        DogbreedError: A setting is unknown or out of range, or a range reaches a value that a run would refuse.
    """
    check_epochs(config)
    check_group(vars(config.search), OBJECTIVES)
    for key, bounds in space.items():
        for value in bounds.get("choices") or (bounds["low"], bounds["high"]):
            _check_value(config, key, value)


def check_epochs(config: Config) -> None:
    """Refuse a search without an end, or without an epoch.

    Raises:
        DogbreedError: Names the key.
    """
    epochs = config.trainer["max_epochs"]
    if not isinstance(epochs, int) or epochs < 1:
        raise DogbreedError(f"trainer.max_epochs={epochs}: a search needs trainer.max_epochs >= 1.")


def _check_value(config: Config, key: str, value: Any) -> None:
    try:
        changed = with_values(config, {key: value})
        build_data(changed, quiet=True)
        check_training(2, **{name: getattr(changed.model, name) for name in TRAINING_KEYS})
    except DogbreedError as error:
        raise DogbreedError(f"search.space.{key} reaches {value}: {error}") from error


def with_values(config: Config, parameters: Mapping[str, Any]) -> Config:
    """Return the configuration with other values for dotted keys.

    Raises:
        ConfigError: A key does not take its value.
    """
    changed = config.to_dict()
    for key, value in parameters.items():
        set_dotted(changed, key, value)
    check(changed)
    return Config.from_dict(changed)


def head_of(config: Config, parameters: Mapping[str, Any], seed: int | None = None) -> Head:
    """Return a head that is to be trained with these values, and else as the configuration says."""
    return Head(**{key[6:]: parameters.get(key, getattr(config.model, key[6:])) for key in STACKED}, seed=seed)


def shown(parameters: Mapping[str, Any]) -> str:
    """Return parameters as a person reads them."""
    values = {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in parameters.items()}
    return " ".join(f"{key}={value}" for key, value in values.items())


def set_dotted(nested: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested dicts, making those that are not there."""
    *groups, name = key.split(".")
    for group in groups:
        nested = nested.setdefault(group, {})
    nested[name] = value


def current_values(config: Config, space: Space) -> Parameters | None:
    """Return the configuration's own values of what is searched; None where one of them lies outside its range."""
    flat = flatten(config.to_dict())
    values = {key: flat.get(key) for key in space}
    return values if all(_is_inside(value, space[key]) for key, value in values.items()) else None


def _is_inside(value: Any, bounds: Mapping[str, Any]) -> bool:
    if "choices" in bounds:
        return value in bounds["choices"]
    return isinstance(value, int | float) and bounds["low"] <= value <= bounds["high"]
