"""From any address of a data set that a person may give to the folder that holds its splits or its classes."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from dogbreed.core.errors import DogbreedError
from dogbreed.data.archives import is_archive, unpack
from dogbreed.data.layout import find_splits, holds_images, is_noise

_PACKED = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar")


def find_root(root: Path | str, *, quiet: bool = False) -> Path:
    """Return the folder that holds the splits or the classes, for any address a person may give.

    Of a folder whose only folder is the one with the splits (an unpacked archive) it is the inner one.

    Raises:
        DogbreedError: There is no such folder, or it has to be fetched first.
    """
    folder = inner = find_folder(root, quiet=quiet)
    while not find_splits(inner):
        folders = [path for path in inner.iterdir() if path.is_dir() and not is_noise(path.name)]
        if len(folders) != 1 or holds_images(inner):  # a README or a table may lie beside the one folder
            return folder
        inner = folders[0]
    return inner


def may_fetch(root: Path | str, source: str, download: bool) -> bool:
    """Tell whether data that are missing are drawn or downloaded to this folder."""
    return source == "sample" or (download and Path(root).name == "dogImages")


def check_address(data: Mapping[str, Any]) -> None:
    """Refuse an address of the settings `data` where nothing is and nothing will be fetched to.

    Raises:
        DogbreedError: It is one; the sentence says how to go on.
    """
    root = str(data["root"])
    missing = not root.lower().startswith("file://") and not os.path.exists(os.path.expanduser(root))
    if missing and not may_fetch(root, data["source"], data["download"]):
        find_folder(root)


def find_folder(root: Path | str, *, quiet: bool = False) -> Path:
    """Return the folder at an address; a zip or tar file is unpacked beside itself, once.

    Raises:
        DogbreedError: There is no such folder, or it has to be fetched first.
    """
    address = str(root)
    if address.lower().startswith("file://"):
        root = unquote(urlsplit(address).path)
    elif scheme := re.match(r"([A-Za-z][A-Za-z0-9]+):/+(.+)", address):
        raise DogbreedError(_how_to_fetch(scheme[1].lower(), scheme[2]))
    folder = Path(os.path.expanduser(root))
    if is_archive(folder):
        unpacked = folder.with_name(f"{folder.name}.unpacked")
        if not unpacked.is_dir() or unpacked.stat().st_mtime < folder.stat().st_mtime:
            if unpacked.is_dir():
                raise DogbreedError(f"{unpacked} is older than {folder}: remove it, and it is unpacked again.")
            unpack(folder, unpacked, quiet=quiet)
        folder = unpacked
    if folder.name.lower().endswith(_PACKED) and folder.is_file():
        raise DogbreedError(
            f"{folder} is damaged, or packed in a way that is not read here (zip and tar are): fetch it again, or "
            "unpack it yourself and give the folder."
        )
    if folder.is_file():
        raise DogbreedError(f"{folder} is a file and no archive; data.root is a folder, a zip or a tar file.")
    if not folder.is_dir():
        raise DogbreedError(
            f"The data folder {root} does not exist; give data.root=FOLDER with train/, valid/ and test/, "
            "or try data=sample."
        )
    return folder


def _how_to_fetch(scheme: str, rest: str) -> str:
    source, target = f"{scheme}://{rest}", f"data/{rest.rstrip('/').rpartition('/')[2].partition('?')[0]}"
    how = {
        "s3": ["aws", "s3", "sync", source, target],
        "gs": ["gcloud", "storage", "rsync", "-r", source, target],
        "hf": ["hf", "download", rest.removeprefix("datasets/"), "--repo-type", "dataset", "--local-dir", target],
    }.get(scheme, ["curl", "-L", "-o", target, source])
    then = shlex.quote(f"data.root={target}")
    return f"data.root={source} is not on this machine; fetch it ({shlex.join(how)}), then give {then}."
