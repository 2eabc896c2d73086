"""`python -m dogbreed.train`: trains, evaluates, exports and reports.

In the order of a run: check the configuration and the data, build the model, train (with the frozen part computed
once), evaluate the best checkpoint on the test split, write everything into one folder, and say what came out.
Nothing is written before everything that can be checked has been checked.
"""

import csv
import io
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only

from dogbreed.cache.callback import FeatureCache
from dogbreed.config.compose import compose, to_yaml
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.files import atomic_write, discarded_if_empty
from dogbreed.core.metric_lines import TEST_LINE, accuracy_line
from dogbreed.core.version import __version__
from dogbreed.data.datamodule import DogImages
from dogbreed.inference import model_folder
from dogbreed.metrics.calibration import choose_temperature
from dogbreed.metrics.classification import PREDICTIONS, measure, prediction_rows
from dogbreed.metrics.predictions import Predictions
from dogbreed.models import backbones
from dogbreed.models.checkpoints import FROZEN, RunCheckpointIO, changed_state, read_checkpoint
from dogbreed.models.classifier import DogBreedClassifier, Outputs
from dogbreed.monitor.callback import LiveRules
from dogbreed.monitor.history import History
from dogbreed.monitor.profiler import Profiling, mode_of
from dogbreed.report import profile_report, training_report
from dogbreed.report.inputs import ReportInputs
from dogbreed.training.build import (
    FOLDER_FOR_RANKS,
    best_before,
    build_callbacks,
    build_data,
    build_hook,
    build_loggers,
    build_model,
    build_trainer,
    check_same_run,
    check_trainer,
    find_checkpoint,
    prepare_process,
    run_folder,
)


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


def train(config: Config | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Result:
    """One whole run.

    Args:
        config: A composed configuration (`dogbreed.config.compose.compose`); None composes it from `overrides`.
        overrides: As on the command line: `["data=sample", "model.lr=0.01"]`.

    Raises:
        DogbreedError: Something a person can put right; before training starts, nothing has been written.
    """
    started = time.monotonic()
    settings = Config.from_dict(compose(overrides) if config is None else config).to_dict()
    check_trainer(settings["trainer"])
    checkpoint_path = find_checkpoint(settings)
    folder = run_folder(settings, checkpoint_path)
    with discarded_if_empty(folder) if not settings["output_dir"] else nullcontext():
        return _train(settings, folder, checkpoint_path, started)


def _train(settings: dict[str, Any], folder: Path, checkpoint_path: Path | None, started: float) -> Result:
    prepare_process()
    main_process = getattr(rank_zero_only, "rank", 0) == 0
    say = _Say(main_process)

    trainer_arguments = dict(settings["trainer"])
    callbacks = build_callbacks(settings, quiet=not main_process)
    callbacks += build_hook(settings, folder, quiet=not main_process)
    cache = next(callback for callback in callbacks if isinstance(callback, FeatureCache))
    history = History(folder, settings)
    profile = mode_of(settings["profile"], settings["trainer"])
    profiling = Profiling(profile, folder / "profile") if profile and main_process else None
    live_rules = LiveRules(settings["rules"], history, profiling.system if profiling else None)
    data = build_data(settings, quiet=not main_process)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    before: Path | None = None
    if checkpoint is not None and checkpoint_path is not None:
        check_same_run(checkpoint, settings, checkpoint_path)
        before = best_before(checkpoint, checkpoint_path)
    if main_process:
        data.prepare_data()
    data.setup()
    model = build_model(settings, data, checkpoint)
    say("\n".join([f"dogbreed {__version__}", *_facts(data, model, settings)]))

    # Behind the cache's setup, which may still refuse.
    starts = (
        [LambdaCallback(on_fit_start=lambda *_: _start_folder(history, settings, data, before))] if main_process else []
    )
    io_plugin = RunCheckpointIO(backbones.changing_names(model.network))
    trainer = build_trainer(
        {
            **trainer_arguments,
            "callbacks": [*([profiling] if profiling else []), *callbacks, history, live_rules, *starts],
            "profiler": (profiling and profiling.timer) or trainer_arguments["profiler"],
            "logger": build_loggers(settings["loggers"], folder) if main_process else False,
            "plugins": [io_plugin],
            "default_root_dir": folder,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    )
    os.environ[FOLDER_FOR_RANKS] = str(folder)  # for the processes that Lightning starts
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        model.train()
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint_path)
        return _finish(trainer, model, data, history, cache, live_rules, profiling, settings, started, say)
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes a SystemExit of a Ctrl-C
        if isinstance(error, SystemExit) and not trainer.interrupted:
            raise
        raise _interrupted(history, checkpoint_path) from None
    finally:
        os.environ.pop(FOLDER_FOR_RANKS, None)
        live_rules.close()
        if profiling:
            profiling.close()
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGINT, on_interrupt
            )  # Lightning leaves it ignored, which would end Ctrl-C in a notebook


