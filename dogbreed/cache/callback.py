"""`FeatureCache`: how a run uses features that are computed once."""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler

from dogbreed.cache.extract import PRECISIONS, Extraction, Missing, missing_views, row_keys, store_key, used_keys
from dogbreed.cache.findings import KeyedCut, keyed_cut
from dogbreed.cache.folders import META, cache_folder, evict, existing, locked
from dogbreed.cache.on_demand import OnDemand
from dogbreed.cache.remote import RemoteStore, remote_of
from dogbreed.cache.store import KEY, Keys, Store
from dogbreed.core import text
from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.files import write_json
from dogbreed.core.threads import stop_spinning
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import Preprocessing
from dogbreed.models.arithmetic import effective, float32_as
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import CutNetwork, NoPrefix

MODES = ("auto", "off", "require")


class Group:
    """The processes that share the work on one folder.

    Args:
        rank: Of this process.
        world: Number of processes.
        all_well: Waits for the others, and says whether all is well with all of them.
    """

    def __init__(self, rank: int = 0, world: int = 1, all_well: Callable[[bool], bool] = bool) -> None:
        self.rank, self.world, self._all_well = rank, world, all_well

    @contextmanager
    def step(self) -> Iterator[None]:
        """Hold a step that all processes take: where one fails, none goes on, and none waits for it."""
        problem: Exception | None = None
        try:
            yield
        except Exception as error:  # whatever it is, the others must not wait for this process
            problem = error
        if not self._all_well(problem is None):
            raise problem or DogbreedError("another process could not compute its part of the features")


