"""`model.mixup`, `model.cutmix`: mixtures of two images and their labels, the same ones in a resumed run."""

from pathlib import Path

import pytest
import torch
from support import runs

from dogbreed import DogBreedClassifier
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datasets import Batch, FeatureBatch
from dogbreed.data.images import Preprocessing
from dogbreed.models import mixing


def test_mixtures_are_those_of_the_paper() -> None:
    """Two images in shares, and two images side by side in shares of the area; labels in the same shares."""
    inputs, labels = torch.rand(4, 2, 8, 8), torch.tensor([0, 1, 2, 2])
    other, one_hot = inputs.roll(1, 0), torch.nn.functional.one_hot(labels, 3).float()
    for mixup, cutmix in ((0.4, 0.0), (0.0, 1.0), (0.4, 1.0)):
        mix = mixing.build(3, mixup, cutmix, "block")
        assert mix is not None
        torch.manual_seed(3)
        mixed, targets = mix(inputs, labels)
        share = targets[1, 1].item()  # 1 and 0 are neighbours
        assert 0 < share < 1
        torch.testing.assert_close(targets, share * one_hot + (1 - share) * one_hot.roll(1, 0))
        pasted = (mixed == other).all(1)
        if pasted.any():
            assert cutmix
            assert torch.equal(torch.where(pasted[:, None], other, inputs), mixed)
            assert pasted.float().mean().item() == pytest.approx(1 - share)
        else:
            torch.testing.assert_close(mixed, share * inputs + (1 - share) * other)
        torch.manual_seed(3)
        assert torch.equal(mix(inputs, labels)[0], mixed)
    assert mixing.build(3, 0.0, 0.0, "head") is None


def test_the_loss_is_that_of_the_mixture() -> None:
    model = DogBreedClassifier(3, backbone="resnet18", weights="none", trainable="block", mixup=1.0, seed=1,
                               preprocessing=Preprocessing(size=64).to_dict())  # fmt: skip
    images, labels = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    model.eval()
    model.__dict__["_trainer"] = type("T", (), {"world_size": 1})()
    torch.manual_seed(5)
    loss = model.training_step(Batch(images, labels, torch.arange(4)), 0)
    torch.manual_seed(5)
    torch.multinomial(torch.ones(1), 1)  # which of the kinds, of which there is one
    share = float(torch.distributions.Beta(torch.ones(1), torch.ones(1)).sample(()))
    logits = model(share * images + (1 - share) * images.roll(1, 0)).log_softmax(1)
    expected = -(share * logits[range(4), labels] + (1 - share) * logits[range(4), labels.roll(1)]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    with pytest.raises(DogbreedError, match=r"the cached features are of shape \[7, 5\]; cache\.mode=off"):
        model.mixing(FeatureBatch(torch.rand(4, 7, 5), labels, labels).inputs, labels)


@pytest.mark.slow
def test_a_resumed_run_draws_the_same_mixtures(tmp_path: Path) -> None:
    more = ["model.backbone=resnet18", "model.trainable=block", "model.mixup=0.4", "model.cutmix=1"]
    runs.train_in(tmp_path / "whole", *more)
    runs.train_in(tmp_path / "half", *more, "trainer.max_epochs=1")
    assert runs.run(f"resume={tmp_path / 'half'}", "trainer.max_epochs=2").code == 0
    runs.assert_same_result(tmp_path / "whole", tmp_path / "half")
