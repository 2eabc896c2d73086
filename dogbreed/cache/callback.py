"""Features that are computed once: how a store is filled, and how a run uses it.

python -m dogbreed.cache                 list the stores, the most recently used first
python -m dogbreed.cache verify          check every row against its checksum
python -m dogbreed.cache delete KEY ...  delete stores (a few characters of the key do); `all` deletes every one
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import PIL
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, Dataset

from dogbreed.cache.store import META, Store, amount, cache_folder, delete, existing, locked, make_room, row_key, stores
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.progress import track
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import SplitFiles
from dogbreed.data.images import REVISION, Preprocessing, View, decode, load, to_input
from dogbreed.models import winograd
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import NoPrefix, fingerprint, split

MODES = ("auto", "off", "require")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BLOCK_BYTES = 64 << 20
BLOCK_SECONDS = 15.0


def store_key(prefix: fx.GraphModule, preprocessing: Preprocessing, precision: str, device: torch.device) -> str:
    """Key of all that turns an image's bytes into features."""
    told = {
        "prefix": fingerprint(prefix),
        "preprocessing": preprocessing.to_dict(),
        "images": REVISION,
        "precision": precision,
        "device": device.type,
        "plan": str(plan(prefix, device)),
        "versions": [torch.__version__, torchvision.__version__, PIL.__version__],
    }
    return hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=12).hexdigest()


# Filling it


def _keys(samples: SplitFiles) -> list[list[bytes]]:
    """Row keys of a split by view and image."""
    return [[row_key(digest, view) for digest, view in zip(samples.digests, v, strict=True)] for v in samples.views]


class Wanted(NamedTuple):
    """One image and the views of it that are missing."""

    path: Path
    views: list[View]
    keys: list[bytes]


def missing(store: Store, splits: Mapping[str, SplitFiles]) -> list[Wanted]:
    """What has to be computed, one entry an image; equal images are computed once."""
    wanted: dict[str, Wanted] = {}
    for samples in splits.values():
        for views in samples.views:
            for path, digest, view in zip(samples.paths, samples.digests, views, strict=True):
                key = row_key(digest, view)
                if key not in store:
                    entry = wanted.setdefault(digest, Wanted(path, [], []))
                    if key not in entry.keys:
                        entry.views.append(view)
                        entry.keys.append(key)
    return list(wanted.values())


class _WantedImages(Dataset[tuple[int, Tensor]]):
    """The missing views [V, 3, S, S] of one image."""

    def __init__(self, wanted: list[Wanted], preprocessing: Preprocessing, max_pixels: int) -> None:
        self.wanted, self.preprocessing, self.max_pixels = wanted, preprocessing, max_pixels

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        path, views, _ = self.wanted[index]
        if any(view.box for view in views):
            inputs = [load(path, self.preprocessing, view, max_pixels=self.max_pixels) for view in views]
        else:  # whole views differ in being mirrored only: one decoding serves all
            image = decode(path, target=self.preprocessing.side, max_pixels=self.max_pixels)
            inputs = [to_input(image, self.preprocessing, view) for view in views]
        return index, torch.stack(inputs)


class Plan(NamedTuple):
    """How the prefix is run. It depends on the network and the machine's kind alone, never on a timing: kernels round
    differently, and a build that goes on should come to the same numbers.

    Attributes:
        images: In one pass. On a CPU few, so that what one layer leaves for the next stays in reach of malloc and of
            the processor's caches: MobileNetV2 runs twice as fast with 4 as with 32.
        kernels: `direct`, or the name of those that `dogbreed.models.winograd` puts in their place.
    """

    images: int
    kernels: str


def plan(prefix: fx.GraphModule, device: torch.device) -> Plan:
    """Chooses how to run a prefix: on a CPU, 3x3 convolutions of stride 1 go through `dogbreed.models.winograd`."""
    if device.type != "cpu":
        return Plan(64, "direct")
    return Plan(16, winograd.NAME) if winograd.pays(prefix) else Plan(4, "direct")


