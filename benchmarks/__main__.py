"""`make bench`: what computing the frozen part once is worth, side by side in one process on the same files.

Four ways to train VGG16's last layer on dogImages are compared: the published loop (every image through the whole
network in each epoch, `num_workers=0`, float32), a tuned Lightning loop without a cache, and this project on a cold and
on a warm cache. The slow ways are measured on a few batches and scaled to dogImages' 6,680 / 835 / 836 images, as the
table says; the warm ways are measured at full size, on features of random values.

    python -m benchmarks                       everything; writes benchmarks/results/<machine>.json
    python -m benchmarks --only warm search    some parts
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import LambdaCallback
from PIL import Image
from torch import nn
from torchvision import transforms

from dogbreed import backbones, images, provenance
from dogbreed.data import DogImages, Samples
from dogbreed.features import PRECISIONS, Store, fill, missing, plan, row_key, running
from dogbreed.files import written_whole
from dogbreed.heads import Head, HeadTrainer
from dogbreed.images import WHOLE, View
from dogbreed.model import DogBreedClassifier
from dogbreed.prefix import Split, split
from dogbreed.run import prepare_process
from dogbreed.sample import make_sample

TRAIN, VALID, TEST, CLASSES = 6680, 835, 836, 133
EPOCHS, BATCH = 5, 512
BATCH_SIZES = (32, 64, 128, 256, 512)
RESULTS = Path(__file__).parent / "results"

# What was asked for: (name, asked, unit).
ASKED = {
    "warm_epoch": ("an epoch on a warm cache, dropout and flips kept", 500.0),
    "cold_float32": ("5 epochs cold, float32", 3.0),
    "cold_bfloat16": ("5 epochs cold, bfloat16", 12.0),
    "search4_float32": ("4 trials and the final training, cold, float32", 15.0),
    "search4_bfloat16": ("4 trials and the final training, cold, bfloat16", 60.0),
    "search50_float32": ("50 trials and the final training, cold, float32", 150.0),
    "extraction_float32": ("extraction against vgg16 called plainly, float32", 1.3),
    "extraction_bfloat16": ("extraction against vgg16 called plainly, bfloat16", 5.0),
}


class Bench:
    """Measurements by name, in seconds or as rates."""

    def __init__(self, folder: Path) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.found: dict[str, float] = {}
        make_sample(folder / "sample", classes=6, train=16, valid=4, test=4)
        self.files = sorted((folder / "sample" / "train").rglob("*.jpg"))
        self.folder = folder
        self.network = backbones.create("vgg16", CLASSES, weights="none").to(self.device)
        backbones.freeze(self.network, "vgg16", "head")

    def note(self, name: str, value: float) -> None:
        self.found[name] = value
        print(f"  {name:34} {value:12.4g}", flush=True)

    def seconds(self, task: Callable[[], Any], repeats: int = 3) -> float:
        """Median over repeats, after one that is not counted."""
        taken = []
        for _ in range(repeats + 1):
            self.wait()
            started = time.perf_counter()
            task()
            self.wait()
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[1:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def machine(bench: Bench) -> None:
    """The rate of matrix products, to hold the others against."""
    for precision, dtype in PRECISIONS.items():
        if precision == "float16":
            continue
        # Without units for bfloat16 a product of this size would take a minute.
        slow = precision == "bfloat16" and not _has_bfloat16(bench.device)
        size = 8192 if bench.device.type == "cuda" else 256 if slow else 2048
        matrix = torch.randn(size, size, device=bench.device, dtype=dtype)
        seconds = bench.seconds(partial(torch.mm, matrix, matrix), 5)
        bench.note(f"matmul_gflops_{precision}", 2 * size**3 / seconds / 1e9)


def decoding(bench: Bench) -> None:
    """Files to inputs on one core, against Pillow and torchvision's transforms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain = _published_transform(flip=False)
    ours = images.Preprocessing()
    bench.note(
        "decode_pil_per_second", len(bench.files) / bench.seconds(lambda: [_opened(f, plain) for f in bench.files])
    )
    bench.note(
        "decode_per_second", len(bench.files) / bench.seconds(lambda: [images.load(f, ours) for f in bench.files])
    )
    torch.set_num_threads(threads)


