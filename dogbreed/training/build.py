"""From a configuration to the parts of a run: its folder, data, model, cache, callbacks, loggers and trainer."""

import logging
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from secrets import randbelow
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.folders import cache_folder, scan_memory
from dogbreed.config.compose import completed, compose, default_config, fitting_batch_size, outweighed
from dogbreed.config.resumed import run_of
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import new_folder
from dogbreed.core.text import count
from dogbreed.core.threads import stop_spinning
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Transform
from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, own_networks
from dogbreed.models.checkpoints import network_state
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.imbalance import balance_loss, check_bias
from dogbreed.models.weights import backbone_of
from dogbreed.monitor.history import EarlyStopping
from dogbreed.monitor.progress_bar import ProgressBar
from dogbreed.monitor.smdebug_hook import TensorHook, hook_enabled

# Where the processes that Lightning starts find the folder of the first one, and a seed that it drew.
FOLDER_FOR_RANKS, SEED_FOR_RANKS = "DOGBREED_OUTPUT_DIR", "DOGBREED_SEED"


def prepare_process() -> None:
    """Make the settings of the whole process: no threads that spin, no denormal numbers, and no chatter.

    An optimizer's moments shrink until they are denormal, and a step then takes up to 20 times as long. Lightning says
    in many lines what the run says in three.
    """
    stop_spinning()
    torch.set_flush_denormal(True)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        r".*does not have many workers.*",
        r".*`tensorboardX` has been removed.*",
        r".*Checkpoint directory.*exists and is not empty.*",
        r".*The number of training batches.*smaller than the logging interval.*",
        r".*GPU available but not used.*",
        r".*module\(s\) in eval mode at the start of training.*",  # frozen batch norm is meant to be
        r".*LeafSpec.*is deprecated.*",
        r".*It is recommended to use `self.log\('(train|val|test)_.*",  # it was added up over all devices before
    ):
        warnings.filterwarnings("ignore", message=message)


@rank_zero_only
def say(text: str) -> None:
    """Print in the main process."""
    # Names of files need not be UTF-8, and a terminal takes nothing else.
    print(text.encode("utf-8", "backslashreplace").decode(), flush=True)


def read_config(config: Config | Mapping[str, Any] | None, overrides: Sequence[str]) -> Config:
    """Return the configuration of a run: a whole one, with the keys that it lacks, or what overrides make.

    Raises:
        DogbreedError: A key or a value is wrong.
    """
    if not isinstance(config, Config | Mapping | None):
        raise DogbreedError(f"The configuration is a mapping, not {config!r}; key=value goes into overrides=[...].")
    if not isinstance(config, Config):
        if config is None and (note := outweighed(overrides)):
            say(note)
        config = Config.from_dict(compose(overrides) if config is None else completed(config))
    config = _with_backbone_of_weights(config)
    if config.seed is None:
        config = replace(config, seed=int(os.environ.get(SEED_FOR_RANKS) or randbelow(1 << 31)))
    return config


def _with_backbone_of_weights(config: Config) -> Config:
    """Return the settings with the network that `model.weights=RUN` is of, where `model.backbone` is the default."""
    model, default = config.model, default_config()["model"]["backbone"]
    if model.backbone != default or model.weights in (None, "imagenet", "none"):
        return config
    backbone = backbone_of(Path(model.weights))
    if backbone in (None, default) or own_networks.is_own(str(backbone)):  # a file names no code to import
        return config
    return replace(config, model=replace(model, backbone=str(backbone)))


def run_folder(config: Config, checkpoint: Path | None) -> Path:
    """Return where a run writes; a folder of the run's own is made at once, so that no other run takes the same."""
    if os.environ.get(FOLDER_FOR_RANKS):
        return Path(os.environ[FOLDER_FOR_RANKS])
    if config.output_dir:
        return Path(config.output_dir)
    return run_of(checkpoint) if checkpoint is not None else new_folder(Path("outputs"))


def preprocessing_of(config: Config) -> Preprocessing:
    """Return what the network's weights expect, at the size that is wanted."""
    model, data = config.model, config.data
    return backbones.preprocessing_of(model.backbone, weights=model.weights, resize=data.resize, size=data.size)


