"""From a configuration to the parts of a run: its folder, data, model, cache, callbacks, loggers and trainer."""

import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import torch
from lightning.pytorch import Callback, Trainer

from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.store import cache_folder
from dogbreed.config.compose import compose, diff, flatten
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import new_folder
from dogbreed.data.datamodule import DogImages
from dogbreed.models import backbones
from dogbreed.models.checkpoints import network_state
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.monitor.history import BEST, EarlyStopping
from dogbreed.monitor.progress_bar import PlainProgress, ProgressBar
from dogbreed.monitor.smdebug_hook import TensorHook, wanted

# A resumed run may differ in these: where it runs and what it says, not what it computes.
MAY_DIFFER = (
    "output_dir",
    "resume",
    "progress",
    "loggers",
    "test",
    "early_stopping",
    "data.num_workers",
    "data.root",
    "data.download",
    "data.url",
    "model.weights",
    "cache.mode",
    "cache.dir",
    "cache.max_gb",
    "search.",
    "sagemaker.",
    "profile",
    "rules.",
    "debugger.",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.enable_model_summary",
    "trainer.log_every_n_steps",
    "trainer.profiler",
)
LOGGERS = {
    "csv": "CSVLogger",
    "tensorboard": "TensorBoardLogger",
    "wandb": "WandbLogger",
    "mlflow": "MLFlowLogger",
    "comet": "CometLogger",
    "neptune": "NeptuneLogger",
}
# Where the processes that Lightning starts find the folder of the first one.
FOLDER_FOR_RANKS = "DOGBREED_OUTPUT_DIR"


def prepare_process() -> None:
    """Settings of the whole process: no denormal numbers, and no chatter.

    An optimizer's moments shrink until they are denormal, and a step then takes up to 20 times as long. Lightning says
    in many lines what the run says in three.
    """
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
        r".*It is recommended to use `self.log\('train_loss'.*",  # it was added up over all devices before
    ):
        warnings.filterwarnings("ignore", message=message)


def check_trainer(arguments: Mapping[str, Any]) -> None:
    """Refuses what Lightning takes, but after which there would be nothing to export.

    Raises:
        DogbreedError: Nothing would be trained, or nothing validated, by which the best epoch is chosen.
    """
    for key, lacks in (
        ("max_epochs", "train"),
        ("max_steps", "train"),
        ("limit_train_batches", "train on"),
        ("limit_val_batches", "choose the best epoch by"),
    ):
        if arguments.get(key) == 0:
            raise DogbreedError(f"trainer.{key}=0 leaves nothing to {lacks}; give more, or leave it out.")


def run_folder(settings: Mapping[str, Any], checkpoint: Path | None) -> Path:
    """Return where a run writes; a folder of the run's own is made at once, so that no other run takes the same."""
    if os.environ.get(FOLDER_FOR_RANKS):
        return Path(os.environ[FOLDER_FOR_RANKS])
    if settings["output_dir"]:
        return Path(settings["output_dir"])
    return checkpoint.parent.parent if checkpoint is not None else new_folder(Path("outputs"))


