"""How far training has come: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dogbreed.monitor.history import images_seen


class ProgressBar(Callback):
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
            TextColumn("{task.fields[status]}"),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=True)
        per_epoch = int(trainer.num_training_batches)
        epochs = trainer.max_epochs or 1
        self._task = self._bar.add_task(
            "", total=per_epoch * epochs, completed=per_epoch * trainer.current_epoch, epoch=1, epochs=epochs, status=""
        )
        self._bar.start()
        self._rate.restart(images_seen(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is None:
            return
        status = f"loss {_loss(outputs):.3f} "
        status += f"{self._accuracy}{self._rate(images_seen(pl_module)):,.0f} images/s"
        self._bar.update(self._task, advance=1, epoch=trainer.current_epoch + 1, status=status)

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
        self._last = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last = time.monotonic()
        self._rate.restart(images_seen(pl_module))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self._last < self.every_seconds:
            return
        rate = self._rate(images_seen(pl_module))
        steps = int(trainer.num_training_batches)
        left = (now - self._rate.started) / (batch_idx + 1) * (steps - batch_idx - 1)
        print(
            f"epoch {trainer.current_epoch + 1}: step {batch_idx + 1}/{steps}, "
            f"loss {_loss(outputs):.3f}, "
            f"{rate:,.1f} images/s, {left:.0f} s left in this epoch",
            flush=True,
        )
        self._last = now


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
