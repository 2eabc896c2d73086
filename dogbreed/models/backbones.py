"""A network of torchvision, timm or one's own with its head replaced, its weights loaded and its parameters frozen.

Every network answers the same few questions here: which module is its head, which is its last stage, what
preprocessing its weights expect, and which of its values may change in training.
"""

import difflib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models import get_model, get_model_weights, list_models
from torchvision.ops import StochasticDepth

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing
from dogbreed.models import lite0, timm_networks

TRAINABLE = ("head", "block", "all")
OWN = "own/"  # begins the name of a network that somebody passed from Python
_HEAD_ATTRIBUTE = "dogbreed_head"

# Auxiliary classifiers (GoogLeNet, Inception) train the backbone from scratch; a fine-tuned head has no use for them.
_AUXILIARY = ("aux1", "aux2", "AuxLogits")

# torchvision's published DenseNet files carry the names of an older layout ("norm.1" for "norm1").
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")

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
    """Refuse a network that neither torchvision nor timm (`timm/NAME`) has.

    Raises:
        DogbreedError: Names the nearest known network.
    """
    if timm_networks.is_timm(str(backbone)):
        timm_networks.check_name(backbone)
        return
    if str(backbone).startswith(OWN):
        raise DogbreedError(
            f"{backbone} is a network of your own code: build it there and pass it, DogBreedClassifier(network=..., "
            "head=...); from a checkpoint, load_from_checkpoint(PATH, network=...)."
        )
    known = sorted([lite0.NAME, *list_models(module=torchvision.models)])
    if backbone not in known:
        near = difflib.get_close_matches(str(backbone), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}."
        raise DogbreedError(f"model.backbone={backbone} is no classification network of torchvision; {hint}")


def preprocessing_of(
    backbone: str, *, weights: str | None = None, resize: str = "squash", size: int | None = None
) -> Preprocessing:
    """Return what the published weights of a network expect, read from the weights' own record.

    Args:
        backbone: Name of a network.
        weights: As in `create`; only a member of torchvision's enum makes a difference.
        resize: `squash` or `crop`.
        size: Side of the square input in pixels; None takes the record's.
    """
    check_name(backbone)
    if timm_networks.is_timm(backbone):
        expected = timm_networks.input_of(backbone)
    elif backbone == lite0.NAME:
        expected = dict(lite0.INPUT)
    else:
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
    if timm_networks.is_timm(backbone) or backbone == lite0.NAME:
        return None
    return get_model_weights(backbone).__members__.get(str(weights))


def create(
    backbone: str, num_classes: int, *, weights: str = "imagenet", seed: int = 0, size: int | None = None
) -> nn.Module:
    """Return a network with a head of `num_classes` outputs.

    Args:
        backbone: `efficientnet_lite0`, a classification network of torchvision, or `timm/NAME`.
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pretrained = timm_networks.is_timm(backbone) and weights == "imagenet"
        if weights == "none" or pretrained:
            network = _build(backbone, num_classes, size, pretrained)
            _reset_head(network)
            return network
        if backbone == lite0.NAME and weights == "imagenet":
            state, file = lite0.read_weights()
        else:
            member = _member(backbone, "DEFAULT" if weights == "imagenet" else weights)
            file = Path(weights) if member is None else published_file(backbone, member)
            state = read_state(file)
        network = skeleton(backbone, num_classes, size)
        if next(network.parameters()).is_meta:
            network.to_empty(device="cpu")
        _reset_head(network)
        _load_backbone(network, backbone, state, file)
        return network


def skeleton(backbone: str, num_classes: int, size: int | None = None) -> nn.Module:
    """Return the network for a state that is loaded next: on the meta device, without values, where it can be."""
    check_name(backbone)
    try:
        if not timm_networks.is_timm(backbone):  # timm's hold tables that no state_dict brings back
            with torch.device("meta"):
                return _build(backbone, num_classes)
    except (NotImplementedError, RuntimeError):  # RegNet and Swin compute their widths with tensors
        pass
    with torch.random.fork_rng(devices=[]):
        return _build(backbone, num_classes, size)


def _build(backbone: str, num_classes: int, size: int | None = None, pretrained: bool = False) -> nn.Module:
    if timm_networks.is_timm(backbone):
        return timm_networks.build(backbone, num_classes, size, pretrained=pretrained)
    if backbone == lite0.NAME:
        return lite0.efficientnet_lite0(num_classes)
    # Both inception networks were published for inputs scaled by their own constants; the flag is part of the network.
    extra: dict[str, Any] = {}
    if backbone in ("inception_v3", "googlenet"):
        extra = {"transform_input": True, "aux_logits": False, "init_weights": True}
    return get_model(backbone, weights=None, num_classes=num_classes, **extra)


def head_name(network: nn.Module) -> str:
    """Return the dotted name of the last layer, whose outputs are the classes: linear, or SqueezeNet's convolution."""
    name = getattr(network, _HEAD_ATTRIBUTE, None) or timm_networks.head_name(network)
    if name is not None:
        return str(name)
    layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not layers:
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)]
    if not layers:
        raise DogbreedError(f"{type(network).__name__} has no linear layer or convolution that could be its head.")
    return layers[-1]


