"""`refit=true`: the head again on train + valid, for as many epochs as were best on valid."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.models.backbones import fresh_head, head_name
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.training.build import build_cache, build_trainer, class_counts, weigh_classes

# What would end or cut a training that has its number of epochs already.
_WHOLE = {
    "max_steps": -1,
    "max_time": None,
    "min_epochs": None,
    "min_steps": None,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "profiler": None,
}


def check_refit(config: Config) -> None:
    """Refuse to refit more than a head.

    Raises:
        DogbreedError: More trains.
    """
    if config.refit and config.model.trainable != "head":
        raise DogbreedError(
            f"refit=true trains the head again, and model.trainable={config.model.trainable}; leave one of them out."
        )


class _StopAfter(Callback):
    """End after an epoch; the learning rate's schedule stays that of all epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def refit(config: Config, model: DogBreedClassifier, data: DogImages, epochs: int, quiet: bool) -> int:
    """Train a new head on train + valid, and return on how many images.

    Views of the images of valid that nothing has needed so far are computed; the rest is in the cache.

    Args:
        config: Of the run.
        model: Its head is trained from new weights; the rest is frozen.
        data: Of the run; it stays as it is.
        epochs: How many.
        quiet: No progress.
    """
    both = data.with_valid_in_train()
    head: Any = model.network.get_submodule(head_name(model.network))
    head.load_state_dict(fresh_head(head, model.hparams["seed"]).state_dict())
    weigh_classes(config, model, class_counts(both))
    seen, progress = model.images_seen, [_StopAfter(epochs)]
    trainer = build_trainer(
        {
            **config.trainer,
            **_WHOLE,
            "callbacks": [build_cache(config, quiet=quiet), *progress],
            "logger": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    )
    model.train()
    trainer.fit(model, datamodule=both)
    model.images_seen = seen
    return len(both.samples["train"])
