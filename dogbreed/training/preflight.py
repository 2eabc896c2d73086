"""What a run is refused for before it reads, downloads or writes anything, and then before it writes.

Lightning and the networks check much only when they come to it, after minutes of decoding or hours of training. Here
they come to it at once: a toy is trained with the Trainer's arguments, and the network is run without values.
"""

import math
import os
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, TensorDataset

from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import size as format_bytes
from dogbreed.data.datamodule import DogImages
from dogbreed.models import backbones, own_networks
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.training.build import build_trainer, build_transforms, preprocessing_of, refused
from dogbreed.training.in_domain import check_export
from dogbreed.training.loggers import build_loggers

_LACKS = {
    "max_epochs": "train",
    "max_steps": "train",
    "limit_train_batches": "train on",
    "limit_val_batches": "choose the best epoch by",
}
_AT_LEAST_ONE = ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval", "num_nodes")
LARGEST = 4096  # pixels along a side; the largest network in use takes 600
_PROFILERS = ("simple", "advanced", "pytorch", "xla")
# Their processes keep what they have trained, or each has only a part of it.
_STRATEGIES = ("spawn", "notebook", "fork", "fsdp", "deepspeed", "model_parallel", "xla")
# In place of what depends on the number of batches or on the machine, or takes long.
_FOR_THE_TOY: Mapping[str, Any] = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "sync_batchnorm": False,
    "precision": None,
    "max_epochs": 1,
    "max_steps": 1,
    "max_time": None,
    "limit_train_batches": 1,
    "limit_val_batches": 1,
    "limit_test_batches": 1,
    "overfit_batches": 0.0,
    "val_check_interval": None,
    "check_val_every_n_epoch": 1,
    "profiler": None,
    "deterministic": None,
    "benchmark": None,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "logger": False,
}