def extraction(bench: Bench) -> None:
    """The frozen part alone, decoding left out: torchvision's network called plainly, and this project's way."""
    plain = torchvision.models.vgg16(weights=None).to(bench.device).eval()
    count = 32
    inputs = torch.rand(count, 3, 224, 224, device=bench.device)
    with torch.no_grad():
        bench.note("plain_images_per_second", count / bench.seconds(lambda: plain(inputs)))
    backbones.set_mode(bench.network, training=False)
    parts = split(bench.network, 224)
    for precision in ("float32", "bfloat16"):
        enough = count if precision == "float32" or _has_bfloat16(bench.device) else 4
        rate = _extraction_rate(bench, parts, inputs[:enough], precision)
        bench.note(f"extraction_{precision}_per_second", rate)


def _extraction_rate(bench: Bench, parts: Split, inputs: torch.Tensor, precision: str) -> float:
    way = plan(parts.prefix, bench.device, precision)
    batches = inputs.contiguous(memory_format=way.layout).split(way.images)
    repeats = 3 if len(inputs) > 8 else 1
    with running(parts.prefix, way, bench.device, precision):
        return len(inputs) / bench.seconds(lambda: [parts.prefix(batch) for batch in batches], repeats)


def loops(bench: Bench) -> None:
    """Seconds an image in the two loops without a cache, and in filling the cache; files to features."""
    count = 16
    bench.note("published_seconds_an_image", bench.seconds(_published_loop(bench, count), 2) / count)
    bench.note("tuned_seconds_an_image", _tuned_loop(bench, count))
    backbones.set_mode(bench.network, training=False)
    parts = split(bench.network, 224)
    for precision in ("float32", "bfloat16"):
        few = precision == "bfloat16" and not _has_bfloat16(bench.device)
        samples = _samples(bench.files[: 2 if few else 16], views=[WHOLE, View(flip=True)])
        data = DogImages(bench.folder, num_workers=0 if few else "auto")

        def build(samples: Samples = samples, data: DogImages = data, precision: str = precision) -> None:
            with tempfile.TemporaryDirectory() as fresh:
                store = Store(Path(fresh), parts.shape, PRECISIONS[precision])
                wanted = missing(store, {"train": samples})
                fill(store, parts.prefix, wanted, data, device=bench.device, precision=precision, quiet=True)

        views = 2 * len(samples)
        bench.note(f"cold_{precision}_seconds_a_view", bench.seconds(build, 1 if few else 2) / views)


