"""`DogBreedClassifier`: its numbers against independent ones, its optimisers, its checkpoints, and that it learns."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing, load
from dogbreed.models.backbones import skeleton
from dogbreed.models.classifier import DogBreedClassifier, NonFiniteLoss
from dogbreed.models.optim import make_optimizer

NAMES = ["Amber_hound", "Blue_spitz", "Green-eyed_setter", "Red_terrier"]
SIZE = 64


def classifier(backbone: str = "squeezenet1_1", **changes) -> DogBreedClassifier:
    arguments = {"weights": "none", "preprocessing": Preprocessing(size=SIZE).to_dict(), "class_names": NAMES}
    return DogBreedClassifier(4, backbone=backbone, **(arguments | changes))


def dogs(root: Path, **changes) -> DogImages:
    arguments = {"preprocessing": Preprocessing(size=SIZE), "num_workers": 0, "batch_size": 8, "quiet": True}
    return DogImages(root, **(arguments | changes))


def trainer(folder: Path, **changes) -> Trainer:
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return Trainer(**(arguments | changes))


class Watch(Callback):
    """Notes the losses and learning rates of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.rates: list[list[float]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))


class Draws(Callback):
    """Uses the random state as another callback might."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        torch.rand(17)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.network.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def log_probabilities(model: DogBreedClassifier, data: DogImages, split: str) -> np.ndarray:
    """By hand, image by image, in float64."""
    model.eval()
    rows = []
    for path in data.samples[split].paths:
        with torch.no_grad():
            logits = model(load(path, data.preprocessing)[None])[0].double().numpy()
        rows.append(logits - logits.max() - math.log(np.exp(logits - logits.max()).sum()))
    return np.array(rows)


# Numbers


def test_losses_and_accuracies_are_those_of_a_computation_by_hand(dog_tree, tmp_path):
    model, data = classifier(label_smoothing=0.2), dogs(dog_tree, batch_size=5)
    (metrics,) = trainer(tmp_path).test(model, datamodule=data, verbose=False)
    expected, labels = log_probabilities(model, data, "test"), data.samples["test"].labels
    assert metrics["test_loss"] == pytest.approx(-expected[np.arange(12), labels].mean(), abs=1e-5), "without smoothing"
    assert metrics["test_acc"] == pytest.approx((expected.argmax(1) == labels).mean())
    assert metrics["test_top5"] == 1, "of four"
    predictions = model.predictions
    assert predictions.indices.tolist() == list(range(12))
    assert predictions.labels.tolist() == labels.tolist()
    np.testing.assert_allclose(predictions.logits.double().log_softmax(1).numpy(), expected, atol=1e-5)


def test_top_5_of_many(tmp_path, write_tree):
    breeds = [f"{number:03d}.Breed" + chr(65 + number) for number in range(8)]
    write_tree(tmp_path / "dogs", breeds=breeds, counts={"train": 1, "valid": 1, "test": 3})
    small = Preprocessing(size=SIZE).to_dict()
    model = DogBreedClassifier(8, backbone="squeezenet1_1", weights="none", seed=5, preprocessing=small)
    data = dogs(tmp_path / "dogs")
    (metrics,) = trainer(tmp_path).test(model, datamodule=data, verbose=False)
    expected, labels = log_probabilities(model, data, "test"), data.samples["test"].labels
    ranks = (expected > expected[np.arange(24), labels][:, None]).sum(1)
    assert metrics["test_top5"] == pytest.approx((ranks < 5).mean())
    assert metrics["test_acc"] == pytest.approx((ranks == 0).mean())


def test_val_loss_does_not_depend_on_the_batch_size(dog_tree, tmp_path):
    model, measured = classifier(), []
    for batch_size in (1, 5, 7, 12, 512):
        (metrics,) = trainer(tmp_path).validate(model, datamodule=dogs(dog_tree, batch_size=batch_size), verbose=False)
        measured.append((metrics["val_loss"], metrics["val_acc"]))
    losses, accuracies = zip(*measured, strict=True)
    assert max(losses) - min(losses) < 1e-5
    assert len(set(accuracies)) == 1


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.slow
def test_the_training_loss_is_smoothed(dog_tree, tmp_path, smoothing):
    """Of a network without dropout, whose frozen part is in evaluation, before its first step."""
    model, data, watch = classifier("shufflenet_v2_x0_5", label_smoothing=smoothing), dogs(dog_tree), Watch()
    data.setup()
    data.train_dataloader().batch_sampler.set_epoch(0)
    batch = next(iter(data.train_dataloader()))
    with torch.no_grad():
        logs = model.eval()(batch.inputs).double().log_softmax(1)
    by_label = -logs[torch.arange(8), batch.labels].mean()
    expected = (1 - smoothing) * by_label - smoothing * logs.mean()
    trainer(tmp_path, limit_train_batches=1, limit_val_batches=0, callbacks=[watch]).fit(model.train(), datamodule=data)
    assert watch.losses == [pytest.approx(float(expected), abs=1e-5)]


def test_train_loss_is_the_mean_over_images(dog_tree, tmp_path):
    """Not over batches: the last is smaller."""
    model, data, watch = classifier("shufflenet_v2_x0_5"), dogs(dog_tree, batch_size=7), Watch()
    lightning = trainer(tmp_path, callbacks=[watch])
    lightning.fit(model, datamodule=data)
    assert float(lightning.callback_metrics["train_loss"]) == pytest.approx(
        np.average(watch.losses, weights=[7, 7, 7, 3])
    )
    assert model.images_seen == 24


def test_validation_within_an_epoch(dog_tree, tmp_path):
    """Each validation stands for itself, and does not cut the training loss in two."""

    class Validations(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[float, float]] = []

        def on_validation_end(self, trainer, pl_module):
            logits, labels, _ = pl_module.predictions
            assert len(labels) == 12
            expected = nn.functional.cross_entropy(logits.double(), labels)
            self.seen.append((float(trainer.callback_metrics["val_loss"]), float(expected)))

    watch, validations = Watch(), Validations()
    fit = trainer(tmp_path, val_check_interval=1, max_epochs=2, callbacks=[watch, validations])
    fit.fit(classifier(lr=0.01), datamodule=dogs(dog_tree))
    assert len(validations.seen) == len(watch.losses) == 6
    assert len({loss for loss, _ in validations.seen}) == 6, "the weights had changed in between"
    for loss, expected in validations.seen:
        assert loss == pytest.approx(expected, abs=1e-5)
    assert float(fit.callback_metrics["train_loss"]) == pytest.approx(np.mean(watch.losses[3:]), abs=1e-6)


def test_divergence_is_a_sentence(dog_tree, tmp_path):
    model = classifier("shufflenet_v2_x0_5", lr=1e38, optimizer="sgd")
    with pytest.raises(
        NonFiniteLoss, match=r"not finite at step \d of epoch \d.*smaller learning rate than model.lr=1e"
    ):
        trainer(tmp_path, max_epochs=5).fit(model, datamodule=dogs(dog_tree))


# Optimisers


@pytest.mark.parametrize("trainable", ["head", "block", "all"])
@pytest.mark.parametrize(
    ("optimizer", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimiser_has_what_trains_and_nothing_else(trainable, optimizer, kind):
    model = classifier(trainable=trainable, optimizer=optimizer, lr=0.02, weight_decay=0.3)
    made = model.configure_optimizers()
    assert type(made) is kind
    held = [parameter for group in made.param_groups for parameter in group["params"]]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert len(held) == len({id(p) for p in held})
    assert {id(p) for p in held} == {id(p) for p in trained}
    assert {id(p) for p in made.param_groups[0]["params"]} == {id(p) for p in model.network.classifier[1].parameters()}
    rates = [group["lr"] for group in made.param_groups]
    assert rates == ([0.02] if trainable == "head" else [0.02, 0.002])
    assert {group["weight_decay"] for group in made.param_groups} == {0.3}


def test_sgd_has_nesterov_momentum():
    """Sutskever et al., 2013, as torch writes it: v = 0.9 v + g; w = w - lr (g + 0.9 v)."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make_optimizer("sgd", [{"params": [weight], "lr": 0.1, "weight_decay": 0.01}])
    expected, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for step in range(4):
        weight.grad = torch.tensor([0.5 * step + 1, -1.0])
        optimizer.step()
        slope = np.array([0.5 * step + 1, -1.0]) + 0.01 * expected
        velocity = 0.9 * velocity + slope
        expected = expected - 0.1 * (slope + 0.9 * velocity)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-6)


