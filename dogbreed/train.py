"""`python -m dogbreed.train`: trains, evaluates, exports and reports.

In the order of a run: check the configuration and the data, build the model, train (with the frozen part computed
once), evaluate the best checkpoint on the test split, write everything into one folder, and say what came out.
Nothing is written before everything that can be checked has been checked.
"""

import csv
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch.loggers as lightning_loggers
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

import dogbreed
from dogbreed import backbones, cli, export, report
from dogbreed.callbacks import TEST_LINE, Bar, History, PatientStopping, PlainProgress
from dogbreed.checkpoints import RunCheckpointIO, changed_state, network_state, read_checkpoint, written_whole
from dogbreed.confidence import calibration_error, fit_temperature, wilson_interval
from dogbreed.config import compose, diff, flatten, to_yaml
from dogbreed.data import DogImages
from dogbreed.errors import DogbreedError, Interrupted
from dogbreed.features import FeatureCache, cache_folder
from dogbreed.help import TRAIN_HELP
from dogbreed.model import DogBreedClassifier, Predictions
from dogbreed.results import Answers, Run

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
    "cache.",
    "search.",
    "sagemaker.",
    "rules.",
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
_FOLDER_FOR_RANKS = "DOGBREED_OUTPUT_DIR"


@dataclass(frozen=True)
class Result:
    """What a run leaves.

    Attributes:
        metrics: As in `metrics.json`.
        output_dir: The run's folder.
        model: With the weights of the best epoch.
    """

    metrics: dict[str, Any]
    output_dir: Path
    model: DogBreedClassifier


