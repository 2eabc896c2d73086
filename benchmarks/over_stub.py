"""What runs over the stub of CUDA (`benchmarks.stub`), in a process of its own: counts, and the host's CPU time.

Convolutions are counted in Python and kernels are not executed: the host's time is that of telling the GPU what to do.
"""

import json
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import counters  # beside the built stub
import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from benchmarks.bench import CLASSES, Bench
from benchmarks.training import build_store, on_features
from dogbreed.models import backbones
from dogbreed.models.cut import cut
from dogbreed.training.stacked_heads import Head, _Stack

WAITS = ("STREAM_SYNC", "EVENT_SYNC", "DEVICE_SYNC", "SYNC_MEMCPY")
PAGEABLE = ("H2D_PAGEABLE", "D2H_PAGEABLE")
FILES = 96


class Steps(Callback):
    """What each training step of a run did, from the end of the step before to its own; SECONDS are the process's."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._started = 0.0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx:  # between two epochs lies an evaluation
            self.steps.append({**counters.counters(), "SECONDS": time.process_time() - self._started})
        counters.reset()
        self._started = time.process_time()

    def each(self, *names: str) -> list[float]:
        """Return the sum of these counters for every step."""
        return [sum(step[name] for name in names) for step in self.steps]


def stack(heads: int, inputs: int, classes: int, images: int) -> tuple[float, float]:
    """Return launches, and waits and pageable copies together, of a step of several heads."""
    rates = [Head(lr=0.001 * (index + 1)) for index in range(heads)]
    on_device = _Stack([nn.Linear(inputs, classes).cuda()], rates, "adam", "cosine", 100)
    batch = torch.zeros(images, inputs, device="cuda"), torch.zeros(images, dtype=torch.long, device="cuda")
    on_device.step(*batch)
    counters.reset()
    for _ in range(10):
        on_device.step(*batch)
    done = counters.counters()
    return (done["LAUNCH"] + done["GEMM"]) / 10, sum(done[name] for name in (*WAITS, *PAGEABLE)) / 10


def warm_steps(bench: Bench) -> dict[str, float]:
    """Count steps of 512 on VGG16's features of dogImages, nearly all of which lie on the device after eight epochs."""
    model, data = on_features(bench)
    counted = Steps()
    trainer = Trainer(
        max_epochs=12, accelerator="gpu", devices=1, logger=False, enable_checkpointing=False, callbacks=[counted],
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    counted.steps = counted.steps[2 * len(counted.steps) // 3 :]
    return {
        "stub_warm_step_host_ms": 1e3 * median(counted.each("SECONDS")),
        "stub_warm_step_waits": float(np.mean(counted.each(*WAITS))),
        "stub_warm_step_pageable_copies": float(np.mean(counted.each(*PAGEABLE))),
        "stub_warm_step_launches": float(np.mean(counted.each("LAUNCH", "GEMM"))),
    }


def stacks() -> dict[str, float]:
    """Count steps of 512 images in one and in fifty heads of VGG16."""
    return {f"stub_stack_of_{heads}_launches": stack(heads, 4096, CLASSES, 512)[0] for heads in (1, 50)}


def extraction(bench: Bench) -> dict[str, float]:
    """Measure what a view costs the thread that feeds the device; a long build less a short one, for its set-up."""
    backbones.set_mode(bench.network, training=False)
    parts = cut(bench.network, 224)
    files = bench.files[:FILES]
    build_store(bench, parts, "float32", torch.float32, files)()
    taken = []
    for repeats in (2, 6):
        build = build_store(bench, parts, "float32", torch.float32, files * repeats)
        counters.reset()
        started = time.thread_time()
        build()
        done = counters.counters()
        taken.append({**done, "SECONDS": time.thread_time() - started})
    views = 2 * 4 * len(files)
    more = {name: taken[1][name] - taken[0][name] for name in taken[0]}
    return {
        "stub_extraction_feed_ms_per_view": 1e3 * more["SECONDS"] / views,
        "stub_extraction_waits_per_view": sum(more[name] for name in WAITS) / views,
        "stub_extraction_pageable_copies_per_view": sum(more[name] for name in PAGEABLE) / views,
        "stub_extraction_kilobytes_per_view": more["H2D_BYTES"] / views / 1e3,
    }


def main() -> None:
    """Print all of it as one line of JSON."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        print(json.dumps({**warm_steps(bench), **stacks(), **extraction(bench)}))
