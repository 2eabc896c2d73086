"""What is refused before a run reads, downloads or writes anything, and then before it writes."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from lightning.pytorch import Trainer
from support import runs

from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.training.preflight import check_run, check_settings, check_trainer


@cache
def defaults() -> Config:
    return Config.from_dict(compose(runs.TINY))


def with_trainer(**arguments) -> Config:
    return replace(defaults(), trainer={**defaults().trainer, **arguments})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"precision": "transformer-engine"}, "use 32-true, bf16-mixed or 16-mixed"),
        ({"precision": "half"}, "trainer.precision=half"),
        ({"num_nodes": 0}, "trainer.num_nodes=0 is out of range"),
        ({"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches=0 is out of range"),
        ({"accumulate_grad_batches": None}, "trainer.accumulate_grad_batches=None"),
        ({"val_check_interval": 0}, "trainer.val_check_interval=0 is out of range"),
        ({"val_check_interval": "often"}, "trainer.val_check_interval=often"),
        ({"check_val_every_n_epoch": 0}, "trainer.check_val_every_n_epoch=0 is out of range"),
        ({"profiler": [1, 2]}, "trainer.profiler=[1, 2] is unknown"),
        ({"profiler": True}, "it is one of simple, advanced, pytorch"),
        ({"strategy": "ddp_spawn"}, "use ddp for several GPUs"),
        ({"strategy": "fsdp"}, "use ddp for several GPUs"),
        ({"strategy": "dp"}, "trainer.strategy=dp"),
        ({"max_time": 5}, "trainer.max_time=5"),
        ({"max_time": {"sec": 5}}, "trainer.max_time={'sec': 5}"),
        ({"detect_anomaly": 1}, "trainer.detect_anomaly=1"),
        ({"gradient_clip_val": math.nan}, "trainer.gradient_clip_val=nan"),
        ({"gradient_clip_val": "much"}, "trainer.gradient_clip_val=much"),
        ({"gradient_clip_algorithm": "sign"}, "trainer.gradient_clip_algorithm=sign"),
        ({"limit_train_batches": "few"}, "trainer.limit_train_batches=few"),
        ({"limit_test_batches": 1.5}, "trainer.limit_test_batches=1.5"),
        ({"num_sanity_val_steps": "one"}, "trainer.num_sanity_val_steps=one"),
        ({"log_every_n_steps": {}}, "trainer.log_every_n_steps={}"),
        ({"barebones": True}, "trainer.barebones=True"),
        ({"devices": 0}, "trainer.devices=0"),
    ],
)
def test_what_lightning_would_refuse_later(arguments, says):
    with pytest.raises(DogbreedError) as refused:
        check_trainer({**defaults().trainer, **arguments})
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_toy_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = torch.get_rng_state()
    check_settings(with_trainer(max_epochs=1000, min_epochs=1000, max_time={"seconds": 5}, precision="bf16-mixed"))
    assert torch.equal(torch.get_rng_state(), state)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("loggers", "says"),
    [
        ({"nothing": {}}, "loggers.nothing is unknown; known are csv, "),
        ({"tensorboard": 1}, "loggers.tensorboard takes keyword arguments, such as {}, not 1"),
        ({"csv": [1]}, "loggers.csv takes keyword arguments"),
        ({"csv": {"nothing": 1}}, "loggers.csv does not take these arguments"),
        ({"csv": {1: 2}}, "loggers.csv does not take these arguments"),
        ({"neptune": {}}, "loggers.neptune"),
    ],
)
def test_loggers_are_made_before_the_data_are_looked_at(loggers, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DogbreedError, match=says.replace("{}", r"\{\}")):
        check_settings(replace(defaults(), loggers=loggers))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("backbone", "size"),
    [("alexnet", 32), ("inception_v3", 64), ("vgg11", 16), ("vit_b_16", 256), ("maxvit_t", 256), ("resnet18", 10**11)],
)
@pytest.mark.slow
def test_a_size_that_the_network_cannot_take(backbone, size):
    config = defaults()
    config = replace(config, model=replace(config.model, backbone=backbone), data=replace(config.data, size=size))
    with pytest.raises(DogbreedError, match=rf"data.size={size}"):
        check_settings(config)


@pytest.mark.parametrize(("backbone", "size"), [("resnet18", 32), ("swin_t", 96), ("regnet_y_400mf", 64)])
@pytest.mark.slow
def test_a_size_that_it_can_take(backbone, size):
    config = defaults()
    config = replace(config, model=replace(config.model, backbone=backbone), data=replace(config.data, size=size))
    check_settings(config)


@cache
def data_and_model() -> tuple[DogImages, DogBreedClassifier]:
    """18 images to train, 9 each to validate and to test, in batches of 8."""
    preprocessing = Preprocessing(size=32, resize_size=32)
    data = DogImages(runs.photographs(), batch_size=8, num_workers=0, preprocessing=preprocessing, quiet=True)
    data.setup()
    model = DogBreedClassifier(3, backbone="resnet18", weights="none", trainable="all")
    return data, model


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"limit_train_batches": 0.01}, "trainer.limit_train_batches=0.01 is less than one of the 3 batches of train"),
        ({"limit_val_batches": 0.4}, "at least 0.5"),
        ({"limit_test_batches": 0.01}, "trainer.limit_test_batches=0.01 is less than one of the 2 batches of test"),
        ({"overfit_batches": 0.2}, "trainer.overfit_batches=0.2 is less than one of the 3 batches of train"),
        ({"val_check_interval": 4}, "trainer.val_check_interval=4 is more than an epoch's 3 batches"),
        ({"val_check_interval": 3, "limit_train_batches": 2}, "more than an epoch's 2 batches"),
    ],
)
def test_what_leaves_no_batch_of_these_data(arguments, says):
    data, model = data_and_model()
    with pytest.raises(DogbreedError, match=says):
        check_run(with_trainer(**arguments), data, model, 1)


def test_what_leaves_a_batch_is_taken():
    data, model = data_and_model()
    few = with_trainer(limit_train_batches=0.34, limit_val_batches=0.5, limit_test_batches=1, val_check_interval=1)
    check_run(few, data, model, 1)
    check_run(with_trainer(val_check_interval=1000, check_val_every_n_epoch=None), data, model, 1)


@pytest.mark.parametrize(("batch_size", "fits"), [(1, False), (17, False), (18, True), (8, True)])
def test_a_batch_of_one_with_batch_norm(batch_size, fits, monkeypatch):
    data, model = data_and_model()
    monkeypatch.setattr(data, "batch_size", batch_size)
    if fits:
        check_run(defaults(), data, model, 1)
        return
    with pytest.raises(DogbreedError, match="A batch of one image leaves batch norm nothing to average over"):
        check_run(defaults(), data, model, 1)


def test_a_batch_that_memory_cannot_hold(monkeypatch):
    data, model = data_and_model()
    monkeypatch.setattr(data, "batch_size", 10**6)
    monkeypatch.setattr(data, "preprocessing", Preprocessing(size=65535, resize_size=65535))
    config = replace(defaults(), cache=replace(defaults().cache, mode="off"))
    with pytest.raises(DogbreedError, match=r"takes 928 GB, more than the .* of memory that are left"):
        check_run(config, data, model, 1)


def test_nothing_is_written_before(tmp_path):
    ran = runs.run(*runs.overrides(tmp_path / "run", "trainer.limit_test_batches=0.01"))
    assert ran.code == 2
    assert "trainer.limit_test_batches=0.01 is less than one of the 2 batches of test" in ran.err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_test_that_fails_does_not_cost_the_export(tmp_path, monkeypatch):
    test = Trainer.test

    def gone(*arguments, datamodule=None, **more):
        if datamodule is not None:
            raise RuntimeError("the disk is gone")
        test(*arguments, **more)

    monkeypatch.setattr(Trainer, "test", gone)
    ran = runs.run(*runs.overrides(tmp_path / "my run", "trainer.max_epochs=1"))
    assert ran.code == 2
    assert ran.err.endswith("The model is exported, but the test images could not be evaluated: the disk is gone\n")
    assert f"-m dogbreed.predict '{tmp_path / 'my run' / 'model'}' " in ran.out
    assert (tmp_path / "my run" / "model" / "model.json").is_file()
    assert (tmp_path / "my run" / "report.html").is_file()