def test_the_backbone_may_have_its_own_rate():
    made = classifier(trainable="block", lr=0.02, backbone_lr=0.005).configure_optimizers()
    assert [group["lr"] for group in made.param_groups] == [0.02, 0.005]


@pytest.mark.parametrize(
    ("backbone", "trainable", "layers"),
    [
        ("resnet18", "all", ["layer4", "layer3", "layer2", "layer1", "bn1", "conv1"]),
        ("mobilenet_v2", "block", ["features.18", "features.17"]),
        ("vit_b_16", "block", ["encoder.ln", "encoder.layers.encoder_layer_11"]),
    ],
)
def test_layers_nearer_to_the_input_train_more_slowly(backbone, trainable, layers):
    model = classifier(
        backbone=backbone, weights=None, trainable=trainable, lr=0.02, backbone_lr=0.004, layer_decay=0.5
    )
    head, *groups = model.configure_optimizers().param_groups
    assert head["lr"] == 0.02
    assert [group["lr"] for group in groups] == [0.004 * 0.5**depth for depth in range(len(layers))]
    for layer, group in zip(layers, groups, strict=True):
        parameters = model.network.get_submodule(layer).parameters()
        assert [id(one) for one in group["params"]] == [id(one) for one in parameters]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "onecycle"])
@pytest.mark.slow
def test_schedules_end_where_they_should(dog_tree, tmp_path, schedule):
    model, watch = classifier(trainable="block", schedule=schedule, lr=0.01), Watch()
    lightning = trainer(tmp_path, max_epochs=4, limit_val_batches=0, callbacks=[watch])
    lightning.fit(model, datamodule=dogs(dog_tree))
    head, body = zip(*watch.rates, strict=True)
    last = [group["lr"] for group in lightning.optimizers[0].param_groups]
    assert len(head) == 12
    np.testing.assert_allclose(body, np.array(head) / 10, rtol=1e-6)
    if schedule == "constant":
        assert {*head, last[0]} == {0.01}
    elif schedule == "cosine":
        np.testing.assert_allclose(head, [0.005 * (1 + math.cos(math.pi * step / 12)) for step in range(12)], rtol=1e-6)
        assert last == pytest.approx([0, 0], abs=1e-12)
    else:
        assert head[0] == pytest.approx(0.01 / 25)
        assert max(head) == pytest.approx(0.01, rel=0.05)
        assert head[-1] == pytest.approx(0.01 / 25 / 1e4)


