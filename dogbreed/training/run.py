"""`train()`: one run, from its configuration to its report.

In the order of a run: check the configuration and the data, build the model, train (with the frozen part computed
once), evaluate the best checkpoint on the test split, write everything into one folder, and say what came out.
Nothing is written before everything that can be checked has been checked.
"""

import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from dogbreed.config.compose import to_yaml
from dogbreed.config.resumed import HEAD_STAGE, LAST_CHECKPOINT, is_of_head_stage
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.files import atomic_write, discarded_if_empty, remove, write_csv
from dogbreed.core.text import count
from dogbreed.core.version import __version__
from dogbreed.data.datamodule import DogImages
from dogbreed.models import backbones
from dogbreed.models.checkpoint_io import RunCheckpointIO
from dogbreed.models.checkpoints import read_checkpoint
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.monitor.callback import LiveRules
from dogbreed.monitor.history import History
from dogbreed.monitor.profiler import Profiling, mode_of
from dogbreed.training.build import (
    FOLDER_FOR_RANKS,
    SEED_FOR_RANKS,
    build_cache,
    build_callbacks,
    build_data,
    build_model,
    build_trainer,
    fit_batch_size,
    prepare_process,
    read_config,
    run_folder,
    say,
    shared_frozen,
)
from dogbreed.training.folds import check_folds, check_images, check_stackable
from dogbreed.training.head_stage import HeadResult, bring_along, check_stages, config_of, start_values
from dogbreed.training.loggers import build_loggers, logger_of
from dogbreed.training.preflight import check_run, check_settings
from dogbreed.training.ranks import agree
from dogbreed.training.refit import check_refit
from dogbreed.training.results import Run, finish, finish_head
from dogbreed.training.resume import (
    best_before,
    check_epochs_left,
    check_folder,
    check_same_run,
    find_checkpoint,
    with_batch_size_of,
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

    def __fspath__(self) -> str:  # so that it stands for its folder: Predictor(result)
        return str(self.output_dir)

    def __repr__(self) -> str:
        figures = ("test_acc", "test_loss", "val_acc", "val_loss")
        shown = [f"{name}={self.metrics[name]:.4f}" for name in figures if name in self.metrics]
        return f"Result({', '.join([*shown, f'output_dir={str(self.output_dir)!r}'])})"


def train(
    config: Config | Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    *,
    callbacks: Sequence[Callback] = (),
) -> Result:
    """Train, evaluate, export and report one run, as `dogbreed.train` describes it."""
    started = time.monotonic()
    config = read_config(config, overrides)
    prepare_process()
    check_settings(config)
    check_refit(config)
    check_stages(config)
    check_folds(config)
    check_folder(config)
    found = find_checkpoint(config)
    folder = Path(agree(lambda: run_folder(config, found)))
    checkpoint_path = None if found and is_of_head_stage(found) else found
    made = not config.output_dir and checkpoint_path is None
    with discarded_if_empty(folder, made=made, mark="config.yaml"):
        run = _prepare(config, folder, checkpoint_path, callbacks, started)
        say("\n".join([f"dogbreed {__version__}", *_facts(run)]))
        with _interruptible(run, checkpoint_path, folder):
            if config.head_stage.epochs:
                run = replace(run, head=_train_head(run, found, checkpoint_path is None))
            run.model.train()
            run.trainer.fit(run.model, datamodule=run.data, ckpt_path=checkpoint_path)
            return Result(finish(run), folder, run.model)


def _train_head(run: Run, checkpoint: Path | None, starts: bool) -> HeadResult:
    """Train the head alone, unless that is done, and start the second stage from there.

    Args:
        run: The second stage, prepared, so that what can be refused is refused before the first.
        checkpoint: That of either stage with which the run goes on; None starts from scratch.
        starts: Whether the second stage begins here.
    """
    history, folder = run.history, run.history.folder / HEAD_STAGE
    if run.trainer.world_size > 1:
        raise DogbreedError("Two stages (head_stage.epochs) train on one device; give trainer.devices=1.")
    bring_along(checkpoint, folder)
    if checkpoint is None or not (folder / "metrics.json").is_file():
        last = None if checkpoint is None else folder / LAST_CHECKPOINT

        def start(*_: Any) -> None:
            if last is None:  # what lies there from an earlier run would pass for this run's
                remove([folder, history.best_path.parent])
            _keep_config(history)

        stage = _prepare(
            config_of(run.config, folder), folder, last, [LambdaCallback(on_fit_start=start)], time.monotonic()
        )
        say(f"Stage 1 of 2: the head alone, {count(run.config.head_stage.epochs, 'epoch')}")
        with _interruptible(stage, checkpoint, history.folder):
            stage.model.train()
            stage.trainer.fit(stage.model, datamodule=stage.data, ckpt_path=last)
            finish_head(stage)
        history.seconds_before = stage.history.seconds_before
    elif starts:
        history.seconds_before = HeadResult.read(folder).metrics["seconds"]
    if starts:
        run.model.load_network(start_values(folder))
    say(f"Stage 2 of 2: {run.config.model.trainable} trains, from the best epoch of the head")
    return HeadResult.read(folder)


def _prepare(
    config: Config, folder: Path, checkpoint_path: Path | None, own: Sequence[Callback], started: float
) -> Run:
    """Make the parts of a run; what can be refused is refused here."""
    main_process = getattr(rank_zero_only, "rank", 0) == 0
    history = History(folder, config.to_dict())
    cache = build_cache(config, quiet=not main_process)
    callbacks = [cache, *build_callbacks(config, folder, quiet=not main_process), *own]
    mode = mode_of(config.profile, config.trainer)
    profiling = Profiling(mode, folder / "profile") if mode and main_process else None
    live_rules = LiveRules(history.config["rules"], history, profiling.system if profiling else None)
    data = build_data(config, quiet=not main_process)
    checkpoint = read_checkpoint(checkpoint_path) if checkpoint_path else None
    before: Path | None = None
    if checkpoint is not None and checkpoint_path is not None:
        config = with_batch_size_of(checkpoint, config)
        check_same_run(checkpoint, config, checkpoint_path)
        check_epochs_left(checkpoint, config, checkpoint_path)
        before = best_before(checkpoint, checkpoint_path)
    agree(lambda: data.prepare_data() if main_process else None)
    data.setup()
    config = config if checkpoint else fit_batch_size(config, data)
    history.config = config.to_dict()
    data.batch_size = config.data.batch_size
    model = build_model(config, data, checkpoint)

    callbacks = [*([profiling] if profiling else []), *callbacks, history, live_rules]
    # Behind the cache's setup, which may still refuse.
    if folds := config.data.folds:
        callbacks.append(LambdaCallback(on_fit_start=lambda *_: check_stackable(folds, model)))
    if main_process:
        callbacks.append(LambdaCallback(on_fit_start=lambda trainer, _: _start_folder(trainer, history, data, before)))
    trainer = build_trainer(
        {
            **config.trainer,
            **({"max_epochs": 1} if config.model.optimizer == "lbfgs" else {}),
            "callbacks": callbacks,
            "profiler": (profiling and profiling.timer) or config.trainer["profiler"],
            "logger": build_loggers(config.loggers, folder) if main_process else False,
            "plugins": [RunCheckpointIO(backbones.changing_names(model.network), shared_frozen(config))],
            "default_root_dir": folder,
            "use_distributed_sampler": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
    )
    check_run(config, data, model, trainer.world_size)
    if folds:
        check_images(folds, data, trainer.world_size)
    return Run(config, data, model, trainer, cache, history, live_rules, profiling, started)


@contextmanager
def _interruptible(run: Run, checkpoint: Path | None, folder: Path) -> Iterator[None]:
    """Hold the training of what lies in a folder: a Ctrl-C becomes a sentence, and the process is left as it was."""
    os.environ[FOLDER_FOR_RANKS] = str(run.history.folder)  # for the processes that Lightning starts
    os.environ[SEED_FOR_RANKS] = str(run.config.seed)
    on_interrupt = signal.getsignal(signal.SIGINT)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes a SystemExit of a Ctrl-C
        if isinstance(error, SystemExit) and not run.trainer.interrupted:
            raise
        raise _interrupted(run, checkpoint, folder) from None
    except MisconfigurationException as error:
        raise DogbreedError(f"Lightning refuses these settings: {' '.join(str(error).split())}") from error
    except Exception as error:
        service = logger_of(error)
        if service is None:
            raise
        kept = f"; go on with {shlex.quote(f'resume={folder}')}" if run.history.kept else ""
        raise DogbreedError(f"loggers.{service}: {' '.join(str(error).split())[:300]}{kept}") from error
    finally:
        os.environ.pop(FOLDER_FOR_RANKS, None)
        os.environ.pop(SEED_FOR_RANKS, None)
        run.live_rules.close()
        if run.profiling:
            run.profiling.close()
        if threading.current_thread() is threading.main_thread():
            # Lightning leaves it ignored, which would end Ctrl-C in a notebook.
            signal.signal(signal.SIGINT, on_interrupt)


def _interrupted(run: Run, checkpoint: Path | None, folder: Path) -> Interrupted:
    history = run.history
    if history.kept:
        resume = shlex.quote(f"resume={folder}")
        return Interrupted(f"Stopped after {count(history.kept, 'epoch')}; go on with {resume} and the same settings.")
    if checkpoint is not None:
        return Interrupted(f"Stopped before training went on; {checkpoint} is as it was.")
    return run.cache.interrupted() or Interrupted(
        "Stopped before the first epoch ended; there is nothing to resume from."
    )


def _start_folder(trainer: Trainer, history: History, data: DogImages, best_before: Path | None) -> None:
    folder = history.folder
    for logger in trainer.loggers:
        logger.log_hyperparams(history.config)
    # A run that goes on in another folder may export what was the best before.
    if best_before is not None and best_before.resolve() != history.best_path.resolve():
        with atomic_write(history.best_path) as file:
            shutil.copyfile(best_before, file)
    _keep_config(history)
    if data.skipped:
        rows = [(data.shown_path(skipped.path), skipped.reason) for skipped in data.skipped]
        write_csv(folder / "skipped.csv", ("path", "reason"), rows)
    else:
        remove([folder / "skipped.csv"])  # of an earlier run
    if data.own_split:
        write_csv(folder / "split.csv", ("path", "label", "split"), data.own_split)
    else:
        remove([folder / "split.csv"])


def _keep_config(history: History) -> None:
    with atomic_write(history.folder / "config.yaml") as file:
        file.write_text(to_yaml(history.config))


def _facts(run: Run) -> list[str]:
    data, model, config = run.data, run.model, run.config
    counts = " / ".join(f"{len(data.samples[split]):,}" for split in data.samples)
    parameters = list(model.network.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    facts = [
        f"Data:   {data.root}, {len(data.classes)} classes, {counts} images to "
        f"{' / '.join(['train', 'validate', 'test'][: len(data.samples)])}"
    ]
    if data.skipped:
        first = data.skipped[0]
        facts.append(f"Skipped {len(data.skipped)} files, such as {first.path} ({first.reason})")
    return [
        *facts,
        *data.warnings[:5],
        f"Model:  {model.hparams['backbone']}, weights {config.model.weights}; {model.hparams['trainable']} trains, "
        f"{trained:,} of {sum(parameter.numel() for parameter in parameters):,} parameters",
    ]
