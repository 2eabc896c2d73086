"""Model, data and cache in a stranger's Trainer: each combination works, or says what is missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dogbreed import DogBreedClassifier, DogImages, FeatureCache
from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing

SMALL = Preprocessing(size=64)


def trainer(folder: Path, *callbacks: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(max_epochs=1, accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[*callbacks],
                   use_distributed_sampler=False, **quiet)  # fmt: skip


def classifier(classes: int = 4, **changes: Any) -> DogBreedClassifier:
    arguments = {"backbone": "squeezenet1_1", "weights": "none", "preprocessing": SMALL.to_dict(), **changes}
    return DogBreedClassifier(classes, **arguments)


def batches() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 64, 64, generator=generator)
    return DataLoader(TensorDataset(images, torch.tensor([0, 1, 2, 3, 0, 1])), batch_size=4)


def test_data_for_a_model(dog_tree: Path, tmp_path: Path) -> None:
    model, cache = classifier(seed=3), FeatureCache(folder=tmp_path / "cache", quiet=True)
    data = DogImages.for_model(model, dog_tree, num_workers=0, quiet=True)
    assert (data.preprocessing, data.seed) == (SMALL, 3)
    trainer(tmp_path, cache).fit(model, datamodule=data)
    assert cache.state == "built"


def test_batches_of_images_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, loader = classifier(), batches()
    own = trainer(tmp_path, FeatureCache(folder=tmp_path / "cache"))
    own.fit(model, loader, loader)
    assert "Cache off: the data are no DogImages" in capsys.readouterr().out
    (measured,) = own.validate(model, loader, verbose=False)
    with torch.no_grad():
        logits = torch.cat([model.eval()(images) for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    assert measured["val_loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert model.predictions is not None
    torch.testing.assert_close(model.predictions.logits, logits, atol=1e-5, rtol=0)
    with pytest.raises(DogbreedError, match=r"A batch is \(images \[N, 3, S, S\], labels \[N\]\), not dict"):
        model.training_step({"x": 1}, 0)
    with pytest.raises(DogbreedError, match="the cache cannot be used: the data are no DogImages"):
        trainer(tmp_path, FeatureCache("require", folder=tmp_path / "cache")).fit(classifier(), loader, loader)


class Own(LightningModule):
    """A stranger's module, which takes our batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 64 * 64, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.functional.cross_entropy(self.layer(batch.inputs.flatten(1)), batch.labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.001)


def test_a_module_of_ones_own(dog_tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = DogImages(dog_tree, preprocessing=SMALL, num_workers=0, quiet=True)
    trainer(tmp_path, FeatureCache(folder=tmp_path / "cache")).fit(Own(), datamodule=data)
    assert "Cache off: Own is no DogBreedClassifier; give its network to one" in capsys.readouterr().out


@pytest.mark.parametrize("with_cache", [True, False])
def test_model_and_data_have_to_fit(with_cache: bool, dog_tree: Path, tmp_path: Path) -> None:
    callbacks = [FeatureCache(folder=tmp_path / "cache", quiet=True)] if with_cache else []
    data = DogImages(dog_tree, preprocessing=SMALL, num_workers=0, quiet=True)
    with pytest.raises(DogbreedError, match=r"The model has 133 outputs, and .*dogImages 4 classes"):
        trainer(tmp_path, *callbacks).fit(classifier(133), datamodule=data)
    other = classifier(preprocessing=Preprocessing(size=96).to_dict())
    with pytest.raises(DogbreedError, match=r"made with Preprocessing\(size=64.*model takes Preprocessing\(size=96"):
        trainer(tmp_path, *callbacks).fit(other, datamodule=data)
    assert not (tmp_path / "cache" / "features").exists()
