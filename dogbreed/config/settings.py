"""The configuration as objects: one frozen class per group. conf/*.yaml holds the defaults and says what each means.

A field's type says what the key takes: `PathText` is expanded (`~`) and is always text, a `Literal` lists the choices,
and the keys of a `Mapping` are those of the YAML file, with values of the same kind.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints
from urllib.parse import unquote, urlsplit

PathText = Annotated[str, "path"]
Drawn = Annotated[int, "or null"]  # a number is drawn before anything is built
# Words that stand where a path may stand, too.
NOT_A_PATH = {"model.weights": ("imagenet", "none"), "resume": ("last", "auto")}


@dataclass(frozen=True)
class Data:
    source: Literal["dogimages", "sample"]
    root: PathText
    download: bool
    url: str | None
    batch_size: int
    num_workers: int | str
    augment: Literal["none", "flip", "crop"]
    resize: Literal["squash", "crop"]
    size: int | None
    on_bad_image: Literal["skip", "error"]
    max_pixels: int
    # Not in the configurations of older runs.
    labels: PathText | None = None
    split: Any = field(default_factory=lambda: [0.8, 0.1, 0.1])
    class_mismatch: Literal["error", "drop"] = "error"
    folds: int | None = None
    transforms: Any = None
    min_steps: int = 0


@dataclass(frozen=True)
class Model:
    backbone: str
    weights: PathText
    trainable: Literal["head", "block", "all"]
    lr: float
    backbone_lr: float | None
    weight_decay: float
    label_smoothing: float
    optimizer: Literal["adam", "adamw", "sgd", "lbfgs"]
    schedule: Literal["constant", "cosine", "onecycle"]
    class_weights: Literal["none", "balanced"]
    prior: Literal["none", "uniform"]
    # Not in the configurations of older runs.
    freeze_norm: bool = False
    layer_decay: float = 1.0
    ema_decay: float | None = None
    mixup: float = 0.0
    cutmix: float = 0.0


@dataclass(frozen=True)
class HeadStage:
    epochs: int = 0
    lr: float = 0.0033047276512977604
    optimizer: Literal["adam", "adamw", "sgd", "lbfgs"] = "adam"
    batch_size: int = 64
    augment: Literal["none", "flip", "crop"] = "none"


@dataclass(frozen=True)
class Cache:
    mode: Literal["auto", "off", "require"]
    dir: PathText | None
    precision: Literal["float32", "bfloat16", "float16", "tf32"]
    views: int
    max_gb: float


@dataclass(frozen=True)
class Debugger:
    enabled: bool | str
    config_file: PathText | None
    dir: PathText | None
    train: Mapping[str, Any]
    eval: Mapping[str, Any]
    reductions: str | None
    collections: Mapping[str, Any] | None


@dataclass(frozen=True)
class Search:
    trials: int
    objective: str
    direction: str
    parallel: int
    prune: Any
    where: str
    space: Mapping[str, Any] | None
    # Not in the configurations of older runs.
    backbones: Any = None
    sampler: Any = "tpe"
    seeds: int = 5
    storage: str | None = None


@dataclass(frozen=True)
class Export:
    neighbours: bool = True
    published_head: bool = False
    similar: bool = False


@dataclass(frozen=True)
class Config:
    mode: str
    job: str | None
    output_dir: PathText | None
    overwrite: bool
    seed: Drawn
    resume: PathText | None
    early_stopping: int | None
    progress: Literal["auto", "bar", "plain", "none"]
    refit: bool
    test: bool
    profile: bool | str | None
    callbacks: Any
    loggers: Mapping[str, Any] | None
    data: Data
    model: Model
    trainer: Mapping[str, Any]  # every argument of lightning.Trainer
    cache: Cache
    debugger: Debugger
    rules: Mapping[str, Any]  # checked by the callback that reads them
    search: Search
    sagemaker: Mapping[str, Any]  # read by launch/, which checks it
    # Not in the configurations of older runs.
    head_stage: HeadStage = field(default_factory=HeadStage)
    abstain_above: int = 3
    export: Export = field(default_factory=Export)

    @classmethod
    def from_dict(cls, config: "Mapping[str, Any] | Config") -> Self:
        """Return a checked mapping as an object; paths are expanded."""
        if not isinstance(config, Mapping):
            return config  # type: ignore[return-value]
        built: Self = _build(cls, normalized({**config}))
        return built

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars, as a checkpoint and `config.yaml` keep them."""
        return asdict(self)


