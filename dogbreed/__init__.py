"""Fine-tune an image classifier on folders of photographs; the frozen part of the network runs once per image.

The public names are loaded on first use, so that `import dogbreed` alone loads neither torch nor lightning.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from dogbreed.core.version import __version__

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from dogbreed.cache.callback import FeatureCache
    from dogbreed.config.settings import Config
    from dogbreed.data.datamodule import DogImages
    from dogbreed.inference.predictor import Predictor
    from dogbreed.models.classifier import DogBreedClassifier
    from dogbreed.search.run import Search
    from dogbreed.serving.client import Endpoint
    from dogbreed.training.evaluate import Result as Evaluation
    from dogbreed.training.run import Result

# OpenMP reads this once, when torch is loaded. Its threads wait by spinning unless this says not to, and take the cores
# from whatever shares them, the processes that decode images first of all: MobileNetV2 then ran at 6 images per second
# instead of 39 on two busy cores. Where torch came first, `core.threads.stop_spinning` does it another way.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

_CLASSES = {
    "DogBreedClassifier": "models.classifier",
    "DogImages": "data.datamodule",
    "Endpoint": "serving.client",
    "FeatureCache": "cache.callback",
    "Predictor": "inference.predictor",
}
_FUNCTIONS = ("evaluate", "train", "tune")

__all__ = [
    "DogBreedClassifier",
    "DogImages",
    "Endpoint",
    "FeatureCache",
    "Predictor",
    "__version__",
    "evaluate",
    "train",
    "tune",
]


def train(
    config: "Config | Mapping[str, Any] | None" = None,
    overrides: Sequence[str] = (),
    *,
    callbacks: "Sequence[Callback]" = (),
) -> "Result":
    """Train, evaluate, export and report one run.

    Args:
        config: A whole configuration; None composes it from `overrides`.
        overrides: As on the command line: `["data=sample", "model.lr=0.01"]`.
        callbacks: Lightning callbacks of your own, beside those of the run.

    Returns:
        `metrics` as in `metrics.json`, `output_dir`, and `model` with the weights that were exported.

    Raises:
        DogbreedError: Something a person can put right; before training starts, nothing has been written.
    """
    from dogbreed.training import run

    return run.train(config, overrides, callbacks=callbacks)


def tune(config: "Config | Mapping[str, Any] | None" = None, overrides: Sequence[str] = ()) -> "Search":
    """Search hyperparameters on this machine, several trials in one pass where only the head trains.

    Args:
        config: A whole configuration; None composes it from `overrides`.
        overrides: As on the command line: `["search.trials=50"]`.

    Returns:
        The search, with its Optuna study and its folder.

    Raises:
        DogbreedError: Something a person can put right.
    """
    from dogbreed.search import run

    return run.tune(config, overrides)


def evaluate(
    model: str | Path,
    root: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    split: str = "test",
    on_unknown: str = "error",
    names: Mapping[str, str] | None = None,
    output_dir: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = "skip",
    max_pixels: int = 100_000_000,
    device: str | None = None,
    cache: "FeatureCache | None" = None,
    quiet: bool = False,
) -> "Evaluation":
    """Measure an exported model on one split.

    Args:
        model: An exported model, or the folder of its run.
        root: Holds `<split>/<class>/`, or the class folders themselves; None takes what the model was trained on.
        labels: CSV file with the columns path and label, in place of class folders.
        split: `test`, `valid` or `train`.
        on_unknown: What becomes of classes that the model does not know: `error` or `skip`.
        names: The model's name for classes that are called otherwise in `root`.
        output_dir: None makes `evaluation/<date>/<time>/`.
        batch_size: Images in one pass.
        num_workers: Threads that decode; 0 takes one per core, 8 at most.
        on_bad_image: `skip` or `error`.
        max_pixels: Larger images count as bad.
        device: None takes a GPU where there is one.
        cache: Keeps features for the next time; None is `FeatureCache()`, and `FeatureCache("off")` computes all.
        quiet: Neither progress nor lines.

    Returns:
        `metrics` as in its `metrics.json`, `output_dir`, and the predictions of every image that could be used.

    Raises:
        DogbreedError: No such folder, unknown classes, no usable image, an unreadable model; nothing is written then.
    """
    from dogbreed.training import evaluate as module

    return module.evaluate(
        model,
        root,
        labels=labels,
        split=split,
        on_unknown=on_unknown,
        names=names,
        output_dir=output_dir,
        batch_size=batch_size,
        num_workers=num_workers,
        on_bad_image=on_bad_image,
        max_pixels=max_pixels,
        device=device,
        cache=cache,
        quiet=quiet,
    )


class _Package(ModuleType):
    """Keeps the functions whose names are those of commands: importing `dogbreed.train` would put the module there."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _FUNCTIONS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module 'dogbreed' has no attribute {name!r}")
    return getattr(import_module(f"dogbreed.{_CLASSES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
