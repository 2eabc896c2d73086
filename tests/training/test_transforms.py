"""`data.transforms`: what changes training images anew in each epoch, the same in a resumed run and with workers."""

import os
from pathlib import Path

import pytest
import torch
from support import runs
from torchvision.transforms import v2

from dogbreed import DogImages
from dogbreed.data.images import decode, to_input
from dogbreed.data.samplers import TrainBatches

V2 = "torchvision.transforms.v2"
AUGMENT = f"[{V2}.RandAugment, {{class_path: {V2}.RandomErasing, init_args: {{p: 0.5}}}}]"


def test_images_follow_from_seed_epoch_and_position() -> None:
    """With the mirrored view on top; other epochs have other images, and the global generator stays as it was."""
    flips = v2.RandomVerticalFlip(0.5)
    data = DogImages(runs.photographs(), transforms=[flips], batch_size=18, num_workers=0, seed=3, quiet=True)
    data.setup()
    files, seen = data.samples["train"], []
    before = torch.get_rng_state()
    for epoch in (0, 1):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        batch = next(iter(loader))
        batches = TrainBatches(files, 18, 3)
        batches.set_epoch(epoch)
        for row, (index, view) in enumerate(next(iter(batches))):
            upright = decode(files.paths[index])
            ways = [
                to_input(image, data.preprocessing, files.views[view][index]) for image in (upright, upright.flip(1))
            ]
            assert batch.indices[row] == index
            matches = [torch.allclose(batch.inputs[row], way, atol=1e-5) for way in ways]
            assert sum(matches) == 1
            seen.append((epoch, index, matches.index(True)))
    assert torch.equal(torch.get_rng_state(), before)
    first, second = ({index: way for at, index, way in seen if at == epoch} for epoch in (0, 1))
    assert first != second
    assert 0 < sum(first.values()) < len(first)
    valid = next(iter(data.val_dataloader()))
    assert torch.equal(valid.inputs[0], to_input(decode(data.samples["valid"].paths[0]), data.preprocessing))


@pytest.mark.slow
def test_a_resumed_run_repeats_them(tmp_path: Path) -> None:
    more = ["model.backbone=resnet18", "model.trainable=block", f"data.transforms={AUGMENT}"]
    ran = runs.train_in(tmp_path / "whole", *more)
    assert "Cache off: data.transforms change the training images anew in each epoch." in ran.out
    runs.train_in(tmp_path / "half", *more, "trainer.max_epochs=1", "data.num_workers=1")
    assert runs.run(f"resume={tmp_path / 'half'}", "trainer.max_epochs=2").code == 0
    runs.assert_same_result(tmp_path / "whole", tmp_path / "half")


class Half(torch.nn.Module):
    """Makes something else of an image."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image / 2


@pytest.mark.slow
def test_what_transforms_cannot_be(tmp_path: Path) -> None:
    for transforms, sentence in (
        (
            "[torchvision.transforms.v2.RandAugment]",
            "data.transforms need model.trainable=block or all: behind a frozen",
        ),
        ("torchvision.transforms.v2.RandAugment", "data.transforms is a list, such as [package.Class]."),
        ("[os.system]", "data.transforms: os.system is no class."),
        ("[torchvision.transforms.v2.RandAugmentation]", "RandAugmentation cannot be imported"),
        (f"[{__name__}.Half]", f"{__name__}.Half does not make an image (uint8 [3, H, W]) of an image."),
        ("[torchvision.transforms.v2.Normalize]", "Normalize does not take these arguments"),
    ):
        ran = runs.run(*runs.overrides(tmp_path / "run", f"data.transforms={transforms}"))
        assert ran.code == 2, transforms
        assert sentence in ran.err, ran.err
        assert not os.listdir(tmp_path)
