"""The folder `model/`, the unit that travels: weights as safetensors and one JSON that says what they are.

Nothing in it is executed when it is read, and nothing but it is needed: no download, no training configuration.

`python -m dogbreed.export` turns it into a file for other runtimes (`dogbreed.inference.formats`).
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.version import __version__
from dogbreed.data.images import IMAGE_SUFFIXES, BadImage, Preprocessing
from dogbreed.data.images import load as read_image
from dogbreed.inference.manifest import FORMAT_VERSION, MANIFEST, WEIGHTS, find_model, read_manifest
from dogbreed.models import backbones

CHECKED_ON = 16  # photographs
_DESCRIPTION = "Writes an exported model as ONNX or for torch.export, and keeps the file only if it answers the same."
_EPILOG = """\
examples:
  python -m dogbreed.export outputs/2026-05-01/10-30-00/model holiday/ --onnx dogs.onnx
  python -m dogbreed.export model/ rex.jpg --onnx dogs.onnx --torch-export dogs.pt2

Inputs and outputs are the network's: images [N, 3, S, S] to logits and probabilities [N, classes]. How an image
becomes an input, the class names and the temperature lie in the file's metadata as model.json.
"""


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
    """

    network: nn.Module
    backbone: str
    class_names: list[str]
    preprocessing: Preprocessing
    temperature: float = 1.0
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


def save(folder: Path, model: Exported) -> Path:
    """Writes the folder; it appears whole or not at all, and replaces an older export.

    Raises:
        DogbreedError: The disk is full or not writable, or `folder` holds something else.
    """
    if folder.exists() and not (folder.is_dir() and ((folder / MANIFEST).exists() or not any(folder.iterdir()))):
        raise DogbreedError(f"{folder} exists and is no exported model; choose another folder.")
    manifest = {
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "backbone": model.backbone,
        "class_names": list(model.class_names),
        "preprocessing": model.preprocessing.to_dict(),
        "temperature": model.temperature,
        "config": model.config,
        "metrics": model.metrics,
    }
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        # safetensors stores rows in plain order; channels_last is a matter of the machine, not of the model.
        state = {name: value.detach().cpu().contiguous() for name, value in model.network.state_dict().items()}
        with atomic_write(beside / WEIGHTS) as file:
            save_file(state, file)
        with atomic_write(beside / MANIFEST) as file:
            file.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        # safetensors writes for its owner alone; whoever may read one of the two may read both.
        shutil.copymode(beside / MANIFEST, beside / WEIGHTS)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
    except OSError as error:
        raise DogbreedError(f"{folder} could not be replaced ({error.strerror}); choose another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def load(folder: str | Path, device: str | torch.device = "cpu") -> Exported:
    """Reads an exported model; the weights are memory-mapped.

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
    backbone, names = manifest.get("backbone"), manifest["class_names"]
    network = backbones.skeleton(str(backbone), len(names))
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(device)) as content:
            state = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise DogbreedError(f"{folder} has no {WEIGHTS}; copy the whole folder.") from error
    except (OSError, SafetensorError, RuntimeError) as error:
        raise DogbreedError(f"{folder / WEIGHTS} is damaged ({error}); copy the folder again.") from error
    try:
        wanted = network.state_dict()
        network.load_state_dict(state, assign=True)
        if any(state[name].dtype != value.dtype for name, value in wanted.items()):
            raise RuntimeError("values of another precision")
    except RuntimeError as error:
        raise DogbreedError(
            f"{folder / WEIGHTS} does not hold a {backbone} with {len(names)} classes, as {MANIFEST} says."
        ) from error
    network.requires_grad_(False).eval()
    return Exported(
        network=network.to(device).to(memory_format=torch.channels_last),
        backbone=str(backbone),
        class_names=names,
        preprocessing=Preprocessing.from_dict(manifest["preprocessing"]),
        temperature=float(manifest["temperature"]),
        config=manifest.get("config", {}),
        metrics=manifest.get("metrics", {}),
    )


# The command


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dogbreed.export",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL_DIR", type=Path, help="an exported model, or the folder of its run")
    parser.add_argument("paths", metavar="PHOTO", nargs="+", type=Path, help="photographs or folders to check it on")
    parser.add_argument("--onnx", metavar="FILE", type=Path, help="write ONNX (pip install 'dogbreed[onnx]')")
    parser.add_argument("--torch-export", metavar="FILE.pt2", type=Path, help="write for torch.export.load")
    given = parser.parse_args(argv)
    if given.onnx is None and given.torch_export is None:
        parser.error("nothing to write: give --onnx FILE, --torch-export FILE.pt2, or both")
    from dogbreed.core.cli import guard  # here: an endpoint uses this room, and has no Hydra

    return guard(lambda: _convert(given))


def _convert(given: argparse.Namespace) -> int:
    folder = find_model(given.model)
    manifest, model = read_manifest(folder), load(folder)
    photographs = torch.stack(_some_inputs(given.paths, model.preprocessing))
    from dogbreed.inference.formats import Answering, to_onnx, to_torch_export

    answering = Answering(model.network, model.temperature).eval()
    for file, write in ((given.onnx, to_onnx), (given.torch_export, to_torch_export)):
        if file is not None:
            largest = write(answering, photographs, manifest, file)
            size = file.stat().st_size / 1e6
            print(f"{file} ({size:.1f} MB) agrees on {len(photographs)} photographs: logits within {largest:.1e}.")
    return 0


def _some_inputs(paths: Sequence[Path], preprocessing: Preprocessing) -> list[torch.Tensor]:
    """Network inputs of the first photographs that can be read, spread over what was given."""
    from dogbreed.data.layout import list_images

    files = []
    for path in paths:
        if not path.exists():
            raise DogbreedError(f"{path} does not exist; give photographs, or folders of them.")
        inside = list_images(path) if path.is_dir() else [path]
        files += [file for file in inside if file == path or file.suffix.lower() in IMAGE_SUFFIXES]
    found: list[torch.Tensor] = []
    for file in files[:: max(1, len(files) // CHECKED_ON)]:
        try:
            found.append(read_image(file, preprocessing))
        except BadImage:
            continue
    if not found:
        raise DogbreedError("There is no photograph among what was given that can be read, to check the file on.")
    return found[:CHECKED_ON]
