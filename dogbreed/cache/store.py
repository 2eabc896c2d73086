"""Features on disk: content-keyed rows in checksummed, memory-mapped blocks.

A store belongs to one prefix (its operations, weights, preprocessing, precision, library versions); a row in it to one
image's bytes and one view. So a changed image, weight or transform simply is not found, and nothing stale is served.

On disk a store is a folder of blocks, each a safetensors file that is written beside and renamed: keys [N, 16],
checksums [N] and features [N, ...], memory-mapped when read. A killed build has lost the block it was working on, a
damaged row is missing, and several processes may write at once.

Checksums are compared once per block and start of the machine: `checked.json` says of which blocks that was done.
"""

import hashlib
import json
import secrets
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write, write_json
from dogbreed.data.datasets import Indices
from dogbreed.data.images import View

CHECKED = "checked.json"
BOOT = Path("/proc/sys/kernel/random/boot_id")  # Linux has it
KEY = "S16"  # of a row, as numpy compares and sorts it
Keys = NDArray[np.bytes_]


class Store:
    """Features of one prefix on disk.

    Args:
        folder: Folder of this store, made when the first block is written.
        shape: Shape of one image's features.
        dtype: What they are kept in.
        trusting: Whether blocks that were checked since the machine was started are not checked again. They would be
            read whole, gigabytes at each start.
    """

    def __init__(self, folder: Path, shape: Sequence[int], dtype: torch.dtype, *, trusting: bool = True) -> None:
        self.folder = folder
        self.shape = tuple(shape)
        self.dtype = dtype
        self.trusting = trusting
        self._blocks: dict[str, Tensor] = {}
        self._index: dict[str, Keys] = {}  # of the good rows of each block; b"" where a row is damaged
        self._damaged: set[bytes] = set()
        # Of all blocks together: sorted keys, and where the row of each is, as block and row.
        self._keys: Keys = np.zeros(0, KEY)
        self._places: Indices = np.zeros((0, 2), np.int64)

    @property
    def row_bytes(self) -> int:
        """Return the size of one row on disk."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def refresh(self) -> int:
        """Read blocks that have appeared; rows whose checksum does not fit are left out.

        Returns:
            The number of rows that are damaged and have no good copy, plus that of blocks that cannot be read at all.
        """
        new = [file for file in sorted(self.folder.glob("*.safetensors")) if file.name not in self._blocks]
        checked, before = self._checked() if new else {}, len(self._blocks)
        known = dict(checked)
        unreadable = sum(not self._read_block(file, checked) for file in new)
        if checked != known:
            self._note(checked)
        if len(self._blocks) > before:
            self._sort(before)
        return unreadable + sum(key not in self for key in self._damaged)

    def _sort(self, before: int) -> None:
        """Add the rows of all blocks but the first `before`, which are sorted already."""
        new = list(self._index.values())[before:]
        keys, numbers = np.concatenate(new), [len(rows) for rows in new]
        blocks = np.arange(before, len(self._index)).repeat(numbers)
        places = np.stack([blocks, np.concatenate([*map(np.arange, numbers)])], 1)
        good = keys != b""
        keys, first = np.unique(keys[good], return_index=True)
        fresh = ~self.holds(keys)
        at = np.searchsorted(self._keys, keys[fresh])
        self._keys = np.insert(self._keys, at, keys[fresh])
        self._places = np.insert(self._places, at, places[good][first][fresh], axis=0)

    def __len__(self) -> int:
        return len(self._keys)

    def _checked(self) -> dict[str, str]:
        """Return the stamp of each block that was found to be good."""
        try:
            return dict(json.loads((self.folder / CHECKED).read_bytes()))
        except (OSError, ValueError, TypeError):
            return {}

    def _note(self, checked: dict[str, str]) -> None:
        """Keep the stamps of the blocks that are there; those that another process notes meanwhile may get lost."""
        with suppress(DogbreedError, OSError):  # a cache that may only be read serves as well
            write_json(self.folder / CHECKED, {name: stamp for name, stamp in checked.items() if name in self._blocks})

    def _read_block(self, file: Path, checked: dict[str, str]) -> bool:
        """Take in a block, and note in `checked` that it is good."""
        try:
            stamp = _stamp(file)
            with safe_open(file, framework="pt") as content:
                index = content.get_tensor("keys").numpy()
                checksums = content.get_tensor("checksums").numpy()
                features = content.get_tensor("features")
                sealed = (content.metadata() or {}).get("index")
        except (OSError, SafetensorError, RuntimeError):
            return False  # half a file, or none any more
        if sealed != _seal(index, checksums) or features.shape[1:] != self.shape or features.dtype != self.dtype:
            return False
        self._blocks[file.name] = features
        if self.trusting and stamp and checked.get(file.name) == stamp:
            good = np.ones(len(features), dtype=np.bool_)
        else:
            good = _checksums(features) == checksums
            if good.all():
                checked[file.name] = stamp
            else:
                checked.pop(file.name, None)
        keys = np.ascontiguousarray(index).view(KEY).reshape(-1).copy()
        self._damaged.update(keys[~good].tolist())
        keys[~good] = b""
        self._index[file.name] = keys
        return True

    def _find(self, keys: Keys) -> tuple[Indices, NDArray[np.bool_]]:
        """Return where each key is among the sorted ones, and whether it is one of them."""
        if not len(self._keys):
            return np.zeros(keys.shape, np.int64), np.zeros(keys.shape, dtype=bool)
        at = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
        return at, self._keys[at] == keys

    def holds(self, keys: Keys) -> NDArray[np.bool_]:
        """Tell for each key whether its row is in the store."""
        return self._find(keys)[1]

    def __contains__(self, key: bytes) -> bool:
        return bool(self.holds(np.array([key], KEY))[0])

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Write a block.

        Args:
            keys: The rows' keys (`row_key`).
            features: [N, *shape].

        Raises:
            DogbreedError: The disk is full or not writable.
        """
        content, metadata = packed(np.array(keys, KEY), features.to(self.dtype))
        name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.safetensors"
        with atomic_write(self.folder / name) as file:
            save_file(content, file, metadata=metadata)

    def clean(self) -> None:
        """Delete unreadable blocks and what killed runs left half-written."""
        for file in (*self.folder.glob("*.safetensors"), *self.folder.glob(".*.tmp")):
            if file.name not in self._blocks:
                file.unlink(missing_ok=True)

    def table(self, keys: Keys) -> "Table":
        """Return the rows by (view, image), as `keys` [views, images] has them; others than the store's are absent."""
        at, known = self._find(keys)
        places = np.full((*keys.shape, 2), ABSENT)
        places[known] = self._places[at[known]]
        return Table(list(self._blocks.values()), places, self.shape)


