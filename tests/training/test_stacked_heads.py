"""Heads trained side by side end where each would have ended alone."""

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import runs
from torch import Tensor, nn

from dogbreed.config.compose import compose
from dogbreed.config.settings import Config
from dogbreed.data.datamodule import DogImages
from dogbreed.models import backbones
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import cut
from dogbreed.training import stacked_heads
from dogbreed.training.build import build_cache, build_data, build_model
from dogbreed.training.run import train
from dogbreed.training.stacked_heads import Head, HeadTrainer
from dogbreed.training.stem import NotStackable, Stem

SMALL = (*runs.STACKABLE, "progress=none")


@pytest.fixture
def settings(dog_tree: Path, cache_dir: Path, tmp_path: Path) -> list[str]:
    return [*SMALL, f"data.root={dog_tree}", f"output_dir={tmp_path / 'run'}", "overwrite=true"]


def on_features(overrides: list[str]) -> tuple[DogBreedClassifier, DogImages, Config]:
    config = Config.from_dict(compose(overrides))
    data = build_data(config, quiet=True)
    data.setup()
    model = build_model(config, data, None)
    cache = build_cache(config, quiet=True)
    cache.attach(model, data, torch.device("cpu"))
    assert cache.state in ("built", "hit")
    return model, data, config


def test_logits(model: DogBreedClassifier, data: DogImages, weight: Tensor, bias: Tensor) -> Tensor:
    stem = Stem(model)
    model.eval()
    indices = np.arange(len(data.samples["test"]))
    inputs = stem(data.reader("test")(indices, np.zeros_like(indices)))
    return torch.addmm(bias, inputs, weight.T)


