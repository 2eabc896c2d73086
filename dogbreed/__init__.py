"""Fine-tune an image classifier on folders of photographs; the frozen part of the network runs once per image.

The public names are loaded on first use, so that `import dogbreed` alone loads neither torch nor lightning.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dogbreed.core.version import __version__

if TYPE_CHECKING:
    from dogbreed.data.datamodule import DogImages
    from dogbreed.inference.predictor import Predictor
    from dogbreed.models.classifier import DogBreedClassifier
    from dogbreed.training.run import train

# OpenMP reads this once, when torch is loaded. Its threads wait by spinning unless told otherwise, and take the cores
# from whatever shares them, the processes that decode images first of all: MobileNetV2 then ran at 6 images per second
# instead of 39 on two busy cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

__all__ = ["DogBreedClassifier", "DogImages", "Predictor", "__version__", "train"]

_HOME = {
    "DogBreedClassifier": "models.classifier",
    "DogImages": "data.datamodule",
    "Predictor": "inference.predictor",
    "train": "training.run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'dogbreed' has no attribute {name!r}")
    return getattr(import_module(f"dogbreed.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
