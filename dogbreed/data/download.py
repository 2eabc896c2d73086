"""Fetch the dogImages archive and unpack it: resumed when interrupted, checked before it is put in place."""

import contextlib
import errno
import http.client
import json
import lzma
import os
import re
import shutil
import socket
import ssl
import stat
import struct
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import track

DOG_IMAGES_URL = "https://s3-us-west-1.amazonaws.com/udacity-aind/dog-project/dogImages.zip"
DOG_IMAGES_COUNTS = {"train": 6680, "valid": 835, "test": 836}
DOG_IMAGES_CLASSES = 133

TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring next to nothing
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
CHUNK = 1 << 18

# What zipfile raises on damaged bytes, as found by damaging some; RuntimeError stands for a wanted password.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(IndexError, NotImplementedError, OverflowError, RuntimeError, ValueError),
)
MAX_UNPACKED = 16 << 30
MAX_MEMBERS = 200_000
MAX_RATIO = 100  # photographs hardly shrink in an archive; a bomb does a thousandfold


class _Unreachable(DogbreedError):
    """The server, or the way to it, is at fault; `cause` says how, without the way out."""

    def __init__(self, cause: str, way_out: str) -> None:
        super().__init__(f"{cause}: {way_out}.")
        self.cause = cause


class _TryAgain(Exception):
    """An attempt failed in a way that another may not."""


def download(url: str, file: Path, *, quiet: bool = False) -> Path:
    """Download a file over HTTP; what an interrupted download left in `file.part` is continued.

    Args:
        url: Address, http or https.
        file: Where to put it; a file that is there is complete and taken as it is.
        quiet: Show no progress.

    Returns:
        `file`.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise DogbreedError(f"{url!r} cannot be downloaded: give an address that starts with https:// or http://.")
    if file.exists():
        return file
    part = file.with_name(file.name + ".part")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with part.open("ab") as stream, _locked(stream, part):
            # Whoever held the lock until now may have finished, and renamed what we have opened.
            if not file.exists():
                try:
                    _attempts(url, part, stream, quiet)
                except BaseException:
                    if _size(stream) == 0:
                        part.unlink(missing_ok=True)  # nothing came that could be continued
                        _notes(part).unlink(missing_ok=True)
                    raise
                os.fsync(stream.fileno())
                os.replace(part, file)
                _notes(part).unlink(missing_ok=True)
    except OSError as error:
        raise _disk_error(error, file.parent) from error
    return file


def _attempts(url: str, part: Path, stream: IO[bytes], quiet: bool) -> None:
    """Ask for the rest of the file until all of it is there."""
    failures, best = 0, _size(stream)
    while True:
        try:
            return _attempt(url, part, stream, quiet)
        except _TryAgain as error:
            cause = f"{url} could not be downloaded ({error})"
        except urllib.error.HTTPError as error:
            error.close()
            cause = f"{url} could not be downloaded (the server answered {error.code} {error.reason})"
            if error.code < 500 and error.code not in (408, 429):
                raise _Unreachable(cause, "check the address") from error
        except urllib.error.URLError as error:
            cause = f"{url} could not be reached ({_plain(error.reason)})"
            if failures == 0 and _offline(error.reason):
                raise _Unreachable(cause, "check the address and the network, then try again") from error
        failures += 1
        if _size(stream) > best + (1 << 20):
            failures, best = 1, _size(stream)
        if failures >= ATTEMPTS:
            kept = f", and it goes on from the {_size(stream):,} bytes already here" if _read_notes(part, url) else ""
            raise _Unreachable(cause, f"try again{kept}")
        time.sleep(PAUSE * 2 ** (failures - 1))


def _attempt(url: str, part: Path, stream: IO[bytes], quiet: bool) -> None:
    """Ask once for what is missing, and append what comes."""
    have, note = _size(stream), _read_notes(part, url)
    headers = {"Accept-Encoding": "identity", "User-Agent": "dogbreed"}
    # Without a validator nobody knows whether the rest belongs to the same file.
    if have and note:
        headers |= {"Range": f"bytes={have}-", "If-Range": note["validator"]}
    try:
        response = _opener().open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)  # noqa: S310
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        total = _number(r"bytes \*/(\d+)", error.headers.get("Content-Range"))
        if have == total == note.get("total") and _validator(error.headers) in ("", note["validator"]):
            return
        _restart(part, stream)
        raise _TryAgain("the file on the server has changed") from error
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, urllib.error.URLError):
            raise
        raise _TryAgain(_plain(error)) from error
    with response:
        validator, length = _validator(response.headers), _number(r"(\d+)", response.headers.get("Content-Length"))
        if response.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
            same = found and int(found[1]) == have and int(found[2]) == note.get("total")
            if not same or validator not in ("", note["validator"]):
                _restart(part, stream)
                raise _TryAgain("the file on the server has changed")
            total = note["total"]
        else:
            _restart(part, stream)
            have, total = 0, length
            if validator and total is not None:
                _notes(part).write_text(json.dumps({"url": url, "validator": validator, "total": total}))
        if total is not None and shutil.disk_usage(part.parent).free < total - have:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with track(
            total, f"Downloading {Path(urllib.parse.urlsplit(url).path).name}", "bytes", done=have, quiet=quiet
        ) as bar:
            while chunk := _read(response):
                stream.write(chunk)
                bar.advance(len(chunk))
        stream.flush()
    if total is not None and _size(stream) != total:
        raise _TryAgain(f"the connection ended after {_size(stream):,} of {total:,} bytes")


def _read(response: Any) -> bytes:
    """Read what has come; apart from the writing, so that a full disk is not taken for a broken connection."""
    try:
        return response.read1(CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _TryAgain(f"the connection broke: {_plain(error)}") from error


def _offline(reason: object) -> bool:
    """Whether a first connection failed in a way that waiting some seconds will not mend."""
    if isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError, ConnectionRefusedError, TimeoutError)):
        return True
    return isinstance(reason, OSError) and reason.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows HTTP only: no redirection leads to file:// or ftp://."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def _validator(headers: Any) -> str:
    """What names this version of the file; a weak tag does not vouch for single bytes."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _read_notes(part: Path, url: str) -> dict[str, Any]:
    try:
        note = json.loads(_notes(part).read_bytes())
        usable = note["url"] == url and isinstance(note["validator"], str) and isinstance(note["total"], int)
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return note if usable else {}