# Of the group data, what DogImages does not take.
_NOT_OF_IMAGES = ("resize", "size", "folds", "min_steps")


def build_data(config: Config, quiet: bool) -> DogImages:
    """Return the data group as DogImages, with the preprocessing that the network's weights expect."""
    arguments = {key: value for key, value in vars(config.data).items() if key not in _NOT_OF_IMAGES}
    return DogImages(
        **{**arguments, "transforms": build_transforms(config.data.transforms)},
        preprocessing=preprocessing_of(config),
        views=config.cache.views,
        scan_memory=scan_memory(config.cache.dir),
        seed=config.seed,
        quiet=quiet,
    )


def fit_batch_size(config: Config, data: DogImages) -> Config:
    """Return the settings with a smaller batch where the default leaves an epoch too few steps; `data` takes it too.

    Args:
        config: The whole configuration.
        data: Set up.
    """
    before, images = config.data.batch_size, len(data.samples["train"])
    data.batch_size = fitting_batch_size(vars(config.data), images)
    if data.batch_size == before:
        return config
    steps = [count(math.ceil(images / size), "step") for size in (data.batch_size, before)]
    data.warnings.insert(
        0,
        f"data.batch_size={data.batch_size}, not {before}: {steps[0]} per epoch of {images:,} training images instead "
        f"of {steps[1]}; give data.batch_size for another.",
    )
    return replace(config, data=replace(config.data, batch_size=data.batch_size))


def build_model(config: Config, data: DogImages, checkpoint: Mapping[str, Any] | None) -> DogBreedClassifier:
    """Return the model group as a classifier of the data's classes.

    Args:
        config: The whole configuration.
        data: Set up.
        checkpoint: Holds the network's values, so that no weights are looked for.

    Raises:
        DogbreedError: The checkpoint has other classes, or the weights cannot be loaded.
    """
    arguments = vars(config.model).copy()
    class_weights, prior = arguments.pop("class_weights"), arguments.pop("prior")
    if class_weights == "balanced" and prior == "uniform":
        raise DogbreedError("model.class_weights=balanced and model.prior=uniform correct for the same; choose one.")
    if checkpoint is not None:
        arguments["weights"] = None
    own_networks.allow(arguments["backbone"])  # a setting, unlike what a saved model says of itself
    model = DogBreedClassifier(
        len(data.classes),
        **arguments,
        seed=config.seed,
        class_names=data.classes,
        preprocessing=data.preprocessing.to_dict(),
    )
    if checkpoint is not None:
        if checkpoint["hyper_parameters"]["class_names"] != data.classes:
            raise DogbreedError(f"The checkpoint was trained on other classes than those in {data.root}.")
        model.load_network(network_state(checkpoint))
    if prior == "uniform":
        check_bias(model.network)
    weigh_classes(config, model, class_counts(data))
    return model


def class_counts(data: DogImages) -> Tensor:
    """Return the number of training images of each class, [classes]."""
    return torch.from_numpy(data.samples["train"].labels).bincount(minlength=len(data.classes))


def weigh_classes(config: Config, model: DogBreedClassifier, counts: Tensor) -> None:
    """Weigh the classes in the training loss by their numbers of images [classes], where that is wanted."""
    if config.model.class_weights == "balanced":
        balance_loss(model.criterion, counts.to(model.device))


def build_own_callbacks(callbacks: Any) -> list[Callback]:
    """Return the callbacks that the configuration names by their classes.

    Args:
        callbacks: A list of `package.Class`, or of mappings of `class_path` and `init_args`; None is none.

    Raises:
        DogbreedError: Not such a list, no such class, no callback, or it does not take its arguments.
    """
    return _instances("callbacks", callbacks, Callback, "class derived from lightning.pytorch.Callback")


