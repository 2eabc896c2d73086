"""Networks as a CPU computes them faster: batch norms within the convolutions before them, and image by image.

A batch norm that no longer learns multiplies each channel and adds to it, which the convolution's weights can do. Image
by image, the numbers stay in the caches, and threads that each have an image do not wait for each other layer by layer.
"""

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.split_module import split_module
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dogbreed.core.threads import in_threads


def fold(network: nn.Module) -> nn.Module:
    """Return a network that gives the same answers to within 1e-5, from fewer operations.

    Args:
        network: In evaluation mode; it is left as it is, and what is not replaced is shared. One without batch norms
            behind convolutions, or that torch.fx cannot trace, is returned itself.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in network.modules()):
        return network
    try:
        traced = fx.symbolic_trace(network)
    except Exception:  # its forward looks at values or sizes: whatever it raises, the network itself still works
        return network
    modules = dict(traced.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    targets = [str(node.target) for node in calls]
    folded = False
    with torch.inference_mode(False), torch.no_grad():
        for node in calls:
            convolution, norm = modules[str(node.target)], only_follower(node, modules)
            # Of exactly these types: timm has batch norms with an activation, which are subclasses.
            if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or norm.running_mean is None:
                continue
            if targets.count(str(node.target)) > 1:
                continue
            traced.set_submodule(str(node.target), _fused(convolution, norm))
            take_over(traced, node)
            folded = True
    if not folded:
        return network
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    return image_by_image(traced).eval()


def _fused(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return a convolution that does what both do."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    fused = copy.copy(convolution)  # a deep copy would copy the weights first
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    weight.data = weight.contiguous(memory_format=torch.channels_last)
    fused._parameters = {"weight": weight, "bias": bias}
    return fused


def counterpart(network: nn.Module, name: str) -> nn.Module | None:
    """Return what `accelerate` has made of a linear layer of the original network; None where it is not there."""
    at_once = isinstance(network, ImageByImage)
    part: Any = network.head if at_once else network
    return dict(part.named_modules()).get(name.replace(".", "_") if at_once else name)


class ImageByImage(nn.Module):
    """Convolutions image by image, whose numbers stay in the caches; linear layers for all at once, since what they
    cost is the reading of their weights. Between the two, a few images may share that of large kernels.

    Args:
        body: From images to what the first layer with large weights takes.
        head: From the first linear layer.
        between: From body to head, for a few images at once.
        group: How many they are.
    """

    def __init__(self, body: nn.Module, head: nn.Module, between: nn.Module | None = None, group: int = 1) -> None:
        super().__init__()
        self.body, self.head, self.between, self.group = body, head, between, group

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, classes]."""
        numbers = torch.cat(in_threads(self.body, images.split(1)))
        if self.between is not None:
            numbers = torch.cat(in_threads(self.between, numbers.split(self.group)))
        outputs: Tensor = self.head(numbers)
        return outputs


def image_by_image(
    traced: fx.GraphModule,
    linear_layers: tuple[type[nn.Module], ...] = (nn.Linear,),
    is_large: Callable[[nn.Module], bool] | None = None,
    group: int = 1,
) -> nn.Module:
    """Return the network cut before its first linear layer, where one tensor passes there.

    Args:
        traced: The network.
        linear_layers: What a linear layer is.
        is_large: Whether a layer's weights are large, so that a group of images shares a reading of them.
        group: How many images do.
    """
    linear = _first(traced, lambda module: isinstance(module, linear_layers))
    large = None if is_large is None else _first(traced, is_large)
    starts = [start for start in (large, linear) if start is not None]
    parts = _in_sequence(traced, sorted(starts))
    if parts is None and large is not None:
        return image_by_image(traced, linear_layers)
    if parts is None:
        return traced
    head = parts.pop() if linear is not None else nn.Identity()
    return ImageByImage(parts[0], head, parts[1] if large is not None else None, group)


def _first(traced: fx.GraphModule, holds: Callable[[nn.Module], bool]) -> int | None:
    """Return the place in the graph of the first module of which that holds."""
    for index, node in enumerate(traced.graph.nodes):
        if node.op == "call_module" and holds(traced.get_submodule(str(node.target))):
            return index
    return None


def _in_sequence(traced: fx.GraphModule, starts: list[int]) -> list[nn.Module] | None:
    """Return the parts that begin at these places of the graph; None where more than a tensor passes between two."""
    if not starts:
        return [traced]
    part = {node: sum(index >= start for start in starts) for index, node in enumerate(traced.graph.nodes)}
    whole = split_module(traced, traced, part.__getitem__)
    calls = [node for node in whole.graph.nodes if node.op == "call_module"]
    chained = all(node.args == (before,) for before, node in pairwise(calls))
    if len(calls) != len(starts) + 1 or not chained:
        return None
    return [whole.get_submodule(str(node.target)) for node in calls]


def only_follower(node: fx.Node, modules: dict[str, Any]) -> nn.Module | None:
    """Return the only module that takes this node's output."""
    users = list(node.users)
    if len(users) != 1 or users[0].op != "call_module":
        return None
    module: nn.Module | None = modules.get(str(users[0].target))
    return module


def take_over(traced: fx.GraphModule, node: fx.Node) -> None:
    """Let a node stand for the one behind it."""
    (behind,) = node.users
    behind.replace_all_uses_with(node)
    traced.graph.erase_node(behind)
