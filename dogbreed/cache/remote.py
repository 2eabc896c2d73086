"""A store's home in S3, so that features travel between machines: what is missing is fetched, what is new is added.

Below `<address>/<store key>/` lie blocks as on disk, each named by the keys of its rows and written once, whole, if it
is absent. So several jobs may add at the same time, and of a store that is half uploaded the rest is simply missing:
there is no list to trust, each block says which rows it holds, and the store checks every row when it reads it.
Whatever happens here is no reason to end a training: it is said in a sentence, and the features are computed.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from safetensors.torch import save

from dogbreed.cache.store import KEY, Keys, Store, packed
from dogbreed.core import text
from dogbreed.core.files import atomic_write

BLOCK_BYTES = 64 << 20
PARALLEL = 8
_HEAD_BYTES = 4096  # of a block; holds its header, which has three tensors
_NAME = re.compile(r"[0-9a-f]{32}\.safetensors")
_THERE = ("PreconditionFailed", "ConditionalRequestConflict")  # another job has written it, or is just doing so


class Home(NamedTuple):
    """Where all stores have their homes.

    Attributes:
        connect: Makes a client of S3 as boto3 has it.
        address: `s3://bucket/folder`.
        owner: Account that has to own the bucket; None for any.
        kms_key: To encrypt with; None leaves it to the bucket's own encryption.
    """

    connect: Callable[[], Any]
    address: str
    owner: str | None = None
    kms_key: str | None = None


_homes: list[Home] = []  # of this process; at most one


def keep_in(home: Home | None) -> None:
    """Let the stores of this process have their homes there from now on; None for none."""
    _homes[:] = [home] if home else []


def remote_of(key: str, *, quiet: bool = False) -> "RemoteStore | None":
    """Return the home of a store; None where there is none."""
    return RemoteStore(_homes[0], key, quiet=quiet) if _homes else None


class RemoteStore:
    """The home of one store.

    Args:
        home: Of all stores.
        key: Of the store.
        quiet: Say only what went wrong.
    """

    def __init__(self, home: Home, key: str, *, quiet: bool = False) -> None:
        self.address = f"{home.address.rstrip('/')}/{key}"
        self.bucket, _, folder = self.address.removeprefix("s3://").partition("/")
        self.folder, self.quiet, self.connect = f"{folder}/", quiet, home.connect
        self.owner = {"ExpectedBucketOwner": home.owner} if home.owner else {}
        self.encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": home.kms_key} if home.kms_key else {}
        self._blocks: dict[str, Keys] | None = None  # the rows of each; None until they are asked for
        self._broken: set[str] = set()  # blocks that were fetched and have damaged rows
        self._client: Any = None
        self._lost = False

    def fetch(self, store: Store, keys: Keys) -> None:
        """Bring those rows into a store that it lacks; its folder is there."""

        def bring() -> None:
            lacking, before = _lacking(store, keys), len(store)
            fetched: set[str] = set()
            with ThreadPoolExecutor(PARALLEL) as pool:
                # A damaged block may have a good one beside it.
                while names := [name for name in self._covering(lacking) if name not in fetched]:
                    fetched.update(names)
                    list(pool.map(lambda name: self._download(name, store), names))
                    store.refresh()
                    self._broken |= {name for name in names if not store.holds(self._index()[name]).all()}
                    lacking = _lacking(store, keys)
            if self._broken and len(lacking):
                print(f"Features in {self.address} are damaged, and computed anew.", flush=True)
            self._say(len(store) - before, "fetched from")

        self._attempt("fetched from", bring)

    def add(self, store: Store, keys: Keys) -> None:
        """Write those rows of a store that its home lacks."""

        def write() -> None:
            good = [rows for name, rows in self._index().items() if name not in self._broken]
            new = np.setdiff1d(keys[store.holds(keys)], np.concatenate([np.zeros(0, KEY), *good]))
            rows = max(1, BLOCK_BYTES // store.row_bytes)
            for start in range(0, len(new), rows):
                self._put(store, new[start : start + rows])
            self._say(len(new), "kept in")

        self._attempt("kept in", write)

    def _attempt(self, verb: str, step: Callable[[], None]) -> None:
        """Take a step; what goes wrong is said, and no further one is taken."""
        if self._lost:
            return
        try:
            self._client = self._client or self.connect()
            step()
        except Exception as error:  # whatever it is, the features can be computed
            self._lost = True
            reason = " ".join(str(error).split()).rstrip(".")
            print(f"Features cannot be {verb} {self.address} ({reason}); the training goes on without.", flush=True)

    def _say(self, rows: int, what: str) -> None:
        if rows and not self.quiet:
            print(f"Features: {text.count(rows, 'row')} {what} {self.address}", flush=True)

    def _index(self) -> Mapping[str, Keys]:
        """Return the rows of each block, which are read from the blocks themselves."""
        if self._blocks is None:
            pages = self._client.get_paginator("list_objects_v2")
            listed = pages.paginate(Bucket=self.bucket, Prefix=self.folder, **self.owner)
            names = [entry["Key"].removeprefix(self.folder) for page in listed for entry in page.get("Contents", ())]
            names = [name for name in names if _NAME.fullmatch(name)]
            with ThreadPoolExecutor(PARALLEL) as pool:
                self._blocks = dict(zip(names, pool.map(self._rows_of, names), strict=True))
        return self._blocks

    def _covering(self, lacking: Keys) -> list[str]:
        """Return blocks that hold what is lacking, as far as it is there; none for rows that another one has."""
        names = []
        for name, rows in self._index().items():
            covered = np.isin(lacking, rows) & (name not in self._broken)
            if covered.any():
                names.append(name)
                lacking = lacking[~covered]
        return names

    def _rows_of(self, name: str) -> Keys:
        """Return the keys of a block's rows; none of what is no block."""
        try:
            head = self._read(name, 0, _HEAD_BYTES)
            size = 8 + int.from_bytes(head[:8], "little")
            header = json.loads(head[8:size] if size <= len(head) else self._read(name, 8, size))
            start, end = header["keys"]["data_offsets"]
            return np.frombuffer(self._read(name, size + start, size + end), KEY)
        except Exception as error:
            if not isinstance(error, ValueError | KeyError | TypeError) and _code(error) != "InvalidRange":
                raise
            self._broken.add(name)
            return np.zeros(0, KEY)

    def _read(self, name: str, start: int, end: int) -> bytes:
        part = self._client.get_object(
            Bucket=self.bucket, Key=self.folder + name, Range=f"bytes={start}-{end - 1}", **self.owner
        )
        content: bytes = part["Body"].read()
        return content

    def _download(self, name: str, store: Store) -> None:
        file = store.folder / name
        if file.exists():  # with damaged rows
            file = file.with_name(f"{file.stem}-{secrets.token_hex(4)}{file.suffix}")
        with atomic_write(file) as beside:
            self._client.download_file(self.bucket, self.folder + name, str(beside), ExtraArgs=self.owner)

    def _put(self, store: Store, keys: Keys) -> None:
        name = f"{hashlib.blake2b(keys.tobytes(), digest_size=16).hexdigest()}.safetensors"
        features = store.table(keys[None])(np.arange(len(keys)), np.zeros(len(keys), np.int64))
        content, metadata = packed(keys, features.to(store.dtype))
        condition = {} if name in self._broken else {"IfNoneMatch": "*"}
        try:
            self._client.put_object(
                Bucket=self.bucket,
                Key=self.folder + name,
                Body=save(content, metadata),
                ChecksumAlgorithm="SHA256",
                **condition,
                **self.encryption,
                **self.owner,
            )
        except Exception as error:
            if _code(error) not in _THERE:
                raise


def _code(error: Exception) -> str | None:
    """Return S3's name of what it refused; None of another error."""
    code: str | None = getattr(error, "response", {}).get("Error", {}).get("Code")
    return code


def _lacking(store: Store, keys: Keys) -> Keys:
    return keys[~store.holds(keys)]
