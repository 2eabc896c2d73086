"""Images on their way to a GPU, and features on their way back, while the GPU computes; it is one thread that feeds it.

Workers send the levels of a file once, pinned; the GPU mirrors and normalises them, to the very inputs that
`data.images.to_input` makes. Both copies have streams of their own.
"""

import time
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import ImageLoader
from dogbreed.data.images import Preprocessing, load_levels, normalised

IMAGES = 32  # that a worker sends at once
AHEAD = 2  # passes that are launched before the features of one are waited for


class Levels(NamedTuple):
    """The views of some images; those that are mirrored share the levels of their image.

    Attributes:
        images: Positions among the missing ones.
        levels: uint8 [L, 3, S, S].
        which: [V], for each view its levels.
        mirrored: [V], whether left and right change places.
        seconds: That a processor took for them.
    """

    images: list[int]
    levels: Tensor
    which: Tensor
    mirrored: Tensor
    seconds: float


class MissingLevels(Dataset[Levels]):
    """Levels of the missing views of some images at once."""

    def __init__(self, missing: Any, preprocessing: Preprocessing, max_pixels: int) -> None:
        self.missing, self.preprocessing, self.max_pixels = missing, preprocessing, max_pixels

    def __len__(self) -> int:
        return len(self.missing)

    def __getitems__(self, images: list[int]) -> Levels:
        started = time.thread_time()
        levels: list[Tensor] = []
        which: list[int] = []
        mirrored: list[bool] = []
        for image in images:
            path, views, _ = self.missing[image]
            boxes = list(dict.fromkeys(view.box for view in views))
            which += [len(levels) + boxes.index(view.box) for view in views]
            mirrored += [view.flip for view in views]
            levels += [load_levels(path, self.preprocessing, box, max_pixels=self.max_pixels) for box in boxes]
        together = torch.stack(levels), torch.tensor(which), torch.tensor(mirrored)
        return Levels(images, *together, time.thread_time() - started)


def passes(
    missing: Any, data: DogImages, images: int, device: torch.device
) -> Generator[tuple[list[bytes], Tensor, float]]:
    """Yield keys, inputs [images, 3, S, S] on the device, and what decoding took since the pass before.

    The last ones are filled up with black, since kernels are chosen by shape.
    """
    source = MissingLevels(missing, data.preprocessing, data.max_pixels)
    loader = ImageLoader(
        source,
        batch_size=IMAGES,
        num_workers=min(data.num_workers, len(missing) // IMAGES),
        batch_bytes=IMAGES * 3 * data.preprocessing.size**2 * missing.most_views,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    keys: list[bytes] = []
    views = torch.empty(0, 3, data.preprocessing.size, data.preprocessing.size, dtype=torch.uint8, device=device)
    decoding = 0.0
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for chunk in loader:
        decoding += chunk.seconds
        keys.extend(key for image in chunk.images for key in missing[image].keys)
        views = torch.cat([views, _views(chunk, device, stream)])
        while len(views) >= images:
            yield keys[:images], normalised(views[:images], data.preprocessing), decoding
            decoding = 0.0
            del keys[:images]
            views = views[images:]
    if keys:
        black = views.new_zeros(images - len(views), *views.shape[1:])
        yield keys, normalised(torch.cat([views, black]), data.preprocessing), decoding


def _as_it_is(levels: Levels) -> Levels:
    return levels


def _views(chunk: Levels, device: torch.device, stream: Any) -> Tensor:
    """Return the views uint8 [V, 3, S, S] on the device, channels last; they are copied there in a stream, if any."""
    beside: AbstractContextManager[Any] = torch.cuda.stream(stream) if stream else nullcontext()
    with beside:
        parts = [part.to(device, non_blocking=True) for part in (chunk.levels, chunk.which, chunk.mirrored)]
    if stream:
        current = torch.cuda.current_stream(device)
        current.wait_stream(stream)
        for part in parts:
            part.record_stream(current)
    levels, which, mirrored = parts
    views = levels.contiguous(memory_format=torch.channels_last).index_select(0, which)
    return torch.where(mirrored[:, None, None, None], views.flip(-1), views)


class Returning:
    """Features on their way from a device, which other work need not wait for.

    Args:
        features: On the device.
        stream: Of the way back; None for what is on a CPU, or goes there at once.
    """

    def __init__(self, features: Tensor, stream: Any = None) -> None:
        self._arrived = None
        if stream is None:
            self._features = features.cpu()
            return
        stream.wait_stream(torch.cuda.current_stream(features.device))
        with torch.cuda.stream(stream):
            self._features = torch.empty(features.shape, dtype=features.dtype, pin_memory=True)
            self._features.copy_(features, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(stream)
        features.record_stream(stream)

    def get(self) -> Tensor:
        """Return the features on the CPU, once they are there."""
        if self._arrived is None:
            return self._features
        if not self._arrived.query():
            self._arrived.synchronize()
        return self._features.clone()  # so that the pinned memory is free for the next