def warm(bench: Bench) -> None:
    """Epochs of `DogBreedClassifier` in Lightning's Trainer at dogImages' size, on features that are there."""
    model, data = _on_features(bench)

    def train(epochs: int) -> float:
        trainer = Trainer(
            max_epochs=epochs, accelerator=bench.device.type, devices=1, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        model.train()
        started = time.perf_counter()
        trainer.fit(model, datamodule=data)
        return time.perf_counter() - started

    train(1)
    more = statistics.median(train(4) - train(1) for _ in range(3))
    bench.note("warm_epoch_seconds", more / 3)
    products = 4096 * 4096 * (TRAIN + VALID) + 4096 * CLASSES * (2 * TRAIN + VALID)
    bench.note("warm_epoch_gflops", 2 * products / (more / 3) / 1e9)


def search(bench: Bench) -> None:
    """Trials side by side at dogImages' size: what the first cost, and what one more costs."""
    model, data = _on_features(bench)
    trainer = HeadTrainer(model, data)

    def run(heads: int, batch_size: int) -> float:
        trials = [Head(lr=lr) for lr in np.geomspace(0.001, 0.1, heads)]
        started = time.perf_counter()
        trainer.train(trials, batch_size=batch_size, epochs=2)
        bench.wait()
        return (time.perf_counter() - started) / 2 * EPOCHS  # every epoch costs the same

    run(1, BATCH)
    ones, more = [], []
    for batch_size in BATCH_SIZES:
        one, nine = run(1, batch_size), run(9, batch_size)
        ones.append(one)
        more.append((nine - one) / 8)
        print(f"  {batch_size:4} images a step: the first trial {one:6.2f} s, one more {more[-1]:6.3f} s", flush=True)
    bench.note("first_trial_seconds", statistics.mean(ones))
    bench.note("one_more_trial_seconds", statistics.mean(more))
    # Forth and back through one head, over the images of five epochs, and its valid losses.
    flops = 2 * 4096 * CLASSES * EPOCHS * (2 * TRAIN + VALID)
    bench.note("head_gflops", flops / statistics.mean(more) / 1e9)


def table(found: dict[str, float]) -> dict[str, dict[str, float]]:
    """What was asked and what was reached, from the measurements."""
    epoch = (TRAIN + VALID) * found["published_seconds_an_image"]
    test = TEST * found["published_seconds_an_image"]
    reached = {"warm_epoch": epoch / found["warm_epoch_seconds"]}
    views = 2 * TRAIN + VALID + TEST
    final = EPOCHS * found["warm_epoch_seconds"]
    for precision in ("float32", "bfloat16"):
        cold = views * found[f"cold_{precision}_seconds_a_view"]
        reached[f"cold_{precision}"] = (EPOCHS * epoch + test) / (cold + final)
        for trials in (4, 50):
            # In rounds of ten, each with all five batch sizes in it at the worst.
            rounds = -(-trials // 10)
            groups = rounds * min(len(BATCH_SIZES), trials)
            searched = groups * found["first_trial_seconds"] + (trials - groups) * found["one_more_trial_seconds"]
            everything = (trials + 1) * (EPOCHS * epoch + test)
            reached[f"search{trials}_{precision}"] = everything / (cold + searched + final)
        reached[f"extraction_{precision}"] = (
            found[f"extraction_{precision}_per_second"] / found["plain_images_per_second"]
        )
    return {name: {"asked": asked, "reached": reached[name]} for name, (_, asked) in ASKED.items()}


def _published_transform(flip: bool) -> transforms.Compose:
    steps: list[Any] = [transforms.Resize((224, 224))]
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def _opened(file: Path, transform: transforms.Compose) -> torch.Tensor:
    with Image.open(file) as image:
        tensor: torch.Tensor = transform(image.convert("RGB"))
    return tensor


def _published_loop(bench: Bench, count: int) -> Callable[[], None]:
    """One step as published: all frozen but the last layer, Adam over it, squash and flip, no workers, float32."""
    network = torchvision.models.vgg16(weights=None)
    network.requires_grad_(False)
    network.classifier[6] = nn.Linear(4096, CLASSES)
    network.to(bench.device).train()
    optimizer = torch.optim.Adam(network.classifier[6].parameters(), lr=0.003)
    transform = _published_transform(flip=True)
    labels = torch.arange(count, device=bench.device) % CLASSES

    def step() -> None:
        inputs = torch.stack([_opened(file, transform) for file in bench.files[:count]]).to(bench.device)
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), labels).backward()
        optimizer.step()

    return step


