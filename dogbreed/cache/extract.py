"""The features of the frozen part: what is missing in a store, and how it is computed."""

import hashlib
import json
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import PIL
import torch
import torchvision
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils.data import Dataset

from dogbreed.cache import feed
from dogbreed.cache.store import KEY, Keys, Store, row_key
from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import track
from dogbreed.data.columns import comparable
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import ImageLoader, Indices, SplitFiles
from dogbreed.data.images import REVISION, Preprocessing, View, decode, load, to_input
from dogbreed.models import winograd
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.backbones import to_channels_last
from dogbreed.models.cut import fingerprint
from dogbreed.models.timm_networks import versions as timm_versions

# What features are kept in. `tf32` and, on CUDA, `float16` say what they are computed in, too.
PRECISIONS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "tf32": torch.float32,
}
BLOCK_BYTES = 64 << 20
BLOCK_SECONDS = 15.0


def store_key(prefix: fx.GraphModule, preprocessing: Preprocessing, precision: str, device: torch.device) -> str:
    """Return the key of all that turns an image's bytes into features; `precision` as it is in effect on the device."""
    steps = preprocessing.to_dict()
    if preprocessing.resize == "squash":  # looks at the size alone; the usual other value is in older stores' keys
        steps["resize_size"] = round(preprocessing.size * 256 / 224)
    ingredients: dict[str, Any] = {
        "prefix": fingerprint(prefix),
        "preprocessing": steps,
        "images": REVISION,
        "precision": precision,
        "device": device.type,
        "plan": str(plan(prefix, device)),
        "versions": [torch.__version__, torchvision.__version__, PIL.__version__, *timm_versions(prefix)],
    }
    if device.type == "cuda":
        ingredients["cudnn"] = torch.backends.cudnn.version()
    return hashlib.blake2b(json.dumps(ingredients, sort_keys=True).encode(), digest_size=12).hexdigest()


def row_keys(samples: SplitFiles) -> Keys:
    """Return the row keys of a split by view and image, [views, images]."""
    keys = np.empty((len(samples.views), len(samples)), KEY)
    for view, views in enumerate(samples.views):
        for index, (digest, one) in enumerate(zip(samples.digests, views, strict=True)):
            keys[view, index] = row_key(digest, one)
    return keys


def used_keys(splits: Mapping[str, SplitFiles], used: Mapping[str, NDArray[np.bool_]]) -> Keys:
    """Return the row keys of the views that are needed, each once; `used` is as in `missing_views`."""
    return np.unique(np.concatenate([row_keys(files)[used[split]] for split, files in splits.items()]))


class MissingViews(NamedTuple):
    """One image and the views of it that are missing."""

    path: Path
    views: list[View]
    keys: list[bytes]


class Missing(Sequence[MissingViews]):
    """What has to be computed, an entry per image; equal images are computed once.

    Args:
        samples: The images of several splits.
        rows: [M, 4]: for each missing row its image, counted from 0, and where it is: position of the split, view and
            position of the image; the rows of an image are neighbours.
    """

    def __init__(self, samples: Sequence[SplitFiles], rows: Indices) -> None:
        self.samples, self.rows = samples, rows
        self._starts = np.unique(rows[:, 0], return_index=True)[1]

    @property
    def views(self) -> int:
        """Number of all rows."""
        return len(self.rows)

    @property
    def most_views(self) -> int:
        """Number of rows of the image that has most."""
        return int(np.diff(self._starts, append=self.views).max())

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> MissingViews: ...
    @overload
    def __getitem__(self, index: slice) -> "Missing": ...
    def __getitem__(self, index: int | slice) -> "MissingViews | Missing":
        if isinstance(index, slice):
            images = self.rows[self._starts[index], 0]
            return Missing(self.samples, self.rows[np.isin(self.rows[:, 0], images)])
        start = self._starts[index]
        own = slice(start, self._starts[index + 1] if index + 1 < len(self) else None)
        rows = self.rows[own].tolist()
        files, image = self.samples[rows[0][1]], rows[0][3]
        views = [self.samples[split].views[view][position] for _, split, view, position in rows]
        # Without zeros at the end, as numpy hands them out.
        keys = [row_key(files.digests[image], view).rstrip(b"\0") for view in views]
        return MissingViews(files.paths[image], views, keys)


