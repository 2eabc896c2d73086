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

MATRIX = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def machine(bench: Bench) -> None:
    """Measure the rates of matrix products and of memory, to hold the others against."""
    for precision, dtype in MATRIX.items():
        # Without units for bfloat16 a product of this size would take a minute.
        slow = precision == "bfloat16" and not has_bfloat16(bench.device)
        size = 8192 if bench.device.type == "cuda" else 256 if slow else 2048
        matrix = torch.randn(size, size, device=bench.device, dtype=dtype)
        seconds = bench.seconds(partial(torch.mm, matrix, matrix), 9)
        bench.note(f"matmul_gflops_{precision}", 2 * size**3 / seconds / 1e9)
    one, other, result = torch.rand(3, 64 << 20, device=bench.device)
    seconds = bench.seconds(partial(torch.add, one, other, out=result), 9)
    bench.note("memory_gigabytes_per_second", 3 * one.nbytes / seconds / 1e9)


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
    count = 32
    inputs = torch.rand(count, 3, 224, 224, device=bench.device)
    backbones.set_mode(bench.network, training=False)
    parts = cut(bench.network, 224)
    bfloat16 = 4 if not has_bfloat16(bench.device) else count

    @torch.no_grad()
    def plainly() -> None:
        plain(inputs)

    taken = bench.side_by_side(
        {
            "plain": plainly,
            "float32": _extract(bench, parts, inputs, "float32"),
            "bfloat16": _extract(bench, parts, inputs[:bfloat16], "bfloat16"),
        }
    )
    bench.note("plain_images_per_second", count / taken["plain"])
    bench.note("extraction_float32_per_second", count / taken["float32"])
    bench.note("extraction_bfloat16_per_second", bfloat16 / taken["bfloat16"])


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