# Before training


def _start_folder(history: History, settings: Mapping[str, Any], data: DogImages, best_before: Path | None) -> None:
    folder = history.folder
    # A run that goes on in another folder may export what was the best before.
    if best_before is not None and best_before.resolve() != history.best_path.resolve():
        for source, target in (
            (best_before, history.best_path),
            (best_before.with_name(FROZEN), history.best_path.with_name(FROZEN)),
        ):
            if source.is_file() and source.resolve() != target.resolve():
                with atomic_write(target) as file:
                    shutil.copyfile(source, file)
    with atomic_write(folder / "config.yaml") as file:
        file.write_text(to_yaml(settings))
    if data.skipped:
        rows = [(skipped.path.relative_to(data.root), skipped.reason) for skipped in data.skipped]
        _write_csv(folder / "skipped.csv", ("path", "reason"), rows)
    else:
        _remove([folder / "skipped.csv"])


def _facts(data: DogImages, model: DogBreedClassifier, settings: Mapping[str, Any]) -> list[str]:
    counts = " / ".join(f"{len(data.samples[split]):,}" for split in data.samples)
    trained = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.network.parameters())
    facts = [
        f"Data:   {data.root}, {len(data.classes)} classes, {counts} images to "
        f"{' / '.join(['train', 'validate', 'test'][: len(data.samples)])}",
        f"Model:  {model.hparams['backbone']}, weights {settings['model']['weights']}; "
        f"{model.hparams['trainable']} trains, {trained:,} of {everything:,} parameters",
    ]
    facts[1:1] = data.warnings[:5]
    if data.skipped:
        first = data.skipped[0]
        facts.insert(1, f"Skipped {len(data.skipped)} files, such as {first.path} ({first.reason})")
    return facts


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
    live_rules: LiveRules,
    profiling: Profiling | None,
    settings: Mapping[str, Any],
    started: float,
    say: "_Say",
) -> Result:
    folder = history.folder
    if history.chosen is None:
        raise DogbreedError(
            "No epoch finished, so there is nothing to evaluate; give trainer.max_epochs, "
            "trainer.max_steps or trainer.max_time room for one."
        )
    file, best = history.chosen
    model.network.load_state_dict(_best_state(trainer, file), strict=False)
    trainer.validate(model, datamodule=data, verbose=False)
    valid = _predictions(model)
    test = None
    if settings["test"] and "test" in data.samples and settings["trainer"]["limit_test_batches"] != 0:
        model.predictions = None  # those of the validation may not pass for the test's
        trainer.test(model, datamodule=data, verbose=False)
        test = _predictions(model)
    if not trainer.is_global_zero:
        return Result({}, folder, model)

    temperature = choose_temperature(valid.logits, valid.labels)
    measured = measure(_predictions_of("valid", valid, data, temperature), "val")
    training_seconds = sum(row["seconds"] for row in history.rows)
    metrics: dict[str, Any] = {
        "train_loss": best["train_loss"],
        "val_loss": measured["val_loss"],
        "val_acc": measured["val_acc"],
        **(measure(_predictions_of("test", test, data, temperature)) if test else {}),
        "temperature": temperature,
        "epochs": len(history.rows),
        "best_epoch": best["epoch"],
        "seconds": round(time.monotonic() - started, 3),
        "images_seen": model.images_seen,
        "images_per_second": round(model.images_seen / max(training_seconds, 1e-9), 1),
        "images_skipped": len(data.skipped),
        "cache": cache.state,
        "device": str(trainer.strategy.root_device),
    }
    with atomic_write(folder / "metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n")
    if test:
        predictions = _predictions_of("test", test, data, temperature)
        _write_csv(folder / "predictions.csv", PREDICTIONS, prediction_rows(predictions, data.classes, data.root))
        correct, total = int((predictions.predicted == predictions.labels).sum()), len(predictions.labels)
        percent = 100 * correct / total
        say(TEST_LINE.format(loss=metrics["test_loss"], correct=correct, total=total, percent=percent))
    model_folder.save(
        folder / "model",
        model_folder.Exported(
            network=model.network,
            backbone=model.hparams["backbone"],
            class_names=model.class_names,
            preprocessing=model.preprocessing,
            temperature=temperature,
            config=settings,
            metrics=metrics,
        ),
    )
    run = ReportInputs(
        class_names=data.classes,
        backbone=model.hparams["backbone"],
        preprocessing=model.preprocessing,
        root=data.root,
        photos=data.samples,
        predictions=_predictions_of("test", test, data, temperature)
        if test
        else _predictions_of("valid", valid, data, temperature),
        metrics=metrics,
        history=history.rows,
        skipped=data.skipped,
        config=settings,
        network=model.network,
        findings=live_rules.all_findings(),
    )
    training_report.write_safely(folder / "report.html", run)
    _remove(folder / name for name, made in (("profile", profiling), ("predictions.csv", test)) if not made)
    if profiling:
        found = profiling.result(live_rules.all_findings(), settings["rules"]["step_outlier"])
        title = f"{run.backbone} on {data.root.resolve().name or data.root}"
        profile_report.write_safely(folder / "profile", found, title, settings)
    say(_summary(folder, metrics, data, 0 if test is None else len(test.labels), profiled=profiling is not None))
    return Result(metrics, folder, model)