def _restart(part: Path, stream: IO[bytes]) -> None:
    # The notes go first: bytes without notes are thrown away, notes with other bytes would be believed.
    _notes(part).unlink(missing_ok=True)
    stream.truncate(0)


def _size(stream: IO[bytes]) -> int:
    stream.flush()
    return os.fstat(stream.fileno()).st_size


def _number(pattern: str, text: str | None) -> int | None:
    found = re.fullmatch(pattern, text or "")
    return int(found[1]) if found else None


def _plain(error: object) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} seconds"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _disk_error(error: OSError, folder: Path) -> DogbreedError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DogbreedError(f"The disk that holds {folder} is full: make room there or choose another data.root.")
    return DogbreedError(f"{folder} cannot be written ({_plain(error)}): choose another data.root.")


@contextlib.contextmanager
def _locked(stream: IO[bytes], path: Path) -> Iterator[None]:
    """Hold a file for this process alone; the system lets go of it when the process dies."""
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DogbreedError(
                f"Another process is at work on {path}: wait until it is done, then start again."
            ) from error
        except OSError:
            pass  # some network disks have no locks
    yield


def unpack(archive: Path, root: Path, *, check: Callable[[Path], None] | None = None, quiet: bool = False) -> None:
    """Unpack a zip file whose only top folder becomes `root`; nothing is there before everything is.

    Args:
        archive: Zip file.
        root: Folder to make; it must not exist or be empty.
        check: Looks at the unpacked folder before it is put in place, and raises if something is wrong with it.
        quiet: Show no progress.
    """
    root = root.absolute()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DogbreedError(f"{root} exists already: remove it, or choose another data.root.")
    if not archive.is_file():
        raise DogbreedError(f"{archive} is missing: download it first.")
    scratch = root.with_name(f".{root.name}.unpacking")
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        with archive.open("rb") as stream, _locked(stream, archive):
            shutil.rmtree(scratch, ignore_errors=True)  # of an unpacking that was killed
            try:
                with zipfile.ZipFile(stream) as content:
                    _extract(content, _members(content, archive), archive, scratch, quiet)
                if check is not None:
                    check(scratch)
                os.rename(scratch, root)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    except (*_DAMAGE, OSError) as error:
        # bz2 and seeking raise OSError on damaged bytes, without a number or with that of a wrong argument
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise _disk_error(error, root.parent) from error
        raise DogbreedError(f"{archive} is damaged ({error}): delete it and start again.") from error


