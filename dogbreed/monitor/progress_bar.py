"""How far an epoch has come, with its loss and images per second."""

from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dogbreed.core.progress import Tracker, track
from dogbreed.data.transfer import LaggingValues
from dogbreed.monitor.history import EpochClock, images_seen


class ProgressBar(Callback):
    """Show how far each epoch has come on standard error.

    Args:
        plain: Lines now and then, as for a log, also on a terminal; otherwise a bar there.
    """

    def __init__(self, plain: bool = False) -> None:
        self.plain = plain
        self._open = ExitStack()
        self._tracker: Tracker | None = None
        self._clock, self._seen = EpochClock(), 0
        self._losses = LaggingValues()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._clock.start(trainer)
            self._seen = images_seen(pl_module)
            epochs = f"/{trainer.max_epochs}" if (trainer.max_epochs or -1) > 0 else ""
            tracker = track(
                int(trainer.num_training_batches),
                f"Epoch {trainer.current_epoch + 1}{epochs}",
                "steps",
                plain=self.plain,
                transient=True,
            )
            self._tracker = self._open.enter_context(tracker)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        def status() -> str:
            rate = (images_seen(pl_module) - self._seen) / max(self._clock.seconds(trainer), 1e-9)
            loss: Any = outputs["loss"] if isinstance(outputs, dict) else outputs
            known = self._losses.read(loss.detach().reshape(1))
            return f"{f'loss {known[0]:.3f}, ' if known else ''}{rate:,.0f} images/s"

        if self._tracker:
            self._tracker.advance(1, status)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        self._tracker = None
        self._open.close()