def _build(kind: Any, values: Mapping[str, Any]) -> Any:
    hints = [(name, hint) for name, hint in hints_of(kind) if name in values]
    return kind(**{name: _build(hint, values[name]) if is_dataclass(hint) else values[name] for name, hint in hints})


@cache
def hints_of(kind: Any) -> tuple[tuple[str, Any], ...]:
    """Return the fields of a group with what they take."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple((field.name, hints[field.name]) for field in fields(kind))


@cache
def path_keys() -> frozenset[str]:
    """Return the dotted keys whose value is a path."""
    return frozenset({*_path_keys(Config, ""), *_OF_LAUNCH})


# These lie in the group that launch/ reads.
_OF_LAUNCH = ("sagemaker.prices", "sagemaker.endpoint.photo", "sagemaker.endpoint.input")


def _path_keys(kind: Any, above: str) -> Iterator[str]:
    for name, hint in hints_of(kind):
        if is_dataclass(hint):
            yield from _path_keys(hint, f"{above}{name}.")
        elif "path" in str(hint):
            yield f"{above}{name}"


def normalized(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration whose paths are text, with `~` expanded, and whose features have a precision.

    The mapping itself stays as it is.
    """
    cache, trainer = config.get("cache"), config.get("trainer")
    if isinstance(cache, Mapping) and isinstance(trainer, Mapping) and cache.get("precision", "") is None:
        # Mixed precision computes the frozen part so without the cache, too: it stays the same run.
        half = {"bf16": "bfloat16", "16": "float16"}.get(str(trainer.get("precision")).partition("-")[0], "float32")
        config = _with(config, ["cache", "precision"], half)
    for key in path_keys():
        *groups, name = key.split(".")
        level: Any = config
        for group in groups:
            level = level.get(group) if isinstance(level, Mapping) else None
        value = level.get(name) if isinstance(level, Mapping) else None
        if isinstance(value, str | int | float | os.PathLike) and not isinstance(value, bool):
            text = str(value)
            if text.startswith("file://"):
                text = unquote(urlsplit(text).path)
            if text not in NOT_A_PATH.get(key, ()):
                text = os.path.expanduser(text)
            if text != value:
                config = _with(config, [*groups, name], text)
    return config


def _with(config: Mapping[str, Any], parts: list[str], value: Any) -> dict[str, Any]:
    inner = value if len(parts) == 1 else _with(config[parts[0]], parts[1:], value)
    return {**config, parts[0]: inner}


def accepts(hint: Any, value: Any) -> bool:
    """Return whether a key of this type takes a value; text may be written as a number, a number without a point."""
    if hint is Any:
        return True
    origin = get_origin(hint)
    if origin is Annotated:
        return accepts(get_args(hint)[0], value) or (value is None and hint == Drawn)
    if origin in (Union, UnionType):
        return any(accepts(part, value) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint is NoneType:
        return value is None
    whole = isinstance(value, int) and not isinstance(value, bool)
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return whole
    if hint is float:
        return whole or isinstance(value, float)
    return isinstance(value, str | int | float)


def refusal(key: str, hint: Any, value: Any) -> str:
    """Return the sentence for a value that a key does not take."""
    parts = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
    parts.discard(NoneType)
    kind = next(iter(parts)) if len(parts) == 1 else str
    kind = int if kind == Drawn else kind
    if get_origin(kind) is Literal and value is not None:
        return f"{key}={value} is unknown; it is one of {', '.join(get_args(kind))}."
    kinds = {bool: "true or false", int: "a whole number", float: "a number"}
    return f"{key} must be {kinds.get(kind, 'a word or a path')}, not {'null' if value is None else repr(value)}"