def _may_wait(trainer: Trainer, model: DogBreedClassifier) -> bool:
    """Return whether features may be computed when they are asked for.

    Not by several processes, which share the work; not for lbfgs, which asks for all; not where the network's own
    numbers become others before; and not where the time of the steps is measured or limited.
    """
    return (
        trainer.world_size == 1
        and model.hparams["optimizer"] != "lbfgs"
        and type(trainer.precision_plugin) in (Precision, MixedPrecision)
        and isinstance(trainer.profiler, PassThroughProfiler)  # type: ignore[attr-defined]
        and not any(isinstance(callback, Timer) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    )


def _epochs(trainer: Trainer, model: DogBreedClassifier, stage: str) -> int | None:
    """Return how many epochs the views are needed for; None is all that there are."""
    if stage != "fit":
        return 0  # no training images
    return None if model.hparams["optimizer"] == "lbfgs" else trainer.max_epochs  # lbfgs solves over all views


class Built(NamedTuple):
    """What was computed.

    Attributes:
        rows: By all processes.
        seconds: That this one took for its share.
        decoding: Seconds of one processor for decoding that share.
    """

    rows: int = 0
    seconds: float = 0.0
    decoding: float = 0.0


class FeatureCache(Callback):
    """Compute the frozen prefix once per image, and let the run go on with its features.

    Args:
        mode: `auto` (used where it can be), `require` (an error where it cannot be), `off`.
        folder: Where the stores lie; None takes the user's cache folder.
        precision: `float32`; `bfloat16`; `float16` (kept so, and computed so on CUDA); `tf32` (computed so on CUDA).
            On CUDA the network too, with the cache or without, computes float32 in float32 itself or in `tf32`.
        max_gb: What all stores together may take, in 10^9 bytes; the longest unused are deleted first.
        quiet: No progress.

    Attributes:
        state: `off`, `built` or `hit`, as in `metrics.json`.
        reason: Why it is off.
        built: What was computed.
        store: Folder of the features in use; None where there are none.

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
        self.built = Built()
        self.store: Path | None = None
        self._epochs = -1.0  # for so many the views are there, or computed when they are asked for
        self._on_demand: OnDemand | None = None
        self._announced: Missing | None = None
        self._arithmetic = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Have features ready when Lightning asks for the first batch, or when it asks for each of them.

        Several devices compute all of them first, each its share.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if not isinstance(pl_module, DogBreedClassifier):
            own = type(pl_module).__name__
            return self._off(f"{own} is no DogBreedClassifier; give its network to one: network=..., head=NAME")
        if not isinstance(data, DogImages):
            return self._off("the data are no DogImages, which know the files; give datamodule=DogImages(FOLDER)")
        pl_module.check_data(data, stage)
        device = trainer.strategy.root_device
        self._arithmetic.enter_context(float32_as(self.precision, device))  # the features' and the network's
        rank, world = self._share(trainer)
        group = Group(rank, world, trainer.strategy.reduce_boolean_decision)
        epoch = (lambda: trainer.current_epoch) if _may_wait(trainer, pl_module) else None
        self.attach(pl_module, data, device, group, epochs=_epochs(trainer, pl_module, stage), epoch=epoch)
        if self._on_demand:
            self._on_demand.awaits_close = True
        return None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._arithmetic.close()
        if self._on_demand:
            self._on_demand.awaits_close = False
            self._on_demand.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "")

    def interrupted(self) -> Interrupted | None:
        """Return the sentence for a run that was stopped in its first epoch; None where no features are missing."""
        if self._on_demand is None or self._announced is None:
            return None
        return _interrupted(self._on_demand.store, self._announced)

    def _share(self, trainer: Trainer) -> tuple[int, int]:
        """Return rank and number among the processes that see the same folder: all, or those of this machine alone."""
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
        group: Group | None = None,
        *,
        epochs: int | None = None,
        epoch: Callable[[], int] | None = None,
    ) -> None:
        """Let data deliver features and the model take them, computing first what is missing; once.

        Args:
            model: Frozen as it will be trained.
            data: Set up.
            device: Where the prefix runs.
            group: The processes that share the work; None is this one alone.
            epochs: How many will be trained, so that only the views that they show are computed; None and -1 are
                without end, so that all are.
            epoch: Returns the current epoch; features are then computed when they are asked for, in its order. None
                computes all of them now.

        Raises:
            DogbreedError: In `require` mode, where the cache cannot be used; in any, where the device only emulates
                bfloat16.
            OutOfMemoryError: The device's memory does not hold a pass of one image.
        """
        epochs = None if epochs == -1 else epochs
        enough = math.inf if epochs is None else epochs
        if enough <= self._epochs or self.mode == "off":
            return
        self._epochs = enough
        stop_spinning()
        was_training = model.training
        precision = effective(self.precision, device)
        try:
            self._attach(model, data, device, group or Group(), precision, epochs, epoch)
        except Interrupted:
            raise
        except (NoPrefix, DogbreedError) as error:
            self._off(str(error).rstrip("."), error)
        finally:
            model.train(was_training)

    def _off(self, reason: str, error: Exception | None = None) -> None:
        """Note why there is no cache; an error only where it is required."""
        if self.mode == "off":
            return
        self.state, self.reason = "off", reason
        if self.mode == "require":
            raise DogbreedError(f"cache.mode=require, but the cache cannot be used: {reason}.") from error
        if not self.quiet:
            print(f"Cache off: {reason}.", flush=True)

    def _attach(
        self,
        model: DogBreedClassifier,
        data: DogImages,
        device: torch.device,
        group: Group,
        precision: str,
        epochs: int | None,
        epoch: Callable[[], int] | None,
    ) -> None:
        self._on_demand = None
        if data.transforms:
            raise DogbreedError("data.transforms change the training images anew in each epoch")
        with group.step(), float32_as(precision, device):
            found = self._cut(model.to(device).eval(), data.preprocessing, precision, device)
        parts, key = found.parts, found.key
        store = Store(self.folder / key, parts.shape, PRECISIONS[precision])
        remote = remote_of(key, quiet=self.quiet) if group.rank == 0 else None
        epoch = None if remote else epoch  # what is kept there has to be whole
        with group.step():
            damaged, used = store.refresh(), data.used_views(epochs)
            if remote:
                self._fetch(remote, store, model, parts, used_keys(data.samples, used), precision)
        with group.step():  # all have to see the same before they share the work
            store.refresh()
            missing = missing_views(store, data.samples, used)
        with ExitStack() as held:
            with group.step():
                # One whose features another has on a disk of its own has nothing to do, and waits with the rest.
                if missing:
                    self._announce(store, missing, damaged, device, meanwhile=bool(epoch and epochs != 0))
                    held.enter_context(locked(store.folder, leader=group.rank == 0))
            store.refresh()  # another run may have built it while this one waited for the lock
            if group.world == 1:  # of several, all have to share the work that all have seen
                missing = missing_views(store, data.samples, used)
            with group.step():
                if missing and group.rank == 0:
                    self._prepare(store, model, parts, missing.views, precision)
            how: Any = {"device": device, "precision": precision, "quiet": self.quiet}
            if missing and epoch:
                how |= {"epoch": epoch, "lock": held.pop_all(), "note": self._note}
                self._announced, self._on_demand = missing, OnDemand(store, parts.prefix, data, used, **how)
            else:
                self._extract(store, parts, missing, data, group, how)
        store.refresh()
        if remote:
            remote.add(store, used_keys(data.samples, used))
        self.state = "built" if missing else "hit"
        self._serve(store, found, model, data)

    def _cut(
        self, model: DogBreedClassifier, preprocessing: Preprocessing, precision: str, device: torch.device
    ) -> KeyedCut:
        return keyed_cut(
            self.folder,
            model.network,
            preprocessing.size,
            lambda parts: store_key(parts.prefix, preprocessing, precision, device),
        )

    def _serve(self, store: Store, found: KeyedCut, model: DogBreedClassifier, data: DogImages) -> None:
        """Let data deliver features and the model take them."""
        self.store = store.folder
        with suppress(OSError):  # a cache that may only be read serves as well
            os.utime(store.folder / META)  # its age says when it was last used
        found.keep(store.folder)
        if self._on_demand:
            data.use_features(self._on_demand.readers())
        else:
            data.use_features({name: store.table(row_keys(files)) for name, files in data.samples.items()})
        model.use_features(found.parts)

    def _extract(
        self, store: Store, parts: CutNetwork, missing: Missing, data: DogImages, group: Group, how: dict[str, Any]
    ) -> None:
        """Compute all that is missing, each process its share."""
        try:
            with group.step():
                if share := missing[group.rank :: group.world]:
                    started = time.monotonic()
                    with Extraction(store, parts.prefix, share, data, **how) as extraction:
                        extraction.advance()
                    self._note(missing.views, time.monotonic() - started, extraction.decoding)
        except KeyboardInterrupt:
            raise _interrupted(store, missing) from None

    def _note(self, rows: int, seconds: float, decoding: float) -> None:
        """Add up what was computed."""
        built = self.built
        self.built = Built(built.rows + rows, built.seconds + seconds, built.decoding + decoding)

    def _fetch(
        self,
        remote: RemoteStore,
        store: Store,
        model: DogBreedClassifier,
        parts: CutNetwork,
        keys: Keys,
        precision: str,
    ) -> None:
        """Bring the rows that are missing from the store's home in S3."""
        rows = int((~store.holds(keys)).sum())
        if rows:
            self._check_room(store, rows)
            with locked(store.folder, leader=True):
                self._prepare(store, model, parts, rows, precision)
                remote.fetch(store, keys)

    def _check_room(self, store: Store, rows: int) -> None:
        """Refuse rows that take more than is allowed, or than there is."""
        size = rows * store.row_bytes
        if size > self.max_gb * 1e9:
            raise DogbreedError(
                f"the features would take {text.size(size)}, more than cache.max_gb={self.max_gb:g} allows"
            )
        free = shutil.disk_usage(existing(store.folder)).free
        if size > free:
            raise DogbreedError(
                f"the features would take {text.size(size)}, and {store.folder} has {text.size(free)} left"
            )

    def _announce(self, store: Store, missing: Missing, damaged: int, device: torch.device, meanwhile: bool) -> None:
        """Say what is about to be done, and refuse what is too large, before anything is computed."""
        count = missing.views
        self._check_room(store, count)
        if self.quiet:
            return
        cropped = any(view.box for view in missing[0].views)
        notes = [f"{count:,} with {'crops' if cropped else 'mirrored copies'}"] if count != len(missing) else []
        notes += [f"{damaged} damaged on disk"] if damaged else []
        print(
            f"Computing the frozen part once: {text.count(len(missing), 'image')}"
            f"{' (' * bool(notes)}{', '.join(notes)}{')' * bool(notes)}, {text.size(count * store.row_bytes)}, kept in "
            f"{store.folder}",
            flush=True,
        )
        if self.precision == "float32" and effective("tf32", device) == "tf32":
            print("Computed in float32 itself; cache.precision=tf32 is faster and changes logits by about 0.01.")
        if meanwhile:
            print("Training starts at once: the first epoch computes what each of its batches needs.", flush=True)

    def _prepare(self, store: Store, model: DogBreedClassifier, parts: CutNetwork, rows: int, precision: str) -> None:
        """Describe the store in its folder, clear away what killed runs left, and make room."""
        store.folder.mkdir(parents=True, exist_ok=True)
        description = {
            "backbone": model.hparams["backbone"],
            "cut": parts.last_node,
            "shape": store.shape,
            "precision": precision,
            "preprocessing": model.preprocessing.to_dict(),
        }
        write_json(store.folder / META, description)
        store.clean()
        evict(self.folder, self.max_gb, keep=store.folder, coming=store.row_bytes * rows)


def _interrupted(store: Store, missing: Missing) -> Interrupted:
    """Return the sentence on features that were being computed when somebody pressed Ctrl-C."""
    store.refresh()
    keys = [key for image in missing for key in image.keys]
    ready = int(store.holds(np.array(keys, KEY)).sum())
    return Interrupted(
        f"Stopped while features were computed: {ready:,} of the {len(keys):,} that were missing are kept in "
        f"{store.folder}, and the same command goes on from there."
    )
