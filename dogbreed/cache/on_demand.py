"""Features that are computed when they are asked for, in the order of the epoch, so that a run trains at once.

All of it happens in the process that asks, between its steps, and nothing is computed twice. A batch waits for its own
rows; workers decode the next images meanwhile, which are computed when a batch asks for them.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from dogbreed.cache.extract import Extraction, missing_views, row_keys
from dogbreed.cache.store import NOT_COMPUTED, Keys, Store, Table
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Indices
from dogbreed.data.samplers import turns
from dogbreed.models.cut import checksum

HOOKS = ("_forward_hooks", "_forward_pre_hooks")  # of a module


class OnDemand:
    """The features of one process, some of which are still missing.

    Args:
        store: Where they go; described, with room for them.
        prefix: Computes them.
        data: Of the run.
        used: Which views may be asked for, [views, images] per split.
        device: Where the prefix runs.
        precision: As it is in effect.
        epoch: Returns the current one.
        lock: Keeps other processes from the same work; released when the first split is done.
        note: Is called with rows, seconds and seconds of decoding whenever some were computed.
        quiet: No progress.

    Attributes:
        awaits_close: Whether somebody calls `close`; else workers end with each request that they are needed for.
    """

    def __init__(
        self,
        store: Store,
        prefix: fx.GraphModule,
        data: DogImages,
        used: Mapping[str, NDArray[np.bool_]],
        *,
        device: torch.device,
        precision: str,
        epoch: Callable[[], int],
        lock: ExitStack,
        note: Callable[[int, float, float], None],
        quiet: bool,
    ) -> None:
        self.store, self.prefix, self.data, self.used = store, prefix, data, used
        self.device, self.precision, self.quiet = device, precision, quiet
        self.awaits_close = False
        self._epoch, self._lock, self._note = epoch, lock, note
        self._checksum = checksum(prefix)
        self._keys = {split: row_keys(files) for split, files in data.samples.items()}
        self._extractions: dict[str, Extraction] = {}
        self._tables: dict[str, Table] = {}
        self._begun = False  # with the training images
        for split in data.samples:
            self._settle(split)

    def readers(self) -> dict[str, "Rows"]:
        """Return what reads the features of each split."""
        return {split: Rows(self, split) for split in self.data.samples}

    def read(self, split: str, indices: Indices, views: Indices) -> Tensor:
        """Return features [N, *shape] in float32, computing what is missing; arguments as of `Table`."""
        keys = self._keys[split][views, indices]
        if split not in self._tables:
            self._compute(split, keys)
        if table := self._tables.get(split):
            return table(indices, views)
        result = torch.empty(len(keys), *self.store.shape)
        stored = self.store.holds(keys)
        here = np.flatnonzero(stored)
        result[torch.from_numpy(here)] = self.store.table(keys[None, here])(np.arange(len(here)), np.zeros_like(here))
        for place in np.flatnonzero(~stored).tolist():
            result[place] = self._extractions[split].block.rows[keys[place]]
        return result

    def close(self) -> None:
        """End what is under way; what is computed is kept, and the rest is still computed when it is asked for."""
        with ExitStack() as ending:
            ending.push(self._lock)
            for extraction in self._extractions.values():
                ending.push(extraction)
            self._extractions.clear()

    def _compute(self, split: str, keys: Keys) -> None:
        """Compute those of these rows of a split that are neither in the store nor waiting to be written.

        Raises:
            DogbreedError: They are not among those that were announced, or the disk is full, or an image is gone.
        """
        started, rows, decoding = time.monotonic(), 0, 0.0
        try:
            while absent := self._absent(split, keys):
                with _as_before(self.prefix, self.device):
                    extraction = self._extractions.get(split) or self._begin(split)
                    before = extraction.rows, extraction.decoding
                    extraction.advance(absent)
                rows, decoding = rows + extraction.rows - before[0], decoding + extraction.decoding - before[1]
                if not extraction.left:
                    self._end(split)
        except BaseException:
            self.close()
            raise
        if not self.awaits_close:
            self.close()
        seconds = time.monotonic() - started if rows else 0.0
        self.data.features_seconds += seconds
        self._note(rows, seconds, decoding)

    def _absent(self, split: str, keys: Keys) -> set[bytes]:
        absent: set[bytes] = set(keys[~self.store.holds(keys)].tolist())
        extraction = self._extractions.get(split)
        return absent.difference(extraction.block.rows) if extraction else absent

    def _begin(self, split: str) -> Extraction:
        """Start with what is missing of a split: of the training images first with what one epoch needs."""
        if checksum(self.prefix) != self._checksum:
            raise DogbreedError(
                "The frozen part of the network has changed while its features were computed; cache.mode=off trains "
                "without them."
            )
        self.store.refresh()  # another process may have written them
        files, used, turn = self.data.samples[split], self.used[split], None
        parts = [used]
        if split == "train":
            turn = turns(self.data.seed, self._epoch(), len(used), len(files), self.data.batch_size)
            if not self._begun:
                parts = [used & (turn < len(files)), used]
        every = (missing_views(self.store, {split: files}, {split: part}, turn) for part in parts)
        missing = next(filter(len, every), None)
        if missing is None:
            raise DogbreedError(NOT_COMPUTED)
        self._begun = self._begun or split == "train"
        self._extractions[split] = Extraction(
            self.store,
            self.prefix,
            missing,
            self.data,
            device=self.device,
            precision=self.precision,
            quiet=self.quiet,
            what=f"Computing features of {split}",
        )
        return self._extractions[split]

    def _end(self, split: str) -> None:
        with self._extractions.pop(split):
            pass
        self._lock.close()
        self._settle(split)

    def _settle(self, split: str) -> None:
        """Read a split from the store alone, once all of it is there."""
        if self.store.holds(self._keys[split][self.used[split]]).all():
            self._tables[split] = self.store.table(self._keys[split])


class Rows:
    """Features of a split, as `Table` has them, which are computed when they are asked for."""

    def __init__(self, source: OnDemand, split: str) -> None:
        self.source, self.split = source, split

    def first_views(self) -> tuple[Indices, Indices]:
        """Return the images that have features, and the first view of each that has."""
        used = self.source.used[self.split]
        images = np.flatnonzero(used.any(0))
        return images, used.argmax(0)[images]

    def __call__(self, indices: Indices, views: Indices) -> Tensor:
        """Return features [N, *shape] in float32 of images `indices` [N], each seen as `views` [N] says."""
        return self.source.read(self.split, indices, views)


@contextmanager
def _as_before(prefix: nn.Module, device: torch.device) -> Iterator[None]:
    """Hold a network in evaluation on a device, unseen by hooks; afterwards all of that is as it was.

    A debugger's hooks see the run as they see it with features that are there: without the frozen part.
    """
    modules = list(prefix.modules())
    modes = [(module, module.training) for module in modules]
    hooks = [(module, name, getattr(module, name)) for module in modules for name in HOOKS]
    devices = {value.device for value in prefix.parameters()}
    for module, name, _ in hooks:
        setattr(module, name, OrderedDict())
    prefix.eval().to(device)
    try:
        yield
    finally:
        for module, name, own in hooks:
            setattr(module, name, own)
        for module, mode in modes:
            module.training = mode
        if devices:
            prefix.to(devices.pop())
