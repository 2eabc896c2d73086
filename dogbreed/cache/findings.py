"""What the probe of a network found, kept in the store of its features: the same network is not probed again."""

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import write_json
from dogbreed.models.cut import CutNetwork, Finding, divide, probe, structure, trace

FILE = "cut.json"


class KeyedCut(NamedTuple):
    """A network in two parts, and the store of its features.

    Attributes:
        parts: Both parts.
        key: Of the store.
        structure: Of the traced network; None where a finding is not to be kept.
        finding: What a probe found, now or when the store was made.
    """

    parts: CutNetwork
    key: str
    structure: str | None
    finding: Finding

    def keep(self, store: Path) -> None:
        """Note the finding in the store, if there is one and it can be written."""
        file = store / FILE
        if self.structure and store.is_dir() and not file.exists():
            with suppress(DogbreedError, OSError):
                write_json(file, {"structure": self.structure, **self.finding._asdict()})


def keyed_cut(folder: Path, network: nn.Module, size: int, key_of: Callable[[CutNetwork], str]) -> KeyedCut:
    """Cut a network; what a store knows of it saves the probe.

    A finding holds for the values that it was made with: the store's key has a digest of them.

    Args:
        folder: Of all stores.
        network: As `cut` takes it.
        size: Side of the input in pixels.
        key_of: Returns the key of the store that a cut's features belong to.

    Raises:
        NoPrefix: As `cut` does.
    """
    traced = trace(network)
    name = structure(traced, size)
    keys: dict[Finding, str] = {}
    for store, finding in _noted(folder, name) if name else ():
        parts = divide(traced, finding)
        if finding not in keys:
            keys[finding] = key_of(parts)
        if keys[finding] == store:
            return KeyedCut(parts, store, name, finding)
    finding = probe(network, traced, size)
    parts = divide(traced, finding)
    return KeyedCut(parts, keys.get(finding) or key_of(parts), name, finding)


def _noted(folder: Path, structure: str) -> Iterator[tuple[str, Finding]]:
    """Yield the findings on networks of a structure, each with the key of its store."""
    for file in sorted(folder.glob(f"*/{FILE}")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # a damaged one is none
            noted = json.loads(file.read_bytes())
            if noted["structure"] == structure:
                yield file.parent.name, Finding(noted["position"], tuple(noted["shape"]), tuple(noted["order"]))
