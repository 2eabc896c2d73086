"""`FeatureCache`: how a run uses features that are computed once."""

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from dogbreed.cache.extract import PRECISIONS, MissingViews, extract, missing_views, row_keys, store_key
from dogbreed.cache.store import META, Store, amount, cache_folder, evict, existing, locked
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.data.datamodule import DogImages
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import NoPrefix, cut

MODES = ("auto", "off", "require")


class FeatureCache(Callback):
    """Computes the frozen prefix once an image, and lets the run go on with its features.

    Args:
        mode: `auto` (used where it can be), `require` (an error where it cannot be), `off`.
        folder: Where the stores lie; None takes the user's cache folder.
        precision: `float32`, `bfloat16` (computed and kept so) or `float16` (kept so).
        max_gb: What all stores together may take, in 10^9 bytes; the longest unused go first.
        quiet: No progress.

    Attributes:
        state: `off`, `built` or `hit`, as in `metrics.json`.
        reason: Why it is off.

    Raises:
        DogbreedError: In `require` mode, where the cache cannot be used.
    """

    def __init__(
        self,
        mode: str = "auto",
        *,
        folder: str | Path | None = None,
        precision: str = "float32",
        max_gb: float = 20.0,
        quiet: bool = False,
    ) -> None:
        if mode not in MODES:
            raise DogbreedError(f"cache.mode={mode} is unknown; it is one of {', '.join(MODES)}.")
        if precision not in PRECISIONS:
            raise DogbreedError(f"cache.precision={precision} is unknown; it is one of {', '.join(PRECISIONS)}.")
        if not max_gb > 0:
            raise DogbreedError(f"cache.max_gb={max_gb} is out of range; it is more than 0.")
        self.mode, self.precision, self.max_gb, self.quiet = mode, precision, max_gb, quiet
        self.folder = cache_folder(folder) / "features"
        self.state = "off"
        self.reason = "cache.mode=off" if mode == "off" else ""
        self._ready = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fills the store, each device its share, before Lightning asks for the first batch."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(pl_module, DogBreedClassifier)
        assert isinstance(data, DogImages)
        strategy = trainer.strategy
        rank, world = self._share(trainer)
        self.attach(pl_module, data, strategy.root_device, rank, world, strategy.reduce_boolean_decision)

    def _share(self, trainer: Trainer) -> tuple[int, int]:
        """Rank and number among the processes that see the same folder: all, or those of this machine alone."""
        if trainer.num_nodes == 1:
            return trainer.global_rank, trainer.world_size
        strategy = trainer.strategy
        mark = self.folder / str(strategy.broadcast(f".seen-{os.getpid()}"))
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        strategy.barrier("features-marked")
        shared = strategy.reduce_boolean_decision(mark.exists(), all=True)
        if trainer.is_global_zero:
            mark.unlink()
        return (trainer.global_rank, trainer.world_size) if shared else (trainer.local_rank, trainer.num_devices)

    def attach(
        self,
        model: DogBreedClassifier,
        data: DogImages,
        device: torch.device,
        rank: int = 0,
        world: int = 1,
        agree: Callable[[bool], bool] = lambda well: well,
    ) -> None:
        """Lets data deliver features and the model take them, computing first what is missing; once.

        Args:
            model: Frozen as it will be trained.
            data: Set up.
            device: Where the prefix runs.
            rank: Of this process among `world` that share the work.
            world: Number of processes.
            agree: Waits for the others, and says whether all is well with all of them.

        Raises:
            DogbreedError: In `require` mode, where the cache cannot be used.
        """
        if self._ready or self.mode == "off":
            return
        self._ready = True
        was_training = model.training
        try:
            self._attach(model, data, device, rank, world, agree)
        except (NoPrefix, DogbreedError) as error:
            self.state, self.reason = "off", str(error).rstrip(".")
            if self.mode == "require":
                raise DogbreedError(f"cache.mode=require, but the cache cannot be used: {self.reason}.") from error
            if not self.quiet:
                print(f"Cache off: {self.reason}.", flush=True)
        finally:
            model.train(was_training)

    def _attach(
        self,
        model: DogBreedClassifier,
        data: DogImages,
        device: torch.device,
        rank: int,
        world: int,
        agree: Callable[[bool], bool],
    ) -> None:
        model.to(device).eval()
        parts = cut(model.network, data.preprocessing.size)
        key = store_key(parts.prefix, data.preprocessing, self.precision, device)
        store = Store(self.folder / key, parts.shape, PRECISIONS[self.precision])
        damaged = store.refresh()
        missing = missing_views(store, data.samples)
        agree(True)  # all have to see the same before they share the work
        with ExitStack() as held:
            # One whose features another has on a disk of its own has nothing to do, and waits with the rest.
            def begin() -> None:
                if missing:
                    self._announce(store, missing, damaged, parts.last_node)
                    held.enter_context(locked(store.folder, leader=rank == 0))

            def prepare() -> None:
                if missing and rank == 0:
                    self._prepare(store, model, parts.last_node, missing)

            def compute() -> None:
                if mine := missing[rank::world]:
                    extract(store, parts.prefix, mine, data, device=device, precision=self.precision, quiet=self.quiet)

            _together(agree, begin)
            store.refresh()  # another run may have built it while this one waited for the lock
            if world == 1:  # of several, all have to share the work that all have seen
                missing = missing_views(store, data.samples)
            _together(agree, prepare)
            _together(agree, compute)
        store.refresh()
        self.state = "built" if missing else "hit"
        with suppress(OSError):  # a cache that may only be read serves as well
            os.utime(store.folder / META)  # its age says when it was last used
        data.use_features({name: store.table(row_keys(samples)) for name, samples in data.samples.items()})
        model.use_features(parts)

    def _announce(self, store: Store, missing: list[MissingViews], damaged: int, cut: str) -> None:
        """Says what is about to be done, and refuses what is too large, before anything is computed."""
        views = sum(len(entry.keys) for entry in missing)
        size = views * store.row_bytes
        if size > self.max_gb * 1e9:
            raise DogbreedError(
                f"the features would take {amount(size)}, more than cache.max_gb={self.max_gb:g} allows"
            )
        free = shutil.disk_usage(existing(store.folder)).free
        if size > free:
            raise DogbreedError(f"the features would take {amount(size)}, and {store.folder} has {amount(free)} left")
        if not self.quiet:
            again = f" ({damaged} damaged ones again)" if damaged else ""
            print(
                f"Features of {len(missing):,} images up to {cut}, {views:,} views{again}: {amount(size)} in "
                f"{store.folder}",
                flush=True,
            )

    def _prepare(self, store: Store, model: DogBreedClassifier, cut: str, missing: list[MissingViews]) -> None:
        """Notes what the store holds, and makes room for it."""
        store.folder.mkdir(parents=True, exist_ok=True)
        told = {
            "backbone": model.hparams["backbone"],
            "cut": cut,
            "shape": store.shape,
            "precision": self.precision,
            "preprocessing": model.preprocessing.to_dict(),
        }
        with atomic_write(store.folder / META) as file:
            file.write_text(json.dumps(told, indent=2))
        for damaged in (*store.folder.glob("*.safetensors"), *store.folder.glob(".*.tmp")):  # of killed runs
            if damaged.name not in store._blocks:
                damaged.unlink(missing_ok=True)
        coming = store.row_bytes * sum(len(entry.keys) for entry in missing)
        evict(self.folder, self.max_gb, keep=store.folder, coming=coming)


def _together(agree: Callable[[bool], bool], step: Callable[[], None]) -> None:
    """A step that all processes take; where one fails, none goes on, and none waits for it."""
    problem: DogbreedError | None = None
    try:
        step()
    except DogbreedError as error:
        problem = error
    if not agree(problem is None):
        raise problem or DogbreedError("another process could not compute its part of the features")
