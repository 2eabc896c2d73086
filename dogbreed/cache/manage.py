"""What `python -m dogbreed.cache` does with the feature stores: list, verify and delete them."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dogbreed.cache.folders import META, cache_folder, delete, stores
from dogbreed.core import text
from dogbreed.core.errors import DogbreedError

_UNREADABLE = f"its {META} is damaged: delete it"


def _description(store: Path) -> dict[str, Any] | None:
    """Return what a store says of itself; None where that is damaged."""
    try:
        description: dict[str, Any] = json.loads((store / META).read_bytes())
        complete = isinstance(description["precision"], str) and {"shape", "backbone", "cut"} <= description.keys()
        return description if complete else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _frozen(folder: Path) -> list[tuple[Path, int, int]]:
    """Return the frozen weights that runs share, each with its size in bytes and how many runs have it."""
    files = sorted((folder.parent / "frozen").glob("*.safetensors"))
    return [(file, file.stat().st_size, file.stat().st_nlink - 1) for file in files]


def _list(folder: Path, names: Sequence[str]) -> int:
    code = _list_stores(folder)
    for file, size, runs in _frozen(folder):
        print(f"{file.stem[:24]}  {text.size(size):>8}  frozen weights, kept once for {text.count(runs, 'run')}")
    return code


def _prune(folder: Path, names: Sequence[str]) -> int:
    """Delete the frozen weights that no run has any more."""
    unused = [(file, size) for file, size, runs in _frozen(folder) if runs == 0]
    for file, _ in unused:
        file.unlink(missing_ok=True)
    freed = text.size(sum(size for _, size in unused))
    print(f"Deleted the frozen weights of {text.count(len(unused), 'network')} that no run has any more: {freed}.")
    return 0


def _list_stores(folder: Path) -> int:
    present = sorted(stores(folder), key=lambda entry: -entry[2])
    if not present:
        print(f"No features in {folder}.")
        return 0
    print(f"{'key':24}  {'size':>8}  {'last used':16}  {'precision':9}  of")
    for store, size, used in present:
        description = _description(store)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        if description is None:
            print(f"{store.name:24}  {text.size(size):>8}  {when}  {_UNREADABLE}")
            continue
        what = f"{description['backbone']} up to {description['cut']}"
        print(f"{store.name:24}  {text.size(size):>8}  {when}  {description['precision']:9}  {what}")
    print(f"{text.size(sum(size for _, size, _ in present))} in {folder}")
    return 0


def _verify(folder: Path, names: Sequence[str]) -> int:
    from dogbreed.cache.extract import PRECISIONS  # here: they load torch
    from dogbreed.cache.store import Store

    bad = 0
    for path, _, _ in stores(folder):
        description = _description(path)
        if description is None or description["precision"] not in PRECISIONS:
            bad += 1
            print(f"{path.name}  {_UNREADABLE}")
            continue
        store = Store(path, description["shape"], PRECISIONS[description["precision"]], trusting=False)
        damaged = store.refresh()
        bad += damaged
        state = f"{damaged} damaged; the next run computes them again" if damaged else "all good"
        print(f"{path.name}  {len(store):,} rows, {state}")
    return 1 if bad else 0


def _delete_named(folder: Path, names: Sequence[str]) -> int:
    everything = [store for store, _, _ in stores(folder)]
    for name in names:
        chosen = everything if name == "all" else [store for store in everything if store.name.startswith(name)]
        if not chosen and name != "all":
            raise DogbreedError(f"No store in {folder} begins with {name}; python -m dogbreed.cache lists them.")
        for store in chosen:
            print(f"{'deleted' if delete(store) else 'in use, kept'}  {store.name}")
    return 0


ACTIONS: dict[str, Callable[[Path, Sequence[str]], int]] = {
    "list": _list,
    "verify": _verify,
    "delete": _delete_named,
    "prune": _prune,
}


def manage(action: str, folder: str | None, names: Sequence[str] = ()) -> int:
    """List, verify, delete or prune; return 1 where a row is damaged, else 0."""
    return ACTIONS[action](cache_folder(folder) / "features", names)
