"""Checkpoints that hold what changes; what is frozen lies beside them, once.

With VGG16 and a trained head 537 of 539 MB never change. They are written to `frozen.safetensors` when the first
checkpoint of a run is saved, and each checkpoint then takes milliseconds. A finished run has them in its export alone.
Reading puts both together again, so that everything above this module sees whole checkpoints.
"""

import hashlib
import pickle
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dogbreed.core.errors import DogbreedError
from dogbreed.models.manifest import WEIGHTS

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
        values = None if beside.exists() else _exported(beside, frozen, digest)
        if values is None:
            values = _kept_beside(file, frozen, digest)
        checkpoint["state_dict"] = {**values, **checkpoint["state_dict"]}
    return checkpoint


def _kept_beside(file: Path, names: Iterable[str], digest: str | None) -> dict[str, Tensor]:
    beside = file.with_name(FROZEN)
    try:
        values = _tensors(beside, names)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DogbreedError(
            f"{file} needs the frozen weights that belong beside it, in {beside}, or its finished run's model/; move "
            "the whole run, or use model/ alone, which is whole."
        ) from error
    if digest_in(beside) != digest:
        raise DogbreedError(f"{beside} belongs to another run than {file}, whose frozen weights are gone.")
    return values


def _exported(beside: Path, names: Iterable[str], digest: str | None) -> dict[str, Tensor] | None:
    """Return frozen values from the export of the run; None where it has others, such as of another precision."""
    try:
        values = _tensors(beside.parent.with_name("model") / WEIGHTS, names, PREFIX)
    except (OSError, SafetensorError, RuntimeError):
        return None
    return values if digest_of(values) == digest else None


def _tensors(file: Path, names: Iterable[str], prefix: str = "") -> dict[str, Tensor]:
    with safe_open(file, framework="pt") as content:
        return {name: content.get_tensor(name.removeprefix(prefix)) for name in names}


def drop_frozen(run: Path) -> None:
    """Delete the frozen values beside a finished run's checkpoints where its export has the very same."""
    beside = run / "checkpoints" / FROZEN
    with suppress(OSError, SafetensorError, RuntimeError):
        with safe_open(beside, framework="pt") as content:
            names = list(content.keys())
        if has_values(beside, _tensors(run / "model" / WEIGHTS, names, PREFIX)):
            beside.unlink()


def has_values(file: Path, values: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds these values to the last bit, and no others; in a quarter of the time of a hash."""
    try:
        with safe_open(file, framework="pt") as content:
            return set(content.keys()) == values.keys() and all(
                _same_bits(content.get_tensor(name), value) for name, value in values.items()
            )
    except (OSError, SafetensorError, RuntimeError):
        return False


def _same_bits(one: Tensor, two: Tensor) -> bool:
    if one.dtype != two.dtype or one.is_complex():
        return False
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[one.element_size()]
    return torch.equal(one.view(whole), two.view(whole))


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
