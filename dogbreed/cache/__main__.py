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
from dogbreed.cache.store import META, Store, cache_folder, delete, format_bytes, stores
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError

_UNREADABLE = f"its {META} is damaged: delete it"


def _description(store: Path) -> dict[str, Any] | None:
    """Return what a store says of itself; None where that is damaged."""
    try:
        description: dict[str, Any] = json.loads((store / META).read_bytes())
        return (
            description
            if PRECISIONS[description["precision"]] and {"shape", "backbone", "cut"} <= description.keys()
            else None
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _list(folder: Path) -> int:
    present = sorted(stores(folder), key=lambda entry: -entry[2])
    if not present:
        print(f"No features in {folder}.")
        return 0
    print(f"{'key':24}  {'size':>8}  {'last used':16}  {'precision':9}  of")
    for store, size, used in present:
        description = _description(store)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        if description is None:
            print(f"{store.name:24}  {format_bytes(size):>8}  {when}  {_UNREADABLE}")
            continue
        what = f"{description['backbone']} up to {description['cut']}"
        print(f"{store.name:24}  {format_bytes(size):>8}  {when}  {description['precision']:9}  {what}")
    print(f"{format_bytes(sum(size for _, size, _ in present))} in {folder}")
    return 0


def _verify(folder: Path) -> int:
    bad = 0
    for path, _, _ in stores(folder):
        description = _description(path)
        if description is None:
            bad += 1
            print(f"{path.name}  {_UNREADABLE}")
            continue
        store = Store(path, description["shape"], PRECISIONS[description["precision"]])
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
    """List, verify or delete what is on disk; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m dogbreed.cache", description="List, verify and delete the features kept on disk."
    )
    parser.add_argument("--dir", help="cache folder (default: the user's, or $DOGBREED_CACHE)")
    actions = parser.add_subparsers(dest="action")
    actions.add_parser("list", help="what is there (default)")
    actions.add_parser("verify", help="check every row")
    actions.add_parser("delete", help="delete stores").add_argument("key", nargs="+")
    args = parser.parse_args(argv)
    folder = cache_folder(args.dir or os.environ.get("DOGBREED_CACHE")) / "features"
    if args.action == "verify":
        return guard(lambda: _verify(folder))
    if args.action == "delete":
        return guard(lambda: _delete_named(folder, args.key))
    return guard(lambda: _list(folder))


if __name__ == "__main__":
    sys.exit(main())
