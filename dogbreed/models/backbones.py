"""A network of torchvision, timm or one's own with its head replaced, its weights loaded and its parameters frozen.

Every network answers the same few questions here: which module is its head, which is its last stage, what
preprocessing its weights expect, and which of its values may change in training.
"""

import difflib
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.ops import StochasticDepth

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing
from dogbreed.models import lite, own_networks, timm_networks
from dogbreed.models.weights import load_backbone, published_file, read_state

TRAINABLE = ("head", "block", "all")

# The last stage by family, where it is not what follows the last pooling layer of `features`.
_LAST_STAGE: dict[str, tuple[str, ...]] = {
    "resnet": ("layer4",),
    "resnext": ("layer4",),
    "wide_resnet": ("layer4",),
    "regnet": ("trunk_output.block4",),
    "densenet": ("features.denseblock4", "features.norm5"),
    "shufflenet": ("stage4", "conv5"),
    "inception": ("Mixed_7a", "Mixed_7b", "Mixed_7c"),
    "googlenet": ("inception5a", "inception5b"),
    "mnasnet": ("layers.13", "layers.14", "layers.15"),
    "maxvit": ("blocks.3",),
}
_TWO_LAST = ("mobilenet", "efficientnet")  # the last stage and the 1x1 convolution that widens it
_ONE_LAST = ("convnext", "swin")