def missing_views(
    store: Store,
    splits: Mapping[str, SplitFiles],
    used: Mapping[str, NDArray[np.bool_]],
    turn: Indices | None = None,
) -> Missing:
    """Return what has to be computed.

    Args:
        store: Holds what was computed before.
        splits: The images.
        used: Which of their views are needed, [views, images] per split.
        turn: Of a single split, the order in which they are needed, [views, images]: the lowest first.
    """
    samples, keys, digests, rows = list(splits.values()), [], [], []
    for number, (split, files) in enumerate(splits.items()):
        view, image = np.nonzero(used[split])
        if turn is not None:
            order = turn[view, image].argsort(kind="stable")
            view, image = view[order], image[order]
        keys.append(row_keys(files)[view, image])
        digests.append(comparable(files.digests)[image])
        rows.append(np.stack([np.zeros_like(view), np.full_like(view, number), view, image], 1))
    key, digest, row = np.concatenate(keys), np.concatenate(digests), np.concatenate(rows)
    first = np.sort(np.unique(key, return_index=True)[1])
    wanted = first[~store.holds(key[first])]
    _, start, of = np.unique(digest[wanted], return_index=True, return_inverse=True)
    image = start.argsort().argsort()[of]  # numbered in the order in which they come
    order = image.argsort(kind="stable")
    row = row[wanted][order]
    row[:, 0] = image[order]
    return Missing(samples, row)


class _MissingImages(Dataset[tuple[int, Tensor, float]]):
    """The missing views [V, 3, S, S] of one image, and the seconds that a processor took to make them."""

    def __init__(self, missing: Missing, preprocessing: Preprocessing, max_pixels: int) -> None:
        self.missing, self.preprocessing, self.max_pixels = missing, preprocessing, max_pixels

    def __len__(self) -> int:
        return len(self.missing)

    def __getitem__(self, index: int) -> tuple[int, Tensor, float]:
        started = time.thread_time()
        path, views, _ = self.missing[index]
        if any(view.box for view in views):
            inputs = [load(path, self.preprocessing, view, max_pixels=self.max_pixels) for view in views]
        else:  # whole views differ in being mirrored only: one decoding serves all
            image = decode(path, target=self.preprocessing.side, max_pixels=self.max_pixels)
            inputs = [to_input(image, self.preprocessing, view) for view in views]
        return index, torch.stack(inputs), time.thread_time() - started


class Plan(NamedTuple):
    """How the prefix is run. It depends on the network and the machine's kind alone, never on a timing: kernels round
    differently, and a build that goes on should come to the same numbers.

    Attributes:
        images: Number in one pass. On a CPU few, so that what one layer leaves for the next stays in reach of malloc
            and of the processor's caches: MobileNetV2 runs twice as fast with 4 as with 32.
        kernels: `direct`, or the name of those that `dogbreed.models.winograd` puts in their place.
    """

    images: int
    kernels: str


def plan(prefix: fx.GraphModule, device: torch.device) -> Plan:
    """Choose how to run a prefix: on a CPU, 3x3 convolutions of stride 1 go through `winograd`."""
    if device.type != "cpu":
        return Plan(64, "direct")
    return Plan(16, winograd.name()) if winograd.pays(prefix) else Plan(4, "direct")