test_logits.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "schedule", "batch_size"),
    [("adam", "constant", 5), ("adamw", "cosine", 24), ("sgd", "onecycle", 7), ("adam", "constant", 1)],
)
def test_a_head_in_the_stack_is_the_head_trained_alone(
    settings: list[str], optimizer: str, schedule: str, batch_size: int
) -> None:
    settings += [f"model.optimizer={optimizer}", f"model.schedule={schedule}", f"data.batch_size={batch_size}"]
    trials = [
        {"lr": 0.003, "weight_decay": 0.0, "label_smoothing": 0.0},
        {"lr": 0.01, "weight_decay": 0.02, "label_smoothing": 0.0},
        {"lr": 0.001, "weight_decay": 0.0, "label_smoothing": 0.2},
    ]
    model, data, config = on_features(settings)
    stacked = [Head(**trial) for trial in trials]
    HeadTrainer(model, data).train(stacked, batch_size=batch_size, epochs=config.trainer["max_epochs"])
    for trial, head in zip(trials, stacked, strict=True):
        alone = train(overrides=[*settings, *(f"model.{key}={value}" for key, value in trial.items())])
        assert head.best["val_loss"] == pytest.approx(alone.metrics["val_loss"], abs=1e-4)
        assert head.best["val_acc"] == alone.metrics["val_acc"]
        assert head.best["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=1e-4)
        own: Any = alone.model.network.get_submodule(backbones.head_name(alone.model.network))
        assert head.weight is not None
        assert head.bias is not None
        theirs = test_logits(model, data, own.weight.detach(), own.bias.detach())
        ours = test_logits(model, data, head.weight, head.bias)
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
        assert torch.equal(ours.argmax(1), theirs.argmax(1))


@pytest.fixture(scope="module")
def part(dog_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some images of train and valid, and weights for a head of another size: a seed changes the head alone."""
    root = shutil.copytree(dog_tree, tmp_path_factory.mktemp("part") / "dogImages")
    for split, kept in (("train", [1, 2, 5]), ("valid", [0, 2])):
        for number, folder in enumerate(sorted((root / split).iterdir())):
            for index, file in enumerate(sorted(folder.iterdir())):
                if index not in kept[number % 2 :]:
                    file.unlink()
    network = backbones.create("mobilenet_v3_small", 7, weights="none", seed=9)
    torch.save(network.state_dict(), root.parent / "weights.pth")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "schedule", "epochs"),
    [("adam", "constant", 3), ("adamw", "cosine", 3), ("sgd", "onecycle", 3), ("lbfgs", "constant", 1)],
)
def test_a_head_on_some_rows_is_the_run_on_those_images_alone(
    settings: list[str], part: Path, optimizer: str, schedule: str, epochs: int
) -> None:
    settings += [
        f"model.optimizer={optimizer}",
        f"model.schedule={schedule}",
        f"model.weights={part.parent / 'weights.pth'}",
        f"trainer.max_epochs={epochs}",
        "data.batch_size=4",
        "model.lr=0.01",
    ]
    model, data, _ = on_features(settings)
    rows, valid_rows = (
        np.array(
            [at for at, file in enumerate(data.samples[split].paths) if (part / file.relative_to(data.root)).exists()]
        )
        for split in ("train", "valid")
    )
    assert (len(rows), len(valid_rows)) == (10, 6)
    some, seeded, plain = Head(lr=0.01, rows=rows, valid_rows=valid_rows, seed=3), Head(lr=0.01, seed=5), Head(lr=0.01)
    HeadTrainer(model, data).train([plain, some, seeded], batch_size=4, epochs=epochs)
    for head, own in ((some, [f"data.root={part}", "seed=3"]), (seeded, ["seed=5"]), (plain, [])):
        alone = train(overrides=[*settings, *own])
        assert head.best["val_loss"] == pytest.approx(alone.metrics["val_loss"], abs=1e-4)
        assert head.best["train_loss"] == pytest.approx(alone.metrics["train_loss"], abs=1e-4)
        assert head.best["val_acc"] == pytest.approx(alone.metrics["val_acc"], abs=1e-9)


@pytest.mark.slow
def test_a_head_ends_at_its_epoch_with_the_values_it_has_then(settings: list[str]) -> None:
    model, data, _ = on_features([*settings, "model.schedule=cosine"])
    trainer = HeadTrainer(model, data)
    rows = np.array([0, 3, 4])
    short, whole = Head(lr=1.0, epochs=2, valid_rows=rows), Head(lr=1.0, valid_rows=rows)
    trainer.train([short, whole], batch_size=6, epochs=4)
    assert short.history == whole.history[:2]
    assert short.best != short.history[1], "too fast: the first epoch was better"
    logits, labels = trainer.valid_logits(short), torch.from_numpy(data.samples["valid"].labels[rows])
    loss = nn.functional.cross_entropy(logits, labels).item()
    assert loss == pytest.approx(short.history[1]["val_loss"], rel=1e-5)


@pytest.mark.slow
def test_steps_that_share_a_pass_draw_the_masks_they_would_have_drawn_alone() -> None:
    model = DogBreedClassifier(4, backbone="alexnet", weights="none")
    model.use_features(cut(model.network, 64))
    stem = Stem(model)
    assert stem.row_wise  # two dropouts, two linear layers
    model.train()
    alone = model.network.classifier[:6]
    sizes, seeds = [3, 3, 1], (5, 2**60, 7)
    features = [torch.rand(size, 9216) for size in sizes]
    steps = stem.steps(torch.cat(features), sizes, seeds)
    for own, seed, joined in zip(features, seeds, steps.split(sizes), strict=True):
        torch.manual_seed(seed)
        torch.testing.assert_close(joined, alone(own), atol=1e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 3, 16])
def test_heads_on_threads_are_those_on_one(settings: list[str], threads: int) -> None:
    """Also where a stack is cut between two threads, and where there are more threads than heads."""
    model, data, _ = on_features(settings)
    trainer, count = HeadTrainer(model, data), len(data.samples["train"])
    before, results = torch.get_num_threads(), []
    try:
        for number in (1, threads):
            torch.set_num_threads(number)
            heads = [Head(lr=0.01, seed=seed, rows=np.arange(first, count)) for seed in (1, 2) for first in (0, 0, 1)]
            trainer.train([*heads, Head(lr=0.02), Head(lr=0.03)], batch_size=8, epochs=2)
            assert torch.get_num_threads() == number
            results.append([row["val_loss"] for head in heads for row in head.history])
    finally:
        torch.set_num_threads(before)
    assert results[0] == pytest.approx(results[1], abs=1e-5)
    assert len(set(results[0])) == 8


@pytest.mark.slow
def test_an_error_on_one_thread_ends_all(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised where the training was asked for; the next training is not held up."""
    model, data, _ = on_features(settings)
    trainer, before = HeadTrainer(model, data), torch.get_num_threads()
    heads, taken = [Head(lr=0.01, seed=seed) for seed in (1, 2)], []

    def fails(stack: stacked_heads._Stack, steps: Any) -> Tensor:
        taken.append(stack)
        if len(taken) == 5:
            raise ValueError("no")
        return take_steps(stack, steps)

    take_steps = stacked_heads._Stack.take_steps
    torch.set_num_threads(2)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(stacked_heads._Stack, "take_steps", fails)
            with pytest.raises(ValueError, match="no"):
                trainer.train(heads, batch_size=8, epochs=1000)
        assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]
        plain = Head(lr=0.01)
        trainer.train([plain], batch_size=8, epochs=1)
        assert len(plain.history) == 1
    finally:
        torch.set_num_threads(before)


def test_gradients_are_those_of_torch(settings: list[str]) -> None:
    start = nn.Linear(6, 4)
    trials = [Head(lr=0.1, label_smoothing=0.0), Head(lr=0.2, label_smoothing=0.3)]
    stack = stacked_heads._Stack([start], trials, "sgd", "constant", steps=1)
    inputs, labels = torch.randn(5, 6), torch.tensor([0, 3, 1, 1, 2])
    losses = stack.step(inputs, labels)
    for place, trial in enumerate(trials):
        alone = nn.Linear(6, 4)
        alone.load_state_dict(start.state_dict())
        loss = nn.functional.cross_entropy(alone(inputs), labels, label_smoothing=trial.label_smoothing)
        loss.backward()
        assert losses[place].item() == pytest.approx(loss.item(), abs=1e-6)
        assert alone.weight.grad is not None
        torch.testing.assert_close(stack._gradient[place], alone.weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_memory_splits_the_stack_and_changes_nothing(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, _ = on_features(settings)
    trainer = HeadTrainer(model, data)
    rates = (0.001, 0.003, 0.01, 0.03, 0.1)
    whole, parts = [Head(lr=rate) for rate in rates], [Head(lr=rate) for rate in rates]
    trainer.train(whole, batch_size=8, epochs=2)
    monkeypatch.setattr(stacked_heads, "MEMORY_BYTES", 2 * 16 * trainer.stem.head.weight.numel())
    sizes: list[int] = []
    made = stacked_heads._Stack.__init__

    def counted(stack: stacked_heads._Stack, starts: Any, heads: Any, *arguments: Any) -> None:
        sizes.append(len(heads))
        made(stack, starts, heads, *arguments)

    monkeypatch.setattr(stacked_heads._Stack, "__init__", counted)
    trainer.train(parts, batch_size=8, epochs=2)
    assert sizes == [2, 2, 1]
    assert [len(head.history) for head in parts] == [2] * 5
    for one, other in zip(whole, parts, strict=True):
        assert one.best["val_loss"] == pytest.approx(other.best["val_loss"], abs=1e-5)


@pytest.mark.slow
def test_the_next_trials_take_the_inputs_of_the_first(settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data, _ = on_features(settings)
    forgetful, trainer = HeadTrainer(model, data), HeadTrainer(model, data)
    forgetful._room.free = 0
    passes: list[int] = []
    steps = Stem.steps

    def counted(stem: Stem, features: Any, sizes: Any, seeds: Any) -> Tensor:
        passes.append(len(seeds))
        return steps(stem, features, sizes, seeds)

    monkeypatch.setattr(Stem, "steps", counted)
    rounds = [(forgetful, 24), (trainer, 24), (trainer, 24), (trainer, 5), (trainer, 24)]
    numbers, results = [], []
    for one, batch_size in rounds:
        before, heads = sum(passes), [Head(lr=0.01), Head(lr=0.02, weight_decay=0.1)]
        one.train(heads, batch_size=batch_size, epochs=2)
        numbers.append(sum(passes) - before)
        results.append([head.history for head in heads])
    images = len(data.samples["train"])
    assert numbers == [2 * -(-images // 24), 2 * -(-images // 24), 0, 2 * -(-images // 5), 0]
    assert results[0] == results[1] == results[2] == results[4]
    other = [Head(lr=0.01, seed=4)]
    trainer.train(other, batch_size=24, epochs=2)
    assert other[0].history != results[0][0], "a seed of its own has its own batches"


@pytest.mark.slow
def test_a_head_that_is_stopped_leaves_the_others_alone(settings: list[str]) -> None:
    model, data, _ = on_features([*settings, "model.schedule=cosine"])
    trainer = HeadTrainer(model, data)
    alone, three = [Head(lr=0.01)], [Head(lr=0.001), Head(lr=0.01), Head(lr=0.05)]
    trainer.train(alone, batch_size=6, epochs=4)
    trainer.train(
        three,
        batch_size=6,
        epochs=4,
        should_stop=lambda epoch, still: [epoch == 2 and head.lr != 0.01 for head in still],
    )
    assert [len(head.history) for head in three] == [2, 4, 2]
    assert [head.stopped for head in three] == [True, False, True]
    assert [row["val_loss"] for row in three[1].history] == pytest.approx(
        [row["val_loss"] for row in alone[0].history], abs=1e-5
    )


@pytest.mark.slow
def test_a_head_that_diverges_is_stopped_and_the_others_go_on(settings: list[str]) -> None:
    model, data, _ = on_features([*settings, "model.optimizer=sgd"])
    trials = [Head(lr=1e38), Head(lr=0.001)]
    HeadTrainer(model, data).train(trials, batch_size=6, epochs=3)
    assert trials[0].stopped
    assert not trials[1].stopped
    assert len(trials[1].history) == 3
    assert all(np.isfinite(row["val_loss"]) for row in trials[1].history)


@pytest.mark.slow
def test_what_cannot_be_stacked_says_why(settings: list[str]) -> None:
    model, data, _ = on_features([*settings, "model.trainable=block"])
    with pytest.raises(NotStackable, match="more of it trains than its last layer"):
        HeadTrainer(model, data)
    model, data, _ = on_features([*settings, "model.backbone=squeezenet1_1"])
    with pytest.raises(NotStackable, match="not a linear one"):
        HeadTrainer(model, data)
    fresh = DogBreedClassifier(3, backbone="mobilenet_v3_small", weights="none")
    with pytest.raises(NotStackable, match="not there"):
        Stem(fresh)
