"""Four ways to train VGG16's last layer on dogImages, and what a search costs with each.

published: every image through the whole network in each epoch, Pillow, `num_workers=0`, float32.
tuned:     the same in this project's Lightning loop with the cache off: workers, channels_last, bfloat16 where there
           are units for it, no gradients for the frozen part.
cold:      this project, the features to be computed.
warm:      this project, the features there.

The first two are measured on a few batches and scaled to dogImages' 6,680 / 835 / 836 images, which only multiplies:
each image costs the same. So is the computing of features. Epochs and trials on features run at dogImages' full size,
on random values.
"""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from torch import nn

from benchmarks.bench import BATCH, CLASSES, EPOCHS, TEST, TRAIN, VALID, Bench, has_bfloat16
from benchmarks.extraction import matmul_gflops, opened, precisions, published_transform
from dogbreed.cache.extract import Extraction, missing_views
from dogbreed.cache.store import KEY, Store, row_key
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import SplitFiles
from dogbreed.data.images import WHOLE, View
from dogbreed.models import backbones
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import CutNetwork, cut
from dogbreed.training.stacked_heads import Head, HeadTrainer

BATCH_SIZES = (32, 64, 128, 256, 512)
NEEDED = (  # for the tasks
    *("published_seconds_per_image", "published_evaluation_seconds_per_image", "tuned_seconds_per_image"),
    *("warm_epoch_seconds", "first_trial_seconds", "one_more_trial_seconds"),
)
ROUND = 10  # trials that the search proposes at a time


def loops(bench: Bench) -> None:
    """Seconds per image in the two loops without a cache, and in filling the cache; files to features."""
    count = 16
    # So that the start of the processes that decode weighs as little as among thousands; a GPU is done with them first.
    more = 4 * count if bench.device.type == "cpu" else 2048
    backbones.set_mode(bench.network, training=False)
    parts = cut(bench.network, 224)
    files = (bench.files * math.ceil(more / len(bench.files)))[:more]
    ours = {f"cold_{name}": build_store(bench, parts, name, dtype, files) for name, dtype in precisions(bench).items()}
    taken = bench.side_by_side(
        {
            "published": _published_step(bench, count),
            "published_evaluation": _published_evaluation(bench, count),
            **ours,
        }
    )
    bench.note("published_seconds_per_image", taken["published"] / count)
    bench.note("published_evaluation_seconds_per_image", taken["published_evaluation"] / count)
    for name in ours:
        bench.note(f"{name}_seconds_per_view", taken[name] / more / 2)
    bench.note("tuned_seconds_per_image", _tuned_loop(bench, count))