def build_transforms(transforms: Any) -> list[Transform]:
    """Return what changes training images anew in each epoch, named as `build_own_callbacks` takes it.

    Raises:
        DogbreedError: As there, or one of them does not make an image of an image.
    """
    built = _instances("data.transforms", transforms, object, "class")
    for one in built:
        try:
            with torch.random.fork_rng(devices=[]):
                made = one(torch.zeros(3, 32, 32, dtype=torch.uint8))
        except Exception as error:  # whatever it is, it would come later too
            raise DogbreedError(f"data.transforms: {_path(one)} fails on an image: {error}") from error
        if not (isinstance(made, Tensor) and made.ndim == 3 and len(made) == 3 and made.dtype == torch.uint8):
            raise DogbreedError(f"data.transforms: {_path(one)} does not make an image (uint8 [3, H, W]) of an image.")
    return built


def _instances(key: str, items: Any, base: type, sort: str) -> list[Any]:
    if not isinstance(items, list | None):
        raise DogbreedError(f"{key} is a list, such as [package.Class].")
    return [_instance(key, {"class_path": item} if isinstance(item, str) else item, base, sort) for item in items or []]


def _instance(key: str, item: Any, base: type, sort: str) -> Any:
    if not isinstance(item, Mapping) or not {"class_path"} <= item.keys() <= {"class_path", "init_args"}:
        raise DogbreedError(f"{key} takes package.Class, or class_path with init_args, not {item!r}.")
    path, arguments = str(item["class_path"]), item.get("init_args") or {}
    module, _, name = path.rpartition(".")
    if not all(part.isidentifier() for part in path.split(".")) or not module:
        raise DogbreedError(f"{key}: {path} is not the dotted path of a class, such as package.module.Class.")
    try:
        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DogbreedError(f"{key}: {path} cannot be imported ({error}); is its folder on PYTHONPATH?") from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise DogbreedError(f"{key}: {path} is no {sort}.")
    try:
        return kind(**arguments)
    except TypeError as error:
        raise DogbreedError(f"{key}: {path} does not take these arguments: {error}.") from error


def _path(made: Any) -> str:
    return f"{type(made).__module__}.{type(made).__qualname__}"


def build_cache(config: Config, quiet: bool) -> FeatureCache:
    """Return the cache group as a callback."""
    cache = config.cache
    return FeatureCache(
        cache.mode,
        folder=cache.dir,
        precision=cache.precision,
        max_gb=cache.max_gb,
        quiet=quiet or config.progress == "none",
    )


def shared_frozen(config: Config) -> Path | None:
    """Return where runs keep equal frozen weights once; none without a cache."""
    return None if config.cache.mode == "off" else cache_folder(config.cache.dir) / "frozen"


def device_of(config: Config) -> torch.device:
    """Return where a run with these settings would train; of several devices the first."""
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return build_trainer({**config.trainer, **quiet}).strategy.root_device


def build_callbacks(config: Config, folder: Path, quiet: bool) -> list[Callback]:
    """Return early stopping, progress, the debugger's hook and a person's own callbacks, where they are wanted."""
    progress = config.progress
    if progress not in ("auto", "bar", "plain", "none"):
        raise DogbreedError(f"progress={progress} is unknown; it is one of auto, bar, plain, none.")
    callbacks: list[Callback] = []
    if config.early_stopping is not None:
        callbacks.append(EarlyStopping(config.early_stopping))
    if progress != "none" and not quiet:
        callbacks.append(ProgressBar(plain=progress == "plain"))
    debugger = asdict(config.debugger)
    if hook_enabled(debugger):
        callbacks.append(TensorHook(debugger, folder, quiet=quiet))
    return [*callbacks, *build_own_callbacks(config.callbacks)]


def build_trainer(arguments: Mapping[str, Any]) -> Trainer:
    """Return Lightning's Trainer.

    Raises:
        DogbreedError: What Lightning refuses, in one line.
    """
    try:
        return Trainer(**arguments)
    except Exception as error:  # of whatever kind: all that can fail are the arguments
        raise refused(error, arguments) from error


def refused(error: Exception, arguments: Mapping[str, Any]) -> DogbreedError:
    """Return the sentence for what Lightning does not take; it names what was not left at its default."""
    defaults = default_config()["trainer"]
    changed = [f"trainer.{key}={value}" for key, value in arguments.items() if defaults.get(key, value) != value]
    message = " ".join(str(error).split()) or type(error).__name__
    return DogbreedError(f"Lightning's Trainer refuses these settings ({', '.join(changed)}): {message}")
