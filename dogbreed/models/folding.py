"""Networks as a CPU computes them faster: batch norms within the convolutions before them, and image by image.

A batch norm that no longer learns multiplies each channel and adds to it, which the convolution's weights can do. Image
by image, the numbers stay in the caches, and threads that each have an image do not wait for each other layer by layer.
"""

import copy
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
    cost is the reading of their weights.

    Args:
        body: From images to what the first linear layer takes.
        head: The rest.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def forward(self, images: Tensor) -> Tensor:
        """Map [N, C, H, W] to [N, classes]."""
        outputs: Tensor = self.head(torch.cat(in_threads(self.body, images.split(1))))
        return outputs


def image_by_image(traced: fx.GraphModule, linear_layers: tuple[type[nn.Module], ...] = (nn.Linear,)) -> nn.Module:
    """Return the network cut before its first linear layer, where one tensor passes there."""
    nodes = list(traced.graph.nodes)
    linear = [
        index
        for index, node in enumerate(nodes)
        if node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), linear_layers)
    ]
    if not linear:
        return ImageByImage(traced, nn.Identity())
    behind = set(nodes[linear[0] :])
    parts = split_module(traced, traced, lambda node: int(node in behind))
    calls = [node for node in parts.graph.nodes if node.op == "call_module"]
    if len(calls) != 2 or calls[1].args != (calls[0],):
        return traced
    return ImageByImage(parts.get_submodule(str(calls[0].target)), parts.get_submodule(str(calls[1].target)))


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