def warm(bench: Bench) -> None:
    """Epochs of `DogBreedClassifier` in Lightning's Trainer at dogImages' size, on features that are there."""
    model, data = on_features(bench)

    def train(epochs: int) -> float:
        trainer = Trainer(
            max_epochs=epochs, accelerator=bench.device.type, devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        model.train()
        return bench.once(lambda: trainer.fit(model, datamodule=data))

    train(1)
    seconds = statistics.median(train(4) - train(1) for _ in range(5)) / 3
    bench.note("warm_epoch_seconds", seconds)
    # Two layers of 4,096 forth (and back through the last one) are all that is left of the network.
    products = 4096 * 4096 * (TRAIN + VALID) + 4096 * CLASSES * (2 * TRAIN + VALID)
    bench.note("warm_epoch_gflops", 2 * products / seconds / 1e9)


def search(bench: Bench) -> None:
    """Trials side by side at dogImages' size: what the first cost, what one more costs, and the first of a later round.

    A later round of the same batch size has the last layer's inputs of the first.
    """
    model, data = on_features(bench)
    epochs = 2  # every epoch costs the same

    def seconds(trainer: HeadTrainer, heads: int, batch_size: int) -> float:
        trials = [Head(lr=lr) for lr in np.geomspace(0.001, 0.1, heads)]
        return bench.once(lambda: trainer.train(trials, batch_size=batch_size, epochs=epochs)) / epochs * EPOCHS

    seconds(HeadTrainer(model, data), 1, BATCH)
    ones, again, more = [], [], []
    for batch_size in BATCH_SIZES:
        runs = []
        for _ in range(3):
            trainer = HeadTrainer(model, data)
            runs.append([seconds(trainer, heads, batch_size) for heads in (1, 1, 9)])
        ones.append(statistics.median(one for one, _, _ in runs))
        again.append(statistics.median(one for _, one, _ in runs))
        more.append(statistics.median((nine - one) / 8 for _, one, nine in runs))
        print(
            f"  {batch_size:4} images per step: the first trial {ones[-1]:6.2f} s, later {again[-1]:6.2f} s, "
            f"one more {more[-1]:6.3f} s",
            flush=True,
        )
    bench.note("first_trial_seconds", statistics.mean(ones))
    bench.note("first_trial_of_later_round_seconds", statistics.mean(again))
    bench.note("one_more_trial_seconds", statistics.mean(more))
    # Forth and back through one head, over the images of five epochs, and its valid losses.
    flops = 2 * 4096 * CLASSES * EPOCHS * (2 * TRAIN + VALID)
    matmul = matmul_gflops(bench, torch.float32)
    bench.note("head_share_512", flops / more[-1] / 1e9 / matmul)
    bench.note("head_share", flops / statistics.mean(more) / 1e9 / matmul)
    # Of values as many as the head has, a step moves nine times: the product forth reads weights, the one back writes
    # gradients, Adam reads both and two moments and writes all but the gradients. The valid losses read weights once.
    moved = 4 * 4096 * CLASSES * EPOCHS * (9 * math.ceil(TRAIN / BATCH_SIZES[0]) + 1)
    bench.note("head_gigabytes_per_second_32", moved / more[0] / 1e9)


def tasks(measured: dict[str, float]) -> dict[str, dict[str, float]]:
    """Seconds of each task by each way: {task: {way: seconds}}; none where a part of the benchmark did not run."""
    if not set(NEEDED) <= set(measured):
        return {}
    train, evaluate = measured["published_seconds_per_image"], measured["published_evaluation_seconds_per_image"]
    epoch, test = TRAIN * train + VALID * evaluate, TEST * evaluate
    tuned = measured["tuned_seconds_per_image"]
    tuned_epoch, tuned_test = (TRAIN + VALID) * tuned, TEST * tuned
    warm_epoch = measured["warm_epoch_seconds"]
    ways = ("cold_float32", "cold_bfloat16")
    per_view = {way: measured[f"{way}_seconds_per_view"] for way in ways if f"{way}_seconds_per_view" in measured}

    def searched(trials: int) -> float:
        """Return the seconds of rounds of ten, each with all batch sizes in it at the worst, and the final training."""
        first, more = measured["first_trial_seconds"], measured["one_more_trial_seconds"]
        groups = sum(min(len(BATCH_SIZES), trials - start, ROUND) for start in range(0, trials, ROUND))
        new = min(len(BATCH_SIZES), trials)
        later = (groups - new) * measured.get("first_trial_of_later_round_seconds", first)  # not in older results
        return new * first + later + (trials - groups) * more + EPOCHS * warm_epoch

    def row(runs: int, epochs: int, ours: float) -> dict[str, float]:
        # An image that is mirrored half of the time is seen both ways but for one in 2^(epochs - 1).
        views = (2 - 2.0 ** (1 - epochs)) * TRAIN + VALID + TEST
        return {
            "published": runs * (epochs * epoch + test),
            "tuned": runs * (epochs * tuned_epoch + tuned_test),
            **{way: views * seconds + ours for way, seconds in per_view.items()},
            "warm": ours,
        }

    return {
        "1 epoch": row(1, 1, warm_epoch),
        "5 epochs": row(1, EPOCHS, EPOCHS * warm_epoch),
        "4 trials and the final training": row(5, EPOCHS, searched(4)),
        "50 trials and the final training": row(51, EPOCHS, searched(50)),
    }


def _published_step(bench: Bench, count: int) -> Callable[[], None]:
    """One step as published: all frozen but the last layer, Adam over it, squash and flip, no workers, float32."""
    network = _published_network(bench)
    optimizer = torch.optim.Adam(network.classifier[6].parameters(), lr=0.003)
    transform = published_transform(flip=True)
    labels = torch.arange(count, device=bench.device) % CLASSES

    def step() -> None:
        network.train()
        inputs = torch.stack([opened(file, transform) for file in bench.files[:count]]).to(bench.device)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return step


def _published_evaluation(bench: Bench, count: int) -> Callable[[], None]:
    network = _published_network(bench)
    transform = published_transform(flip=False)

    @torch.no_grad()
    def evaluate() -> None:
        network.eval()
        inputs = torch.stack([opened(file, transform) for file in bench.files[:count]]).to(bench.device)
        network(inputs)

    return evaluate


def _published_network(bench: Bench) -> torchvision.models.VGG:
    network = torchvision.models.vgg16(weights=None)
    network.requires_grad_(False)
    network.classifier[6] = nn.Linear(4096, CLASSES)
    return network.to(bench.device)


def _tuned_loop(bench: Bench, count: int) -> float:
    """Seconds per image of this project's own Lightning loop without a cache."""
    model = DogBreedClassifier(CLASSES, weights="none").to(bench.device)
    data = DogImages(bench.folder, batch_size=count)
    # On a GPU, decoding sets the pace once the batches are used up that lay ready at the start.
    steps, ready = (6, 0) if bench.device.type == "cpu" else (400, 200)
    files = (bench.files * steps)[: steps * count]
    data.samples = {"train": _samples(files, views=[WHOLE, View(flip=True)]), "valid": _samples(files[:1], [WHOLE])}
    ends: list[float] = []

    def end(*_: Any) -> None:
        bench.wait()
        ends.append(time.perf_counter())

    trainer = Trainer(
        max_epochs=1, accelerator=bench.device.type, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
        precision="bf16-mixed" if has_bfloat16(bench.device) else "32-true",
        callbacks=[LambdaCallback(on_train_batch_end=end)],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return (ends[-1] - ends[ready]) / (steps - 1 - ready) / count


def build_store(
    bench: Bench, parts: CutNetwork, precision: str, dtype: torch.dtype, files: list[Path]
) -> Callable[[], None]:
    """Files to a store with two views of each."""
    samples = _samples(files, views=[WHOLE, View(flip=True)])
    data = DogImages(bench.folder)

    def build() -> None:
        with tempfile.TemporaryDirectory() as fresh:
            store = Store(Path(fresh), parts.shape, dtype)
            wanted = missing_views(store, {"train": samples}, {"train": np.ones((2, len(files)), dtype=np.bool_)})
            with Extraction(
                store, parts.prefix, wanted, data, device=bench.device, precision=precision, quiet=True
            ) as extraction:
                extraction.advance()

    return build


def _samples(files: list[Path], views: list[View]) -> SplitFiles:
    labels = np.arange(len(files), dtype=np.int64) % CLASSES
    digests = [f"{i:032x}" for i in range(len(files))]
    return SplitFiles(list(files), labels, digests, [[view] * len(files) for view in views])


def on_features(bench: Bench) -> tuple[DogBreedClassifier, DogImages]:
    """Return a model and data of dogImages' size on a store of random features."""
    model = DogBreedClassifier(CLASSES, weights="none").to(bench.device)
    model.eval()
    parts = cut(model.network, 224)
    model.use_features(parts)
    data = DogImages(bench.folder, batch_size=BATCH)
    store = Store(bench.folder / f"random-{time.time_ns()}", parts.shape, torch.float32)
    generator = torch.Generator().manual_seed(0)
    both = [WHOLE, View(flip=True)]
    readers = {}
    for name, count, views in (("train", TRAIN, both), ("valid", VALID, both[:1]), ("test", TEST, both[:1])):
        digests = [f"{name}{i:026x}" for i in range(count)]
        labels = np.arange(count, dtype=np.int64) % CLASSES
        data.samples[name] = SplitFiles([Path(d) for d in digests], labels, digests, [[view] * count for view in views])
        keys = [[row_key(digest, view) for digest in digests] for view in views]
        for row in keys:
            for start in range(0, count, 500):
                part = row[start : start + 500]
                store.add(part, torch.rand(len(part), *parts.shape, generator=generator).relu_())
        store.refresh()
        readers[name] = store.table(np.array(keys, dtype=KEY))
    data.use_features(readers)
    return model, data
