"""`Predictor`: from photographs to classes with an exported model, alike in a script, a server or an endpoint."""

import copy
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import MAX_PIXELS, BadImage, load
from dogbreed.inference import onnx_runtime
from dogbreed.inference.onnx_runtime import OnnxNetwork
from dogbreed.inference.schema import (
    TOP_K,
    ClassScore,
    Options,
    Request,
    Response,
    Similar,
    certainty_fields,
    no_names,
    similar_field,
)
from dogbreed.metrics import conformal
from dogbreed.models import backbones, folding, gradcam, model_folder, winograd
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.manifest import find_model
from dogbreed.models.neighbours import HeadInput

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Of 64 in one pass, what goes in and out of VGG16's second layer alone takes 1.6 GB (2 x 64 x 224 x 224 floats each).
IMAGES_PER_PASS = 8

Source = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
SINGLE = (str, os.PathLike, bytes, Image.Image, np.ndarray)


class Output(NamedTuple):
    """What the network says of one image.

    Attributes:
        logits: [classes], in float32 on the CPU, before the temperature.
        similarity: To the nearest training images; None where the model has no index of them.
        features: [D], that the last layer took, where there is an index.
    """

    logits: Tensor
    similarity: float | None
    features: Tensor | None = None


@dataclass(frozen=True)
class Prediction:
    """The answer for one photograph.

    Attributes:
        label: The most probable class.
        index: Its index among the class names.
        probability: Calibrated with the exported temperature, from 0 to 1.
        top: The most probable classes, best first: each a `label`, an `index` and a `probability`.
        set: The classes of the 90 % set, best first; None where the model has no thresholds.
        abstain: Whether the set says too little; None without a set.
        in_domain: Whether it is like the training images; None where the model has no index of them.
        similar: The most similar training images, the nearest first: each a `path` from the folder of the data, a
            `label` and a `cosine`; None where nobody has asked.
    """

    label: str
    index: int
    probability: float
    top: tuple[ClassScore, ...]
    set: tuple[str, ...] | None = None
    abstain: bool | None = None
    in_domain: bool | None = None
    similar: tuple[Similar, ...] | None = None

    def to_dict(self, top_k: int | None = None) -> dict[str, object]:
        """Return plain values for JSON, with the first `top_k` classes."""
        top = [score.to_dict() for score in self.top[:top_k]]
        first = {"label": self.label, "index": self.index, "probability": self.probability, "top": top}
        return first | certainty_fields(self) | similar_field(self, len(self.similar or ()))


