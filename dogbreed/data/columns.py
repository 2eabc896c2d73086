"""Files as columns: a million of them take 150 MB as text and arrays, and 2 GB as objects."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self, overload

import numpy as np
from numpy.typing import NDArray

from dogbreed.data.layout import SPLITS


class Paths(Sequence[Path]):
    """Paths that are kept as text.

    Args:
        texts: One per file.
    """

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    @classmethod
    def of(cls, paths: Iterable[Path]) -> "Paths":
        """Return paths in this form, which they may have already."""
        return paths if isinstance(paths, Paths) else cls([str(path) for path in paths])

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Path: ...
    @overload
    def __getitem__(self, index: slice) -> "Paths": ...
    def __getitem__(self, index: int | slice) -> "Path | Paths":
        return Paths(self.texts[index]) if isinstance(index, slice) else Path(self.texts[index])

    def __iter__(self) -> Iterator[Path]:
        return map(Path, self.texts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, positions: NDArray[np.int64]) -> "Paths":
        """Return the paths at some positions."""
        return Paths([self.texts[position] for position in positions.tolist()])


class Digests(Sequence[str]):
    """Digests of 16 bytes, in hexadecimal where they are taken out; "" is kept as zeros.

    Args:
        values: [N, 16] bytes.
    """

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self.values = values

    @classmethod
    def of(cls, digests: Iterable[str]) -> "Digests":
        """Return digests in this form, which they may have already."""
        if isinstance(digests, Digests):
            return digests
        content = b"".join(bytes.fromhex(digest) or bytes(16) for digest in digests)
        return cls(np.frombuffer(content, np.uint8).reshape(-1, 16))

    @property
    def keys(self) -> NDArray[np.bytes_]:
        """The digests as values that numpy compares and sorts, [N]."""
        return np.ascontiguousarray(self.values).view("S16").reshape(-1)

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Digests": ...
    def __getitem__(self, index: int | slice) -> "str | Digests":
        values = self.values[index]
        return Digests(values) if isinstance(index, slice) else _hexadecimal(values)

    def __iter__(self) -> Iterator[str]:
        return map(_hexadecimal, self.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, positions: NDArray[np.int64]) -> "Digests":
        """Return the digests at some positions."""
        return Digests(self.values[positions])


def comparable(digests: Sequence[str]) -> NDArray[np.bytes_]:
    """Return digests as values that numpy compares and sorts."""
    return digests.keys if isinstance(digests, Digests) else np.array(list(digests), dtype=np.bytes_)


def _hexadecimal(digest: NDArray[np.uint8]) -> str:
    return digest.tobytes().hex() if digest.any() else ""


class Entry(NamedTuple):
    """A file with the index of its class, and its split: None where nobody has split the images."""

    path: Path
    label: int
    split: str | None


class Entries(Sequence[Entry]):
    """Files with their classes and splits.

    Args:
        paths: N files.
        labels: [N], the index of each one's class.
        splits: [N], its position in `SPLITS`; -1 where nobody has split the images.
    """

    def __init__(self, paths: Paths, labels: NDArray[np.int64], splits: NDArray[np.int8]) -> None:
        self.paths, self.labels, self.splits = paths, labels, splits

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "Entry | Self":
        if isinstance(index, slice):
            return type(self)(self.paths[index], self.labels[index], self.splits[index])
        split = int(self.splits[index])
        return Entry(self.paths[index], int(self.labels[index]), SPLITS[split] if split >= 0 else None)

    def take(self, positions: NDArray[np.int64]) -> "Entries":
        """Return the files at some positions."""
        return Entries(self.paths.take(positions), self.labels[positions], self.splits[positions])