def _tuned_loop(bench: Bench, count: int) -> float:
    """This project's own Lightning loop without a cache: workers, channels_last, bfloat16 where the machine has it."""
    model = DogBreedClassifier(CLASSES, weights="none").to(bench.device)
    samples = _samples((bench.files * count)[: 3 * count], views=[WHOLE, View(flip=True)])
    data = DogImages(bench.folder, batch_size=count)
    data.samples = {"train": samples, "valid": _samples(bench.files[:1], [WHOLE])}
    fast = _has_bfloat16(bench.device)
    taken: list[float] = []

    def end(*_: Any) -> None:
        bench.wait()
        taken.append(time.perf_counter())

    trainer = Trainer(
        max_epochs=1, accelerator=bench.device.type, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0,
        precision="bf16-mixed" if fast else "32-true", callbacks=[LambdaCallback(on_train_batch_end=end)],
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    return (taken[-1] - taken[0]) / (len(taken) - 1) / count


def _samples(files: list[Path], views: list[View]) -> Samples:
    labels = np.arange(len(files), dtype=np.int64) % CLASSES
    return Samples(
        list(files), labels, [f"{i:032x}" for i in range(len(files))], [[view] * len(files) for view in views]
    )


def _on_features(bench: Bench) -> tuple[DogBreedClassifier, DogImages]:
    """A model and data of dogImages' size on a store of random features."""
    model = DogBreedClassifier(CLASSES, weights="none").to(bench.device)
    model.eval()
    parts = split(model.network, 224)
    model.use_features(parts)
    data = DogImages(bench.folder, batch_size=BATCH)
    store = Store(bench.folder / f"random-{time.time_ns()}", parts.shape, torch.float32)
    generator = torch.Generator().manual_seed(0)
    both = [WHOLE, View(flip=True)]
    readers = {}
    for name, count, views in (("train", TRAIN, both), ("valid", VALID, both[:1]), ("test", TEST, both[:1])):
        digests = [f"{name}{i:026x}" for i in range(count)]
        labels = np.arange(count, dtype=np.int64) % CLASSES
        data.samples[name] = Samples([Path(d) for d in digests], labels, digests, [[view] * count for view in views])
        keys = [[row_key(digest, view) for digest in digests] for view in views]
        for row in keys:
            for start in range(0, count, 500):
                part = row[start : start + 500]
                store.add(part, torch.rand(len(part), *parts.shape, generator=generator).relu_())
        store.refresh()
        readers[name] = store.table(keys)
    data.use_features(readers)
    return model, data


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return True
    told = Path("/proc/cpuinfo")
    flags = told.read_text() if told.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags


PARTS = {
    "machine": machine,
    "decoding": decoding,
    "extraction": extraction,
    "loops": loops,
    "warm": warm,
    "search": search,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    chosen = parser.parse_args().only
    warnings.filterwarnings("ignore")
    prepare_process()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        told = provenance.machine()
        print(", ".join(told.values()))
        for name in chosen:
            print(name, flush=True)
            PARTS[name](bench)
    if set(chosen) != set(PARTS):
        return
    reached = table(bench.found)
    others = {
        "one_more_trial": ("one more trial of 5 epochs, seconds", "at most 1", bench.found["one_more_trial_seconds"]),
        "head_share": (
            "head training alone, share of the matrix-product rate", "at least 0.6",
            bench.found["head_gflops"] / bench.found["matmul_gflops_float32"],
        ),
    }  # fmt: skip
    print(f"\n{'against the published loop, scaled to dogImages':56} {'asked':>12} {'reached':>10}")
    for name, row in reached.items():
        print(f"{ASKED[name][0]:56} {row['asked']:>11g}x {row['reached']:>9.3g}x")
    for title, asked, value in others.values():
        print(f"{title:56} {asked:>12} {value:>10.3g}")
    RESULTS.mkdir(exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in told.get("gpu", told["processor"])).strip("-").lower()
    result = {
        "machine": told,
        "versions": provenance.versions(),
        "measured": bench.found,
        "table": reached,
        "one_more_trial_seconds": others["one_more_trial"][2],
        "head_share_of_matmul": others["head_share"][2],
    }
    with written_whole(RESULTS / f"{name}.json") as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    print(f"\n{RESULTS / f'{name}.json'}")


if __name__ == "__main__":
    main()