def check_settings(config: Config) -> None:
    """Refuse what would fail, or leave nothing to export, before anything is read, downloaded or written.

    Raises:
        DogbreedError: An argument of the Trainer, a logger, or the size of the images cannot be.
    """
    check_trainer(config.trainer)
    connects = ("comet",)  # to its service, as soon as it is made
    loggers = {name: keywords for name, keywords in (config.loggers or {}).items() if name not in connects}
    with tempfile.TemporaryDirectory() as folder:
        build_loggers(loggers, Path(folder))
    if config.abstain_above < 1:
        raise DogbreedError(f"abstain_above={config.abstain_above} is out of range; it is a number of classes from 1.")
    check_export(config)
    model, data = config.model, config.data
    if data.size is not None and data.size > LARGEST:
        raise DogbreedError(f"data.size={data.size} is out of range; it is {LARGEST} pixels at most.")
    preprocessing_of(config)
    if build_transforms(data.transforms) and model.trainable == "head":
        raise DogbreedError(
            "data.transforms need model.trainable=block or all: behind a frozen network RandAugment loses (68.3 % "
            "instead of 69.7 % on 120 breeds); what helps a little are crops that are computed once, data.augment=crop."
        )
    if data.size is not None:
        own_networks.allow(model.backbone)
        check_size(backbones.skeleton(model.backbone, 2, data.size).eval(), model.backbone, data.size)


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuse what Lightning takes at first; with the rest, train a toy."""
    for key, lacks in _LACKS.items():
        if arguments.get(key) == 0:
            raise DogbreedError(f"trainer.{key}=0 leaves nothing to {lacks}; give more, or leave it out.")
    for key in _AT_LEAST_ONE:
        if arguments.get(key) == 0:
            raise DogbreedError(f"trainer.{key}={arguments[key]} is out of range; it is more than 0.")
    if isinstance(clip := arguments.get("gradient_clip_val"), int | float) and not clip >= 0:
        raise DogbreedError(f"trainer.gradient_clip_val={clip} is out of range; it is 0 or more.")
    precision, profiler, strategy = (arguments.get(key) for key in ("precision", "profiler", "strategy"))
    if str(precision).startswith("transformer-engine"):
        raise DogbreedError(
            f"trainer.precision={precision} puts other layers into the network, which an export cannot hold; "
            "use 32-true, bf16-mixed or 16-mixed."
        )
    if profiler is not None and profiler not in _PROFILERS:
        raise DogbreedError(f"trainer.profiler={profiler} is unknown; it is one of {', '.join(_PROFILERS)}, or null.")
    if any(word in str(strategy) for word in _STRATEGIES):
        raise DogbreedError(f"trainer.strategy={strategy} leaves no whole model to export; use ddp for several GPUs.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "SLURM_NTASKS" in os.environ:
        return  # the processes of one run start as one; a Trainer of a single device is not for them
    minimum = {key: arguments.get(key) for key in ("min_epochs", "min_steps")}  # a number takes long, text fails
    minimum = {key: None if isinstance(value, int | float) else value for key, value in minimum.items()}
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(action="ignore"),
        torch.random.fork_rng(devices=[]),
    ):
        build_trainer({**arguments, "logger": False, "default_root_dir": folder, "profiler": None})
        trainer = build_trainer({**arguments, **_FOR_THE_TOY, **minimum, "default_root_dir": folder})
        toy, batches = _Toy(), DataLoader(TensorDataset(torch.zeros(1)))
        try:
            trainer.fit(toy, batches, batches)
            trainer.test(toy, batches, verbose=False)
        except Exception as error:  # whatever it is, it would come later too
            raise refused(error, arguments) from error


def check_size(network: nn.Module, backbone: str, size: int) -> None:
    """Refuse images that are smaller or larger than a network takes; batch norm as it is set may refuse one image."""
    values = {name: torch.empty_like(value, device="meta") for name, value in network.state_dict().items()}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            functional_call(network, values, (torch.empty(1, 3, size, size, device="meta"),))
    except NotImplementedError:
        return  # needs values
    except Exception as error:
        message = " ".join(str(error).split())
        if "meta" in message:
            return
        if "more than 1 value per channel" in message:
            raise DogbreedError(
                f"A batch of one image leaves batch norm nothing to average over in {backbone} with {size} pixels; "
                "choose another data.batch_size, or a larger data.size."
            ) from error
        raise DogbreedError(
            f"model.backbone={backbone} cannot take images of data.size={size} ({message[:120]}); leave data.size out "
            "for the size that it was made for."
        ) from error


def check_run(config: Config, data: DogImages, model: DogBreedClassifier, devices: int) -> None:
    """Refuse what does not go with the data, before anything is written.

    Args:
        config: The whole configuration.
        data: Set up.
        model: As it will be trained.
        devices: Over which the images are spread.

    Raises:
        DogbreedError: No batch is left, it validates never, or a batch is too small or too large.
    """
    arguments = config.trainer
    batches = {name: math.ceil(len(files) / devices / data.batch_size) for name, files in data.samples.items()}
    for key, split in (
        ("limit_train_batches", "train"),
        ("limit_val_batches", "valid"),
        ("limit_test_batches", "test"),
        ("overfit_batches", "train"),
        ("overfit_batches", "valid"),
    ):
        share = arguments.get(key)
        count = batches.get(split, 0)
        if isinstance(share, float) and 0 < share < 1 and count and int(count * share) < 1:
            raise DogbreedError(
                f"trainer.{key}={share} is less than one of the {count} batches of {split}; give a whole number of "
                f"batches, or at least {math.ceil(1000 / count) / 1000:g}."
            )
    every, limit = arguments.get("val_check_interval"), arguments.get("limit_train_batches")
    count = batches["train"]
    if limit is not None:
        count = min(count, limit) if isinstance(limit, int) else int(count * limit)
    in_epoch = arguments.get("check_val_every_n_epoch") is not None
    if isinstance(every, int) and in_epoch and every > count:
        raise DogbreedError(f"trainer.val_check_interval={every} is more than an epoch's {count} batches; give fewer.")
    if config.cache.mode == "off" or config.model.trainable == "all":  # batches of images, not of features
        size = min(data.batch_size, max(map(len, data.samples.values()))) * 12 * data.preprocessing.size**2
        if size > (free := psutil.virtual_memory().available):
            raise DogbreedError(
                f"A batch of data.batch_size={data.batch_size} images takes {format_bytes(size)}, more than the "
                f"{format_bytes(free)} of memory that are left; give a smaller one."
            )
    images = math.ceil(len(data.samples["train"]) / devices)
    if images % data.batch_size == 1 or data.batch_size == 1:
        model.train()
        check_size(model.network, str(model.hparams["backbone"]), data.preprocessing.size)


class _Toy(LightningModule):
    """One number that learns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss: Tensor = self.layer(*batch).sum()
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.layer(*batch).sum())

    def test_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.layer(*batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)
