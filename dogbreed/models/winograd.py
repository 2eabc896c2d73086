"""3x3 convolutions with a quarter of the multiplications: VGG on a CPU, for features and for answers.

Winograd's F(4x4, 3x3): a tile of 6x6 inputs and the kernel are brought to 36 points, multiplied there for all channels
as 36 matrix products, and brought back to 4x4 outputs (Lavin and Gray, 2015, "Fast Algorithms for Convolutional Neural
Networks"). Points are 0, ±3/4, ±3/2 and infinity, which lose the least of those tried (Barabasz et al., 2020, "Error
Analysis and Improving the Accuracy of Winograd Convolution"): over VGG16's thirteen layers the relative error is 1e-6
in float32 and 2 % in bfloat16, where direct convolutions have 0.6 %.

Bias, ReLU and 2x2 pooling that follow are done tile by tile, while the numbers are at hand.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from dogbreed.core.threads import in_threads
from dogbreed.models import winograd_tiles as tiles
from dogbreed.models.folding import image_by_image, only_follower, take_over
from dogbreed.models.winograd_tiles import REACH, TILE, Rows

PART_BYTES = 3_200_000  # of points at a time, to stay in the caches
SHARE = 1.6  # of the bytes of a layer's kernels that the points of a part have at least
GROUP = 4  # images that share a reading of large kernels: at 14x14 pixels they take 0.6 of the time
LARGE = 2**17  # input channels times output channels from which kernels are large: 19 MB at their points
ROWS = 256  # of the weights of a large linear layer at a time
LARGE_LINEAR = 2**23  # numbers
LEAST_CHANNELS = 16
LEAST_SHARE = 0.95  # of the convolution weights: all VGGs. A ResNet gains nothing, most of its weights meet 7x7 pixels


def name() -> str:
    """Name these kernels; whatever changes their numbers changes it."""
    return f"F(4x4, 3x3) at 3/4, 3/2, groups of {GROUP}, rows of {ROWS}, {tiles.way()}"


class WinogradConv2d(nn.Module):
    """A 3x3 convolution of stride 1 and padding 1, with what follows it.

    Args:
        convolution: Gives the weights.
        dtype: What is multiplied in; inputs are converted to it.
        relu: Whether a ReLU follows.
        pool: Whether a maximum over 2x2 follows.
    """

    kernel: Tensor
    bias: Tensor
    to_points: Tensor
    from_points: Tensor

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, *, relu: bool = False, pool: bool = False) -> None:
        super().__init__()
        self.relu, self.pool = relu, pool
        out_channels, in_channels = convolution.weight.shape[:2]
        flat = convolution.weight.detach().float().permute(2, 3, 1, 0).reshape(9, -1)
        kernel = torch.mm(tiles.KERNEL.float(), flat).view(REACH**2, in_channels, out_channels)
        bias = torch.zeros(out_channels) if convolution.bias is None else convolution.bias.detach()
        for name, value in (
            ("kernel", kernel),
            ("bias", bias),
            ("to_points", tiles.INPUT),
            ("from_points", tiles.OUTPUT),
        ):
            self.register_buffer(name, value.to(dtype), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, K, H, W], or half of both sides with a pool; channels last in memory."""
        count, _, height, width = images.shape
        down, across = -(-height // TILE), -(-width // TILE)
        images = images.to(self.kernel.dtype).permute(0, 2, 3, 1)
        side = TILE // 2 if self.pool else TILE  # of a tile in the output
        outputs = images.new_empty(count, side * down, side * across, self.kernel.shape[2])
        parts = [
            (images[image], outputs[image], Rows(rows.start, len(rows), across))
            for image, rows in self._parts(count, down, across)
        ]
        if len(parts) < torch.get_num_threads():  # then torch shares out each product
            for part in parts:
                self._convolve(part)
        else:
            in_threads(self._convolve, parts)
        sides = (height // 2, width // 2) if self.pool else (height, width)
        return outputs[:, : sides[0], : sides[1]].permute(0, 3, 1, 2)

    def _parts(self, count: int, down: int, across: int) -> list[tuple[slice, range]]:
        """Return images and rows of tiles to do at once: few, to stay in the caches, but enough to pay for reading the
        kernels."""
        _, channels, kernels = self.kernel.shape
        size = PART_BYTES // (REACH**2 * (channels + kernels) * self.kernel.element_size())
        size = max(size, int(SHARE * channels * kernels / (channels + kernels)))
        images = max(1, min(count, size // (down * across)))
        high = -(-down // -(-down // max(1, size // across)))
        return [
            (slice(image, image + images), range(first, min(first + high, down)))
            for image in range(0, count, images)
            for first in range(0, down, high)
        ]

    def _convolve(self, part: tuple[Tensor, Tensor, Rows]) -> None:
        images, outputs, rows = part
        points = tiles.to_points(images, rows, self.to_points)
        products = torch.bmm(points, self.kernel)
        tiles.from_points(products, outputs, rows, self.from_points, tiles.Finish(self.bias, self.relu, self.pool))


class PackedLinear(nn.Module):
    """A linear layer in bfloat16 whose weights lie as oneDNN wants them, instead of being reordered at each call."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().bfloat16()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        self.bias = None if linear.bias is None else linear.bias.detach().bfloat16()

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, in] to [N, out]."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs.bfloat16().contiguous(), self.weight, self.bias, "none", [], ""
        )
        return outputs


class LinearByRows(nn.Module):
    """A large linear layer, some rows of its weights at a time: from four images on it takes half the time."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, inputs: Tensor) -> Tensor:
        """Map [N, in] to [N, out]."""
        if len(inputs) < 4:
            alone: Tensor = self.linear(inputs)
            return alone
        weights = self.linear.weight.split(ROWS)
        outputs = torch.cat(in_threads(partial(nn.functional.linear, inputs), weights), 1)
        return outputs if self.linear.bias is None else outputs.add_(self.linear.bias)


def pays(network: nn.Module) -> bool:
    """Return whether most of the network's convolution weights belong to 3x3 kernels of stride 1."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    total = sum(module.weight.numel() for module in convolutions)
    return sum(module.weight.numel() for module in convolutions if _fits(module)) > LEAST_SHARE * total


def accelerate(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a network that gives the same answers faster on a CPU, if it `pays`.

    Args:
        network: In evaluation mode; it is left as it is, and what is not replaced is shared.
        dtype: float32 or bfloat16.

    Raises:
        Exception: torch.fx cannot trace it.
    """
    traced = fx.symbolic_trace(network)
    modules = dict(traced.named_modules())
    with torch.inference_mode(False), torch.no_grad():
        for node in list(traced.graph.nodes):
            module = modules.get(node.target) if node.op == "call_module" else None
            if isinstance(module, nn.Conv2d):
                _replace_convolution(traced, node, module, modules, dtype)
            elif isinstance(module, nn.Linear) and dtype == torch.bfloat16:
                traced.set_submodule(node.target, _linear(module))
            elif isinstance(module, nn.Linear) and module.weight.numel() >= LARGE_LINEAR:
                traced.set_submodule(node.target, LinearByRows(module))
            elif module is not None and dtype == torch.bfloat16 and list(module.parameters(recurse=False)):
                traced.set_submodule(node.target, copy.deepcopy(module).to(dtype))
    traced.graph.lint()
    traced.recompile()
    return image_by_image(traced, (nn.Linear, PackedLinear, LinearByRows), _is_large, GROUP).eval()


@contextmanager
def substituted(network: nn.Module) -> Iterator[None]:
    """Have a network that `pays` compute so, in float32 and without gradients, while nobody else uses it."""
    places = [
        (parent, name, module)
        for parent in (network.modules() if pays(network) else ())
        for name, module in parent.named_children()
        if isinstance(module, nn.Conv2d) and _fits(module) and module.weight.dtype == torch.float32
    ]
    try:
        for parent, name, module in places:
            setattr(parent, name, WinogradConv2d(module, torch.float32))
        yield
    finally:
        for parent, name, module in places:
            setattr(parent, name, module)


def _replace_convolution(
    traced: fx.GraphModule, node: fx.Node, convolution: nn.Conv2d, modules: dict[str, Any], dtype: torch.dtype
) -> None:
    """Put one module in the place of a convolution and of the batch norm, ReLU and pool behind it."""
    follower = only_follower(node, modules)
    if isinstance(follower, nn.BatchNorm2d):
        convolution = fuse_conv_bn_eval(convolution, follower)
        take_over(traced, node)
        follower = only_follower(node, modules)
    if not _fits(convolution):
        # Channels last, as everything around it.
        plain = copy.deepcopy(convolution).to(dtype).to(memory_format=torch.channels_last)
        traced.set_submodule(str(node.target), _Direct(plain))
        return
    relu = isinstance(follower, nn.ReLU)
    if relu:
        take_over(traced, node)
        follower = only_follower(node, modules)
    pool = isinstance(follower, nn.MaxPool2d) and _halves(follower)
    if pool:
        take_over(traced, node)
    traced.set_submodule(str(node.target), WinogradConv2d(convolution, dtype, relu=relu, pool=pool))


class _Direct(nn.Module):
    """A convolution as it was, in its own precision."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, images: Tensor) -> Tensor:
        images = images.to(self.convolution.weight.dtype).contiguous(memory_format=torch.channels_last)
        outputs: Tensor = self.convolution(images)
        return outputs


def _fits(module: nn.Conv2d) -> bool:
    return (
        (module.kernel_size, module.stride, module.padding, module.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and module.groups == 1
        and module.padding_mode == "zeros"
        and min(module.in_channels, module.out_channels) >= LEAST_CHANNELS
    )


def _is_large(module: nn.Module) -> bool:
    return isinstance(module, WinogradConv2d) and module.kernel[0].numel() >= LARGE


def _halves(pool: nn.MaxPool2d) -> bool:
    sizes = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    pairs = [size if isinstance(size, tuple) else (size, size) for size in sizes]
    return pairs == [(2, 2), (2, 2), (0, 0), (1, 1)] and not pool.ceil_mode and not pool.return_indices


def _linear(layer: nn.Linear) -> nn.Module:
    """Return the layer in bfloat16, packed for oneDNN where this torch and this processor can do so."""
    try:
        return PackedLinear(layer)
    except (AttributeError, RuntimeError):  # no such operator; no avx512bw, avx512vl and avx512dq
        return copy.deepcopy(layer).to(torch.bfloat16)
