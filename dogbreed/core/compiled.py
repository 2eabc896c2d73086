"""C beside Python: compiled when it is first used, where there is a compiler, and kept in the user's cache folder."""

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write

COMPILER = "cc"
SECONDS = 60
_lock = Lock()


def load(source: Path, flags: Sequence[str]) -> ctypes.CDLL | None:
    """Return the library made of a C file; None where that cannot be done: whoever calls this can do without it.

    A library is code, so it is kept only in a folder that nobody else may write to, and made anew otherwise.

    Args:
        source: A C file of this package.
        flags: For the compiler.
    """
    try:
        digest = hashlib.blake2b(source.read_bytes() + repr(flags).encode(), digest_size=12).hexdigest()
        folder = _own_folder()
        with _lock, tempfile.TemporaryDirectory() as temporary:
            library = (folder or Path(temporary)) / f"{source.stem}-{digest}.so"
            if not library.exists():
                with atomic_write(library) as beside:
                    _compile(source, flags, beside)
            return ctypes.CDLL(str(library))
    # No such file, no compiler, no right, no room; C that it does not understand; a library that does not load.
    except (OSError, DogbreedError, subprocess.SubprocessError):
        return None


def _compile(source: Path, flags: Sequence[str], library: Path) -> None:
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise FileNotFoundError(COMPILER)
    subprocess.run(  # noqa: S603
        [compiler, *flags, "-shared", "-fPIC", "-o", str(library), str(source)],
        check=True,
        timeout=SECONDS,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    )


def _own_folder() -> Path | None:
    """Return where libraries are kept; None where somebody else could put one."""
    if not hasattr(os, "geteuid"):
        return None
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dogbreed" / "compiled"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError):  # no right to it; no home
        return None
    others = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return folder if status.st_uid == os.geteuid() and not others and os.access(folder, os.W_OK) else None
