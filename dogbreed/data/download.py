"""Fetch the dogImages archive: resumed when interrupted, checked before it is put in place."""

import errno
import http.client
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO

from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import track
from dogbreed.data.archives import disk_error, locked, unpack

DOG_IMAGES_URL = "https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip"
DOG_IMAGES_COUNTS = {"train": 6680, "valid": 835, "test": 836}
DOG_IMAGES_CLASSES = 133

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring next to nothing
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 18


class _Unreachable(DogbreedError):
    """The server, or the way to it, is at fault; `cause` says how, without the way out."""

    def __init__(self, cause: str, way_out: str) -> None:
        super().__init__(f"{cause}: {way_out}.")
        self.cause = cause


class _Retry(Exception):
    """An attempt failed in a way that another may not."""


def download(url: str, file: Path, *, quiet: bool = False) -> Path:
    """Download a file over HTTP; what an interrupted download left in `file.part` is continued.

    Args:
        url: Address, http or https.
        file: Where to put it; a file that is there is complete and taken as it is.
        quiet: Show no progress.

    Returns:
        `file`.

    Raises:
        DogbreedError: The address is none, the server cannot be reached, or the disk is full.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DogbreedError(f"{url!r} cannot be downloaded: give an address that starts with https:// or http://.")
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with locked(part):
            if file.exists():
                return file
            with part.open("ab") as stream:
                _attempts(url, part, stream, quiet)
                os.fsync(stream.fileno())
            os.replace(part, file)
            _tag_file(part).unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, file.parent) from error
    finally:
        if part.exists() and not part.stat().st_size:  # nothing came that could be continued
            part.unlink()
            _tag_file(part).unlink(missing_ok=True)
    return file


def _attempts(url: str, part: Path, stream: IO[bytes], quiet: bool) -> None:
    """Request the rest of the file until all of it is there."""
    failures, best = 0, _size(stream)
    while True:
        try:
            return _attempt(url, part, stream, quiet)
        except urllib.error.HTTPError as error:
            error.close()
            cause = f"{url} could not be downloaded (the server answered {error.code} {error.reason})"
            if error.code < 500 and error.code not in (408, 429):
                raise _Unreachable(cause, "check the address") from error
        except urllib.error.URLError as error:
            cause = f"{url} could not be reached ({_plain(error.reason)})"
            if failures == 0 and _is_offline(error.reason):
                raise _Unreachable(cause, "check the address and the network, then try again") from error
        except _Retry as error:
            cause = f"{url} could not be downloaded ({error})"
        failures += 1
        if _size(stream) > best + (1 << 20):
            failures, best = 1, _size(stream)
        if failures >= ATTEMPTS:
            kept = f", and it goes on from the {_size(stream):,} bytes already here" if _tag_file(part).exists() else ""
            raise _Unreachable(cause, f"try again{kept}")
        time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(url: str, part: Path, stream: IO[bytes], quiet: bool) -> None:
    """Request what is missing once, and append what comes."""
    have, (tag, noted) = _size(stream), _read_tag(part, url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "dogbreed"}
    if have and tag:  # without a tag nobody knows whether the rest belongs to the same file
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}" and noted == str(have):
            return  # it was complete
        if error.code == 416:
            raise _restart(part, stream) from error
        raise
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, urllib.error.URLError):
            raise
        raise _Retry(_plain(error)) from error
    with response:
        # A weak tag does not vouch for single bytes.
        etag = response.headers.get("ETag", "")
        new = etag if etag.startswith('"') else response.headers.get("Last-Modified", "")
        length = response.headers.get("Content-Length")
        if response.status == 206:
            if not re.match(rf"bytes {have}-", response.headers.get("Content-Range", "")) or new not in ("", tag):
                raise _restart(part, stream)
        else:
            stream.truncate(0)
            have = 0
            _tag_file(part).write_text(f"{url}\n{new}\n{length or ''}", encoding="utf-8")
        total = have + int(length) if length and length.isdigit() else None
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        _receive(response, stream, total, quiet)


def _receive(response: http.client.HTTPResponse, stream: IO[bytes], total: int | None, quiet: bool) -> None:
    name = Path(urllib.parse.urlsplit(response.url).path).name
    with track(total, f"Downloading {name}", "bytes", done=_size(stream), quiet=quiet) as bar:
        while True:
            try:  # apart from the writing, so that a full disk is not taken for a broken connection
                chunk = response.read1(CHUNK)
            except (http.client.HTTPException, OSError) as error:
                raise _Retry(f"the connection broke: {_plain(error)}") from error
            if not chunk:
                break
            stream.write(chunk)
            bar.advance(len(chunk))
    if total is not None and _size(stream) != total:
        raise _Retry(f"the connection ended after {_size(stream):,} of {total:,} bytes")


def _is_offline(reason: object) -> bool:
    """Tell whether a first connection failed in a way that waiting some seconds will not mend."""
    if isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError, ConnectionRefusedError, TimeoutError)):
        return True
    return isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def _tag_file(part: Path) -> Path:
    """Return where the address, what names this version of the file (ETag or date) and its size are kept."""
    return part.with_name(part.name + ".tag")


def _read_tag(part: Path, url: str) -> tuple[str, str]:
    """Return what names the version of the file that is here in part, and its size; empty where nobody knows."""
    try:
        address, tag, size = _tag_file(part).read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return "", ""
    return (tag, size) if address == url else ("", "")


def _restart(part: Path, stream: IO[bytes]) -> _Retry:
    # The tag goes first: bytes without a tag are thrown away, a tag with other bytes would be believed.
    _tag_file(part).unlink(missing_ok=True)
    stream.truncate(0)
    return _Retry("the file on the server has changed")


def _size(stream: IO[bytes]) -> int:
    stream.flush()
    return os.fstat(stream.fileno()).st_size


def _plain(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} seconds"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def fetch_dog_images(root: Path, url: str = DOG_IMAGES_URL, *, quiet: bool = False) -> None:
    """Put the dogImages dataset at `root`: download, unpack, count, and delete the archive.

    Args:
        root: Folder to make; if the whole dataset is there, nothing happens.
        url: Where the archive is.
        quiet: Show no progress.

    Raises:
        DogbreedError: There is no network, the archive is not the whole dataset, or the disk is full.
    """
    root = root.absolute()
    archive = root.parent / "dogImages.zip"
    expected = {split: (count, DOG_IMAGES_CLASSES) for split, count in DOG_IMAGES_COUNTS.items()}
    if root.is_dir() and _counts(root) == expected:
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DogbreedError(f"{root} exists but is not the whole of dogImages: remove it, or choose another data.root.")

    def check(folder: Path) -> None:
        if (counts := _counts(folder)) != expected:
            raise DogbreedError(
                f"{archive} should hold {_describe(expected)}, but holds {_describe(counts)}: "
                "delete it and start again."
            )

    try:
        download(url, archive, quiet=quiet)
    except _Unreachable as error:
        raise DogbreedError(
            f"{error.cause}: try again later, use synthetic pictures with data=sample, "
            "or name a folder that you have with data.root=/path/to/dogImages."
        ) from error
    unpack(archive, root, check=check, quiet=quiet)
    archive.unlink(missing_ok=True)


def _counts(root: Path) -> dict[str, tuple[int, int]]:
    """Return the number of images and of classes of each split."""
    return {
        split: (
            sum(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in root.glob(f"{split}/*/*")),
            sum(path.is_dir() for path in root.glob(f"{split}/*")),
        )
        for split in DOG_IMAGES_COUNTS
    }


def _describe(counts: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{images} {split} images of {classes} breeds" for split, (images, classes) in counts.items())
