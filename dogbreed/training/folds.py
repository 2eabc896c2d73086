"""`data.folds=K`: cross-validation, in which each image of train and valid is classified by a head that never saw it.

The heads of all folds train side by side on the features of the run, for as many epochs as were best on valid. The
model that is exported has nothing to do with them.
"""

from typing import Any

import numpy as np
import torch

from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import join
from dogbreed.data.datamodule import DogImages
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.imbalance import log_prior
from dogbreed.training.build import build_cache
from dogbreed.training.stacked_heads import Head, HeadTrainer, why_not_stacked
from dogbreed.training.stem import NotStackable, Stem


def check_folds(config: Config) -> None:
    """Refuse folds that cannot be, before anything is read.

    Raises:
        DogbreedError: There are fewer than two, or a setting keeps their heads from being trained side by side.
    """
    folds = config.data.folds
    if folds is None:
        return
    if folds < 2:
        raise DogbreedError(f"data.folds={folds} is out of range; it is a whole number from 2, or null.")
    if reason := why_not_stacked(config):
        raise _refused(folds, reason)


def check_images(folds: int, data: DogImages, devices: int) -> None:
    """Refuse classes with fewer images than there are folds, and several devices.

    Raises:
        DogbreedError: Names the classes.
    """
    if devices > 1:
        raise _refused(folds, f"{devices} devices train; set trainer.devices=1")
    labels = np.concatenate([data.samples[split].labels for split in ("train", "valid")])
    counts = np.bincount(labels, minlength=len(data.classes))
    few = [f"{data.classes[label]} ({counts[label]})" for label in np.flatnonzero(counts < folds)]
    if few:
        shown = join(few, "and") if len(few) <= 5 else f"{', '.join(few[:5])} and {len(few) - 5} more"
        raise DogbreedError(
            f"data.folds={folds} needs as many images of each class in train and valid together; too few are of "
            f"{shown}. Set data.folds={max(counts.min(), 2)} or null, or add images."
        )


def check_stackable(folds: int, model: DogBreedClassifier) -> None:
    """Refuse a network whose last layer cannot be trained apart, once its features are there.

    Raises:
        DogbreedError: Says why.
    """
    try:
        Stem(model)
    except NotStackable as error:
        raise _refused(folds, str(error)) from error


def _refused(folds: int, reason: str) -> DogbreedError:
    return DogbreedError(
        f"data.folds={folds} trains the heads of all folds side by side on cached features, which cannot be: {reason}. "
        "Change that, or set data.folds=null."
    )


def cross_validate(
    config: Config, model: DogBreedClassifier, data: DogImages, epochs: int, device: torch.device, quiet: bool
) -> dict[str, Any]:
    """Return the accuracy of each fold, their mean and its standard error, as in `metrics.json`.

    Args:
        config: Of the run, with folds.
        model: Of the run; it stays as it is.
        data: Of the run; it stays as it is.
        epochs: That were best on valid.
        device: Where the heads train.
        quiet: No progress.
    """
    pooled, fold_of = data.with_folds(config.data.folds or 0)
    labels = torch.from_numpy(pooled.samples["train"].labels)
    settings, before, training = config.model, model.device, model.training
    with float32_as(config.cache.precision, device):
        build_cache(config, quiet=quiet).attach(model, pooled, device)
        heads = [
            Head(
                lr=settings.lr,
                weight_decay=settings.weight_decay,
                label_smoothing=settings.label_smoothing,
                rows=np.flatnonzero(fold_of != fold),
                valid_rows=np.flatnonzero(fold_of == fold),
                seed=config.seed,
                epochs=epochs,
            )
            for fold in range(config.data.folds or 0)
        ]
        trainer = HeadTrainer(model, pooled)
        last = max(epochs, config.trainer["max_epochs"] or 0)  # over which the learning rate's schedule is spread
        trainer.train(heads, batch_size=config.data.batch_size, epochs=last)
    accuracies = []
    for head in heads:
        logits = trainer.valid_logits(head).cpu()
        if settings.prior == "uniform":
            logits = logits - log_prior(labels[head.rows].bincount(minlength=logits.shape[1]))
        accuracies.append(float((logits.argmax(1) == labels[head.valid_rows]).double().mean()))
    model.to(before).train(training)
    error = np.std(accuracies, ddof=1) / len(accuracies) ** 0.5
    return {"folds": accuracies, "folds_mean": float(np.mean(accuracies)), "folds_se": float(error)}