@pytest.mark.parametrize("schedule", ["cosine", "onecycle"])
def test_a_training_of_one_step(dog_tree, tmp_path, schedule):
    model = classifier(schedule=schedule)
    trainer(tmp_path, limit_val_batches=0).fit(model, datamodule=dogs(dog_tree, batch_size=512))
    assert all(value.isfinite().all() for value in weights(model).values())


# Random numbers


def fitted(dog_tree, folder, callbacks=(), **changes) -> DogBreedClassifier:
    model = classifier(**changes)
    assert any(isinstance(module, nn.Dropout) for module in model.network.modules())
    lightning = trainer(folder, max_epochs=2, limit_val_batches=0, callbacks=list(callbacks))
    lightning.fit(model, datamodule=dogs(dog_tree, seed=0))
    return model


@pytest.mark.slow
def test_dropout_is_keyed_by_seed_epoch_and_step(dog_tree, tmp_path):
    torch.manual_seed(1)
    one = weights(fitted(dog_tree, tmp_path))
    torch.manual_seed(2)
    two = weights(fitted(dog_tree, tmp_path, callbacks=[Draws()]))
    assert same(one, two)

    start = weights(classifier())
    model = classifier(seed=1)
    model.network.load_state_dict(start)
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, datamodule=dogs(dog_tree))
    assert not same(weights(model), one), "another seed, other masks"


