"""What a run keeps of its epochs: their lines, `metrics.csv`, the best and the last checkpoint."""

import math
import sys
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import Checkpoint

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import write_csv
from dogbreed.core.metric_lines import EPOCH_LINE
from dogbreed.core.text import duration
from dogbreed.data.datamodule import DogImages
from dogbreed.models.classifier import DogBreedClassifier

BEST, LAST = "best.ckpt", "last.ckpt"
HISTORY = ("epoch", "train_loss", "val_loss", "val_acc", "lr", "seconds", "images_per_second", "train_acc")


class History(Checkpoint):
    """Print each epoch's line, write `metrics.csv`, and keep the best and the last checkpoint.

    The best is that of the lowest val_loss, the first of equals. It is written before the last, so that a run killed
    between the two does its epoch again and comes to the same best. An epoch without a validation
    (`trainer.check_val_every_n_epoch`, `trainer.max_steps`) has no val_loss, and is never the best.

    Args:
        folder: Where the run writes.
        config: Kept in the checkpoints, so that a resumed run can be compared.

    Attributes:
        rows: One dict per epoch, with the columns of `metrics.csv`.
        best: The row of the best epoch; None before the first that was validated.
        seconds_before: Of the runs that this one goes on with.
    """

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config
        self.rows: list[dict[str, float]] = []
        self.best: dict[str, float] | None = None
        self.seconds_before = 0.0
        self._began, self._clock = time.monotonic(), EpochClock()
        self._seen = 0
        self._validated = False
        self._before: tuple[int, int] | None = None  # the last checkpoint, where an epoch is about to replace it

    @property
    def kept(self) -> int:
        """Return how many epochs the last checkpoint holds, one less than there are rows while an epoch is saved.

        The file itself is asked: a Ctrl-C can come between its writing and whatever would note it.
        """
        return len(self.rows) - (self._before is not None and self._before == _identity(self.last_path))

    @property
    def best_path(self) -> Path:
        return self.folder / "checkpoints" / BEST

    @property
    def last_path(self) -> Path:
        return self.folder / "checkpoints" / LAST

    @property
    def chosen(self) -> tuple[Path, dict[str, float]] | None:
        """Return the checkpoint that is exported, with its row: the best, or the last where none was validated."""
        if not self.rows:
            return None
        return (self.last_path, self.rows[-1]) if self.best is None else (self.best_path, self.best)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clock.start(trainer)
        self._seen = images_seen(pl_module)
        self._validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        measured = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if not self._validated:  # Lightning still has the values of an earlier epoch
            measured = {name: value for name, value in measured.items() if not name.startswith("val_")}
        seconds = self._clock.seconds(trainer)
        row = {
            "epoch": trainer.current_epoch + 1,
            **{name: measured.get(name, math.nan) for name in ("train_loss", "val_loss", "val_acc", "train_acc")},
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "seconds": round(seconds, 3),
            "images_per_second": round((images_seen(pl_module) - self._seen) / max(seconds, 1e-9), 1),
        }
        self._before = _identity(self.last_path)
        self.rows.append(row)
        better = self._validated and (self.best is None or row["val_loss"] < self.best["val_loss"])
        if better:
            self.best = row
        if trainer.is_global_zero:
            print(self._line(trainer.max_epochs or -1), flush=True)
        # Every device takes part in saving: strategies gather what is spread over them.
        if better:
            trainer.save_checkpoint(self.best_path)
        trainer.save_checkpoint(self.last_path)
        if trainer.is_global_zero:
            write_csv(self.folder / "metrics.csv", HISTORY, ([row[name] for name in HISTORY] for row in self.rows))

    def _line(self, epochs: int) -> str:
        """Return the last epoch's line: for people on a terminal, else the one that tools read."""
        row = self.rows[-1]
        if not sys.stdout.isatty() or self.config.get("progress") == "plain":
            return EPOCH_LINE.format(**{**row, "best_val_loss": (self.best or row)["val_loss"]})
        number, left = int(row["epoch"]), ""
        if number < epochs:
            mean = sum(row["seconds"] for row in self.rows) / len(self.rows)
            left = f"  ~{duration(mean * (epochs - number))} left"
        text = f"epoch {number}{f'/{epochs}' if epochs > 0 else ''}  loss {row['train_loss']:.3f}"
        if math.isfinite(row["val_loss"]):
            text += f"  val {row['val_loss']:.3f}  {100 * row['val_acc']:.1f} %{'  best' if row is self.best else ''}"
        return f"{text}  {duration(row['seconds'])}{left}"

    def state_dict(self) -> dict[str, Any]:
        seconds = self.seconds_before + time.monotonic() - self._began
        return {"rows": [dict(row) for row in self.rows], "best": self.best, "config": self.config, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        older = {"train_acc": math.nan}  # which the rows of older versions have not
        self.rows = [{**older, **row} for row in state_dict["rows"]]
        self.best = state_dict["best"] and {**older, **state_dict["best"]}
        # Older checkpoints know the seconds of their epochs alone.
        self.seconds_before = state_dict.get("seconds", sum(row["seconds"] for row in self.rows))

    @property
    def state_key(self) -> str:
        return "History"


class EpochClock:
    """The seconds of an epoch, without those of features that are computed once."""

    def start(self, trainer: Trainer) -> None:
        self._started = time.monotonic() - self._features(trainer)

    def seconds(self, trainer: Trainer) -> float:
        return time.monotonic() - self._features(trainer) - self._started

    def _features(self, trainer: Trainer) -> float:
        data: Any = getattr(trainer, "datamodule", None)
        return data.features_seconds if isinstance(data, DogImages) else 0.0


class EarlyStopping(callbacks.EarlyStopping):
    """Stop after `patience` epochs without a lower val_loss."""

    def __init__(self, patience: int) -> None:
        if not isinstance(patience, int) or isinstance(patience, bool) or patience < 1:
            raise DogbreedError(f"early_stopping={patience} is out of range; it is a whole number of epochs from 1.")
        # Not strict: an epoch that max_steps cuts short has no val_loss.
        super().__init__(monitor="val_loss", patience=patience, mode="min", check_finite=False, strict=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({**state_dict, "patience": self.patience})  # a resumed run may have another one


def _identity(file: Path) -> tuple[int, int]:
    """Return what differs between a file and the one that replaces it; zeros where there is none."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def images_seen(module: LightningModule) -> int:
    """Return how many images a model has been trained on so far."""
    assert isinstance(module, DogBreedClassifier)
    return module.images_seen
