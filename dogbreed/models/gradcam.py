"""Where a network looked: Grad-CAM on its last feature map.

Selvaraju et al., 2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", equations
1 and 2. The feature map is cut off from what made it, so that only the few layers behind it are differentiated.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dogbreed.models import backbones, own_networks, timm_networks, winograd

# What attends over patches has no feature map whose mean gradient means anything.
_WITHOUT_MAP = ("vit", "swin")


def heat_maps(network: nn.Module, backbone: str, inputs: Tensor, classes: Tensor) -> Tensor | None:
    """Return how much each part of an image argued for a class.

    Args:
        network: A torchvision network; left in the modes it is in.
        backbone: Its name.
        inputs: [N, 3, S, S].
        classes: [N], which class is asked about for each image.

    Returns:
        [N, h, w] on the CPU from 0 to 1, the largest value of each map 1 (0 where nothing argued for it); None for a
        network without a spatial feature map before its head.
    """
    if backbone.startswith(_WITHOUT_MAP) or own_networks.is_own(backbone):
        return None
    on_cpu = next(network.parameters()).device.type == "cpu"
    with winograd.substituted(network) if on_cpu else nullcontext(), _mapped(network, backbone) as kept:
        logits = _logits(network, inputs)
        if not _has_map(kept, network):
            return None
        chosen = logits.gather(1, classes.clone().to(logits.device)[:, None]).sum()
        (slope,) = torch.autograd.grad(chosen, kept)
    return _maps(kept[0], slope)


def explain_top_k(network: nn.Module, backbone: str, inputs: Tensor, top_k: int) -> tuple[Tensor, Tensor | None]:
    """Return the answer for one image and, in the same pass, where the network looked for each likely class.

    Args:
        network: A torchvision network; left in the modes it is in.
        backbone: Its name.
        inputs: [1, 3, S, S].
        top_k: How many classes are asked about; no more than there are.

    Returns:
        Logits [1, classes] in float32 on the CPU, and [top_k, h, w] as from `heat_maps`, the likeliest class first.
    """
    with _mapped(network, backbone) as kept:
        logits = _logits(network, inputs)
        answer = logits.detach().float().cpu()
        if not _has_map(kept, network):
            return answer, None
        classes = answer[0].topk(min(top_k, answer.shape[1])).indices.tolist()
        slopes = [torch.autograd.grad(logits[0, index], kept, retain_graph=True)[0] for index in classes]
    return answer, _maps(kept[0], torch.cat(slopes))


@contextmanager
def _mapped(network: nn.Module, backbone: str) -> Iterator[list[Tensor]]:
    """Let a pass leave its last feature map in the list, cut off from what made it; none without such a map."""
    kept: list[Tensor] = []

    def cut(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # from here on
        leaf = output.detach().requires_grad_()
        kept.append(leaf)
        return leaf.clone()  # what follows may change it in place, which a leaf does not allow

    with _evaluating(network), torch.inference_mode(False), torch.no_grad():
        if backbone.startswith(_WITHOUT_MAP) or own_networks.is_own(backbone):
            yield kept
            return
        layer = timm_networks.map_layer(network)
        name = backbones.last_stage(network, backbone)[-1] if layer is None else layer[0]
        hook = network.get_submodule(name).register_forward_hook(cut)
        try:
            yield kept
        finally:
            hook.remove()


def _logits(network: nn.Module, inputs: Tensor) -> Tensor:
    device = next(network.parameters()).device
    # A clone, since a tensor made in inference mode cannot take part in differentiation.
    logits: Tensor = network(inputs.clone().to(device).contiguous(memory_format=torch.channels_last))
    return logits


def _has_map(kept: list[Tensor], network: nn.Module) -> bool:
    if not kept or kept[0].ndim != 4 or min(kept[0].shape[-2:]) < 2:
        return False
    # timm says how many channels there are: its networks that attend pass tokens on, or channels last.
    layer = timm_networks.map_layer(network)
    return layer is None or kept[0].shape[1] == layer[1]


def _maps(features: Tensor, slopes: Tensor) -> Tensor:
    """Compute equations 1 and 2, each map scaled to its largest value."""
    weights = slopes.mean((2, 3), keepdim=True)
    maps = (weights * features.detach()).sum(1).relu().float().cpu()
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
