"""Whole runs of VGG16 as a person starts them: what one costs beside its epochs, how soon a cold one shows a loss."""

import os
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageEnhance

from benchmarks.bench import CLASSES, TEST, TRAIN, VALID, Bench

COMMAND = (sys.executable, "-u", "-m", "dogbreed.train", "model.weights=none", "trainer.max_epochs=1")


def fixed(bench: Bench) -> None:
    """Processor seconds of a whole `dogbreed.train` on a few drawn photographs whose features are there."""
    command = [
        *(*COMMAND, f"data.root={bench.folder / 'sample'}", "data.num_workers=0", "progress=none"),
        *(f"cache.dir={bench.folder / 'fixed-cache'}", f"output_dir={bench.folder / 'fixed'}", "overwrite=true"),
        f"trainer.accelerator={bench.device.type}",
    ]

    def train() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    train()  # computes the features
    bench.note("fixed_cpu_seconds", min(train() for _ in range(3)))


def first_loss(bench: Bench) -> None:
    """Seconds from the command to the first line with a loss, as many images as dogImages has, none seen before."""
    root = bench.folder / "as-many-as-dogImages"
    for number in range(TRAIN + VALID + TEST):
        split = "train" if number < TRAIN else "valid" if number < TRAIN + VALID else "test"
        file = root / split / f"{number % CLASSES + 1:03}.Breed_{number % CLASSES + 1}" / f"{number}.jpg"
        _variant(bench.files[number % len(bench.files)], file, number)
    command = [
        *(*COMMAND, f"data.root={root}", f"cache.dir={bench.folder / 'first'}", "progress=plain"),
        *(f"output_dir={bench.folder / 'first-run'}", f"trainer.accelerator={bench.device.type}"),
    ]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout
    line = next((line for line in process.stdout if re.search(r"\b(loss |train_loss=)\d", line)), None)
    seconds = time.perf_counter() - started
    process.terminate()
    process.communicate()
    assert line, "the run showed no loss"
    bench.note("first_loss_seconds", seconds)


def _variant(source: Path, file: Path, seed: int) -> None:
    """Write another picture of dogImages' usual size: a part of the source in another light."""
    chance = random.Random(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as image:
        width, height = image.size
        left, top = 0.3 * width * chance.random(), 0.3 * height * chance.random()
        box = (left, top, left + 0.7 * width, top + 0.7 * height)
        part = image.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC, box)
    ImageEnhance.Brightness(part).enhance(0.7 + 0.6 * chance.random()).save(file, quality=92)