def with_new_head(network: nn.Module, head: str, num_classes: int, seed: int) -> nn.Module:
    """Put a new last layer into a network of one's own.

    Args:
        network: Images [N, 3, S, S] to outputs [N, any]; changed in place.
        head: Dotted name of its last layer, a linear one.
        num_classes: Outputs of the new layer.
        seed: Seed of its initial values.

    Raises:
        DogbreedError: There is no linear layer of that name.
    """
    layer = dict(network.named_modules()).get(head)
    if not isinstance(layer, nn.Linear):
        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
        hint = f"; its linear layers are {', '.join(layers[-5:])}." if layers else ", and no other."
        raise DogbreedError(f"{type(network).__name__} has no linear layer head={head!r}{hint}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.set_submodule(head, nn.Linear(layer.in_features, num_classes))
    setattr(network, _HEAD_ATTRIBUTE, head)
    return network


def last_stage(network: nn.Module, backbone: str) -> list[str]:
    """Return the dotted names of the modules of the last stage before the head (`trainable=block`)."""
    if timm_networks.is_timm(backbone):
        return timm_networks.last_stage(network, head_name(network))
    if backbone.startswith(OWN):
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


def freeze(network: nn.Module, backbone: str, trainable: str) -> None:
    """Leave only what `trainable` names with requires_grad: `head`, `block` (head and last stage) or `all`.

    Raises:
        DogbreedError: `trainable` is none of the three.
    """
    if trainable not in TRAINABLE:
        raise DogbreedError(f"model.trainable={trainable} is unknown; it is one of {', '.join(TRAINABLE)}.")
    network.requires_grad_(trainable == "all")
    for name in [head_name(network), *(last_stage(network, backbone) if trainable == "block" else [])]:
        network.get_submodule(name).requires_grad_(True)


def set_mode(network: nn.Module, training: bool) -> None:
    """`network.train(training)`, with what is frozen really frozen.

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


def published_file(backbone: str, member: Any = None) -> Path:
    """Return the path of torchvision's published weights (None: the default ones) in the hub's cache folder,
    downloaded when missing.

    Raises:
        DogbreedError: The download failed; names the ways to go on without it.
    """
    url = (member or get_model_weights(backbone).DEFAULT).url
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(urlparse(url).path).name
    if file.exists():
        return file
    hash_prefix = file.stem.rpartition("-")[2]  # torchvision names its files NAME-HASH.pth
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix, progress=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DogbreedError(
            f"The ImageNet weights of {backbone} could not be downloaded from {url} ({error}); give a file with "
            f"model.weights=PATH, place it at {file}, or train without pretrained weights with model.weights=none."
        ) from error
    return file


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state_dict without running code from it.

    Args:
        file: `.safetensors`, or a torch file that `weights_only=True` accepts. A state_dict inside a checkpoint
            (under `state_dict` or `model`) and the name prefixes `module.` and `network.` are understood.

    Raises:
        DogbreedError: Missing, truncated, not a state_dict, or a pickle that would run code.
    """
    if not file.is_file():
        raise DogbreedError(f"The weights file {file} does not exist; model.weights is imagenet, none, or a path.")
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(file)
        else:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class|operand)", str(error))
        if code and (zipfile.is_zipfile(file) or _begins_as_pickle(file)):
            named = f" ({code.group(1)})" if code.group(1) else ""
            raise DogbreedError(
                f"{file} is a pickle that would run code{named} when loaded, so it was not; save the plain "
                "state_dict with torch.save(model.state_dict(), PATH) or as .safetensors."
            ) from error
        raise DogbreedError(f"{file} is not a readable weights file (truncated or of another kind).") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise DogbreedError(f"{file} is not a readable weights file (truncated or of another kind).") from error
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise DogbreedError(f"{file} holds no state_dict (a mapping of names to tensors).")
    return {str(name).removeprefix("module.").removeprefix("network."): value for name, value in content.items()}


def _begins_as_pickle(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(1) == pickle.PROTO


def _reset_head(network: nn.Module) -> None:
    head: Any = network.get_submodule(head_name(network))
    head.reset_parameters()


def _load_backbone(network: nn.Module, backbone: str, state: Mapping[str, Tensor], file: Path) -> None:
    """Copy everything but a head of another size; all other names and shapes have to agree."""
    head = head_name(network)
    state = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    expected = network.state_dict()
    of_head = _under(expected, head)
    if any(state.get(name, value).shape != value.shape for name, value in of_head.items()):
        state = {name: value for name, value in state.items() if name not in of_head}
    # Published files older than PyTorch 0.4.1 lack this counter; evaluation never reads it.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    problems = {
        "missing": [name for name in expected if name not in state and name not in of_head.keys() | counters],
        "unknown to it": [name for name in state if name not in expected],
        "of another shape": [
            name for name, value in state.items() if name in expected and value.shape != expected[name].shape
        ],
    }
    if any(problems.values()):
        raise DogbreedError(
            f"The weights in {file} do not fit {backbone}: "
            f"{'; '.join(f'{_some(names)} {problem}' for problem, names in problems.items() if names)}. "
            "Is model.backbone the network that these weights were saved from?"
        )
    for name in counters - state.keys():
        expected[name].zero_()
    network.load_state_dict(state, strict=False)


def _under(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(f"{module}.")}


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