def _remove(of_an_earlier_run: Iterable[Path]) -> None:
    """Takes away what lies in this run's folder and would pass for this run's."""
    for left in of_an_earlier_run:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _best_state(trainer: Trainer, file: Path) -> Mapping[str, Any]:
    """What the best checkpoint holds; it lies on the first machine's disk, which others may not see."""
    if trainer.num_nodes == 1:
        return changed_state(file)
    state: Mapping[str, Any] = trainer.strategy.broadcast(changed_state(file) if trainer.is_global_zero else {})
    return state


def _predictions_of(split: str, said: Outputs, data: DogImages, temperature: float) -> Predictions:
    paths = [data.samples[split].paths[place] for place in said.indices.tolist()]
    return Predictions(split, said.logits, said.labels, paths, temperature)


def _predictions(model: DogBreedClassifier) -> Outputs:
    assert model.predictions is not None
    return model.predictions


def _write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    with atomic_write(file) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def _summary(folder: Path, metrics: Mapping[str, Any], data: DogImages, tested: int, profiled: bool) -> str:
    lines = [""]
    if "test_acc" in metrics:
        features = {"built": ", features computed now", "hit": ", features found on disk"}.get(metrics["cache"], "")
        lines.append(f"{accuracy_line(metrics, 'test', tested)},")
        lines.append(
            f"with the weights of epoch {metrics['best_epoch']} of {metrics['epochs']}, in {metrics['seconds']:.0f} s "
            f"on {metrics['device']}{features}."
        )
    if data.skipped:
        lines.append(f"Skipped {len(data.skipped)} files that are no readable images: {folder / 'skipped.csv'}")
    lines += [
        "",
        f"{folder}/",
        "  report.html      what was reached, to look at",
        *(["  profile/         where the time went: profile/report.html"] if profiled else []),
        "  model/           the model, to use and to deploy",
        *(["  predictions.csv  the answer for every test image"] if "test_acc" in metrics else []),
        "  metrics.json, metrics.csv, rules.json, config.yaml, checkpoints/",
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
            # Names of files need not be UTF-8, and a terminal takes nothing else.
            print(text.encode("utf-8", "backslashreplace").decode(), flush=True)