def find_checkpoint(settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint that `resume` means: a file, a run's folder, `last` or `auto`."""
    wanted = settings["resume"]
    if not wanted:
        return None
    if wanted in ("last", "auto"):
        if settings["output_dir"]:
            found = [Path(settings["output_dir"]) / "checkpoints" / "last.ckpt"]
        else:
            # outputs/DATE/TIME, and folders that were named, such as output_dir=outputs/dogs
            runs = [path for depth in ("*", "*/*") for path in Path("outputs").glob(f"{depth}/checkpoints/last.ckpt")]
            found = sorted(runs, key=lambda path: path.stat().st_mtime)
        found = [path for path in found if path.is_file()]
        if found:
            return found[-1]
        if wanted == "auto":
            return None
        where = settings["output_dir"] or "outputs/"
        raise DogbreedError(f"resume=last: there is no checkpoint in {where}; resume=auto starts from scratch then.")
    path = Path(wanted)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise DogbreedError(f"resume={wanted} is no checkpoint and no run's folder.")
    return path


def check_same_run(checkpoint: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    """Refuses to go on with a checkpoint of another configuration.

    Raises:
        DogbreedError: Names the keys that differ.
    """
    kept = checkpoint.get("callbacks", {}).get("History", {}).get("config")
    if kept is None:
        raise DogbreedError(f"{path} was not written by a run of dogbreed.train, so it cannot be resumed.")
    old, new, defaults = flatten(kept), flatten(settings), flatten(compose(()))
    keys = [
        key
        for key in diff(kept, settings)
        if not key.startswith(MAY_DIFFER) and (key in old or new.get(key) != defaults.get(key))  # a key of today
    ]
    if settings["data"]["augment"] != "crop" and "cache.views" in keys:
        keys.remove("cache.views")  # nothing looks at them
    if settings["model"]["schedule"] != "constant" and "trainer.max_epochs" in diff(kept, settings):
        keys.append("trainer.max_epochs")  # the schedule is spread over all epochs
    if keys:
        differences = ", ".join(f"{key} (was {old.get(key)}, is {new.get(key)})" for key in keys[:5])
        raise DogbreedError(
            f"{path} belongs to another configuration: {differences}. Resume with the same, or start from scratch."
        )


def best_before(checkpoint: Mapping[str, Any], path: Path) -> Path | None:
    """The checkpoint of the best epoch so far, of a run that is gone on with; None where it has none.

    Raises:
        DogbreedError: It is gone, and could not be exported if it stays the best.
    """
    history = checkpoint["callbacks"]["History"]
    best = history["best"]
    if best is None:
        return None
    if best["epoch"] == history["rows"][-1]["epoch"]:
        return path
    beside = path.with_name(BEST)
    if not beside.is_file():
        raise DogbreedError(
            f"{path} needs {BEST} beside it, which has the weights of epoch {best['epoch']:.0f}, the best so far; move "
            "the whole folder."
        )
    return beside


def build_data(settings: Mapping[str, Any], quiet: bool) -> DogImages:
    """The data group as DogImages, with the preprocessing that the network's weights expect."""
    model = settings["model"]
    given = dict(settings["data"])
    resize, size = given.pop("resize"), given.pop("size")
    memory = cache_folder(settings["cache"]["dir"]) / "scan.json"
    return DogImages(
        **given,
        preprocessing=backbones.preprocessing_of(model["backbone"], weights=model["weights"], resize=resize, size=size),
        views=settings["cache"]["views"],
        scan_memory=memory,
        seed=settings["seed"],
        quiet=quiet,
    )


def build_model(
    settings: Mapping[str, Any], data: DogImages, checkpoint: Mapping[str, Any] | None
) -> DogBreedClassifier:
    """The model group as a classifier of the data's classes; with a checkpoint, no weights are looked for."""
    arguments = dict(settings["model"])
    if checkpoint is not None:
        arguments["weights"] = None
    model = DogBreedClassifier(
        len(data.classes),
        **arguments,
        seed=settings["seed"],
        class_names=data.classes,
        preprocessing=data.preprocessing.to_dict(),
    )
    if checkpoint is not None:
        if checkpoint["hyper_parameters"]["class_names"] != data.classes:
            raise DogbreedError(f"The checkpoint was trained on other classes than those in {data.root}.")
        model.load_network(network_state(checkpoint))
    return model


def build_cache(settings: Mapping[str, Any], quiet: bool) -> FeatureCache:
    """The cache group as a callback."""
    given = settings["cache"]
    return FeatureCache(
        given["mode"], folder=given["dir"], precision=given["precision"], max_gb=given["max_gb"], quiet=quiet
    )


def build_callbacks(settings: Mapping[str, Any], quiet: bool) -> list[Callback]:
    """The cache, early stopping and progress, as far as they are wanted."""
    progress = settings["progress"]
    if progress not in ("auto", "bar", "plain", "none"):
        raise DogbreedError(f"progress={progress} is unknown; it is one of auto, bar, plain, none.")
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() else "plain"
    callbacks: list[Callback] = [build_cache(settings, quiet=quiet or progress == "none")]
    if settings["early_stopping"] is not None:
        callbacks.append(EarlyStopping(settings["early_stopping"]))
    if progress != "none" and not quiet:
        callbacks.append(ProgressBar() if progress == "bar" else PlainProgress())
    return callbacks


def build_hook(settings: Mapping[str, Any], folder: Path, quiet: bool) -> list[Callback]:
    """The debugger group as a callback, where it is asked for."""
    return [TensorHook(settings["debugger"], folder, quiet=quiet)] if wanted(settings["debugger"]) else []


def build_loggers(wanted: Mapping[str, Any] | None, folder: Path) -> list[Any]:
    """Lightning's loggers by their short names, writing into the run's folder."""
    made = []
    for name, arguments in (wanted or {}).items():
        if name not in LOGGERS:
            raise DogbreedError(f"loggers.{name} is unknown; known are {', '.join(LOGGERS)}.")
        given = dict(arguments or {})
        if name in ("csv", "tensorboard"):
            given = {"save_dir": folder, "name": name, "version": "", **given}
        elif name != "comet":
            given = {"save_dir": folder, **given}
        try:
            made.append(getattr(lightning_loggers, LOGGERS[name])(**given))
        except ModuleNotFoundError as error:
            raise DogbreedError(f"loggers.{name} needs a package that is not installed: {error}.") from error
        except TypeError as error:
            raise DogbreedError(f"loggers.{name} does not take these arguments: {error}.") from error
    return made


def build_trainer(arguments: Mapping[str, Any]) -> Trainer:
    """Lightning's Trainer; what it refuses becomes a sentence."""
    try:
        return Trainer(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # MisconfigurationException is a RuntimeError or Exception
        raise DogbreedError(f"Lightning's Trainer refuses these settings: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise DogbreedError(f"Lightning's Trainer refuses these settings: {_one_line(error)}") from error
        raise


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
