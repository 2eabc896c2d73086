"""List, verify and delete the feature stores.

python -m dogbreed.cache                 list the stores, the most recently used first
python -m dogbreed.cache verify          check every row against its checksum
python -m dogbreed.cache delete KEY ...  delete stores (a few characters of the key do); `all` deletes every one
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dogbreed.cache.extract import PRECISIONS
from dogbreed.cache.store import META, Store, amount, cache_folder, delete, stores
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError

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


if __name__ == "__main__":
    sys.exit(main())