class Predictor:
    """Answers for photographs with an exported model. Safe to share between threads.

    Args:
        model: An exported model (a run's `model/`), or the folder of its run.
        device: `cpu`, `cuda`, `mps`, ...; None takes a GPU where there is one, as `trainer.accelerator=auto` does.
        max_pixels: Larger images are refused before they are decoded.
        precision: `float32`, or `bfloat16` where the processor has units for it: faster, and close.
        runtime: `torch`; `onnx` or `int8`, for which `python -m dogbreed.export --runtime` writes a file into the
            model's folder; `auto` takes `onnx` on a CPU where that file and onnxruntime are there.

    Raises:
        DogbreedError: The folder does not hold a model that can be read, or precision or runtime are unknown or cannot
            be had here.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        max_pixels: int = MAX_PIXELS,
        precision: str = "float32",
        runtime: str = "auto",
    ) -> None:
        if precision not in PRECISIONS:
            raise DogbreedError(f"precision={precision} is unknown; it is one of {', '.join(PRECISIONS)}.")
        folder = find_model(model)
        self.device = _device(device, runtime)
        self.model = model_folder.load(folder, self.device)
        self.runtime = onnx_runtime.choose(runtime, folder, self.device, precision)
        self.class_names = self.model.class_names
        self.max_pixels = max_pixels
        self.precision = precision
        self._dtype = PRECISIONS[precision]
        self._onnx = None if self.runtime == "torch" else OnnxNetwork(folder, self.runtime)
        self._network = self._fast_network() if self._onnx is None else self.model.network
        self._head_input = self._watch_head() if self.model.neighbours else None

    def _fast_network(self) -> nn.Module:
        """Return what computes in place of the model's network, with the same answers."""
        network = self.model.network
        if self.device.type == "cpu" and winograd.pays(network):
            return winograd.accelerate(network, self._dtype)  # in float32 it agrees to within 1e-5
        if self.precision == "bfloat16":
            return copy.deepcopy(network).to(self._dtype)
        return folding.fold(network) if self.device.type == "cpu" else network

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, sources: Source, *, top_k: int = ..., batch_size: int = ..., similar: int = ...
    ) -> Prediction: ...
    @overload
    def predict(
        self, sources: Iterable[Source], *, top_k: int = ..., batch_size: int = ..., similar: int = ...
    ) -> list[Prediction]: ...
    def predict(
        self, sources: Source | Iterable[Source], *, top_k: int = TOP_K, batch_size: int = 32, similar: int = 0
    ) -> Prediction | list[Prediction]:
        """Answer for one photograph, or for several in their order.

        Args:
            sources: One photograph or an iterable of them. A photograph is a path, the bytes of a file, a PIL image, or
                an array of uint8 [height, width, 3], [height, width, 4] with opacity, or [height, width] of grey.
            top_k: Classes in `Prediction.top`; no more than there are classes.
            batch_size: Images in one pass.
            similar: Number of the most similar training images in `Prediction.similar`.

        Returns:
            A prediction for one photograph, a list for an iterable.

        Raises:
            BadImage: One of them cannot be used; `try_predict` answers the others.
        """
        if isinstance(sources, SINGLE):
            return self.predict([sources], top_k=top_k, batch_size=batch_size, similar=similar)[0]
        predictions = []
        for prediction in self.try_predict(sources, top_k=top_k, batch_size=batch_size, similar=similar):
            if isinstance(prediction, BadImage):
                raise prediction
            predictions.append(prediction)
        return predictions

    def try_predict(
        self, sources: Iterable[Source], *, top_k: int = TOP_K, batch_size: int = 32, similar: int = 0
    ) -> Iterator[Prediction | BadImage]:
        """Answer one by one, as they are ready, with the error in place of the prediction for a bad image.

        Raises:
            DogbreedError: `top_k`, `batch_size` or `similar` is out of range, or the model does not know what its
                training images are called; at once, and not with the first prediction.
        """
        for name, value in (("top_k", top_k), ("batch_size", batch_size)):
            if value < 1:
                raise DogbreedError(f"{name}={value} is out of range; it must be a whole number from 1.")
        options = Options(top_k).merge({"similar": similar})
        if similar and not self.names_images:
            raise no_names()
        return self._try_predict(iter(sources), options, batch_size)

    @property
    def names_images(self) -> bool:
        """Whether the model knows what its training images are called, so that it can name similar ones."""
        return self.model.neighbours is not None and self.model.neighbours.names_images

    def _try_predict(
        self, remaining: Iterator[Source], options: Options, batch_size: int
    ) -> Iterator[Prediction | BadImage]:
        while batch := list(islice(remaining, batch_size)):
            inputs = [self.try_read(source) for source in batch]
            readable = [value for value in inputs if isinstance(value, Tensor)]
            outputs = self.outputs(torch.stack(readable)) if readable else []
            predictions = iter(self.answers(outputs, options.top_k, options.similar) if outputs else [])
            for value in inputs:
                yield value if isinstance(value, BadImage) else next(predictions)

    def read(self, source: Source) -> Tensor:
        """Return the network's input [3, S, S] of one photograph.

        Raises:
            BadImage: It cannot be used.
        """
        if isinstance(source, np.ndarray):
            source = _from_array(source)
        if isinstance(source, Image.Image):
            source = _encode(source)
        if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
            raise DogbreedError(
                f"A photograph is a path, bytes, a PIL image or an array [H, W, 3], not {type(source).__name__}."
            )
        return load(source, self.model.preprocessing, max_pixels=self.max_pixels)

    def try_read(self, source: Source) -> Tensor | BadImage:
        """Return the network's input of one photograph, or why there is none."""
        try:
            return self.read(source)
        except BadImage as error:
            return error

    def logits(self, inputs: Tensor) -> Tensor:
        """Return logits [N, classes] in float32, on the CPU and before the temperature, of inputs [N, 3, S, S]."""
        return self._compute(inputs)[0]

    def outputs(self, inputs: Tensor) -> list[Output]:
        """Return logits and similarity of each of the inputs [N, 3, S, S]."""
        return self._outputs(*self._compute(inputs))

    def _compute(self, inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return logits and, where the model has an index of its training images, what its last layer takes."""
        if self._onnx is not None:
            return self._onnx(inputs)
        with torch.inference_mode(), float32_as(self.precision, self.device):
            images = inputs.to(self.device, self._dtype).contiguous(memory_format=torch.channels_last)
            logits: Tensor = self._network(images).float().cpu()
        return logits, self._features()

    def _features(self) -> Tensor | None:
        """Return what torch's latest pass gave to the last layer."""
        return None if self._head_input is None else self._head_input.take()

    def explain(self, inputs: Tensor, top_k: int) -> tuple[Output, Tensor | None]:
        """Return the output of an input [1, 3, S, S], and where the network looked, as from `gradcam.explain_top_k`.

        Both are from torch in float32, whatever the runtime: a map needs gradients.
        """
        with float32_as("float32", self.device):
            logits, maps = gradcam.explain_top_k(self.model.network, self.model.backbone, inputs, top_k)
        return self._outputs(logits, self._features())[0], maps

    def _outputs(self, logits: Tensor, features: Tensor | None) -> list[Output]:
        if features is None or self.model.neighbours is None:
            return [Output(row, None) for row in logits]
        similarities = self.model.neighbours.similarity(features)
        return [Output(*row) for row in zip(logits, similarities, features, strict=True)]

    def _watch_head(self) -> HeadInput:
        original, name = self.model.network, backbones.head_name(self.model.network)
        head = folding.counterpart(self._network, name)
        if head is None:  # it is no linear layer, of which it takes the place
            self._network = original if self.precision == "float32" else copy.deepcopy(original).to(self._dtype)
            head = self._network.get_submodule(name)
        return HeadInput(original.get_submodule(name), head)

    def answers(self, outputs: Sequence[Output], top_k: int = TOP_K, similar: int = 0) -> list[Prediction]:
        """Return the answer for each output, with the `top_k` most probable classes and so many similar images.

        All ways to ask a model end here, so that they answer alike.
        """
        predictions = self.predictions(torch.stack([output.logits for output in outputs]), top_k)
        index = self.model.neighbours
        if index is None:
            return predictions
        answers = [
            replace(answer, in_domain=output.similarity is not None and output.similarity >= index.threshold)
            for answer, output in zip(predictions, outputs, strict=True)
        ]
        features = [output.features for output in outputs if output.features is not None]
        if not similar or not self.names_images or len(features) < len(outputs):
            return answers
        return [
            replace(
                answer, similar=tuple(Similar(path, self.class_names[label], cosine) for path, label, cosine in row)
            )
            for answer, row in zip(answers, index.matches(torch.stack(features), similar), strict=True)
        ]

    def margin(self, output: Output) -> float | None:
        """Return how far an output is from the nearest threshold of `set` and `in_domain`; None where there is none.

        In probability or similarity.
        """
        least = self.model.conformal.get("least_probability", {}).get(conformal.SERVED)
        probabilities = (output.logits.double() / self.model.temperature).softmax(0)
        distances = [] if least is None else (probabilities - least).abs().tolist()
        if self.model.neighbours is not None and output.similarity is not None:
            distances.append(abs(output.similarity - self.model.neighbours.threshold))
        return min(distances, default=None)

    def predictions(self, logits: Tensor, top_k: int = TOP_K) -> list[Prediction]:
        """Return what logits [N, classes] say, row by row: an answer but for `in_domain`."""
        names, sets = self.class_names, self.model.conformal
        probabilities = (logits.double() / self.model.temperature).softmax(1)
        least = sets.get("least_probability", {}).get(conformal.SERVED)
        sizes = [0] * len(logits) if least is None else conformal.set_sizes(probabilities, least).tolist()
        top = probabilities.topk(min(max(top_k, *sizes, 1), len(names)), dim=1)
        predictions = []
        for values, indices, size in zip(top.values.tolist(), top.indices.tolist(), sizes, strict=True):
            scores = tuple(ClassScore(names[i], i, p) for i, p in zip(indices[:top_k], values, strict=False))
            answer = Prediction(scores[0].label, scores[0].index, scores[0].probability, scores)
            if least is not None:
                abstain = conformal.abstains(size, len(names), sets["abstain_above"])
                answer = replace(answer, set=tuple(names[i] for i in indices[:size]), abstain=abstain)
            predictions.append(answer)
        return predictions

    def respond(self, request: Request) -> list[Response | BadImage]:
        """Answer a request of `dogbreed.inference.schema` in the order of its images, a bad one with its error."""
        inputs = [self.try_read(image) for image in request.images]
        readable = [value for value in inputs if isinstance(value, Tensor)]
        batches = torch.stack(readable).split(IMAGES_PER_PASS) if readable else ()
        outputs = [output for batch in batches for output in self.outputs(batch)]
        return self.responses(inputs, outputs, request.options)

    def responses(
        self, inputs: list[Tensor | BadImage], outputs: list[Output], options: Options
    ) -> list[Response | BadImage]:
        """Return what a request gets.

        Args:
            inputs: From `try_read`.
            outputs: One per input that could be read.
            options: How many classes and similar images each response has.
        """
        answers = self.answers(outputs, options.top_k, options.similar) if outputs else []
        ready = (
            Response(answer.top, output.logits.tolist(), answer.set, answer.abstain, answer.in_domain, answer.similar)
            for answer, output in zip(answers, outputs, strict=True)
        )
        return [value if isinstance(value, BadImage) else next(ready) for value in inputs]


def _device(device: str | torch.device | None, runtime: str) -> torch.device:
    """Return the device that was asked for, else that which the runtime is for."""
    if device is None:
        device = _best_device() if runtime in ("auto", "torch") else "cpu"
    return torch.device(device)


def _best_device() -> str:
    """Return what `trainer.accelerator=auto` takes."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def find_device(name: str | None) -> torch.device | None:
    """Return the device of a name, None for the best.

    Raises:
        DogbreedError: There is no such device.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise DogbreedError(f"The device {name} cannot be used on this machine; leave it out, or take cpu.") from error
    return device


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or array.size == 0 or array.shape[2:] not in ((), (3,), (4,)) or array.ndim < 2:
        shape = " x ".join(map(str, array.shape))
        raise BadImage(
            f"an array of {array.dtype}, {shape or 'one number'}; it must be uint8 of height x width x 3, or of "
            "height x width for grey"
        )
    return Image.fromarray(array)


def _encode(image: Image.Image) -> bytes:
    """Return a PIL image as a file without loss, to be read as every other."""
    file = io.BytesIO()
    try:
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
        if upright.mode in ("HSV", "La", "RGBa"):  # which no file holds
            upright = upright.convert("RGB")
        upright.save(file, "TIFF")
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImage(f"a PIL image that does not load: {error}") from error
    return file.getvalue()