def _members(content: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, Path]]:
    """The files to extract and where to, below the top folder; an error if the archive cannot be trusted."""
    members, tops = [], set()
    for info in content.infolist():
        parts = re.split(r"[/\\]", info.filename.rstrip("/"))
        kind = stat.S_IFMT(info.external_attr >> 16)
        if "" in parts or ".." in parts or ":" in parts[0] or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DogbreedError(
                f"{archive} holds an unsafe entry, {info.filename!r}: delete it and do not use its source."
            )
        if "__MACOSX" in parts or any(part.startswith(".") for part in parts):
            continue
        tops.add(parts[0])
        if not info.is_dir():
            members.append((info, Path(*parts[1:])))
    if len(tops) != 1 or not members or any(path == Path() for _, path in members):
        raise DogbreedError(f"{archive} should hold one folder with everything in it, but does not: delete it.")
    size, packed = sum(info.file_size for info, _ in members), archive.stat().st_size
    if size > MAX_UNPACKED or len(members) > MAX_MEMBERS or size > MAX_RATIO * packed + (1 << 20):
        raise DogbreedError(
            f"{archive} ({packed:,} bytes) would unpack to {len(members):,} files of {size:,} bytes, "
            "which no photographs do: delete it and do not use its source."
        )
    if shutil.disk_usage(archive.parent).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return members


def _extract(
    content: zipfile.ZipFile, members: list[tuple[zipfile.ZipInfo, Path]], archive: Path, folder: Path, quiet: bool
) -> None:
    folder.mkdir()
    with track(len(members), f"Unpacking {archive.name}", "files", quiet=quiet) as bar:
        for info, path in members:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            # Reading to the end compares the checksum, and gives no more than the size that was promised.
            with content.open(info) as source, target.open("xb") as sink:
                shutil.copyfileobj(source, sink, CHUNK)
            bar.advance()


def fetch_dog_images(root: Path, url: str = DOG_IMAGES_URL, *, quiet: bool = False) -> None:
    """Put the dogImages dataset at `root`: download, unpack, count, and delete the archive.

    Args:
        root: Folder to make; if the whole dataset is there, nothing happens.
        url: Where the archive is.
        quiet: Show no progress.
    """
    root = root.absolute()
    archive = root.parent / "dogImages.zip"
    if root.is_dir() and _counts(root) == _expected():
        return
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DogbreedError(f"{root} exists but is not the whole of dogImages: remove it, or choose another data.root.")

    def check(folder: Path) -> None:
        if (found := _counts(folder)) != _expected():
            raise DogbreedError(
                f"{archive} should hold {_describe(_expected())}, but holds {_describe(found)}: "
                "delete it and start again."
            )

    try:
        download(url, archive, quiet=quiet)
    except _Unreachable as error:
        raise DogbreedError(
            f"{error.cause}: try again later, use made-up pictures with data=sample, "
            "or name a folder that you have with data.root=/path/to/dogImages."
        ) from error
    unpack(archive, root, check=check, quiet=quiet)
    archive.unlink(missing_ok=True)


def _expected() -> dict[str, tuple[int, int]]:
    return {split: (count, DOG_IMAGES_CLASSES) for split, count in DOG_IMAGES_COUNTS.items()}


def _counts(root: Path) -> dict[str, tuple[int, int]]:
    """Images and classes of each split."""
    return {
        split: (
            sum(path.suffix.lower() in (".jpg", ".jpeg", ".png") for path in root.glob(f"{split}/*/*")),
            sum(path.is_dir() for path in root.glob(f"{split}/*")),
        )
        for split in DOG_IMAGES_COUNTS
    }


def _describe(counts: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{images} {split} images of {classes} breeds" for split, (images, classes) in counts.items())
