"""An exported model for other people's runtimes: ONNX and torch.export, kept only if they answer as the original does.

The file takes `images` [N, 3, S, S], preprocessed as its metadata says, and gives `logits` and calibrated
`probabilities` [N, classes]; in a model's own folder also `features` [N, D], what the last layer takes, if the model
has an index of its training images. Class names, preprocessing and temperature travel inside, as the text of
`model.json`.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.core.files import atomic_write, is_special
from dogbreed.core.text import size
from dogbreed.data.images import IMAGE_SUFFIXES, BadImage, Preprocessing
from dogbreed.data.images import load as read_image
from dogbreed.data.layout import list_images
from dogbreed.inference.onnx_runtime import session
from dogbreed.models import backbones, model_folder
from dogbreed.models.manifest import MANIFEST, RUNTIME_FILES, find_model, list_runtime, read_manifest
from dogbreed.models.model_folder import Exported
from dogbreed.models.neighbours import HeadInput

TOLERANCE = 1e-4  # in logits, as for every other inference path
OPSET = 18
CHECKED_ON = 16  # photographs


class Answering(nn.Module):
    """A network with its temperature.

    Args:
        network: In evaluation mode, on the CPU.
        temperature: Logits are divided by it before the softmax.
        features: Whether it also gives what the last layer takes.
    """

    def __init__(self, network: nn.Module, temperature: float, features: bool = False) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature
        self.names = ["logits", "probabilities", *(["features"] if features else [])]
        self._head_input = HeadInput(network.get_submodule(backbones.head_name(network))) if features else None

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map [N, 3, S, S] to logits and probabilities [N, classes], and features [N, D] where they are wanted."""
        logits: Tensor = self.network(images)
        probabilities = (logits / self.temperature).softmax(1)
        if self._head_input is None:
            return logits, probabilities
        return logits, probabilities, self._head_input.take()


def convert(
    folder: Path, paths: Sequence[Path], onnx: Path | None, torch_export: Path | None, *, for_runtime: bool = False
) -> None:
    """Write an exported model as files for other runtimes, and print how well each agrees.

    Args:
        folder: The exported model, or the folder of its run.
        paths: Photographs, or folders of them, on which the files have to agree.
        onnx: Where ONNX goes; None for none.
        torch_export: Where the file for `torch.export.load` goes; None for none.
        for_runtime: Whether the model's own folder gets an ONNX file, which then answers for it.

    Raises:
        DogbreedError: A path does not exist, no photograph can be read, or a file does not agree.
    """
    folder = find_model(folder)
    manifest, model = read_manifest(folder), model_folder.load(folder)
    photographs = torch.stack(_some_inputs(paths, model.preprocessing))
    answering = Answering(model.network, model.temperature).eval()
    for file, write in ((onnx, to_onnx), (torch_export, to_torch_export)):
        if file is not None:
            largest = write(answering, photographs, manifest, file)
            bytes = size(file.stat().st_size)
            print(f"{file} ({bytes}) agrees on {len(photographs)} photographs: logits within {largest:.1e}.")
    if for_runtime:
        largest = add_onnx(folder, model, photographs)
        file = folder / RUNTIME_FILES["onnx"]
        print(f"{file} ({size(file.stat().st_size)}) agrees on {len(photographs)} photographs: logits within "
              f"{largest:.1e}. On a CPU it answers from now on; --runtime torch takes torch.")  # fmt: skip


def add_onnx(folder: Path, model: Exported, photographs: Tensor) -> float:
    """Write the file that `runtime=onnx` reads into a model's folder; arguments, result and errors as of `to_onnx`."""
    manifest = {name: value for name, value in read_manifest(folder).items() if name != "runtimes"}
    answering = Answering(model.network, model.temperature, features=model.neighbours is not None).eval()
    file = folder / RUNTIME_FILES["onnx"]
    largest = to_onnx(answering, photographs, manifest, file)
    list_runtime(folder, "onnx", {"sha256": digest(file), "largest_difference": largest})
    return largest


def digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _some_inputs(paths: Sequence[Path], preprocessing: Preprocessing) -> list[Tensor]:
    """Return network inputs of the first photographs that can be read, spread over all of them."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DogbreedError(f"{path} does not exist; give photographs, or folders of them.")
        if is_special(path):
            raise DogbreedError(f"{path} is no regular file; give photographs, or folders of them.")
        inside = list_images(path) if path.is_dir() else [path]
        files += (file for file in inside if file == path or file.suffix.lower() in IMAGE_SUFFIXES)
    inputs: list[Tensor] = []
    for file in files[:: max(1, len(files) // CHECKED_ON)]:
        if is_special(file):
            continue
        try:
            inputs.append(read_image(file, preprocessing))
        except BadImage:
            continue
    if not inputs:
        raise DogbreedError("None of the photographs can be read, so the file cannot be checked on them.")
    return inputs[:CHECKED_ON]


def to_onnx(model: Answering, photographs: Tensor, manifest: Mapping[str, Any], file: Path) -> float:
    """Write an ONNX file.

    Args:
        model: What is exported.
        photographs: Network inputs [N, 3, S, S] on which the file has to agree.
        manifest: The content of `model.json`.
        file: Where it goes; it is there only if it agrees.

    Returns:
        The largest difference of a logit.

    Raises:
        DogbreedError: The file does not agree, the packages are missing, or the network cannot be exported.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  (with which the file is checked)
        import onnxscript  # noqa: F401  (what torch.onnx exports with)
    except ModuleNotFoundError as error:
        raise DogbreedError(f"ONNX needs {error.name}, which is not installed: {install('onnx')}.") from error
    with atomic_write(file) as beside:
        with quiet(), _explained("ONNX"):
            # An example of two: from one, the exporter would take the size of the batch for fixed.
            torch.onnx.export(
                model, (_example(photographs),), str(beside), dynamo=True, external_data=False, opset_version=OPSET,
                input_names=["images"], output_names=model.names,
                dynamic_shapes={"images": {0: torch.export.Dim("N")}}, verbose=False,
            )  # fmt: skip
        content = onnx.load(beside)
        onnx.helper.set_model_props(content, {MANIFEST: json.dumps(manifest)})
        onnx.save(content, beside)
        written = session(str(beside))

        def answer(images: Tensor) -> Tensor:
            return torch.from_numpy(np.asarray(written.run(["logits"], {"images": images.numpy()})[0]))

        return _agree(model, photographs, answer, file)


def to_torch_export(model: Answering, photographs: Tensor, manifest: Mapping[str, Any], file: Path) -> float:
    """Write a file for `torch.export.load`; arguments, result and errors as of `to_onnx`."""
    with atomic_write(file) as beside:
        with quiet(), _explained("torch.export"):
            shapes = {"images": {0: torch.export.Dim("N")}}
            program = torch.export.export(model, (_example(photographs),), dynamic_shapes=shapes)
        with quiet():
            with beside.open("wb") as target:
                torch.export.save(program, target, extra_files={MANIFEST: json.dumps(manifest)})
            with beside.open("rb") as source:
                loaded = torch.export.load(source).module()
        return _agree(model, photographs, lambda images: loaded(images)[0], file)


def _example(photographs: Tensor) -> Tensor:
    return torch.cat([photographs, photographs])[:2].contiguous()


def _agree(model: Answering, photographs: Tensor, answer: Callable[[Tensor], Tensor], file: Path) -> float:
    """Return the largest difference, over batches of several sizes.

    Raises:
        DogbreedError: It is above the tolerance, or a class differs.
    """
    largest, differ = 0.0, 0
    with torch.no_grad():
        for size in (1, 3):
            for batch in photographs.contiguous().split(size):
                expected, converted = model(batch)[0], answer(batch)
                largest = max(largest, float((converted - expected).abs().max()))
                differ += int((converted.argmax(1) != expected.argmax(1)).sum())
    if not largest <= TOLERANCE or differ:
        raise DogbreedError(
            f"{file} was not kept: its logits differ by up to {largest:.2g}, and {differ} classes of "
            f"{2 * len(photographs)} (allowed: {TOLERANCE:g}, and none)."
        )
    return largest


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DogbreedError(f"This network cannot be exported to {what}: {reason[0][:200]}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporters, which report their own progress and their own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
