"""What every part of the benchmark uses: a folder of files, a network, a clock and a notebook."""

import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dogbreed.data.synthetic import make_sample
from dogbreed.models import backbones

TRAIN, VALID, TEST, CLASSES = 6680, 835, 836, 133  # dogImages
EPOCHS, BATCH = 5, 512  # the published recipe


class Bench:
    """Measurements by name, in seconds or as rates, and what they are made on.

    Args:
        folder: An empty folder.
        photographs: Folder laid out as dogImages for the parts that need real ones.
        weights: A state_dict for MobileNetV2, pretrained, for the same parts.
    """

    def __init__(self, folder: Path, photographs: Path | None = None, weights: Path | None = None) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.measured: dict[str, float] = {}
        make_sample(folder / "sample", classes=6, train=16, valid=4, test=4)
        self.files = sorted((folder / "sample" / "train").rglob("*.jpg"))
        self.folder, self.photographs, self.weights = folder, photographs, weights
        self.network = backbones.create("vgg16", CLASSES, weights="none").to(self.device)
        backbones.freeze(self.network, "vgg16", "head")

    def note(self, name: str, value: float) -> None:
        """Keep a figure, and prints it."""
        self.measured[name] = value
        print(f"  {name:36} {value:12.4g}", flush=True)

    def once(self, task: Callable[[], Any]) -> float:
        """Return the seconds that the task takes."""
        self.wait()
        started = time.perf_counter()
        task()
        self.wait()
        return time.perf_counter() - started

    def seconds(self, task: Callable[[], Any], repeats: int = 3) -> float:
        """Return the median over repeats, after one that is not counted."""
        return statistics.median([self.once(task) for _ in range(repeats + 1)][1:])

    def side_by_side(self, tasks: Mapping[str, Callable[[], Any]], repeats: int = 3) -> dict[str, float]:
        """Return the median seconds of each task; they take turns, so that other load on the machine hits all of them.

        A first turn of each is not counted.
        """
        turns = [{name: self.once(task) for name, task in tasks.items()} for _ in range(repeats + 1)]
        return {name: statistics.median(turn[name] for turn in turns[1:]) for name in tasks}

    def wait(self) -> None:
        """Wait until the device has done what it was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16; without them a product takes hundreds of times as long."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "avx512_bf16" in flags or "amx_bf16" in flags
