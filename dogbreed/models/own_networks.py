"""Networks of one's own: passed from Python, or named by import path (`package.module:callable`) as a backbone.

A name in a file is no reason to import anything: a saved model of such a network is built only where its path has been
given as a setting in this process, or stands in the environment variable DOGBREED_NETWORKS.
"""

import os
from importlib import import_module
from typing import Any

import torch
from torch import nn

from dogbreed.core.errors import DogbreedError

PASSED = "own/"  # begins the name of a network that somebody passed from Python
VARIABLE = "DOGBREED_NETWORKS"
HEAD_ATTRIBUTE = "dogbreed_head"  # on the network: the name of its head
_ALLOWED: set[str] = set()


def is_own(backbone: str) -> bool:
    """Return whether a backbone's name is that of somebody's own network."""
    return backbone.startswith(PASSED) or (":" in backbone and "/" not in backbone)


def check_name(backbone: str) -> None:
    """Refuse the name of a network that was passed from Python: no name brings it back.

    Raises:
        DogbreedError: Says how it is passed again.
    """
    if backbone.startswith(PASSED):
        raise DogbreedError(
            f"{backbone} is a network of your own code: build it there and pass it, DogBreedClassifier(network=..., "
            "head=...); from a checkpoint, load_from_checkpoint(PATH, network=...)."
        )


def name(network: nn.Module | None, head: str | None, backbone: str) -> str:
    """Return what a classifier calls its network: one that was passed by its class, else as its backbone is named.

    Raises:
        DogbreedError: There is no network to go with the head, or with a name that no name brings back.
    """
    if network is not None:
        return PASSED + type(network).__name__
    check_name(backbone)
    if head is not None:
        raise DogbreedError(f"head={head!r} names a layer of a network of your own: pass network= too.")
    return backbone


def allow(backbone: str) -> None:
    """Let a path that somebody gave as a setting be imported in this process."""
    _ALLOWED.add(backbone)


def build(path: str) -> nn.Module:
    """Call what an import path names, without arguments, and return the network it gives.

    Raises:
        DogbreedError: The path is not allowed, cannot be imported, or gives no network.
    """
    if path not in _ALLOWED and path not in os.environ.get(VARIABLE, "").split(","):
        raise DogbreedError(
            f"The network {path} is code of yours, which a saved model may not import by itself: allow it with "
            f"{VARIABLE}={path}, its folder on PYTHONPATH."
        )
    module, _, name = path.partition(":")
    try:
        network: Any = getattr(import_module(module), name)()
    except Exception as error:  # whatever that code raises
        reason = f"{type(error).__name__}: {error}"
        raise DogbreedError(
            f"model.backbone={path} cannot be built ({reason}); it is MODULE:CALLABLE, the module's folder on "
            "PYTHONPATH, and the callable takes no arguments."
        ) from error
    if not isinstance(network, nn.Module):
        raise DogbreedError(f"model.backbone={path} returns {type(network).__name__}, not a torch.nn.Module.")
    return network


def with_new_head(network: nn.Module, head: str | None, num_classes: int, seed: int = 0) -> nn.Module:
    """Return the network with a new last layer.

    Args:
        network: Images [N, 3, S, S] to outputs [N, any]; changed in place.
        head: Dotted name of its last layer, a linear one; None takes the linear layer that is defined last.
        num_classes: Outputs of the new layer.
        seed: Seed of its initial values.

    Raises:
        DogbreedError: There is no linear layer of that name.
    """
    layers = {name: module for name, module in network.named_modules() if isinstance(module, nn.Linear)}
    name = next(reversed(layers), "") if head is None else head
    if name not in layers:
        kind = type(network).__name__
        if not layers:
            raise DogbreedError(
                f"{kind} has no linear layer that could become the head; end it with a torch.nn.Linear."
            )
        raise DogbreedError(
            f"{kind} has no linear layer head={name!r}; its linear layers are {', '.join([*layers][-5:])}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.set_submodule(name, nn.Linear(layers[name].in_features, num_classes))
    setattr(network, HEAD_ATTRIBUTE, name)
    return network
