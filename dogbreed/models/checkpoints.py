"""Checkpoints that hold what changes; what is frozen lies beside them, once.

With VGG16 and a trained head 537 of 539 MB never change. They are written to `frozen.safetensors` when the first
checkpoint of a run is saved, and each checkpoint then takes milliseconds. Reading puts both together again, so that
everything above this module sees whole checkpoints.
"""

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dogbreed.core.errors import DogbreedError

FROZEN = "frozen.safetensors"
PREFIX = "network."


def read_checkpoint(file: Path) -> dict[str, Any]:
    """Return a whole checkpoint: the file's content and, where frozen values lie beside it, those too. Never runs code.

    Raises:
        DogbreedError: Missing, truncated, no checkpoint of this project, or moved away from its frozen values.
    """
    if not file.is_file():
        raise DogbreedError(f"The checkpoint {file} does not exist.")
    checkpoint = _load(file)
    if not isinstance(checkpoint, Mapping) or not {"state_dict", "hyper_parameters"} <= checkpoint.keys():
        raise DogbreedError(f"{file} is no checkpoint of this project; weights alone go into model.weights=PATH.")
    checkpoint = dict(checkpoint)
    frozen, digest = checkpoint.pop("frozen", []), checkpoint.pop("frozen_digest", None)
    if frozen:
        beside = file.with_name(FROZEN)
        try:
            with safe_open(beside, framework="pt") as content:
                values = {name: content.get_tensor(name) for name in frozen}
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DogbreedError(
                f"{file} needs the frozen weights that belong beside it, in {beside}; move both together, or use the "
                "run's model/ folder, which is whole."
            ) from error
        if digest_in(beside) != digest:
            raise DogbreedError(f"{beside} belongs to another run than {file}, whose frozen weights are gone.")
        checkpoint["state_dict"] = {**values, **checkpoint["state_dict"]}
    return checkpoint


def _load(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DogbreedError(f"{file} is not a readable checkpoint (truncated or of another kind).") from error


def digest_of(values: Mapping[str, Tensor]) -> str:
    """Return a digest of the values themselves, so that equal weights are known as such whichever run wrote them."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(values.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_in(file: Path) -> str | None:
    """Return the digest noted in a file of frozen weights; None where there is no such file."""
    try:
        with safe_open(file, framework="pt") as content:
            return (content.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None


def changed_state(file: Path) -> dict[str, Tensor]:
    """Return only what a run's checkpoint itself holds of the network: the values that training may change."""
    return network_state(_load(file))


def network_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the network's state_dict in a whole checkpoint."""
    state: Mapping[str, Tensor] = checkpoint["state_dict"]
    return {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
