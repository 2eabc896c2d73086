"""Counts what an image costs in each network, for `mode=plan`, which reads the table without torch.

    python -m benchmarks.count_networks       writes launch/aws/networks.csv

Nothing is computed: the networks run on torch's meta device, at their own input size, with 1,000 classes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from dogbreed.core.files import write_csv
from dogbreed.models import backbones, lite

TABLE = Path(__file__).parents[1] / "launch" / "aws" / "networks.csv"
CLASSES = 1000


def main() -> None:
    """Write the table."""
    names = sorted([*lite.NETWORKS, *torchvision.models.list_models(module=torchvision.models)])
    rows = [count(name) for name in names]
    write_csv(TABLE, list(rows[0]), [list(row.values()) for row in rows])


def count(name: str) -> dict[str, Any]:
    """Return a network's row, per image: multiply-adds and outputs in millions, memory in megabytes.

    `macs` is the whole network forward, `outputs` what all its layers write. For each choice of model.trainable,
    `_frozen` is what the cache spares, `_features` what it keeps in float32, `_step` a step of training, forward and
    backward, without a cache, and `_mb` what such a step keeps for its backward pass in float32.
    """
    network = backbones.skeleton(name, CLASSES).to("meta")
    size = getattr(network, "image_size", backbones.preprocessing_of(name).size)  # vit_h_14 is built for 224 alone
    row: dict[str, Any] = {"network": name, "pixels": size}
    for trainable in backbones.TRAINABLE:
        backbones.freeze(network, name, trainable)
        backbones.set_mode(network, training=True)
        step = _step(network, size)
        row |= {key: step.pop(key) for key in ("parameters", "macs", "outputs")}
        row |= {f"{trainable}_{key}": value for key, value in step.items()}
    return row


def _conv_backward(grad: Any, images: Any, kernels: Any, *rest: Any, **_: Any) -> int:
    """Count a convolution's backward pass: as much as forward for each gradient; torch's formula forgets groups."""
    transposed, mask = rest[4], rest[7]
    return int(sum(mask[:2]) * conv_flop_count(images, kernels, grad, transposed=transposed))


def _step(network: nn.Module, size: int) -> dict[str, Any]:
    kept: dict[int, Tensor] = {}
    written: list[int] = []
    images = torch.empty(2, 3, size, size, device="meta")  # two: batch norm refuses one value per channel
    formulas = {torch.ops.aten.convolution_backward: _conv_backward}

    def pack(value: Tensor) -> Tensor:
        kept[_storage(value)] = value
        return value

    counting = FlopCounterMode(display=False, custom_mapping=formulas)
    with counting as counter, _watched(network, counter, written) as frozen:
        with saved_tensors_hooks(pack, lambda value: value):
            logits = network(images)
        forward = counter.get_total_flops()
        logits.sum().backward()
    own = {_storage(value) for value in (*network.parameters(), *network.buffers())}
    saved = sum(value.untyped_storage().nbytes() for key, value in kept.items() if key not in own)
    million = 2 * 2 * 1e6  # two operations in a multiply-add, two images
    return {
        "parameters": round(sum(value.numel() for value in network.parameters()) / 1e6, 3),
        "macs": round(forward / million, 2),
        "outputs": round(sum(written) / 2e6, 2),
        "frozen": round(frozen["macs"] / million, 2),
        "step": round(counter.get_total_flops() / million, 2),
        "features": round(4 * frozen["values"] / 2e6, 4),
        "mb": round(saved / 2e6, 2),
    }


def _storage(value: Tensor) -> int:
    """Return what tells apart the memory of tensors, which has no address on the meta device."""
    return int(value.untyped_storage()._cdata)


@contextmanager
def _watched(network: nn.Module, counter: FlopCounterMode, written: list[int]) -> Iterator[Mapping[str, int]]:
    """Note what each layer writes, and the count before the first layer that trains or is random."""
    frozen: dict[str, int] = {}

    def before(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        drops = (isinstance(layer, nn.Dropout) and layer.p > 0) or backbones.is_stochastic_depth(layer)
        trains = any(parameter.requires_grad for parameter in layer.parameters())
        if "macs" not in frozen and (trains or (drops and layer.training)):
            frozen.update(macs=counter.get_total_flops(), values=inputs[0].numel())

    def after(_: nn.Module, __: Any, output: Any) -> None:
        written.append(output.numel() if isinstance(output, Tensor) else output[0].numel())

    whole = [each for each in network.modules() if not list(each.children()) or isinstance(each, nn.MultiheadAttention)]
    handles = [layer.register_forward_pre_hook(before) for layer in whole]
    handles += [layer.register_forward_hook(after) for layer in whole]
    try:
        yield frozen
    finally:
        for handle in handles:
            handle.remove()


if __name__ == "__main__":
    main()
