"""Callbacks that tests name in a configuration."""

from typing import Any

from hydra.experimental.callback import Callback as HydraCallback
from lightning.pytorch import Callback

objectives: list[Any] = []


class CountEpochs(Callback):
    """Keeps the epochs that it saw, in a list that is shared."""

    seen: list[int] = []  # noqa: RUF012

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append(self.first + trainer.current_epoch)


class Objective(HydraCallback):
    """Keeps what each job returned to Hydra, which is what a sweeper gets."""

    def on_job_end(self, config: Any, job_return: Any, **kwargs: Any) -> None:
        objectives.append(job_return.return_value)