def train(config: Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Result:
    """One whole run.

    Args:
        config: A composed configuration (`dogbreed.config.compose`); None composes it from `overrides`.
        overrides: As on the command line: `["data=sample", "model.lr=0.01"]`.

    Raises:
        DogbreedError: Something a person can put right; before training starts, nothing has been written.
    """
    started = time.monotonic()
    settings = compose(overrides) if config is None else dict(config)
    prepare_process()
    main_process = getattr(rank_zero_only, "rank", 0) == 0
    say = _Say(main_process)

    checkpoint_path = _find_checkpoint(settings)
    folder = run_folder(settings, checkpoint_path)
    trainer_arguments = dict(settings["trainer"])
    callbacks = _callbacks(settings, quiet=not main_process)
    cache = next(callback for callback in callbacks if isinstance(callback, FeatureCache))
    data = build_data(settings, quiet=not main_process)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    if checkpoint is not None and checkpoint_path is not None:
        _check_same_run(checkpoint, settings, checkpoint_path)
    if main_process:
        data.prepare_data()
    data.setup()
    model = build_model(settings, data, checkpoint)
    say(f"dogbreed {dogbreed.__version__}: {' '.join(_facts(data, model, settings))}")

    history = History(folder, settings)
    # Behind the cache's setup, which may still refuse.
    starts = [LambdaCallback(on_fit_start=lambda *_: _start_folder(folder, settings, data))] if main_process else []
    io_plugin = RunCheckpointIO(backbones.changing_names(model.network))
    trainer = _trainer(
        {
            **trainer_arguments,
            "callbacks": [*callbacks, history, *starts],
            "logger": _loggers(settings["loggers"], folder) if main_process else False,
            "plugins": [io_plugin],
            "default_root_dir": folder,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    )
    os.environ[_FOLDER_FOR_RANKS] = str(folder)  # for the processes that Lightning starts
    try:
        model.train()
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint_path)
        return _finish(trainer, model, data, history, cache, settings, started, say)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes a SystemExit of a Ctrl-C
        if isinstance(error, SystemExit) and not trainer.interrupted:
            raise
        raise _interrupted(history, checkpoint_path) from None
    finally:
        os.environ.pop(_FOLDER_FOR_RANKS, None)


# Before training


def build_data(settings: Mapping[str, Any], quiet: bool) -> DogImages:
    """The data group as DogImages, with the preprocessing that the network's weights expect."""
    backbone = settings["model"]["backbone"]
    given = dict(settings["data"])
    resize, size = given.pop("resize"), given.pop("size")
    memory = cache_folder(settings["cache"]["dir"]) / "scan.json"
    return DogImages(
        **given,
        preprocessing=backbones.preprocessing_of(backbone, resize=resize, size=size),
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


def _callbacks(settings: Mapping[str, Any], quiet: bool) -> list[Callback]:
    progress = settings["progress"]
    if progress not in ("auto", "bar", "plain", "none"):
        raise DogbreedError(f"progress={progress} is unknown; it is one of auto, bar, plain, none.")
    if progress == "auto":
        progress = "bar" if sys.stderr.isatty() else "plain"
    callbacks: list[Callback] = [build_cache(settings, quiet=quiet or progress == "none")]
    if settings["early_stopping"] is not None:
        callbacks.append(PatientStopping(settings["early_stopping"]))
    if progress != "none" and not quiet:
        callbacks.append(Bar() if progress == "bar" else PlainProgress())
    return callbacks


def _loggers(wanted: Mapping[str, Any] | None, folder: Path) -> list[Any]:
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


def _trainer(arguments: Mapping[str, Any]) -> Trainer:
    try:
        return Trainer(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:  # MisconfigurationException is a RuntimeError or Exception
        raise DogbreedError(f"Lightning's Trainer refuses these settings: {_one_line(error)}") from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise DogbreedError(f"Lightning's Trainer refuses these settings: {_one_line(error)}") from error
        raise


def run_folder(settings: Mapping[str, Any], checkpoint: Path | None) -> Path:
    """Where a run writes; not made yet."""
    if os.environ.get(_FOLDER_FOR_RANKS):
        return Path(os.environ[_FOLDER_FOR_RANKS])
    if settings["output_dir"]:
        return Path(settings["output_dir"])
    if checkpoint is not None:
        return checkpoint.parent.parent
    now = datetime.now().astimezone()
    base = Path("outputs") / now.strftime("%Y-%m-%d") / now.strftime("%H-%M-%S")
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _find_checkpoint(settings: Mapping[str, Any]) -> Path | None:
    """The checkpoint that `resume` means: a file, a run's folder, `last` or `auto`."""
    wanted = settings["resume"]
    if not wanted:
        return None
    if wanted in ("last", "auto"):
        if settings["output_dir"]:
            found = [Path(settings["output_dir"]) / "checkpoints" / "last.ckpt"]
        else:
            found = sorted(Path("outputs").glob("*/*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
        found = [path for path in found if path.is_file()]
        if found:
            return found[-1]
        if wanted == "auto":
            return None
        where = settings["output_dir"] or "outputs/"
        raise DogbreedError(f"resume=last found no checkpoint in {where}; resume=auto starts anew where there is none.")
    path = Path(wanted)
    if path.is_dir():
        path = path / "checkpoints" / "last.ckpt"
    if not path.is_file():
        raise DogbreedError(f"resume={wanted} is no checkpoint and no run's folder.")
    return path


def _check_same_run(checkpoint: Mapping[str, Any], settings: Mapping[str, Any], path: Path) -> None:
    kept = checkpoint.get("callbacks", {}).get("History", {}).get("config")
    if kept is None:
        raise DogbreedError(f"{path} was not written by a run of dogbreed.train, so it cannot be resumed.")
    keys = [key for key in diff(kept, settings) if not key.startswith(MAY_DIFFER)]
    if settings["model"]["schedule"] != "constant" and "trainer.max_epochs" in diff(kept, settings):
        keys.append("trainer.max_epochs")  # the schedule is spread over all epochs
    if keys:
        old, new = flatten(kept), flatten(settings)
        told = ", ".join(f"{key} (was {old.get(key)}, is {new.get(key)})" for key in keys[:5])
        raise DogbreedError(f"{path} belongs to another configuration: {told}. Resume with the same, or start anew.")


def _start_folder(folder: Path, settings: Mapping[str, Any], data: DogImages) -> None:
    with written_whole(folder / "config.yaml") as file:
        file.write_text(to_yaml(settings))
    if data.skipped:
        rows = [(skipped.path.relative_to(data.root), skipped.reason) for skipped in data.skipped]
        _write_csv(folder / "skipped.csv", ("path", "reason"), rows)


def _facts(data: DogImages, model: DogBreedClassifier, settings: Mapping[str, Any]) -> list[str]:
    counts = " / ".join(f"{len(data.samples[split]):,}" for split in ("train", "valid", "test"))
    trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.network.parameters())
    facts = [
        f"\nData:   {data.root}, {len(data.classes)} classes, {counts} images to train / validate / test",
        f"\nModel:  {model.hparams['backbone']}, weights {settings['model']['weights']}; "
        f"{model.hparams['trainable']} trains, {trained:,} of {everything:,} parameters",
    ]
    if data.skipped:
        first = data.skipped[0]
        facts.insert(1, f"\nSkipped: {len(data.skipped)} files, such as {first.path} ({first.reason})")
    return facts


# Training


def _interrupted(history: History, checkpoint: Path | None) -> Interrupted:
    if history.kept:
        return Interrupted(
            f"Stopped after {history.kept} epochs; go on with resume={history.folder} and the same settings."
        )
    if checkpoint is not None:
        return Interrupted(f"Stopped before training went on; {checkpoint} is as it was.")
    return Interrupted("Stopped before the first epoch ended; there is nothing to resume from.")


# After training


def _finish(
    trainer: Trainer,
    model: DogBreedClassifier,
    data: DogImages,
    history: History,
    cache: FeatureCache,
    settings: Mapping[str, Any],
    started: float,
    say: "_Say",
) -> Result:
    folder = history.folder
    model.network.load_state_dict(changed_state(history.best_path), strict=False)
    trainer.validate(model, datamodule=data, verbose=False)
    valid = _predictions(model)
    test = None
    if settings["test"]:
        trainer.test(model, datamodule=data, verbose=False)
        test = _predictions(model)
    if not trainer.is_global_zero:
        return Result({}, folder, model)

    temperature = fit_temperature(valid.logits, valid.labels)
    best = history.best or {}
    training_seconds = sum(row["seconds"] for row in history.rows)
    metrics: dict[str, Any] = {
        "train_loss": best.get("train_loss"),
        **_measured(valid, "val"),
        **(_measured(test, "test") if test else {}),
        "test_ece": calibration_error(test.logits, test.labels, temperature=temperature) if test else None,
        "test_ece_uncalibrated": calibration_error(test.logits, test.labels) if test else None,
        "temperature": temperature,
        "epochs": len(history.rows),
        "best_epoch": best.get("epoch"),
        "seconds": round(time.monotonic() - started, 3),
        "images_seen": model.images_seen,
        "images_per_second": round(model.images_seen / max(training_seconds, 1e-9), 1),
        "images_skipped": len(data.skipped),
        "cache": cache.state,
        "device": str(trainer.strategy.root_device),
    }
    with written_whole(folder / "metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n")
    if test:
        _write_predictions(folder / "predictions.csv", test, data, temperature)
    export.save(
        folder / "model",
        export.Exported(
            network=model.network,
            backbone=model.hparams["backbone"],
            class_names=model.class_names,
            preprocessing=model.preprocessing,
            temperature=temperature,
            config=settings,
            metrics=metrics,
        ),
    )
    _report(folder / "report.html", model, data, history, settings, metrics, test or valid)
    if test:
        correct = int((test.logits.argmax(1) == test.labels).sum())
        total = len(test.labels)
        say(
            TEST_LINE.format(
                loss=metrics["test_loss"], correct=correct, total=total, percent=100 * correct / max(total, 1)
            )
        )
    say(_summary(folder, metrics, data))
    return Result(metrics, folder, model)


def _report(
    file: Path,
    model: DogBreedClassifier,
    data: DogImages,
    history: History,
    settings: Mapping[str, Any],
    metrics: Mapping[str, Any],
    said: Predictions,
) -> None:
    split = "test" if settings["test"] else "valid"
    paths = [data.samples[split].paths[place] for place in said.indices.tolist()]
    run = Run(
        class_names=data.classes,
        backbone=model.hparams["backbone"],
        preprocessing=model.preprocessing,
        root=data.root,
        photos=data.samples,
        answers=Answers(split, said.logits, said.labels, paths, metrics["temperature"]),
        metrics=metrics,
        history=history.rows,
        skipped=data.skipped,
        config=settings,
        network=model.network,
    )
    report.write_safely(file, run)


def _predictions(model: DogBreedClassifier) -> Predictions:
    assert model.predictions is not None
    return model.predictions


def _measured(predictions: Predictions, name: str) -> dict[str, Any]:
    """Loss (mean per image, nats) and accuracy over all images at once, in float64."""
    logits, labels = predictions.logits.double(), predictions.labels
    correct = int((logits.argmax(1) == labels).sum())
    measured: dict[str, Any] = {
        f"{name}_loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        f"{name}_acc": correct / len(labels),
    }
    if name == "test":
        top5 = logits.topk(min(5, logits.shape[1])).indices
        measured["test_top5"] = int((top5 == labels[:, None]).any(1).sum()) / len(labels)
        measured["test_acc_ci95"] = list(wilson_interval(correct, len(labels)))
    return measured


def _write_predictions(file: Path, predictions: Predictions, data: DogImages, temperature: float) -> None:
    """One row an image of the test split: what it is, what was said, how surely."""
    probabilities = (predictions.logits.double() / temperature).softmax(1)
    values, places = probabilities.topk(min(5, probabilities.shape[1]))
    samples = data.samples["test"]
    names = data.classes
    rows = []
    for place, label, row, found in zip(
        predictions.indices.tolist(), predictions.labels.tolist(), values.tolist(), places.tolist(), strict=True
    ):
        top = " ".join(f"{names[i]}={p:.4f}" for i, p in zip(found, row, strict=True))
        path = samples.paths[place].relative_to(data.root)
        rows.append((path, names[label], names[found[0]], int(found[0] == label), f"{row[0]:.6f}", top))
    _write_csv(file, ("path", "label", "predicted", "correct", "probability", "top5"), rows)


def _write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    with written_whole(file) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")


def _summary(folder: Path, metrics: Mapping[str, Any], data: DogImages) -> str:
    lines = [""]
    if "test_acc" in metrics:
        low, high = metrics["test_acc_ci95"]
        count = len(data.samples["test"])
        lines.append(
            f"Reached {metrics['test_acc']:.1%} of {count:,} test images (95 % interval {low:.1%} to {high:.1%}), "
            f"among the first five {metrics['test_top5']:.1%},"
        )
        lines.append(
            f"with the weights of epoch {metrics['best_epoch']} of {metrics['epochs']}, in {metrics['seconds']:.0f} s "
            f"on {metrics['device']} (features: {metrics['cache']})."
        )
    if data.skipped:
        lines.append(f"Skipped {len(data.skipped)} files that are no readable images: {folder / 'skipped.csv'}")
    lines += [
        "",
        f"{folder}/",
        "  report.html      what was reached, to look at",
        "  model/           the model, to use and to deploy",
        "  predictions.csv  the answer for every test image",
        "  metrics.json, metrics.csv, config.yaml, checkpoints/",
        "",
        f"Try it: python -m dogbreed.predict {folder / 'model'} PHOTO",
    ]
    return "\n".join(lines)


class _Say:
    """Prints in the main process."""

    def __init__(self, main_process: bool) -> None:
        self.main_process = main_process

    def __call__(self, text: str) -> None:
        if self.main_process:
            print(text, flush=True)


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


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def task(config: dict[str, Any]) -> None:
        train(config)

    return cli.run(task, prog="python -m dogbreed.train", help=TRAIN_HELP, argv=argv)


class _CallableModule(ModuleType):
    """`from dogbreed import train` gives this module once it is imported; it may be called like the function in it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    sys.exit(main())
