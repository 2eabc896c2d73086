"""`model.ema_decay`: an exponential moving average of the weights is validated, kept and exported in their place.

Lightning's EMAWeightAveraging averages every value of the module at each step, frozen ones too: 138 million of VGG16,
which rounding moves a little each time. Here it is what training changes, and frozen values stay exactly as they are.
"""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from dogbreed.models.backbones import changing_names
from dogbreed.models.checkpoints import PREFIX

CURRENT = "current_weights"  # in a checkpoint, whose state_dict holds the averages


class AveragedWeights(Callback):
    """Average what training changes, batch norm's statistics included.

    Args:
        decay: Share of the average that a step leaves; less in the first steps, (1 + step) / (10 + step).
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.average:
            self.average = {name: value.clone() for name, value in _changing(pl_module).items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        step = trainer.global_step
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in _changing(pl_module).items():
            average = self.average[name]
            if average.is_floating_point():
                average.lerp_(value.to(average), share)
            else:  # how many batches were counted
                average.copy_(value)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap(pl_module)
        self.average = {}

    @torch.no_grad()
    def _swap(self, module: LightningModule) -> None:
        if self.average:  # there is none before training, and none in an evaluation
            for name, value in _changing(module).items():
                kept = value.clone()
                value.copy_(self.average[name])
                self.average[name].copy_(kept)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.average:
            names = {PREFIX + name: value for name, value in self.average.items()}
            checkpoint[CURRENT] = {name: checkpoint["state_dict"][name] for name in names}
            checkpoint["state_dict"] = {**checkpoint["state_dict"], **names}

    @torch.no_grad()
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn != "fit" or CURRENT not in checkpoint:
            return
        for name, value in _changing(pl_module).items():
            self.average[name] = checkpoint["state_dict"][PREFIX + name].to(value.device, copy=True)
            value.copy_(checkpoint[CURRENT][PREFIX + name])


def _changing(module: Any) -> dict[str, Tensor]:
    """Return the values that training may change, by their names in the network; not copies."""
    state, names = module.network.state_dict(), changing_names(module.network)
    return {name: value for name, value in state.items() if name in names}
