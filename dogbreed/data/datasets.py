"""The usable images of a split, and datasets that deliver them as pixels or as remembered features."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from dogbreed.core.errors import DogbreedError
from dogbreed.core.machine import workers_with_room
from dogbreed.core.text import count
from dogbreed.data.images import BadImage, Preprocessing, View, load

SECONDS_TO_ANSWER = 600  # a worker that has brought nothing for so long hangs
Indices = NDArray[np.int64]
Transform = Callable[[Tensor], Tensor]  # of a decoded image, uint8 [3, H, W]
FeatureReader = Callable[[Indices, Indices], Tensor]  # (positions, views) of a split to features [N, ...]


class Batch(NamedTuple):
    """Images [N, 3, S, S], labels [N] and positions in the split [N]."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class FeatureBatch(NamedTuple):
    """The same with what the frozen prefix makes of the images, [N, ...], in place of the images."""

    inputs: Tensor
    labels: Tensor
    indices: Tensor


class Part(Sequence[tuple[int, int]]):
    """(position, view) of the images of a batch: a part of an order that is one array, and so can be moved as one.

    Args:
        order: Positions and views, [2, N].
        start: Of the part.
        stop: Of the part.
    """

    def __init__(self, order: Indices, start: int, stop: int) -> None:
        self.order, self.start, self.stop = order, start, stop

    @classmethod
    def of(cls, keys: Sequence[tuple[int, int]]) -> "Part":
        """Return any (position, view) as a part; those of an order stay what they are."""
        return keys if isinstance(keys, Part) else cls(np.array(keys, dtype=np.int64).reshape(-1, 2).T, 0, len(keys))

    @property
    def columns(self) -> Indices:
        """Return positions and views, [2, images of the batch]."""
        return self.order[:, self.start : self.stop]

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(*self.columns.tolist(), strict=True)

    def __getitem__(self, at: Any) -> Any:
        return list(self)[at]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)  # to a worker goes a batch, not the whole order


@dataclass(frozen=True)
class SplitFiles:
    """The usable images of one split, in a fixed order.

    Attributes:
        paths: Where the images lie.
        labels: Class of each, an index into the class names.
        digests: Digest of each file's bytes.
        views: The ways an image is looked at: `views[v][i]` is view v of image i.
    """

    paths: Sequence[Path]
    labels: Indices
    digests: Sequence[str]
    views: Sequence[Sequence[View]]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Indices) -> "SplitFiles":
        """Return the images at these positions, as a split of their own."""
        paths, digests = [self.paths[row] for row in rows], [self.digests[row] for row in rows]
        views = [[view[row] for row in rows] for view in self.views]
        return SplitFiles(paths, self.labels[rows], digests, views)


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, and why."""

    path: Path
    reason: str


class ImageDataset(Dataset[tuple[Tensor, int, int] | BadImage]):
    """Images as network inputs, addressed by (position, view); an image that has become unreadable is its BadImage.

    Args:
        files: Of a split.
        preprocessing: From image to input.
        max_pixels: Larger images are refused.
        transforms: Change a decoded image; what they draw from torch depends on seed, epoch and position alone. The
            number of a view is then `view + len(files.views) * epoch`.
        seed: Of what they draw.
    """

    def __init__(
        self,
        files: SplitFiles,
        preprocessing: Preprocessing,
        max_pixels: int,
        transforms: Sequence[Transform] = (),
        seed: int = 0,
    ) -> None:
        self.files = files
        self.preprocessing = preprocessing
        self.max_pixels = max_pixels
        self.transforms = list(transforms)
        self.seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int, int] | BadImage:
        index, view = key
        files = self.files
        epoch, view = divmod(view, len(files.views))
        change = partial(self._change, epoch, index) if self.transforms else None
        try:
            image = load(
                files.paths[index],
                self.preprocessing,
                files.views[view][index],
                max_pixels=self.max_pixels,
                change=change,
            )
        except BadImage as error:
            return error
        return image, int(files.labels[index]), index

    def _change(self, epoch: int, index: int, image: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(keyed_seed(self.seed, "transforms", epoch, index))
            for transform in self.transforms:
                image = transform(image)
        return image


def keyed_seed(seed: int, purpose: str, *numbers: int) -> int:
    """Return a seed for torch that depends on nothing but its arguments."""
    sequence = np.random.SeedSequence([seed, *purpose.encode(), *numbers])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


class ImageLoader(DataLoader[Any]):
    """Batches of images by as many workers as there is shared memory for.

    Raises here the BadImage that a worker met, of which torch would hand on the text alone, and a sentence for a worker
    that was killed or does not answer.
    """

    def __init__(self, dataset: Dataset[Any], *, num_workers: int, batch_bytes: int, **arguments: Any) -> None:
        workers = workers_with_room(num_workers, batch_bytes, loaders=2)
        if workers < num_workers:
            print(
                f"The shared memory (/dev/shm) has room for {workers} of {num_workers} workers; "
                "docker run --shm-size=2g gives it more.",
                flush=True,
            )
        persistent = arguments.pop("persistent_workers", False) and workers > 0
        timeout = SECONDS_TO_ANSWER if workers else 0
        super().__init__(dataset, num_workers=workers, persistent_workers=persistent, timeout=timeout, **arguments)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            batches = super().__iter__()
            if self.num_workers:
                _watch_workers()
            for batch in batches:
                if isinstance(batch, BadImage):
                    raise batch
                yield batch
        except RuntimeError as error:
            if "DataLoader" not in str(error):
                raise
            patience = count(SECONDS_TO_ANSWER // 60, "minute")
            raise DogbreedError(
                f"A worker that reads images was killed, or did not answer for {patience}; is the disk there, and is "
                "there memory? data.num_workers=0 reads them without workers."
            ) from error


def _watch_workers() -> None:
    """Let torch notice at once that a worker has died: it would not do so in a second run of a process.

    It sets a handler of the signal once in a process, and Lightning takes that away at the end of a run.

    Raises:
        RuntimeError: One has died already.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        return
    if getattr(signal.getsignal(signal.SIGCHLD), "__module__", None) != signal_handling.__name__:
        signal_handling._SIGCHLD_handler_set = False
        signal_handling._set_SIGCHLD_handler()
    signal_handling._error_if_any_worker_fails()


def stack_images(rows: Sequence[tuple[Tensor, int, int] | BadImage]) -> Batch | BadImage:
    """Collate rows of `ImageDataset`; the first unreadable image takes the place of the batch."""
    whole: list[tuple[Tensor, int, int]] = []
    for row in rows:
        if isinstance(row, BadImage):
            return row
        whole.append(row)
    images, labels, indices = zip(*whole, strict=True)
    inputs = torch.stack(images).contiguous(memory_format=torch.channels_last)
    return Batch(inputs, torch.tensor(labels), torch.tensor(indices))
