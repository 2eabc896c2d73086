"""`model.ema_decay`: what is validated, kept and exported is the average of the weights over the steps."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from support import runs

from dogbreed import DogBreedClassifier, DogImages, FeatureCache
from dogbreed.data.images import Preprocessing

NAMES = ("fc.weight", "layer4.1.conv2.weight", "layer4.0.bn1.running_mean", "layer4.0.bn1.num_batches_tracked")


class Notes(Callback):
    """The network's state after every step, before the average takes it up."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.states.append({name: value.clone() for name, value in pl_module.network.state_dict().items()})


@pytest.mark.slow
def test_the_average_is_that_of_a_loop_by_hand(tmp_path: Path) -> None:
    model = DogBreedClassifier(3, backbone="resnet18", weights="none", trainable="block", ema_decay=0.6, lr=0.01,
                               preprocessing=Preprocessing(size=64).to_dict())  # fmt: skip
    expected = {name: value.double() for name, value in model.network.state_dict().items()}
    frozen = model.network.state_dict()["layer3.1.conv2.weight"].clone()
    data = DogImages.for_model(model, runs.photographs(), num_workers=0, batch_size=5, quiet=True)
    notes, cache = Notes(), FeatureCache(folder=tmp_path, quiet=True)
    trainer = Trainer(accelerator="cpu", devices=1, max_epochs=2, callbacks=[cache, notes], logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      default_root_dir=tmp_path)  # fmt: skip
    trainer.fit(model, datamodule=data)
    validated = trainer.callback_metrics["val_loss"].item()
    for step, state in enumerate(notes.states, 1):
        decay = min(0.6, (1 + step) / (10 + step))
        for name in NAMES:
            new = state[name].double()
            whole = not state[name].is_floating_point()
            expected[name] = new if whole else decay * expected[name] + (1 - decay) * new
    state = model.network.state_dict()
    for name in NAMES:
        torch.testing.assert_close(state[name].double(), expected[name], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(state["fc.weight"], notes.states[-1]["fc.weight"], atol=1e-4)
    assert torch.equal(state["layer3.1.conv2.weight"], frozen)
    assert trainer.validate(model, datamodule=data, verbose=False)[0]["val_loss"] == pytest.approx(validated, rel=1e-5)


@pytest.mark.slow
def test_averages_are_kept_in_a_resumed_run(tmp_path: Path) -> None:
    more = ["model.backbone=resnet18", "model.trainable=block", "model.ema_decay=0.9", "model.lr=0.01"]
    runs.train_in(tmp_path / "whole", *more)
    runs.train_in(tmp_path / "half", *more, "trainer.max_epochs=1")
    assert runs.run(f"resume={tmp_path / 'half'}", "trainer.max_epochs=2").code == 0
    runs.assert_same_result(tmp_path / "whole", tmp_path / "half")
    last = DogBreedClassifier.load_from_checkpoint(tmp_path / "half/checkpoints/best.ckpt").network.state_dict()
    for name, value in runs.weights(tmp_path / "half").items():
        assert torch.equal(value, last[name]), name
