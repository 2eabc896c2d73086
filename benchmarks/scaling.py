"""What the store of features takes with many images, and what that comes to with fourteen million.

    python -m benchmarks.scaling FOLDER [--images N] [--features N]

A store of N rows of random features in bfloat16 is written into FOLDER/store, opened in a new process, and read as
epochs read it. Nothing passes through a network: this is about the store alone. It is deleted afterwards.
"""

import argparse
import multiprocessing
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from dogbreed.cache.extract import BLOCK_BYTES
from dogbreed.cache.store import KEY, Store

T = TypeVar("T")
IMAGENET_21K = 14_197_122
BATCH = 512


def timed(name: str, call: Callable[[], T], rows: int) -> T:
    """Call, and print seconds, those per million rows, and what that is of ImageNet-21k."""
    start = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - start
    million, all_images = 1e6 * seconds / rows, seconds / rows * IMAGENET_21K
    print(f"{name:44} {seconds:8.1f} s  {million:8.1f} s per million  {all_images:8,.0f} s of 14.2 million", flush=True)
    return result


def write(store: Store, keys: np.ndarray, features: int) -> None:
    """Write the rows in blocks of the usual size."""
    random = torch.Generator().manual_seed(0)
    rows = BLOCK_BYTES // (2 * features)
    for start in range(0, len(keys), rows):
        part = keys[start : start + rows]
        store.add(part.tolist(), torch.rand(len(part), features, generator=random))


def read(folder: Path, features: int, keys: np.ndarray) -> None:
    """Open the store and read it as an epoch does; print how long that takes, and the memory."""
    store, images = Store(folder, [features], torch.bfloat16), len(keys)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed("opened, and checked", store.refresh, images)
    timed("opened by the next run", Store(folder, [features], torch.bfloat16).refresh, images)
    timed("every image looked up", lambda: store.holds(keys), images)
    table = timed("table of positions", lambda: store.table(keys[None]), images)
    batches = np.random.default_rng(0).permutation(images)[: min(images, 200_000)].reshape(-1, 1)
    batches = batches[: len(batches) // BATCH * BATCH].reshape(-1, BATCH)
    views = np.zeros(BATCH, dtype=np.int64)
    timed(
        f"read in random order, {BATCH} at a time",
        lambda: [table(batch, views) for batch in batches],
        batches.size,
    )
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"memory: {used / 1e6:.2f} GB, the pages of the store that were read among it")


def main() -> None:
    """Write, open, read."""
    frame = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frame.add_argument("folder", type=Path)
    frame.add_argument("--images", type=int, default=1_000_000)
    frame.add_argument("--features", type=int, default=1280, help="numbers per image")
    arguments = frame.parse_args()
    folder, images = arguments.folder / "store", arguments.images
    keys = np.frombuffer(np.random.default_rng(0).bytes(16 * images), KEY)
    folder.mkdir(parents=True)
    try:
        store = Store(folder, [arguments.features], torch.bfloat16)
        timed("written", lambda: write(store, keys, arguments.features), images)
        size = sum(file.stat().st_size for file in folder.iterdir())
        per_image = size / images
        print(f"{size / 1e9:.2f} GB, {per_image:,.0f} bytes per image: {per_image * IMAGENET_21K / 1e9:,.0f} GB of all")
        process = multiprocessing.get_context("spawn").Process(target=read, args=(folder, arguments.features, keys))
        process.start()
        process.join()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
