"""The file that `runtime=int8` reads: ONNX whose weights and activations have 8 bits, kept only if it answers as well.

Static quantisation by ONNX Runtime: the range of every activation is taken from images, that of the weights per output
channel. Weights have 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, which overflow else.
Where too few images keep their class, the first layers stay in float32: what they round goes through all others.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.core.files import atomic_write
from dogbreed.core.text import size
from dogbreed.data.images import BadImage
from dogbreed.data.images import load as read_image
from dogbreed.inference.formats import add_onnx, digest, quiet
from dogbreed.inference.onnx_runtime import session
from dogbreed.metrics.calibration import wilson_interval
from dogbreed.models import model_folder
from dogbreed.models.manifest import RUNTIME_FILES, list_runtime, read_manifest

CALIBRATION_IMAGES = 64
MOST_IMAGES = 1000  # on which the accuracy is measured: 600 MB at 224 pixels
BATCH = 8
ROUNDS = 15
LEAST_SAME = 0.97  # of the images, with their class in float32; else this share of the layers, the first, is left alone
FIRST = 0.25
Inputs = NDArray[np.float32]


def add_int8(folder: Path, files: Sequence[tuple[Path, int]], max_loss: float) -> None:
    """Write the file into a model's folder, list it in the manifest, and print what it costs and what it brings.

    Args:
        folder: The exported model; `model.onnx` is written first where it is missing or another than it lists.
        files: Images of the validation split with their labels: some for the ranges, the others for the accuracy; all
            for both where they are few.
        max_loss: By how many percentage points the accuracy may fall.

    Raises:
        DogbreedError: The accuracy falls by more, of which no file is left; no image can be read; a package is missing.
    """
    model = model_folder.load(folder)
    images, labels = _read(files[:: -(-len(files) // MOST_IMAGES)], model.preprocessing)
    file, exact = folder / RUNTIME_FILES["int8"], folder / RUNTIME_FILES["onnx"]
    listed = read_manifest(folder).get("runtimes", {}).get("onnx", {}).get("sha256")
    if not exact.is_file() or digest(exact) != listed:
        add_onnx(folder, model, torch.from_numpy(images[:16]))
    list_runtime(folder, "int8", None)
    with suppress(FileNotFoundError):
        file.unlink()
    with atomic_write(file) as beside:
        chosen = np.arange(0, len(images), -(-len(images) // CALIBRATION_IMAGES))
        ranges = images[chosen]
        if 2 * len(chosen) <= len(images):  # what fits the images that the ranges are from need not fit others
            images, labels = np.delete(images, chosen, 0), np.delete(labels, chosen)
        for share in (0.0, FIRST):
            kept = _quantise(exact, ranges, beside, share)
            sessions = [session(str(exact)), session(str(beside))]
            expected, answers = (np.concatenate([*_answers(one, images)]).argmax(1) for one in sessions)
            agreement = float((expected == answers).mean())
            if agreement >= LEAST_SAME:
                break
        right = [int((each == labels).sum()) for each in (expected, answers)]
        loss = 100 * (right[0] - right[1]) / len(labels)
        sentence = (
            f"its accuracy on {len(labels)} images of valid is {_share(right[1], len(labels))}, that of float32 "
            f"{_share(right[0], len(labels))}"
        )
        if loss > max_loss:
            raise DogbreedError(f"{file} was not kept: {sentence}; allowed are {max_loss:g} points less (--max-loss).")
        milliseconds = _milliseconds(sessions, images[:1])
    accuracies = {"valid_acc": right[1] / len(labels), "valid_acc_float32": right[0] / len(labels)}
    measured = {"images": len(labels), "same_top1": agreement, **accuracies, "float32_layers": kept}
    list_runtime(folder, "int8", {"sha256": digest(file), **measured})
    print(f"{file} ({size(file.stat().st_size)}; float32 {size(exact.stat().st_size)}): {sentence}.")
    layers = f" with the first {kept} layers in float32" if kept else ""
    print(f"Of these images {agreement:.1%} get the same class{layers}. An image takes {milliseconds[1]:.1f} ms, in "
          f"float32 {milliseconds[0]:.1f} ms. --runtime int8 takes it; no certificate covers it.")  # fmt: skip


def _share(right: int, total: int) -> str:
    low, high = wilson_interval(right, total)
    return f"{right / total:.1%} (95 % interval {low:.1%} to {high:.1%})"


def _read(files: Sequence[tuple[Path, int]], preprocessing: Any) -> tuple[Inputs, NDArray[np.int64]]:
    """Return the inputs [N, 3, S, S] of the images that can be read, and their labels."""
    inputs, labels = [], []
    for path, label in files:
        with suppress(BadImage):
            inputs.append(read_image(path, preprocessing).numpy())
            labels.append(label)
    if not inputs:
        raise DogbreedError("None of the images of valid can be read, so there is nothing to quantise with.")
    return np.stack(inputs), np.array(labels)


def _quantise(exact: Path, images: Inputs, file: Path, share: float) -> int:
    """Write a file whose first layers, a share of those with weights, stay in float32; return how many they are."""
    try:
        import onnx
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise DogbreedError(f"int8 needs {error.name}, which is not installed: {install('onnx')}.") from error
    reader: Any = _Reader(images)
    with TemporaryDirectory(prefix="dogbreed-int8-") as temporary, quiet():
        prepared = Path(temporary) / "prepared.onnx"
        quant_pre_process(str(exact), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(str(prepared), load_external_data=False).graph.node
        weighted = [node.name for node in nodes if node.op_type in ("Conv", "Gemm", "MatMul")]
        first = weighted[: int(share * len(weighted))]
        quantization.quantize_static(
            str(prepared),
            str(file),
            reader,
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
            nodes_to_exclude=first,
        )
    return len(first)


class _Reader:
    """Images one by one, as the calibration of ONNX Runtime takes them."""

    def __init__(self, images: Inputs) -> None:
        self._batches = iter(images)

    def get_next(self) -> dict[str, Inputs] | None:
        image = next(self._batches, None)
        return None if image is None else {"images": image[None]}


def _answers(one: Any, images: Inputs) -> Iterator[Inputs]:
    for start in range(0, len(images), BATCH):
        yield one.run(["logits"], {"images": images[start : start + BATCH]})[0]


def _milliseconds(sessions: Sequence[Any], image: Inputs) -> list[float]:
    """Return the median time of one image, measured in turns."""
    taken: list[list[float]] = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for one, own in zip(sessions, taken, strict=True):
            started = time.perf_counter()
            one.run(["logits"], {"images": image})
            own.append(1000 * (time.perf_counter() - started))
    return [median(own) for own in taken]