def check_name(backbone: str) -> None:
    """Refuse a network that neither torchvision nor timm (`timm/NAME`) has; one's own are built to be known.

    Raises:
        DogbreedError: Names the nearest known network.
    """
    if timm_networks.is_timm(str(backbone)):
        timm_networks.check_name(backbone)
        return
    if own_networks.is_own(str(backbone)):
        own_networks.check_name(backbone)
        return
    known = sorted([*lite.NETWORKS, *_torchvision()])
    if backbone not in known:
        near = difflib.get_close_matches(str(backbone), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"it has {len(known)}, such as resnet50 and vgg16."
        raise DogbreedError(f"model.backbone={backbone} is no classification network of torchvision; {hint}")


def preprocessing_of(
    backbone: str, *, weights: str | None = None, resize: str = "squash", size: int | None = None
) -> Preprocessing:
    """Return what the published weights of a network expect, read from the weights' own record.

    A network of one's own has no such record: it gets 224 pixels and ImageNet's mean and standard deviation.

    Args:
        backbone: Name of a network.
        weights: As in `create`; only a member of torchvision's enum makes a difference.
        resize: `squash` or `crop`.
        size: Side of the square input in pixels; None takes the record's.
    """
    if own_networks.is_own(backbone):
        expected: dict[str, Any] = {"size": 224, "resize_size": 256}
    elif timm_networks.is_timm(backbone):
        check_name(backbone)
        expected = timm_networks.input_of(backbone)
    elif backbone in lite.NETWORKS:
        expected = dict(lite.INPUT)
    else:
        check_name(backbone)
        record: Any = (_member(backbone, weights) or get_model_weights(backbone).DEFAULT).transforms()
        expected = {
            "size": record.crop_size[0],
            "resize_size": record.resize_size[0],
            "mean": tuple(record.mean),
            "std": tuple(record.std),
            "interpolation": record.interpolation.value,
        }
    if size is not None:
        expected |= {"size": size, "resize_size": round(expected["resize_size"] * size / expected["size"])}
    return Preprocessing(**expected, resize=resize)


def _member(backbone: str, weights: str | None) -> Any | None:
    """Return torchvision's published weights of that name; None where there are none."""
    return get_model_weights(backbone).__members__.get(str(weights)) if backbone in _torchvision() else None


def has_published_head(backbone: str, weights: str | None) -> bool:
    """Return whether the weights of that name come with a head of ImageNet's 1,000 classes."""
    if timm_networks.is_timm(backbone):
        return weights == "imagenet" and timm_networks.classes_of(backbone) == 1000
    published = backbone in lite.NETWORKS or backbone in _torchvision()
    return published and (weights == "imagenet" or _member(backbone, weights) is not None)


def _torchvision() -> list[str]:
    return list_models(module=torchvision.models)


def create(
    backbone: str, num_classes: int, *, weights: str = "imagenet", seed: int = 0, size: int | None = None
) -> nn.Module:
    """Return a network with a head of `num_classes` outputs.

    Args:
        backbone: `efficientnet_lite0` or `_lite1`, a classification network of torchvision, `timm/NAME`, or the import
            path of a callable without arguments that returns a network (`package.module:name`).
        num_classes: Outputs of the new head.
        weights: `imagenet` (what is published for the network, downloaded into a cache folder when missing), a member
            of torchvision's enum of its weights (`IMAGENET1K_V1`), `none`, or the path of a state_dict (.pth, .pt or
            .safetensors). A head of another size in a file is dropped.
        seed: Seed of every random initial value; the global random state is left as it was.
        size: Side of the input in pixels, for networks of timm that are built for one size.

    Raises:
        DogbreedError: Unknown network, missing or unreadable file, a file that does not fit, no network connection.
    """
    check_name(backbone)
    own_networks.allow(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pretrained = timm_networks.is_timm(backbone) and weights == "imagenet"
        if weights == "none" or pretrained:
            network = _build(backbone, num_classes, size, pretrained)
            _reset_head(network)
            return network
        state, file = _weights(backbone, weights)
        network = skeleton(backbone, num_classes, size)
        if next(network.parameters()).is_meta:
            network.to_empty(device="cpu")
        _reset_head(network)
        load_backbone(network, backbone, head_name(network), state, file)
        return network


def _weights(backbone: str, weights: str) -> tuple[dict[str, Tensor], Path]:
    """Return a state_dict and the file it is from."""
    if weights == "imagenet" and own_networks.is_own(backbone):
        raise DogbreedError(
            f"Nothing is published for {backbone}: give model.weights=none for the values it is built with, or a path."
        )
    if weights == "imagenet" and backbone in lite.NETWORKS:
        return lite.read_weights(backbone)
    member = _member(backbone, "DEFAULT" if weights == "imagenet" else weights)
    if member is None and weights.isidentifier() and not Path(weights).exists() and backbone in _torchvision():
        names = ", ".join(member.name for member in get_model_weights(backbone))
        raise DogbreedError(
            f"model.weights={weights} is neither a file nor published for {backbone}; known are {names}."
        )
    file = Path(weights) if member is None else published_file(backbone, member)
    return read_state(file), file


def skeleton(backbone: str, num_classes: int, size: int | None = None) -> nn.Module:
    """Return the network for a state that is loaded next: on the meta device, without values, where it can be."""
    check_name(backbone)
    try:
        # timm's hold tables that no state_dict brings back; one's own may.
        if not timm_networks.is_timm(backbone) and not own_networks.is_own(backbone):
            with torch.device("meta"):
                return _build(backbone, num_classes)
    except (NotImplementedError, RuntimeError):  # RegNet and Swin compute their widths with tensors
        pass
    with torch.random.fork_rng(devices=[]):
        return _build(backbone, num_classes, size)


def _build(backbone: str, num_classes: int, size: int | None = None, pretrained: bool = False) -> nn.Module:
    if timm_networks.is_timm(backbone):
        return timm_networks.build(backbone, num_classes, size, pretrained=pretrained)
    if own_networks.is_own(backbone):
        return own_networks.with_new_head(own_networks.build(backbone), None, num_classes)
    if backbone in lite.NETWORKS:
        return lite.build(backbone, num_classes)
    # Both inception networks were published for inputs scaled by their own constants; the flag is part of the network.
    extra: dict[str, Any] = {}
    if backbone in ("inception_v3", "googlenet"):
        extra = {"transform_input": True, "aux_logits": False, "init_weights": True}
    return get_model(backbone, weights=None, num_classes=num_classes, **extra)


def head_name(network: nn.Module) -> str:
    """Return the dotted name of the last layer, whose outputs are the classes: linear, or SqueezeNet's convolution."""
    name = getattr(network, own_networks.HEAD_ATTRIBUTE, None) or timm_networks.head_name(network)
    if name is not None:
        return str(name)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        raise DogbreedError(f"{type(network).__name__} has no linear layer or convolution that could be its head.")
    return layers[-1]


def _reset_head(network: nn.Module) -> None:
    head: Any = network.get_submodule(head_name(network))
    head.reset_parameters()


def fresh_head(head: nn.Module, seed: int) -> Any:
    """Return a new last layer of the same shape, on the CPU; a seed gives it the values that a run's begins with."""
    linear = isinstance(head, nn.Linear)
    names = ("in_features", "out_features") if linear else ("in_channels", "out_channels", "kernel_size")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(seed)
        return type(head)(**{name: getattr(head, name) for name in names}, bias=head.bias is not None)


def last_stage(network: nn.Module, backbone: str) -> list[str]:
    """Return the dotted names of the modules of the last stage before the head (`trainable=block`)."""
    if timm_networks.is_timm(backbone):
        return timm_networks.last_stage(network, head_name(network))
    if own_networks.is_own(backbone):
        raise DogbreedError("model.trainable=block needs a network of torchvision or timm; yours takes head or all.")
    for family, modules in _LAST_STAGE.items():
        if backbone.startswith(family):
            return list(modules)
    if backbone.startswith("vit"):
        layers = network.get_submodule("encoder.layers")
        return [f"encoder.layers.{list(dict(layers.named_children()))[-1]}", "encoder.ln"]
    features = dict(network.get_submodule("features").named_children())
    names = [f"features.{name}" for name in features]
    if backbone.startswith(_TWO_LAST):
        return names[-2:]
    if backbone.startswith(_ONE_LAST):
        return names[-1:] + (["norm"] if hasattr(network, "norm") else [])
    start = 0
    for index, child in enumerate(features.values()):
        if isinstance(child, nn.MaxPool2d) and index + 1 < len(names):
            start = index + 1
    return names[start:]


def freeze(network: nn.Module, backbone: str, trainable: str, freeze_norm: bool = False) -> None:
    """Leave only what `trainable` names with requires_grad: `head`, `block` (head and last stage) or `all`.

    With `freeze_norm`, batch norm is left out of that, and so keeps its statistics too (`set_mode`).

    Raises:
        DogbreedError: `trainable` is none of the three.
    """
    if trainable not in TRAINABLE:
        raise DogbreedError(f"model.trainable={trainable} is unknown; it is one of {', '.join(TRAINABLE)}.")
    network.requires_grad_(trainable == "all")
    for name in [head_name(network), *(last_stage(network, backbone) if trainable == "block" else [])]:
        network.get_submodule(name).requires_grad_(True)
    for module in network.modules():
        if freeze_norm and isinstance(module, _NormBase):
            module.requires_grad_(False)


def to_channels_last(network: nn.Module) -> nn.Module:
    """Lay kernels out in memory as images are, in place; `Module.to` refuses five dimensions, as of a window mask."""
    return network._apply(lambda value: value.to(memory_format=torch.channels_last) if value.dim() == 4 else value)


def set_mode(network: nn.Module, training: bool) -> None:
    """Do as `network.train(training)` does, with what is frozen really frozen.

    Frozen batch norm keeps its running statistics (`train()` alone would go on updating them), and stochastic depth
    is off in blocks of which nothing trains: it regularises weights, and there are none to regularise. Dropout stays
    as it is: behind a frozen layer it still regularises the head.
    """
    network.train(training)
    if not training:
        return
    for parent in network.modules():
        for child in parent.children():
            frozen_norm = isinstance(child, _NormBase) and not _trains(child, parent)
            frozen_depth = is_stochastic_depth(child) and not _trains(parent)
            if frozen_norm or frozen_depth:
                child.eval()


def is_stochastic_depth(module: nn.Module) -> bool:
    """Return whether a module leaves out whole blocks at random: torchvision's or timm's."""
    return isinstance(module, StochasticDepth) or type(module).__name__ == "DropPath"


def _trains(module: nn.Module, otherwise: nn.Module | None = None) -> bool:
    parameters = list(module.parameters())
    if not parameters and otherwise is not None:
        parameters = list(otherwise.parameters())
    return any(parameter.requires_grad for parameter in parameters)


def changing_names(network: nn.Module) -> set[str]:
    """Return the names in the state_dict that training may change: what trains, and buffers of unfrozen modules."""
    names = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    for prefix, module in network.named_modules():
        buffers = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_buffers(recurse=False)]
        if buffers and _trains(module):
            names.update(buffers)
    return names & network.state_dict().keys()
