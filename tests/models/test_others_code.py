"""Model, data and cache in a stranger's Trainer: each combination works, or says what is missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, LightningModule, Trainer
from safetensors.torch import load_file
from support import runs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dogbreed import DogBreedClassifier, DogImages, FeatureCache, Predictor, evaluate, train
from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing

pytestmark = pytest.mark.slow

SMALL = Preprocessing(size=64)


def trainer(folder: Path, *callbacks: Any, epochs: int = 1) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(max_epochs=epochs, accelerator="cpu", logger=False, default_root_dir=folder, callbacks=[*callbacks],
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


def test_a_data_module_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = LightningDataModule()
    data.train_dataloader = data.val_dataloader = data.test_dataloader = batches
    for mode in ("auto", "off"):
        model, own = classifier(), trainer(tmp_path, FeatureCache(mode, folder=tmp_path / "cache"))
        own.fit(model, datamodule=data)
        own.test(model, datamodule=data, verbose=False)
        assert model.predictions is not None
        assert len(model.predictions.labels) == 6
        said = "Cache off: the data are no DogImages, which know the files; give datamodule=DogImages(FOLDER)."
        assert (said in capsys.readouterr().out) == (mode == "auto")


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
    with pytest.raises(DogbreedError, match="the cache cannot be used: Own is no DogBreedClassifier; give its network"):
        trainer(tmp_path, FeatureCache("require", folder=tmp_path / "cache")).fit(Own(), datamodule=data)


@pytest.mark.parametrize("with_cache", [True, False])
def test_model_and_data_have_to_fit(with_cache: bool, dog_tree: Path, tmp_path: Path) -> None:
    callbacks = [FeatureCache(folder=tmp_path / "cache", quiet=True)] if with_cache else []
    data = DogImages(dog_tree, preprocessing=SMALL, num_workers=0, quiet=True)
    with pytest.raises(DogbreedError, match=r"The model has 133 outputs, and .*dogImages 4 classes"):
        trainer(tmp_path, *callbacks).fit(classifier(133), datamodule=data)
    with pytest.raises(DogbreedError, match=r"The model has 3 outputs, and .*dogImages 4 classes"):
        trainer(tmp_path, *callbacks).fit(classifier(3), datamodule=data)
    other = classifier(preprocessing=Preprocessing(size=96).to_dict())
    with pytest.raises(DogbreedError, match=r"made with Preprocessing\(size=64.*model takes Preprocessing\(size=96"):
        trainer(tmp_path, *callbacks).fit(other, datamodule=data)
    assert not (tmp_path / "cache" / "features").exists()


@pytest.mark.parametrize("mode", ["off", "require"])
def test_predictions_in_the_order_of_the_images(mode: str, dog_tree: Path, tmp_path: Path) -> None:
    model = classifier()
    data = DogImages.for_model(model, dog_tree, num_workers=0, batch_size=5, quiet=True)
    cache = FeatureCache(mode, folder=tmp_path / "cache", quiet=True)
    batches = trainer(tmp_path, cache).predict(model, datamodule=data)
    probabilities = torch.cat(batches)  # type: ignore[arg-type]
    assert cache.state == ("off" if mode == "off" else "built")
    read = Predictor(model.export(tmp_path / "model", data))
    expected = read.logits(torch.stack([read.read(path) for path in data.samples["test"].paths])).softmax(1)
    torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    other = DogImages(dog_tree, preprocessing=Preprocessing(size=96), num_workers=0, quiet=True)
    with pytest.raises(DogbreedError, match=r"made with Preprocessing\(size=96"):
        trainer(tmp_path).predict(model, datamodule=other)


def test_predictions_of_images_without_labels(tmp_path: Path) -> None:
    model, images = classifier(), torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.eval()(images).softmax(1)
    for loader in (
        DataLoader(TensorDataset(images), batch_size=2),
        DataLoader(images, batch_size=2),  # type: ignore[arg-type]
        DataLoader(TensorDataset(images, torch.zeros(5, dtype=torch.long)), batch_size=2),
    ):
        probabilities = torch.cat(trainer(tmp_path).predict(model, loader))  # type: ignore[arg-type]
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_module_of_ones_own_goes_on_by_lightnings_means(dog_tree: Path, tmp_path: Path) -> None:
    """A whole checkpoint, as a Trainer of one's own writes it."""
    model = classifier()
    data = DogImages.for_model(model, dog_tree, num_workers=0, batch_size=4, quiet=True)
    own = trainer(tmp_path)
    own.fit(model, datamodule=data)
    own.save_checkpoint(tmp_path / "own.ckpt")
    more = trainer(tmp_path, epochs=2)
    more.fit(classifier(), datamodule=data, ckpt_path=tmp_path / "own.ckpt")
    assert more.current_epoch == 2
    again = DogBreedClassifier.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    for name, value in model.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.train_in(folder)
    return folder


