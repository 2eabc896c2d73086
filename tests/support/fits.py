"""`FeatureCache` with a model, data and Lightning's Trainer alone: nothing is exported or reported."""

from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from dogbreed.cache import extract
from dogbreed.cache.callback import FeatureCache
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.models.classifier import DogBreedClassifier


class Fit(NamedTuple):
    """The loss of every step, that of every validation, logits of the test split [N, classes]; the cache's state."""

    steps: list[float]
    validations: list[float]
    logits: Tensor
    cache: str
    trainer: Trainer


class _Losses(Callback):
    def __init__(self) -> None:
        self.steps: list[float] = []
        self.validations: list[float] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps.append(float(outputs["loss"]))

    def on_validation_end(self, trainer, pl_module):
        self.validations.append(float(trainer.callback_metrics["val_loss"]))


def fit(
    model: DogBreedClassifier, root: Path, folder: Path, mode: str, *, epochs: int, batch_size: int, saves: bool = False
) -> Fit:
    """Train on the images in `root`, with the cache in `folder` used as `mode` says, and test."""
    data = DogImages(root, preprocessing=model.preprocessing, num_workers=0, batch_size=batch_size, quiet=True)
    losses, cache = _Losses(), FeatureCache(mode, folder=folder, quiet=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=saves,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder / mode,
        callbacks=[cache, losses],
    )
    trainer.fit(model, datamodule=data)
    trainer.test(model, datamodule=data, verbose=False)
    assert model.predictions is not None
    return Fit(losses.steps, losses.validations, model.predictions.logits, cache.state, trainer)


def attach_in_blocks(tree: Path, folder: Path, begin: Barrier | None = None) -> None:
    """Compute the features of a small model, a block after every pass, when all have come to the barrier."""
    extract.BLOCK_BYTES = 1
    small = Preprocessing(size=64, resize_size=72)
    model = DogBreedClassifier(4, backbone="squeezenet1_1", weights="none", preprocessing=small.to_dict())
    data = DogImages(tree, preprocessing=small, num_workers=0, quiet=True)
    data.setup()
    cache = FeatureCache("require", folder=folder, quiet=True)
    if begin is not None:
        begin.wait()
    cache.attach(model, data, torch.device("cpu"))
    print(cache.state)