def fill(
    store: Store,
    prefix: fx.GraphModule,
    wanted: list[Wanted],
    data: DogImages,
    *,
    device: torch.device,
    precision: str,
    quiet: bool = False,
) -> None:
    """Computes what is missing and adds it to the store, block by block.

    Args:
        store: Where the features go.
        prefix: In evaluation mode, on `device`.
        wanted: What is missing.
        data: Says how images become inputs, and with how many workers.
        device: Where the prefix runs.
        precision: `bfloat16` computes in bfloat16 too; `float16` computes in float32 and keeps half.
        quiet: No progress.

    Raises:
        DogbreedError: The disk is full.
    """
    keys: list[bytes] = []
    rows: list[Tensor] = []
    written = time.monotonic()

    def write() -> None:
        nonlocal written
        if keys:
            store.add(keys, torch.cat(rows))
        keys.clear()
        rows.clear()
        written = time.monotonic()

    total = sum(len(entry.keys) for entry in wanted)
    way = plan(prefix, device)
    with (
        track(total, "Computing features", "views", quiet=quiet) as progress,
        running(prefix, way, device, precision) as network,
    ):
        for batch_keys, inputs in _passes(wanted, data, way.images):
            images = inputs.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            features: Tensor = network(images)[: len(batch_keys)]
            keys.extend(batch_keys)
            rows.append(features.to(store.dtype).cpu())
            progress.advance(len(batch_keys))
            if len(keys) * store.row_bytes >= BLOCK_BYTES or time.monotonic() - written > BLOCK_SECONDS:
                write()
        write()
    store.refresh()