def packed(keys: Keys, features: Tensor) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return a block's tensors, and what else is in its header.

    Args:
        keys: The rows' keys.
        features: [N, ...], in the store's dtype.
    """
    index = np.frombuffer(keys.tobytes(), dtype=np.uint8).reshape(len(keys), -1).copy()
    features = features.contiguous()
    checksums = _checksums(features)
    content = {"keys": torch.from_numpy(index), "checksums": torch.from_numpy(checksums), "features": features}
    return content, {"index": _seal(index, checksums)}


NOT_COMPUTED = "Features of these views were not computed: the cache knew of fewer epochs than are trained."
ABSENT = -1  # the block of a row that is not in the store


class Table:
    """Memory-mapped rows of a store, addressed as the data does: by position in a split and view."""

    def __init__(self, blocks: list[Tensor], positions: Indices, shape: tuple[int, ...]) -> None:
        self.blocks = blocks
        self.positions = positions  # [views, images, 2]: block and row
        self.shape = shape

    def first_views(self) -> tuple[Indices, Indices]:
        """Return the images of which the store has a view, and the first such view of each."""
        there = self.positions[..., 0] != ABSENT
        images = np.flatnonzero(there.any(0))
        return images, there.argmax(0)[images]

    def __call__(self, indices: Indices, views: Indices) -> Tensor:
        """Return features [N, *shape] in float32 of images `indices` [N], each seen as `views` [N] says."""
        block, row = self.positions[views, indices].T
        if (block == ABSENT).any():
            raise DogbreedError(NOT_COMPUTED)
        if not len(indices):
            return torch.empty(0, *self.shape)
        order = np.argsort(block, kind="stable")  # block after block, each in one piece
        numbers, starts = np.unique(block[order], return_index=True)
        rows, result = torch.from_numpy(row[order]), self.blocks[numbers[0]].new_empty(len(order), *self.shape)
        for number, start, end in zip(numbers, starts, [*starts[1:], len(order)], strict=True):
            torch.index_select(self.blocks[number], 0, rows[start:end], out=result[start:end])
        return result.index_select(0, torch.from_numpy(np.argsort(order))).float()


def row_key(digest: str, view: View) -> bytes:
    """Return the key of an image's bytes, seen in one view."""
    return hashlib.blake2b(f"{digest} {view.key}".encode(), digest_size=16).digest()


def _stamp(file: Path) -> str:
    """Return what becomes another one when a file is written, or the machine is started; "" where that is not known."""
    status = file.stat()
    try:
        return f"{status.st_size} {status.st_mtime_ns} {BOOT.read_text().strip()}"
    except OSError:
        return ""


def _checksums(features: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    rows = features.reshape(len(features), -1).view(torch.uint8).numpy()
    return np.array([zlib.crc32(row.data) for row in rows], dtype=np.int64)


def _seal(index: np.ndarray[Any, Any], checksums: np.ndarray[Any, Any]) -> str:
    return f"{zlib.crc32(checksums.tobytes(), zlib.crc32(index.tobytes())):08x}"