class Extraction(AbstractContextManager["Extraction"]):
    """The computation of what is missing, which goes on as far as it is asked to, and is added to the store by blocks.

    Between two calls of `advance` everything is as it was, but that the images to come are decoded, by workers. At the
    end, also after Ctrl-C, what is computed by then is kept.

    Args:
        store: Where the features go.
        prefix: In evaluation mode, on `device`.
        missing: What is missing.
        data: Says how images become inputs, and with how many workers.
        device: Where the prefix runs.
        precision: As it is in effect (`arithmetic.effective`).
        quiet: No progress.
        what: The progress is shown as this.

    Attributes:
        block: Rows that are computed, and not in the store yet.
        rows: Number of rows that were computed.
        left: Number of those that were not.
        decoding: Seconds of one processor for decoding their images.
    """

    def __init__(
        self,
        store: Store,
        prefix: fx.GraphModule,
        missing: Missing,
        data: DogImages,
        *,
        device: torch.device,
        precision: str,
        quiet: bool = False,
        what: str = "Computing features",
    ) -> None:
        self.block, self.rows = Block(store, beside=device.type == "cuda"), 0
        self.left, self.decoding = missing.views, 0.0
        self._device, self._precision, self._how = device, precision, plan(prefix, device)
        self._network = _made_for(self._how, prefix, precision)
        on_gpu = device.type == "cuda"
        self._passes = (
            feed.passes(missing, data, self._how.images, device) if on_gpu else _passes(missing, data, self._how.images)
        )
        self._images, self._ahead = self._how.images, feed.AHEAD if on_gpu else 0
        self._open = ExitStack()
        self._progress = self._open.enter_context(track(missing.views, what, "views", quiet=quiet))

    def advance(self, keys: Iterable[bytes] | None = None) -> None:
        """Compute until these rows are there, or all; fewer where they are not among the missing.

        Raises:
            DogbreedError: The disk is full, or a feature is too large for float16.
            OutOfMemoryError: The device's memory does not hold a pass of one image.
        """
        awaited = None if keys is None else set(keys)
        with (
            float32_as(self._precision, self._device),
            torch.autocast(self._device.type, enabled=False),
            _running(self._network, self._how, self._device, self._precision) as network,
        ):
            compute = _Pass(network, self._device, self._images, self.block.store.dtype)
            under_way: deque[tuple[list[bytes], _Features, float]] = deque()
            while awaited is None or awaited:
                computed, inputs, seconds = next(self._passes, (None, None, 0.0))
                if computed is None or inputs is None:
                    break
                under_way.append((computed, compute(inputs), seconds))
                self._images = compute.images
                if awaited is not None:
                    awaited.difference_update(computed)
                if len(under_way) > self._ahead:
                    self._take(*under_way.popleft())
            for one in under_way:
                self._take(*one)

    def _take(self, keys: list[bytes], features: "_Features", seconds: float) -> None:
        self.block.add(keys, features.get())
        self.rows += len(keys)
        self.left -= len(keys)
        self.decoding += seconds
        self._progress.advance(len(keys))

    def __exit__(self, *error: object) -> None:
        with self._open:
            self._passes.close()
            self.block.close()


class Block:
    """Rows that wait to be written together.

    Args:
        store: Where they go, as soon as they are many, or the oldest has waited long.
        beside: Whether a thread writes them while others are computed.
    """

    def __init__(self, store: Store, beside: bool = False) -> None:
        self.store, self.beside = store, beside
        self.rows: dict[bytes, Tensor] = {}
        self.written = time.monotonic()
        self._writer = ThreadPoolExecutor(1)
        self._leaving: dict[bytes, Tensor] = {}  # those of `rows` that are being written
        self._write: Future[None] | None = None

    def add(self, keys: list[bytes], features: Tensor) -> None:
        """Take the first features [N, ...], one for each key."""
        self.rows.update(zip(keys, features[: len(keys)], strict=True))
        full = (len(self.rows) - len(self._leaving)) * self.store.row_bytes >= BLOCK_BYTES
        if full or time.monotonic() - self.written > BLOCK_SECONDS:
            self._begin()
            if not self.beside:
                self._finish()

    def close(self) -> None:
        """Write what waits, all of it."""
        with self._writer:
            self._begin()
            self._finish()

    def _begin(self) -> None:
        self._finish()
        if self.rows:
            rows = self._leaving = dict(self.rows)
            self._write = self._writer.submit(lambda: self.store.add(list(rows), torch.stack([*rows.values()])))
        self.written = time.monotonic()

    def _finish(self) -> None:
        """Wait for what is being written; from then on it is in the store."""
        if self._write is None:
            return
        write, self._write = self._write, None
        leaving, self._leaving = self._leaving, {}
        try:
            write.result()
        except DogbreedError:  # they would not go there the next time either
            self.rows.clear()
            raise
        self.store.refresh()
        for key in leaving:
            del self.rows[key]


