"""The machine's own rate, decoding, and the frozen part of VGG16 against torchvision's network called plainly."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from torchvision import transforms

from benchmarks.bench import Bench, has_bfloat16
from dogbreed.cache.extract import plan, prepared
from dogbreed.data import images
from dogbreed.models import backbones
from dogbreed.models.cut import CutNetwork, cut


def precisions(bench: Bench) -> dict[str, torch.dtype]:
    """Return what the device has units for: without them, bfloat16 takes hundreds of times as long."""
    all_of_them = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return all_of_them if has_bfloat16(bench.device) else {"float32": torch.float32}


def machine(bench: Bench) -> None:
    """Measure the rates of matrix products and of memory, to hold the others against."""
    for precision, dtype in precisions(bench).items():
        bench.note(f"matmul_gflops_{precision}", matmul_gflops(bench, dtype))
    one, other, result = torch.rand(3, 64 << 20, device=bench.device)
    seconds = bench.seconds(partial(torch.add, one, other, out=result), 9)
    bench.note("memory_gigabytes_per_second", 3 * one.nbytes / seconds / 1e9)


def matmul_gflops(bench: Bench, dtype: torch.dtype) -> float:
    """Return the rate of large matrix products."""
    size = 8192 if bench.device.type == "cuda" else 2048
    matrix = torch.randn(size, size, device=bench.device, dtype=dtype)
    return 2 * size**3 / bench.seconds(partial(torch.mm, matrix, matrix), 9) / 1e9


def decoding(bench: Bench) -> None:
    """Files to inputs on one core, against Pillow and torchvision's transforms."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    plain, ours = published_transform(flip=False), images.Preprocessing()
    taken = bench.side_by_side(
        {
            "decode_pil_per_second": lambda: [opened(file, plain) for file in bench.files],
            "decode_per_second": lambda: [images.load(file, ours) for file in bench.files],
        },
        5,
    )
    torch.set_num_threads(threads)
    for name, seconds in taken.items():
        bench.note(name, len(bench.files) / seconds)


def extraction(bench: Bench) -> None:
    """Measure the frozen part alone, without decoding: torchvision's network called plainly, and this project's way."""
    plain = torchvision.models.vgg16(weights=None).to(bench.device).eval()
    count = 32 if bench.device.type == "cpu" else 128  # a GPU's pass
    inputs = torch.rand(count, 3, 224, 224, device=bench.device)
    backbones.set_mode(bench.network, training=False)
    parts = cut(bench.network, 224)

    @torch.no_grad()
    def plainly() -> None:
        plain(inputs)

    ours = {name: _extract(bench, parts, inputs, name) for name in precisions(bench)}
    taken = bench.side_by_side({"plain": plainly, **ours})
    plainly_taken = taken.pop("plain")
    bench.note("plain_images_per_second", count / plainly_taken)
    for name, seconds in taken.items():
        bench.note(f"extraction_{name}_per_second", count / seconds)
        bench.note(f"extraction_{name}_ratio", plainly_taken / seconds)


def _extract(bench: Bench, parts: CutNetwork, inputs: torch.Tensor, precision: str) -> Callable[[], Any]:
    way = plan(parts.prefix, bench.device)
    batches = inputs.contiguous(memory_format=torch.channels_last).split(way.images)

    def extract() -> None:
        with prepared(parts.prefix, way, bench.device, precision) as network:
            for batch in batches:
                network(batch)

    return extract


def published_transform(flip: bool) -> transforms.Compose:
    """As the published loop makes its inputs: Pillow's resize, then torchvision's tensor and normalisation."""
    steps: list[Any] = [transforms.Resize((224, 224))]
    if flip:
        steps.append(transforms.RandomHorizontalFlip())
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def opened(file: Path, transform: transforms.Compose) -> torch.Tensor:
    """One file as the published loop reads it."""
    with Image.open(file) as image:
        tensor: torch.Tensor = transform(image.convert("RGB"))
    return tensor
