"""ONNX Runtime in place of torch on a CPU: which of the two answers, and a network that it computes."""

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.core.files import is_special
from dogbreed.models.manifest import RUNTIME_FILES, read_manifest

RUNTIMES = ("auto", "torch", *RUNTIME_FILES)


def choose(runtime: str, folder: Path, device: torch.device | None, precision: str) -> str:
    """Return which runtime answers: `torch`, `onnx` or `int8`.

    Args:
        runtime: One of these, or `auto`: `onnx` where it can be, else `torch`; never `int8`, whose answers are others.
        folder: Of the exported model.
        device: That was asked for; None for any.
        precision: That was asked for.

    Raises:
        DogbreedError: The runtime is unknown, or cannot be had here.
    """
    if runtime not in RUNTIMES:
        raise DogbreedError(f"runtime={runtime} is unknown; it is one of {', '.join(RUNTIMES)}.")
    if runtime == "torch":
        return runtime
    reason = _reason_against("onnx" if runtime == "auto" else runtime, folder, device, precision)
    if runtime == "auto":
        return "torch" if reason else "onnx"
    if reason:
        raise DogbreedError(f"runtime={runtime} {reason}.")
    return runtime


def _reason_against(runtime: str, folder: Path, device: torch.device | None, precision: str) -> str | None:
    file = RUNTIME_FILES[runtime]
    if device is not None and device.type != "cpu":
        return f"computes on a CPU, not on {device}; take runtime=torch"
    if precision != "float32":
        return f"does not compute in {precision}; leave the precision out, or take runtime=torch"
    if runtime not in read_manifest(folder).get("runtimes", {}) or not (folder / file).is_file():
        images = "DATA" if runtime == "int8" else "PHOTO"
        return f"needs {file} in {folder}: python -m dogbreed.export {folder} {images} --runtime {runtime} writes it"
    if find_spec("onnxruntime") is None:
        return f"needs onnxruntime, which is not installed: {install('onnx')}"
    return None


class OnnxNetwork:
    """A network that ONNX Runtime computes. Safe to share between threads.

    Args:
        folder: The exported model.
        runtime: `onnx` or `int8`.

    Raises:
        DogbreedError: The file is another than the manifest lists, or cannot be read.
    """

    def __init__(self, folder: Path, runtime: str) -> None:
        file = folder / RUNTIME_FILES[runtime]
        again = f"write it again with python -m dogbreed.export --runtime {runtime}"
        if is_special(file):
            raise DogbreedError(f"{file} is no regular file; {again}.")
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != read_manifest(folder)["runtimes"][runtime]["sha256"]:
            raise DogbreedError(f"{file} is not the file that model.json lists; {again}.")
        try:
            self._session = session(content)
        except Exception as error:  # onnxruntime has no common type of its errors
            raise DogbreedError(f"ONNX Runtime cannot read {file} ({str(error).splitlines()[0][:200]}).") from error
        self._outputs = [output.name for output in self._session.get_outputs() if output.name != "probabilities"]

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map [N, 3, S, S] to logits [N, classes] and, where the file gives them, features [N, D] of the last layer."""
        arrays = self._session.run(self._outputs, {"images": images.contiguous().numpy()})
        by_name = dict(zip(self._outputs, map(torch.from_numpy, map(np.asarray, arrays)), strict=True))
        return by_name["logits"], by_name.get("features")


def session(model: bytes | str) -> Any:
    """Return a session on the CPU, of the bytes of a model or of a file, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Threads that wait for work by spinning take the cores from those that decode.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
