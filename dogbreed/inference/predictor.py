"""`Predictor`: from photographs to breeds with an exported model, the same way in a script, a server or an endpoint."""

import copy
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import MAX_PIXELS, BadImage, load
from dogbreed.inference import model_folder
from dogbreed.inference.schema import TOP_K, ClassScore, Request, Response
from dogbreed.models import winograd

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# Of 64 in one pass, what goes in and out of VGG16's second layer alone takes 1.6 GB (2 x 64 x 224 x 224 floats each).
IMAGES_A_PASS = 8

Source = str | os.PathLike[str] | bytes


@dataclass(frozen=True)
class Prediction:
    """The answer for one photograph.

    Attributes:
        label: The most probable breed.
        index: Its place among the class names.
        probability: Calibrated with the exported temperature, from 0 to 1.
        top: The most probable breeds, best first: each a `label`, an `index` and a `probability`.
    """

    label: str
    index: int
    probability: float
    top: tuple[ClassScore, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        top = [guess.to_dict() for guess in self.top]
        return {"label": self.label, "index": self.index, "probability": self.probability, "top": top}


class Predictor:
    """Answers for photographs with an exported model. Safe to share between threads.

    Args:
        model: Folder of an exported model (a run's `model/`).
        device: `cpu`, `cuda`, ...; None takes a GPU where there is one.
        max_pixels: Larger images are refused before they are decoded.
        precision: `float32`, or `bfloat16` where the processor has units for it: faster, and close (README).

    Raises:
        DogbreedError: The folder does not hold a model that can be read, or the precision is unknown.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str | torch.device | None = None,
        max_pixels: int = MAX_PIXELS,
        precision: str = "float32",
    ) -> None:
        if precision not in PRECISIONS:
            raise DogbreedError(f"precision={precision} is unknown; it is one of {', '.join(PRECISIONS)}.")
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self.model = model_folder.load(model, self.device)
        self.class_names = self.model.class_names
        self.max_pixels = max_pixels
        self.precision = precision
        self._dtype = PRECISIONS[precision]
        network = self.model.network
        if self.device.type == "cpu" and winograd.pays(network):
            network = winograd.accelerate(network, self._dtype)  # in float32 it agrees to within 1e-5
        elif precision == "bfloat16":
            network = copy.deepcopy(network).to(self._dtype)
        self._network: nn.Module = network

    def predict(self, sources: Iterable[Source], *, top_k: int = TOP_K, batch_size: int = 32) -> list[Prediction]:
        """Answers for all sources, in their order.

        Args:
            sources: Paths or the bytes of image files.
            top_k: Breeds in `Prediction.top`; no more than there are classes.
            batch_size: Images in one pass.

        Raises:
            BadImage: One of them cannot be used; `try_predict` answers the others.
        """
        answers = []
        for answer in self.try_predict(sources, top_k=top_k, batch_size=batch_size):
            if isinstance(answer, BadImage):
                raise answer
            answers.append(answer)
        return answers

    def try_predict(
        self, sources: Iterable[Source], *, top_k: int = TOP_K, batch_size: int = 32
    ) -> Iterator[Prediction | BadImage]:
        """As `predict`, one by one as they are ready, with the error in place of an answer for a bad image.

        Raises:
            DogbreedError: `top_k` or `batch_size` is out of range; at once, and not with the first answer.
        """
        if top_k < 1:
            raise DogbreedError(f"top_k={top_k} is out of range; it is a whole number from 1.")
        if batch_size < 1:
            raise DogbreedError(f"batch_size={batch_size} is out of range; it is a whole number from 1.")
        return self._try_predict(iter(sources), top_k, batch_size)

    def _try_predict(self, remaining: Iterator[Source], top_k: int, batch_size: int) -> Iterator[Prediction | BadImage]:
        while group := list(islice(remaining, batch_size)):
            inputs = [self._try_read(source) for source in group]
            good = [value for value in inputs if isinstance(value, Tensor)]
            answers = iter(self.answers(self.logits(torch.stack(good)), top_k) if good else [])
            for value in inputs:
                yield value if isinstance(value, BadImage) else next(answers)

    def read(self, source: Source) -> Tensor:
        """The network's input [3, S, S] of one photograph.

        Raises:
            BadImage: It cannot be used.
        """
        return load(source, self.model.preprocessing, max_pixels=self.max_pixels)

    def logits(self, inputs: Tensor) -> Tensor:
        """Logits [N, classes] in float32 of network inputs [N, 3, S, S], on the CPU and before the temperature."""
        with torch.inference_mode():
            images = inputs.to(self.device, self._dtype).contiguous(memory_format=torch.channels_last)
            logits: Tensor = self._network(images).float().cpu()
        return logits

    def answers(self, logits: Tensor, top_k: int = TOP_K) -> list[Prediction]:
        """What logits [N, classes] say: the `top_k` most probable breeds of each row."""
        probabilities = (logits.double() / self.model.temperature).softmax(1)
        values, places = probabilities.topk(min(top_k, len(self.class_names)), dim=1)
        predictions = []
        for row_values, row_places in zip(values.tolist(), places.tolist(), strict=True):
            top = tuple(ClassScore(self.class_names[i], i, p) for i, p in zip(row_places, row_values, strict=True))
            best = top[0]
            predictions.append(Prediction(best.label, best.index, best.probability, top))
        return predictions

    def answer(self, asked: Request) -> list[Response | BadImage]:
        """Answers a request of `dogbreed.inference.schema` in the order of its images, a bad one with its error."""
        inputs = [self._try_read(image) for image in asked.images]
        good = [value for value in inputs if isinstance(value, Tensor)]
        passes = torch.stack(good).split(IMAGES_A_PASS) if good else ()
        told = iter([answer for images in passes for answer in self.told(self.logits(images), asked.options.top_k)])
        return [value if isinstance(value, BadImage) else next(told) for value in inputs]

    def told(self, logits: Tensor, top_k: int = TOP_K) -> list[Response]:
        """What `dogbreed.inference.schema` writes of logits [N, classes]."""
        rows = zip(self.answers(logits, top_k), logits.tolist(), strict=True)
        return [Response(prediction.top, row) for prediction, row in rows]

    def _try_read(self, source: Source) -> Tensor | BadImage:
        try:
            return self.read(source)
        except BadImage as error:
            return error
