"""One model that answers many requests at once, within limits.

A request passes four gates, each with its own limit and its own error: its body (size and time), its content
(`schema`), its images (decoded by a few threads) and the network (`batcher`).
"""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from starlette.requests import Request
from torch import Tensor

from dogbreed.core.threads import set_num_threads
from dogbreed.data.images import BadImage
from dogbreed.inference import schema
from dogbreed.inference.predictor import Predictor
from dogbreed.inference.schema import Options, RequestError
from dogbreed.serving.batcher import Batcher
from dogbreed.serving.prometheus import Metrics

MAX_MAPS = 10  # heat maps in one response; each is a pass back through the last layers


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        body_bytes: Of one request.
        body_seconds: Until its body has arrived.
        held_bytes: Bodies of all requests together.
        queue: Requests that have arrived and are not answered.
        answer_seconds: From its arrival to the response.
    """

    body_bytes: int = 20_000_000
    body_seconds: float = 30.0
    held_bytes: int = 400_000_000
    queue: int = 64
    answer_seconds: float = 60.0


class Busy(RequestError):
    """A request that may succeed in a moment."""

    def __init__(self, sentence: str) -> None:
        super().__init__(503, sentence)


class Service:
    """A model behind its limits.

    Args:
        predictor: The model.
        limits: What requests may take.
        max_batch: Images in one pass.
        max_wait: Longest time a pass waits for images that are being decoded, in seconds.
        threads: Of torch in a pass, and for decoding; None takes one per core.
    """

    def __init__(
        self,
        predictor: Predictor,
        limits: Limits | None = None,
        *,
        max_batch: int = 8,
        max_wait: float = 0.01,
        threads: int | None = None,
    ) -> None:
        self.predictor, self.limits = predictor, limits or Limits()
        threads = threads or torch.get_num_threads()
        self.metrics = Metrics(predictor.model.backbone, len(predictor.class_names))
        # Each decodes on one core: torch's threads within these threads would only compete.
        self.decoders = ThreadPoolExecutor(threads, "decoder", initializer=partial(set_num_threads, 1))
        self.batcher = Batcher(
            predictor.outputs, max_batch=max_batch, max_wait=max_wait, threads=threads, on_pass=self.metrics.count_pass
        )
        self.running = self.held = self.cut_off = 0
        self.metrics.watch(lambda: self.running, lambda: self.batcher.waiting)

    def close(self) -> None:
        """Answer what is waiting, and end the threads."""
        self.batcher.close()
        self.decoders.shutdown()

    async def predict(self, request: Request) -> tuple[str, str]:
        """Return the response's body and type.

        Raises:
            RequestError: With the status and the sentence of the response.
        """
        accept = ",".join(request.headers.getlist("accept"))
        kind, options = schema.negotiate(accept, Options().merge(request.query_params))
        async with self._body(request) as body:
            content, inputs = await self._decode(body, request.headers.get("content-type"), options)
            outputs = await _results(*(self.batcher.submit(value) for value in inputs if isinstance(value, Tensor)))
            responses = self.predictor.responses(inputs, outputs, content.options)
        return schema.write(content, responses, kind), kind

    async def explain(self, request: Request) -> dict[str, Any]:
        """Return the classes of one image, each with where the network looked.

        Returns:
            `predictions` as in the schema; `heat_map` in each, rows of numbers from 0 to 1, where the network has a
            map; `resize` and `seen`, how the image became the input and the central share of its shorter side; `set`,
            `abstain` and `in_domain` where the model has thresholds; `similar` where it was asked for.

        Raises:
            RequestError: With the status and the sentence of the response.
        """
        options = Options().merge(request.query_params)
        model = self.predictor.model
        async with self._body(request) as body:
            content, inputs = await self._decode(body, request.headers.get("content-type"), options)
            if content.several:
                raise RequestError(400, "One image is explained at a time.")
            if isinstance(inputs[0], BadImage):
                raise RequestError(400, str(inputs[0]))
            top_k = min(content.options.top_k, MAX_MAPS)
            task = partial(self.predictor.explain, inputs[0][None], top_k)
            ((output, maps),) = await _results(self.batcher.run(task))
        most = content.options.similar
        (prediction,) = self.predictor.answers([output], top_k, most)
        scores = [score.to_dict() for score in prediction.top]
        if maps is not None:
            scores = [score | {"heat_map": _round(heat)} for score, heat in zip(scores, maps, strict=True)]
        preprocessing = model.preprocessing
        seen = 1.0 if preprocessing.resize == "squash" else preprocessing.size / preprocessing.resize_size
        answer = {"predictions": scores, "resize": preprocessing.resize, "seen": seen}
        return answer | schema.certainty_fields(prediction) | schema.similar_field(prediction, most)

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """Give the body within its limits; until the end of the block the request counts as waiting.

        Raises:
            Busy: The block takes longer than a request may wait for its response.
        """
        body, seconds = await self._receive(request), self.limits.answer_seconds
        try:
            if self.running >= self.limits.queue:
                raise Busy(f"{self.limits.queue} requests are waiting already; try again in a moment.")
            self.running += 1
            try:
                async with asyncio.timeout(seconds):
                    yield body
            except TimeoutError as error:
                raise Busy(f"There was no answer within {seconds:g} seconds; try again.") from error
            finally:
                self.running -= 1
        finally:
            self.held -= len(body)

    async def _receive(self, request: Request) -> bytes:
        limits, body = self.limits, bytearray()
        if (encoding := request.headers.get("content-encoding", "identity").strip().lower()) not in ("", "identity"):
            raise RequestError(415, f"Content-Encoding {encoding[:40]!a} is not supported; send the body as it is.")
        too_large = RequestError(
            413, f"The request is larger than {limits.body_bytes / 1e6:g} MB; send a smaller file."
        )
        if int(request.headers.get("content-length", 0)) > limits.body_bytes:
            raise too_large
        try:
            async with asyncio.timeout(limits.body_seconds):
                async for part in request.stream():
                    body += part
                    self.held += len(part)
                    if len(body) > limits.body_bytes:
                        raise too_large
                    if self.held > limits.held_bytes:
                        raise Busy("Too many large requests are under way; try again in a moment.")
        except BaseException as error:
            self.held -= len(body)
            if isinstance(error, TimeoutError):
                late = f"The request did not arrive within {limits.body_seconds:g} seconds."
                raise RequestError(408, late) from error
            raise
        return bytes(body)

    async def _decode(
        self, body: bytes, content_type: str | None, options: Options
    ) -> tuple[schema.Request, list[Tensor | BadImage]]:
        """Return the request in a body, and the network's inputs of its images; a decoder's thread reads them.

        Of several images one at a time waits for a thread: a client that sends many large ones waits for them, and
        others do not.
        """
        decoder = partial(asyncio.get_running_loop().run_in_executor, self.decoders)

        def first() -> tuple[schema.Request, list[Tensor | BadImage]]:
            content = schema.read(body, content_type, options)
            return content, [self._read(content.images[0])]

        with self.batcher.coming():
            content, inputs = await decoder(first)
            for image in content.images[1:]:
                inputs.append(await decoder(self._read, image))
        return content, inputs

    def _read(self, image: bytes) -> Tensor | BadImage:
        with self.metrics.time_decoding():
            return self.predictor.try_read(image)


async def _results(*futures: "Future[Any]") -> list[Any]:
    return list(await asyncio.gather(*(asyncio.wrap_future(future) for future in futures)))


def _round(heat: Tensor) -> list[list[float]]:
    return [[round(value, 3) for value in row] for row in heat.tolist()]
