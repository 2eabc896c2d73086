"""Look at image files in a process of its own while this one imports torch; `scan` then finds them in its memory."""

import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dogbreed.core.machine import cpu_count
from dogbreed.data.listing import list_data
from dogbreed.data.locate import find_folder, find_root
from dogbreed.data.scan import scan


@contextmanager
def scanning_ahead(data: Mapping[str, Any], memory: Path) -> Iterator[None]:
    """Scan while a block of code imports torch; what is not done by then, and what is wrong, is left to the run's scan.

    Threads would not do: they wait for each other's turn with the interpreter, which imports hold nearly all the time.

    Args:
        data: The settings `data`.
        memory: Remembers what was found, as the run's.
    """
    alone = sys.platform == "linux" and "torch" not in sys.modules and os.environ.get("LOCAL_RANK", "0") == "0"
    if not (alone and os.path.isdir(os.path.expanduser(str(data["root"])))):
        yield
        return
    process = get_context("fork").Process(target=_scan, args=(data, memory), daemon=True)
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join()


def _scan(data: Mapping[str, Any], memory: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # what was seen is still written
    labels = Path(os.path.expanduser(data["labels"])) if data["labels"] else None
    with suppress(Exception):
        root = (find_folder if labels else find_root)(data["root"], quiet=True)
        files = list_data(root, labels, data["class_mismatch"]).entries.paths
        scan(files, memory=memory, max_pixels=data["max_pixels"], workers=max(1, cpu_count() - 1), quiet=True)