@pytest.mark.slow
def test_a_run_goes_on_in_a_trainer_of_ones_own(trained: Path, tmp_path: Path) -> None:
    """As it would with resume=; only from weights that are those of the run."""
    runs.train_in(tmp_path / "resumed", f"resume={trained}", "trainer.max_epochs=3", "overwrite=true")
    last = trained / "checkpoints" / "last.ckpt"
    model = DogBreedClassifier.load_from_checkpoint(last)
    data = DogImages.for_model(model, runs.photographs(), batch_size=8, num_workers=0, quiet=True)
    cache = FeatureCache(folder=trained.parent / "cache", quiet=True)
    with runs.one_thread():
        trainer(tmp_path, cache, epochs=3).fit(model, datamodule=data, ckpt_path=last)
    resumed = DogBreedClassifier.load_from_checkpoint(tmp_path / "resumed" / "checkpoints" / "last.ckpt")
    for name, value in resumed.network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], value, atol=1e-6, rtol=0)
    preprocessing = model.preprocessing.to_dict()
    other = classifier(3, class_names=data.classes, preprocessing=preprocessing, seed=9)
    with pytest.raises(DogbreedError, match="The model's frozen weights are not those of the checkpoint"):
        trainer(tmp_path, epochs=3).fit(other, datamodule=data, ckpt_path=last)


def test_checkpoints_that_do_not_fit(trained: Path) -> None:
    best = trained / "checkpoints" / "best.ckpt"
    with pytest.raises(DogbreedError, match=r"best.ckpt holds another network .* strict=False takes what fits"):
        DogBreedClassifier.load_from_checkpoint(best, num_classes=5)
    old = DogBreedClassifier.load_from_checkpoint(best).network.state_dict()
    model = DogBreedClassifier.load_from_checkpoint(best, strict=False, num_classes=5)
    new = model.network.state_dict()
    assert model.class_names == ["0", "1", "2", "3", "4"]
    head = [name for name in new if new[name].shape != old[name].shape]
    assert head == ["classifier.1.weight", "classifier.1.bias"]
    assert all(torch.equal(new[name], old[name]) for name in new if name not in head)
    assert not any(value.is_meta for value in new.values())


@pytest.mark.slow
def test_export_after_a_training_of_ones_own(dog_tree: Path, tmp_path: Path) -> None:
    model = classifier()
    data = DogImages.for_model(model, dog_tree, num_workers=0, batch_size=4, quiet=True)
    own = trainer(tmp_path)
    own.fit(model, datamodule=data)
    (tested,) = own.test(model, datamodule=data, verbose=False)
    folder = model.export(tmp_path / "model", data)
    result = evaluate(folder, output_dir=tmp_path / "evaluation", device="cpu", quiet=True)  # it knows its data
    assert result.metrics["test_loss"] == pytest.approx(tested["test_loss"], abs=1e-4)
    assert set(Predictor(folder).class_names) == {"Amber_hound", "Blue_spitz", "Green-eyed_setter", "Red_terrier"}
    with pytest.raises(DogbreedError, match="exists and is no exported model"):
        model.export(tmp_path)
    with pytest.raises(DogbreedError, match="have other names, or another order, than those of"):
        classifier(class_names=["d", "c", "b", "a"]).export(tmp_path / "no", data)
    with pytest.raises(DogbreedError, match="export takes the DogImages of the training, not DataLoader; leave the"):
        model.export(tmp_path / "no", batches())  # type: ignore[arg-type]
    mine = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 2))
    with pytest.raises(DogbreedError, match="is a network of your own code"):
        DogBreedClassifier(4, network=mine, preprocessing=SMALL.to_dict()).export(tmp_path / "no")
    assert not (tmp_path / "no").exists()
    half = classifier().bfloat16()
    written = load_file(half.export(tmp_path / "half") / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert next(half.network.parameters()).dtype == torch.bfloat16, "the model itself stays as it is"


@pytest.mark.slow
def test_a_result_in_one_line(tmp_path: Path) -> None:
    result = train(overrides=[*runs.overrides(tmp_path / "run", "trainer.max_epochs=1", "progress=none")])
    text = repr(result)
    assert text.startswith(f"Result(test_acc={result.metrics['test_acc']:.4f}, test_loss=")
    assert text.endswith(f"output_dir='{tmp_path / 'run'}')")
    assert len(text) < 120 + len(str(tmp_path))
    assert Path(result) == tmp_path / "run", "it stands for its folder"
    with pytest.raises(
        DogbreedError, match=r"a mapping, not \['seed=1'\]; key=value goes into overrides=\[\.\.\.\]\.$"
    ):
        train(["seed=1"])