class _Pass:
    """A pass of the prefix, in as many parts as the device's memory asks for.

    Args:
        network: Images to features.
        device: Where it runs.
        images: Number in the first part that is tried.
        dtype: What features are kept in.
    """

    def __init__(self, network: nn.Module, device: torch.device, images: int, dtype: torch.dtype) -> None:
        self.network, self.device, self.images, self.dtype = network, device, images, dtype
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # of the way back

    def __call__(self, inputs: Tensor) -> "_Features":
        images = inputs.to(self.device).contiguous(memory_format=torch.channels_last)
        while True:
            try:
                parts = [self.network(part) for part in images.split(self.images)]
                return _Features(torch.cat(parts) if len(parts) > 1 else parts[0], self.dtype, self.stream)
            except torch.OutOfMemoryError:
                if self.images == 1:
                    raise
            # Behind the handler, whose traceback holds on to the memory.
            self.images //= 2
            torch.cuda.empty_cache()


class _Features(feed.Returning):
    """Features in the dtype that they are kept in."""

    def __init__(self, features: Tensor, dtype: torch.dtype, stream: Any) -> None:
        super().__init__(features.to(dtype), stream)
        self._exact = features if dtype == torch.float16 else None

    def get(self) -> Tensor:
        kept = super().get()
        if self._exact is not None and kept.isinf().any() and not self._exact.isinf().any():
            raise DogbreedError("a feature is too large for float16; take cache.precision=float32 or bfloat16")
        return kept


class InFloat16(nn.Module):
    """A network that computes in float16, and an image again in float32 where that does not hold its features."""

    def __init__(self, network: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.network, self.kind = network, device.type

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast(self.kind, dtype=torch.float16):
            features: Tensor = self.network(images).float()
        finite = features.flatten(1).isfinite().all(1)
        if not finite.all():
            features[~finite] = self.network(images)[~finite]
        return features


def _passes(missing: Missing, data: DogImages, images: int) -> Generator[tuple[list[bytes], Tensor, float]]:
    """Yield batches and what decoding took since the one before.

    They have one shape, the last padded with zeros: kernels are chosen by shape, and round differently.
    """
    source = _MissingImages(missing, data.preprocessing, data.max_pixels)
    workers = min(data.num_workers, len(missing) // 16)
    image_bytes = 12 * data.preprocessing.size**2 * missing.most_views
    loader = ImageLoader(
        source, batch_size=None, num_workers=workers, batch_bytes=image_bytes, generator=torch.Generator()
    )
    keys: list[bytes] = []
    inputs: list[Tensor] = []
    decoding = 0.0
    for index, views, seconds in loader:
        decoding += seconds
        keys.extend(missing[index].keys)
        inputs.extend(views)
        while len(inputs) >= images:
            yield keys[:images], torch.stack(inputs[:images]), decoding
            decoding = 0.0
            del keys[:images], inputs[:images]
    if inputs:
        padding = [torch.zeros_like(inputs[0])] * (images - len(inputs))
        yield keys, torch.stack(inputs + padding), decoding


@contextmanager
def prepared(prefix: fx.GraphModule, how: Plan, device: torch.device, precision: str) -> Iterator[nn.Module]:
    """Give the prefix as planned: images [N, 3, S, S], channels last, to features."""
    with _running(_made_for(how, prefix, precision), how, device, precision) as network:
        yield network


def _made_for(how: Plan, prefix: fx.GraphModule, precision: str) -> nn.Module:
    """Return the prefix itself, or a copy with other kernels."""
    if how.kernels != "direct":
        return winograd.accelerate(prefix, torch.bfloat16 if precision == "bfloat16" else torch.float32)
    to_channels_last(prefix)
    return prefix


@contextmanager
def _running(network: nn.Module, how: Plan, device: torch.device, precision: str) -> Iterator[nn.Module]:
    """Hold what `_made_for` returns in the arithmetic of a precision."""
    if how.kernels != "direct":
        with torch.inference_mode():
            yield network
        return
    with torch.inference_mode(), in_bfloat16(network, device) if precision == "bfloat16" else nullcontext():
        yield InFloat16(network, device) if precision == "float16" and device.type == "cuda" else network


@contextmanager
def in_bfloat16(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Autocast with the weights of convolutions and linear layers cast once instead of in every pass.

    VGG16 runs 1.3 times as fast for it on a CPU. Their old values come back at the end.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    kept = [(parameter, parameter.data) for layer in layers for parameter in layer.parameters(recurse=False)]
    for parameter, values in kept:
        parameter.data = values.bfloat16()
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            yield
    finally:
        for parameter, values in kept:
            parameter.data = values
