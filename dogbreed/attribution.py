"""Where a network looked: Grad-CAM on its last feature map.

Selvaraju et al., 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", equations
1 and 2. The feature map is cut off from what made it, so that only the few layers behind it are differentiated.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dogbreed import backbones

# What attends over patches has no feature map whose mean gradient means anything.
_WITHOUT_MAP = ("vit", "swin")


def heat_maps(network: nn.Module, backbone: str, inputs: Tensor, classes: Tensor) -> Tensor | None:
    """How much each part of an image spoke for a class.

    Args:
        network: A torchvision network; left in the modes it is in.
        backbone: Its name.
        inputs: [N, 3, S, S].
        classes: [N], which class is asked about for each image.

    Returns:
        [N, h, w] on the CPU from 0 to 1, the largest value of each map 1 (0 where nothing spoke for it); None for a
        network without a spatial feature map before its head.
    """
    if backbone.startswith(_WITHOUT_MAP):
        return None
    device = next(network.parameters()).device
    module = network.get_submodule(backbones.last_stage(network, backbone)[-1])
    kept: list[Tensor] = []

    def cut(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        kept.append(leaf)
        return leaf.clone()  # what follows may change it in place, which a leaf does not allow

    hook = module.register_forward_hook(cut)
    try:
        with _evaluating(network), torch.inference_mode(False), torch.enable_grad():
            # Clones, since a tensor made in inference mode cannot take part in differentiation.
            logits = network(inputs.clone().to(device).contiguous(memory_format=torch.channels_last))
            if not kept or kept[0].ndim != 4 or min(kept[0].shape[-2:]) < 2:
                return None
            chosen = logits.gather(1, classes.clone().to(device)[:, None]).sum()
            (slope,) = torch.autograd.grad(chosen, kept)
    finally:
        hook.remove()
    weights = slope.mean((2, 3), keepdim=True)
    maps = (weights * kept[0].detach()).sum(1).relu().float().cpu()
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
