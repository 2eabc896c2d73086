"""What a run says and keeps while it trains: its lines, its checkpoints, its history, its progress."""

import csv
import io
import math
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.metric_lines import EPOCH_LINE
from dogbreed.models.classifier import DogBreedClassifier

BEST, LAST = "best.ckpt", "last.ckpt"
HISTORY = ("epoch", "train_loss", "val_loss", "val_acc", "lr", "seconds", "images_per_second")


class History(Checkpoint):
    """Prints the epoch's line, writes `metrics.csv`, and keeps the best and the last checkpoint.

    The best is that of the lowest val_loss, the first of equals. It is written before the last, so that a run killed
    between the two does its epoch again and comes to the same best. An epoch without a validation
    (`trainer.check_val_every_n_epoch`, `trainer.max_steps`) has no val_loss, and is never the best.

    Args:
        folder: Of the run.
        config: Kept in the checkpoints, so that a resumed run can be compared.

    Attributes:
        rows: One dict an epoch, with the columns of `metrics.csv`.
        best: The row of the best epoch; None before the first that was validated.
        kept: Epochs that the last checkpoint holds; while an epoch is being saved, one less than there are rows.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.kept = 0
        self._started = time.monotonic()
        self._seen = 0
        self._validated = False

    @property
    def best_path(self) -> Path:
        return self.folder / "checkpoints" / BEST

    @property
    def last_path(self) -> Path:
        return self.folder / "checkpoints" / LAST

    @property
    def chosen(self) -> tuple[Path, dict[str, float]] | None:
        """The checkpoint that is exported, with its row: the best, or the last where none was validated."""
        if not self.rows:
            return None
        return (self.last_path, self.rows[-1]) if self.best is None else (self.best_path, self.best)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.monotonic()
        self._seen = _images_seen(pl_module)
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self._validated:  # Lightning still has the values of an earlier epoch
            measured = {name: value for name, value in measured.items() if not name.startswith("val_")}
        seconds = time.monotonic() - self._started
        row = {
            "epoch": trainer.current_epoch + 1,
            **{name: measured.get(name, math.nan) for name in ("train_loss", "val_loss", "val_acc")},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(seconds, 3),
            "images_per_second": round((_images_seen(pl_module) - self._seen) / max(seconds, 1e-9), 1),
        }
        self.rows.append(row)
        better = self._validated and (self.best is None or row["val_loss"] < self.best["val_loss"])
        if better:
            self.best = row
        if trainer.is_global_zero:
            best = self.best or row
            print(EPOCH_LINE.format(**{**row, "best_val_loss": best["val_loss"]}), flush=True)
        # Every device takes part in saving: strategies gather what is spread over them.
        if better:
            trainer.save_checkpoint(self.best_path)
        trainer.save_checkpoint(self.last_path)
        self.kept = len(self.rows)
        if trainer.is_global_zero:
            self._write_csv()

    def _write_csv(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, HISTORY)
        writer.writeheader()
        writer.writerows(self.rows)
        with atomic_write(self.folder / "metrics.csv") as file:
            file.write_text(text.getvalue())

    def state_dict(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows], "best": self.best, "config": self.config}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.best = state_dict["best"]
        self.kept = len(self.rows)

    @property
    def state_key(self) -> str:
        return "History"


class Bar(Callback):
    """A progress bar with loss, accuracy, images per second and time left; for a terminal."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._accuracy = ""
        self._rate = _Rate()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        columns = (
            SpinnerColumn(),
            TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[told]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        per_epoch = int(trainer.num_training_batches)
        epochs = trainer.max_epochs or 1
        self._task = self._bar.add_task(
            "", total=per_epoch * epochs, completed=per_epoch * trainer.current_epoch, epoch=1, epochs=epochs, told=""
        )
        self._bar.start()
        self._rate.restart(_images_seen(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        told = f"loss {_loss(outputs):.3f} "
        told += f"{self._accuracy}{self._rate(_images_seen(pl_module)):,.0f} images/s"
        self._bar.update(self._task, advance=1, epoch=trainer.current_epoch + 1, told=told)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if "val_acc" in trainer.callback_metrics:
            self._accuracy = f"val_acc {float(trainer.callback_metrics['val_acc']):.3f} "

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class PlainProgress(Callback):
    """A line now and then in a long epoch, whole and newline-ended; for logs."""

    def __init__(self, every_seconds: float = 15.0) -> None:
        self.every_seconds = every_seconds
        self._rate = _Rate()
        self._told = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._told = time.monotonic()
        self._rate.restart(_images_seen(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._told < self.every_seconds:
            return
        rate = self._rate(_images_seen(pl_module))
        steps = int(trainer.num_training_batches)
        left = (now - self._rate.started) / (batch_idx + 1) * (steps - batch_idx - 1)
        print(
            f"epoch {trainer.current_epoch + 1}: step {batch_idx + 1}/{steps}, "
            f"loss {_loss(outputs):.3f}, "
            f"{rate:,.1f} images/s, {left:.0f} s left in this epoch",
            flush=True,
        )
        self._told = now


class PatientStopping(EarlyStopping):
    """Stops after `patience` epochs without a lower val_loss."""

    def __init__(self, patience: int) -> None:
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise DogbreedError(f"early_stopping={patience} is out of range; it is a whole number of epochs from 1.")
        # Not strict: an epoch that max_steps cuts short has no val_loss.
        super().__init__(monitor="val_loss", patience=patience, mode="min", check_finite=False, strict=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})  # a resumed run may have another one


class _Rate:
    """Images per second since the restart."""

    def __init__(self) -> None:
        self.restart(0)

    def restart(self, seen: int) -> None:
        self.started, self._first = time.monotonic(), seen

    def __call__(self, seen: int) -> float:
        return (seen - self._first) / max(time.monotonic() - self.started, 1e-9)


def _loss(outputs: Any) -> float:
    """Of the step that has just ended, as Lightning passes it on."""
    return float(outputs["loss"] if isinstance(outputs, dict) else outputs)


def _images_seen(module: LightningModule) -> int:
    assert isinstance(module, DogBreedClassifier)
    return module.images_seen