def _passes(wanted: list[Wanted], data: DogImages, images: int) -> Iterator[tuple[list[bytes], Tensor]]:
    """Batches of one fixed shape, the last filled up with zeros: kernels are chosen by shape, and round differently."""
    source = _WantedImages(wanted, data.preprocessing, data.max_pixels)
    workers = min(data.num_workers, len(wanted) // 16)
    loader = DataLoader(source, batch_size=None, num_workers=workers, generator=torch.Generator())
    keys: list[bytes] = []
    inputs: list[Tensor] = []
    for index, views in loader:
        keys.extend(wanted[index].keys)
        inputs.extend(views)
        while len(inputs) >= images:
            yield keys[:images], torch.stack(inputs[:images])
            del keys[:images], inputs[:images]
    if inputs:
        padding = [torch.zeros_like(inputs[0])] * (images - len(inputs))
        yield keys, torch.stack(inputs + padding)


@contextmanager
def running(prefix: fx.GraphModule, way: Plan, device: torch.device, precision: str) -> Iterator[nn.Module]:
    """The prefix as planned: images [N, 3, S, S], channels last, to features."""
    bfloat16 = precision == "bfloat16"
    if way.kernels != "direct":
        network = winograd.accelerate(prefix, torch.bfloat16 if bfloat16 else torch.float32)
        with torch.inference_mode():
            yield network
        return
    prefix.to(memory_format=torch.channels_last)
    with torch.inference_mode(), in_bfloat16(prefix, device) if bfloat16 else nullcontext():
        yield prefix


@contextmanager
def in_bfloat16(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Autocast, with the weights of convolutions and linear layers cast once instead of in every pass.

    VGG16 runs 1.3 times as fast for it on a CPU. The values of before come back at the end.
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


# Using it


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
        parts = split(model.network, data.preprocessing.size)
        key = store_key(parts.prefix, data.preprocessing, self.precision, device)
        store = Store(self.folder / key, parts.shape, PRECISIONS[self.precision])
        damaged = store.refresh()
        wanted = missing(store, data.samples)
        agree(True)  # all have to see the same before they share the work
        with ExitStack() as held:
            # One whose features another has on a disk of its own has nothing to do, and waits with the rest.
            def begin() -> None:
                if wanted:
                    self._announce(store, wanted, damaged, parts.cut)
                    held.enter_context(locked(store.folder, leader=rank == 0))

            def prepare() -> None:
                if wanted and rank == 0:
                    self._prepare(store, model, parts.cut, wanted)

            def compute() -> None:
                if mine := wanted[rank::world]:
                    fill(store, parts.prefix, mine, data, device=device, precision=self.precision, quiet=self.quiet)

            _together(agree, begin)
            store.refresh()  # another run may have built it while this one waited for the lock
            if world == 1:  # of several, all have to share the work that all have seen
                wanted = missing(store, data.samples)
            _together(agree, prepare)
            _together(agree, compute)
        store.refresh()
        self.state = "built" if wanted else "hit"
        with suppress(OSError):  # a cache that may only be read serves as well
            os.utime(store.folder / META)  # its age says when it was last used
        data.use_features({name: store.table(_keys(samples)) for name, samples in data.samples.items()})
        model.use_features(parts)

    def _announce(self, store: Store, wanted: list[Wanted], damaged: int, cut: str) -> None:
        """Says what is about to be done, and refuses what is too large, before anything is computed."""
        views = sum(len(entry.keys) for entry in wanted)
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
                f"Features of {len(wanted):,} images up to {cut}, {views:,} views{again}: {amount(size)} in "
                f"{store.folder}",
                flush=True,
            )

    def _prepare(self, store: Store, model: DogBreedClassifier, cut: str, wanted: list[Wanted]) -> None:
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
        coming = store.row_bytes * sum(len(entry.keys) for entry in wanted)
        make_room(self.folder, self.max_gb, keep=store.folder, coming=coming)


def _together(agree: Callable[[bool], bool], step: Callable[[], None]) -> None:
    """A step that all processes take; where one fails, none goes on, and none waits for it."""
    problem: DogbreedError | None = None
    try:
        step()
    except DogbreedError as error:
        problem = error
    if not agree(problem is None):
        raise problem or DogbreedError("another process could not compute its part of the features")


# The command


_UNREADABLE = f"its {META} is damaged: delete it"


def _told(store: Path) -> dict[str, Any] | None:
    """What a store says of itself; None where that is damaged."""
    try:
        told: dict[str, Any] = json.loads((store / META).read_bytes())
        return told if PRECISIONS[told["precision"]] and {"shape", "backbone", "cut"} <= told.keys() else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _list(folder: Path) -> int:
    found = sorted(stores(folder), key=lambda entry: -entry[2])
    if not found:
        print(f"No features in {folder}.")
        return 0
    print(f"{'key':24}  {'size':>8}  {'last used':16}  {'precision':9}  of")
    for store, size, used in found:
        told = _told(store)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        if told is None:
            print(f"{store.name:24}  {amount(size):>8}  {when}  {_UNREADABLE}")
            continue
        what = f"{told['backbone']} up to {told['cut']}"
        print(f"{store.name:24}  {amount(size):>8}  {when}  {told['precision']:9}  {what}")
    print(f"{amount(sum(size for _, size, _ in found))} in {folder}")
    return 0


def _verify(folder: Path) -> int:
    bad = 0
    for path, _, _ in stores(folder):
        told = _told(path)
        if told is None:
            bad += 1
            print(f"{path.name}  {_UNREADABLE}")
            continue
        store = Store(path, told["shape"], PRECISIONS[told["precision"]])
        damaged = store.refresh()
        bad += damaged
        state = f"{damaged} damaged; the next run computes them again" if damaged else "all good"
        print(f"{path.name}  {len(store._rows):,} rows, {state}")
    return 1 if bad else 0


def _delete_named(folder: Path, names: list[str]) -> int:
    everything = [store for store, _, _ in stores(folder)]
    for name in names:
        chosen = everything if name == "all" else [store for store in everything if store.name.startswith(name)]
        if not chosen and name != "all":
            raise DogbreedError(f"No store in {folder} begins with {name}; python -m dogbreed.cache lists them.")
        for store in chosen:
            print(f"{'deleted' if delete(store) else 'in use, kept'}  {store.name}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command: lists, verifies or deletes what is on disk; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m dogbreed.cache", description="The features kept on disk.")
    parser.add_argument("--dir", help="cache folder (default: the user's, or $DOGBREED_CACHE)")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("list", help="what is there (default)")
    actions.add_parser("verify", help="check every row")
    actions.add_parser("delete", help="delete stores").add_argument("key", nargs="+")
    given = parser.parse_args(argv)
    folder = cache_folder(given.dir or os.environ.get("DOGBREED_CACHE")) / "features"
    if given.action == "verify":
        return guard(lambda: _verify(folder))
    if given.action == "delete":
        return guard(lambda: _delete_named(folder, given.key))
    return guard(lambda: _list(folder))
