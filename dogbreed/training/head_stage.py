"""The first of two stages (`schedule=finetune`): the head alone, on cached features.

It is an ordinary run in the folder `head_stage` of the whole run's, without a model and a report of its own. The second
stage starts from the network and the head of its best epoch.
"""

import csv
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dogbreed.config.resumed import HEAD_STAGE, run_of
from dogbreed.config.settings import Config, HeadStage
from dogbreed.core.errors import DogbreedError
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.models.checkpoint_io import link
from dogbreed.models.checkpoints import FROZEN, network_state, read_checkpoint
from dogbreed.monitor.history import BEST, LAST

_FIGURES = ("val_loss", "val_acc", "test_loss", "test_acc", "epochs", "best_epoch")


def check_stages(config: Config) -> None:
    """Refuse a first stage that cannot be.

    Raises:
        DogbreedError: It has no sense, or no second one after it.
    """
    stage = config.head_stage
    for key, value, least in (("epochs", stage.epochs, 0), ("batch_size", stage.batch_size, 1)):
        if value < least:
            raise DogbreedError(f"head_stage.{key}={value} is out of range; it is a whole number from {least}.")
    if not 0 < stage.lr < float("inf"):
        raise DogbreedError(f"head_stage.lr={stage.lr} is out of range; it is more than 0.")
    if stage.epochs and config.model.trainable == "head":
        raise DogbreedError(
            f"head_stage.epochs={stage.epochs} trains the head first, and model.trainable=head leaves nothing for the "
            "second stage; take block or all, or head_stage.epochs=0."
        )


def config_of(config: Config, folder: Path) -> Config:
    """Return the configuration of the first stage of a run, which writes into `folder`."""
    stage = config.head_stage
    return replace(
        config,
        output_dir=str(folder),
        head_stage=HeadStage(),
        profile=None,
        callbacks=None,
        loggers={},
        rules={**config.rules, "enabled": False},
        data=replace(config.data, batch_size=stage.batch_size, min_steps=0, augment=stage.augment, transforms=None),
        model=replace(
            config.model,
            trainable="head",
            lr=stage.lr,
            backbone_lr=None,
            optimizer=stage.optimizer,
            schedule="constant",
            weight_decay=0.0,
            label_smoothing=0.0,
            layer_decay=1.0,
            freeze_norm=False,
            ema_decay=None,
            mixup=0.0,
            cutmix=0.0,
        ),
        trainer={**config.trainer, "max_epochs": stage.epochs, "max_steps": -1, "accumulate_grad_batches": 1},
    )


def bring_along(checkpoint: Path | None, folder: Path) -> None:
    """Copy the first stage of a run that goes on in another folder.

    Args:
        checkpoint: Of the run, in either stage; None where it starts from scratch.
        folder: Of the first stage, where the run goes on.

    Raises:
        DogbreedError: It is gone.
    """
    if checkpoint is None:
        return
    source = run_of(checkpoint) / HEAD_STAGE
    if not source.is_dir():
        raise DogbreedError(
            f"{checkpoint} needs the folder {HEAD_STAGE} of its run, which has the first stage; move the whole folder."
        )
    if source.resolve() != folder.resolve():
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=_copy)


def _copy(source: str, target: str) -> None:
    """Copy a file, and link the large one that is never written to again."""
    if Path(source).name != FROZEN or not link(Path(source), Path(target)):
        shutil.copy2(source, target)


def start_values(folder: Path) -> dict[str, Tensor]:
    """Return the network's state_dict at the best epoch of a first stage; at the last where none was validated."""
    best, last = (folder / "checkpoints" / name for name in (BEST, LAST))
    return network_state(read_checkpoint(best if best.is_file() else last))


@dataclass(frozen=True)
class HeadResult:
    """What a first stage left.

    Attributes:
        metrics: As in its `metrics.json`.
        rows: Its epochs, as in `metrics.csv`.
        correct: Which of the images of test (of valid, where there is no test) it classified correctly.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, float]]
    correct: Tensor

    @classmethod
    def read(cls, folder: Path) -> "HeadResult":
        """Read what lies in the folder of a first stage.

        Raises:
            DogbreedError: Something is missing.
        """
        try:
            metrics = json.loads((folder / "metrics.json").read_text())
            with (folder / "metrics.csv").open(newline="") as file:
                rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
                correct = torch.tensor([float(row["correct"]) for row in csv.DictReader(file)])
        except (OSError, ValueError, KeyError) as error:
            raise DogbreedError(f"The first stage in {folder} is not whole ({error}); start from scratch.") from error
        return cls(metrics, rows, correct)

    def figures(self, predictions: Predictions) -> dict[str, Any]:
        """Return what `metrics.json` has of the first stage, and what the second gained on the same images.

        Args:
            predictions: Of the second stage, for the split that both are compared on.
        """
        figures = {f"head_{key}": self.metrics[key] for key in _FIGURES if key in self.metrics}
        correct = (predictions.predicted == predictions.labels).float()
        if len(correct) != len(self.correct) or f"{PREFIX[predictions.split]}_acc" not in self.metrics:
            return figures
        gain = (correct - self.correct).double()
        half = 1.96 * float(gain.std(correction=0)) / len(gain) ** 0.5
        mean = float(gain.mean())
        return {**figures, "gain_acc": mean, "gain_acc_ci95": [mean - half, mean + half]}
