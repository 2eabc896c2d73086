"""Networks of timm, as `timm/NAME`: names, building, the input their weights expect, head and last stage.

timm is an extra: it is imported where such a network is asked for.
"""

import difflib
import sys
from typing import Any

from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install

PREFIX = "timm/"


def is_timm(backbone: str) -> bool:
    """Return whether a backbone's name is one of timm."""
    return backbone.startswith(PREFIX)


def load_timm() -> Any:
    """Import timm.

    Raises:
        DogbreedError: It is not installed.
    """
    try:
        import timm
    except ModuleNotFoundError as error:
        raise DogbreedError(f"A backbone timm/NAME needs timm: {install('timm')}.") from error
    return timm


def check_name(backbone: str) -> None:
    """Refuse a network that timm does not have.

    Raises:
        DogbreedError: timm is not installed, or the name is unknown; names the nearest known one.
    """
    timm, name = load_timm(), backbone.removeprefix(PREFIX)
    architecture, _, tag = name.partition(".")
    if timm.is_model(architecture):
        known = timm.list_models(f"{architecture}.*", pretrained=True)
        if not tag or name in known:
            return
    else:
        known = timm.list_models()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f"; did you mean {PREFIX}{near[0]}?" if near else "; timm.list_models() lists them."
    raise DogbreedError(f"model.backbone={backbone} is no classification network of timm{hint}")


def input_of(backbone: str) -> dict[str, Any]:
    """Return the preprocessing that a network's published weights expect, as fields of `Preprocessing`."""
    record = load_timm().get_pretrained_cfg(backbone.removeprefix(PREFIX))
    size = record.input_size[-1]
    return {
        "size": size,
        "resize_size": int(size / record.crop_pct),
        "mean": tuple(record.mean),
        "std": tuple(record.std),
        "interpolation": record.interpolation,
    }


def classes_of(backbone: str) -> int:
    """Return how many classes the head has that the weights of a network were published with."""
    return int(load_timm().get_pretrained_cfg(backbone.removeprefix(PREFIX)).num_classes)


def build(backbone: str, num_classes: int, size: int | None, *, pretrained: bool = False) -> nn.Module:
    """Return a network, with timm's published weights where `pretrained`.

    Args:
        backbone: `timm/NAME`.
        num_classes: Outputs of the head.
        size: Side of the square input in pixels, for networks that are built for one size.
        pretrained: Whether to download the weights from the Hugging Face hub where they are not in its cache folder.

    Raises:
        DogbreedError: The weights cannot be had, or the network cannot be built for this size.
    """
    timm, name = load_timm(), backbone.removeprefix(PREFIX)
    record = timm.get_pretrained_cfg(name)
    fixed = size is not None and record.fixed_input_size and size != record.input_size[-1]
    extra = {"img_size": size} if fixed else {}
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **extra)
    except (OSError, RuntimeError, AssertionError, ValueError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        # What huggingface_hub raises without a connection is an OSError and a ValueError.
        if pretrained and isinstance(error, OSError | RuntimeError):
            raise DogbreedError(
                f"The weights of {backbone} could not be downloaded ({reason}); give a file with model.weights=PATH, "
                "or train without pretrained weights with model.weights=none."
            ) from error
        raise DogbreedError(f"{backbone} cannot be built for inputs of {size} x {size} pixels ({reason}).") from error
    return network


def head_name(network: nn.Module) -> str | None:
    """Return the dotted name of a timm network's head; None for a network that is not timm's.

    Raises:
        DogbreedError: The network has no single head.
    """
    get_classifier: Any = getattr(network, "get_classifier", None)
    if get_classifier is None:
        return None
    classifier = get_classifier()
    for name, module in network.named_modules():
        if module is classifier and isinstance(module, nn.Linear | nn.Conv2d):
            return name
    raise DogbreedError(f"{type(network).__name__} of timm has no single layer as its head.")


def last_stage(network: Any, head: str) -> list[str]:
    """Return the dotted names of the modules of the last stage: timm's own last groups, at least two layers."""
    from timm.models import group_modules

    groups = group_modules(network, network.group_matcher(coarse=True), reverse=False)
    names: list[str] = []
    for _, members in sorted(groups.items(), reverse=True):
        names = [name for name in members if name != head] + names
        layers = [network.get_submodule(name) for name in names]
        if sum(p.ndim >= 2 for layer in layers for p in layer.parameters(recurse=False)) >= 2:
            break
    return names


def map_layer(network: Any) -> tuple[str, int] | None:
    """Return the name of the layer that ends the last stage, and how many channels its output has."""
    info = getattr(network, "feature_info", None)
    return (str(info[-1]["module"]), int(info[-1]["num_chs"])) if isinstance(info, list) and info else None


def untraced() -> tuple[tuple[type[nn.Module], ...], tuple[Any, ...]]:
    """Return the modules and functions of timm that torch.fx takes as they are; none where timm is not loaded."""
    if "timm" not in sys.modules:
        return (), ()
    from timm.layers import get_notrace_functions, get_notrace_modules

    return tuple(get_notrace_modules()), tuple(get_notrace_functions())


def versions(network: nn.Module) -> list[str]:
    """Return timm's version where the network has modules of it, for the key of its features."""
    used = any(type(module).__module__.partition(".")[0] == "timm" for module in network.modules())
    return [f"timm {load_timm().__version__}"] if used else []
