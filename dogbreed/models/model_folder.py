"""The folder `model/`, the unit that travels: weights as safetensors and one JSON that says what they are.

Nothing in it is executed when it is read, and nothing but it is needed: no download, no training configuration.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write, is_special
from dogbreed.core.version import __version__
from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, neighbours
from dogbreed.models.manifest import FORMAT_VERSION, MANIFEST, WEIGHTS, read_manifest
from dogbreed.models.neighbours import InDomain


@dataclass(frozen=True)
class Exported:
    """A network ready to answer, and what is known of it.

    Attributes:
        network: In evaluation mode, without gradients.
        backbone: Its torchvision name.
        class_names: By index of the output.
        preprocessing: From an image to its input.
        temperature: Logits are divided by it before the softmax.
        config: The training configuration.
        metrics: What the training reached.
        conformal: Thresholds of prediction sets; empty where there are none, as in exports of older versions.
        neighbours: Index of the training images, or the published head; None where there is none, as in exports of
            older versions.
    """

    network: nn.Module
    backbone: str
    class_names: list[str]
    preprocessing: Preprocessing
    temperature: float = 1.0
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    conformal: Mapping[str, Any] = field(default_factory=dict)
    neighbours: InDomain | None = None


def save(folder: Path, model: Exported) -> Path:
    """Write the folder; it appears whole or not at all, and replaces an older export.

    Raises:
        DogbreedError: The disk is full or not writable, or `folder` holds something else.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).exists() or not any(folder.iterdir()))):
        raise DogbreedError(f"{folder} exists and is no exported model; choose another folder.")
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        write_files(beside, model)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
    except OSError as error:
        raise DogbreedError(f"{folder} could not be replaced ({error.strerror}); choose another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def write_files(folder: Path, model: Exported) -> None:
    """Write the files of an export into a folder; each is there whole or not at all, the weights first.

    Raises:
        DogbreedError: The disk is full or not writable.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "backbone": model.backbone,
        "class_names": list(model.class_names),
        "preprocessing": model.preprocessing.to_dict(),
        "temperature": model.temperature,
        **({"conformal": model.conformal} if model.conformal else {}),
        **({"neighbours": model.neighbours.write(folder)} if model.neighbours else {}),
        "config": model.config,
        "metrics": model.metrics,
    }
    # safetensors stores rows in plain order; channels_last is a matter of the machine, not of the model.
    state = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
    with atomic_write(folder / WEIGHTS) as file:
        save_file(state, file)
    with atomic_write(folder / MANIFEST) as file:
        file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    # safetensors writes for its owner alone; whoever may read one of the two may read both.
    shutil.copymode(folder / MANIFEST, folder / WEIGHTS)


def load(folder: str | Path, device: str | torch.device = "cpu") -> Exported:
    """Return an exported model; the weights are memory-mapped.

    Args:
        folder: As `save` wrote it.
        device: Where the network goes.

    Raises:
        DogbreedError: Something is missing or damaged, or does not fit together.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DogbreedError(f"The device {device} cannot be used: {str(error).splitlines()[0]}") from error
    if is_special(folder / WEIGHTS):
        raise DogbreedError(f"{folder / WEIGHTS} is no regular file; copy the folder again.")
    backbone, names = manifest.get("backbone"), manifest["class_names"]
    network = backbones.skeleton(str(backbone), len(names), manifest["preprocessing"].get("size"))
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DogbreedError(f"{folder} has no {WEIGHTS}; copy the whole folder.") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DogbreedError(f"{folder / WEIGHTS} is damaged ({error}); copy the folder again.") from error
    try:
        expected = network.state_dict()
        network.load_state_dict(state, assign=True)
        if any(state[name].dtype != value.dtype for name, value in expected.items()):
            raise RuntimeError("values of another precision")
    except RuntimeError as error:
        raise DogbreedError(
            f"{folder / WEIGHTS} does not hold a {backbone} with {len(names)} classes, as {MANIFEST} says."
        ) from error
    network.requires_grad_(False).eval()
    return Exported(
        network=backbones.to_channels_last(network.to(device)),
        backbone=str(backbone),
        class_names=names,
        preprocessing=Preprocessing.from_dict(manifest["preprocessing"]),
        temperature=float(manifest["temperature"]),
        config=manifest.get("config", {}),
        metrics=manifest.get("metrics", {}),
        conformal=manifest.get("conformal", {}),
        neighbours=neighbours.read(folder, manifest["neighbours"]) if "neighbours" in manifest else None,
    )