def test_masks_differ_between_steps_and_epochs():
    model = classifier().train()
    model.trainer = type("At", (), {"current_epoch": 0, "global_rank": 0, "world_size": 1})()
    images = torch.randn(2, 3, SIZE, SIZE)

    def logits(epoch: int, step: int) -> torch.Tensor:
        model.trainer.current_epoch = epoch
        model.on_train_batch_start(None, step)
        return model(images)

    assert torch.equal(logits(0, 0), logits(0, 0))
    assert not torch.equal(logits(0, 0), logits(0, 1))
    assert not torch.equal(logits(0, 1), logits(1, 0))


# Checkpoints


def test_a_plain_trainers_checkpoint_is_whole(dog_tree, tmp_path, cache_dir, no_network):
    file = tmp_path / "backbone.pth"
    network = skeleton("squeezenet1_1", 1000).to_empty(device="cpu")
    for index, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, 0, 0.05, generator=torch.Generator().manual_seed(index))
    torch.save(network.state_dict(), file)
    preprocessing = Preprocessing(size=SIZE, mean=(0.1, 0.2, 0.3), resize="crop")
    model = classifier(weights=str(file), preprocessing=preprocessing.to_dict(), lr=0.01)
    lightning = trainer(tmp_path, enable_checkpointing=True)
    lightning.fit(model, datamodule=dogs(dog_tree, preprocessing=preprocessing))
    (saved,) = (tmp_path / "checkpoints").iterdir()
    file.unlink()

    content = torch.load(saved, weights_only=True)
    assert {f"network.{name}" for name in weights(model)} == content["state_dict"].keys()
    loaded = DogBreedClassifier.load_from_checkpoint(saved)
    assert same(weights(loaded), weights(model))
    assert torch.equal(loaded.network.features[0].weight, network.features[0].weight)
    assert loaded.class_names == NAMES
    assert loaded.preprocessing == preprocessing
    assert loaded.hparams["lr"] == 0.01
    assert loaded.images_seen == 0
    trained = {name for name, parameter in loaded.network.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.1.weight", "classifier.1.bias"}
    images = torch.randn(2, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    assert torch.equal(loaded.eval()(images), model.eval()(images))
    assert DogBreedClassifier.load_from_checkpoint(saved, lr=0.5).hparams["lr"] == 0.5
    (validated,) = trainer(tmp_path).validate(
        loaded, datamodule=dogs(dog_tree, preprocessing=preprocessing), verbose=False
    )
    (expected,) = trainer(tmp_path).validate(
        model, datamodule=dogs(dog_tree, preprocessing=preprocessing), verbose=False
    )
    assert validated == expected
    assert list(cache_dir.iterdir()) == []


def test_a_damaged_checkpoint_is_a_sentence(tmp_path):
    (tmp_path / "a.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(DogbreedError, match="is not a readable checkpoint"):
        DogBreedClassifier.load_from_checkpoint(tmp_path / "a.ckpt")


# It learns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "trainable", "epochs"),
    [
        ("squeezenet1_1", "head", 120),
        ("squeezenet1_1", "block", 120),
        ("squeezenet1_1", "all", 60),
        ("resnet18", "block", 20),
    ],
)
def test_a_handful_of_images_is_learnt_by_heart(tmp_path, write_tree, backbone, trainable, epochs):
    """Noise of one colour: nothing but the images themselves tells the classes apart."""
    breeds = ["001.A", "002.B"]
    write_tree(tmp_path / "dogs", breeds=breeds, counts={"train": 4, "valid": 1, "test": 1})
    for split in ("valid", "test"):
        for path in (tmp_path / "dogs" / split).glob("*/*.jpg"):
            path.unlink()
        for path in (tmp_path / "dogs" / "train").glob("*/*.jpg"):
            copy = tmp_path / "dogs" / split / path.parent.name / path.name
            copy.write_bytes(path.read_bytes())
    rates = {"lr": 0.003, "backbone_lr": 0.0003, "schedule": "cosine"}
    small = Preprocessing(size=SIZE).to_dict()
    model = DogBreedClassifier(2, backbone=backbone, weights="none", trainable=trainable, preprocessing=small, **rates)
    data = dogs(tmp_path / "dogs", augment="none")
    lightning = trainer(tmp_path, max_epochs=epochs, check_val_every_n_epoch=epochs)
    lightning.fit(model, datamodule=data)
    assert float(lightning.callback_metrics["val_acc"]) == 1


# Arguments


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ({"backbone": "vgg-16"}, "did you mean vgg16"),
        ({"lr": 0.0}, "model.lr=0.0 is out of range; it is more than 0"),
        ({"lr": float("nan")}, "model.lr=nan is out of range"),
        ({"lr": float("inf")}, "model.lr=inf is out of range"),
        ({"backbone_lr": -1.0}, "model.backbone_lr=-1.0 is out of range"),
        ({"layer_decay": 1.1}, "model.layer_decay=1.1 is out of range; it is above 0, and 1 at most"),
        ({"ema_decay": 1.0}, "model.ema_decay=1.0 is out of range; it is above 0 and below 1, or null"),
        ({"ema_decay": 0.9, "optimizer": "lbfgs"}, "lbfgs takes no steps to average over"),
        ({"mixup": -1.0}, "model.mixup=-1.0 is out of range; it is 0 or more"),
        ({"cutmix": 1.0}, "model.cutmix=1.0 needs model.trainable=block or all: behind a frozen network"),
        ({"weight_decay": -0.1}, "model.weight_decay=-0.1 is out of range; it is 0 or more"),
        ({"label_smoothing": 1.0}, "model.label_smoothing=1.0 is out of range; it is from 0 to below 1"),
        ({"optimizer": "adagrad"}, "model.optimizer=adagrad is unknown; it is one of adam, adamw, sgd"),
        ({"schedule": "step"}, "model.schedule=step is unknown; it is one of constant, cosine, onecycle"),
        ({"trainable": "none"}, "model.trainable=none is unknown"),
        ({"class_names": ["a"]}, "1 class names were given for 4 classes"),
        ({"weights": "missing.pth"}, r"missing\.pth does not exist"),
        ({"preprocessing": {"size": 0}}, "size is 0"),
    ],
)
def test_senseless_arguments(argument, sentence):
    with pytest.raises(DogbreedError, match=sentence):
        classifier(**argument)


def test_one_class_is_none():
    with pytest.raises(DogbreedError, match="at least 2 classes; the data has 1"):
        DogBreedClassifier(1, backbone="squeezenet1_1", weights="none")


def test_defaults_are_the_published_recipe():
    model = DogBreedClassifier(weights=None)
    assert model.hparams["num_classes"] == 133
    assert model.hparams["backbone"] == "vgg16"
    assert model.hparams["lr"] == 0.0033047276512977604
    assert model.hparams["optimizer"] == "adam"
    assert model.preprocessing == Preprocessing(size=224, resize_size=256)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 544_901
