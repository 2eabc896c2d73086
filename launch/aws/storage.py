"""Files to S3: in parallel, with progress, encrypted, and only what is not there yet."""

import base64
import hashlib
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.progress import Tracker, track
from dogbreed.core.text import count
from launch.aws.errors import AwsError, explained, translated

PARALLEL = 16
PART_BYTES = 8 << 20  # larger files go in parts of this size


@dataclass(frozen=True)
class Sent:
    """What an upload did.

    Attributes:
        files: How many were sent.
        bytes: In them.
        kept: How many were there already.
        unexpected: Keys that are there, and not here.
    """

    files: int
    bytes: int
    kept: int
    unexpected: tuple[str, ...]


class Bucket:
    """A bucket of one's own account.

    Args:
        client: boto3's S3 client.
        name: Of the bucket.
        account: That has to own it.
        region: That it has to be in.
        kms_key: To encrypt with; None leaves it to the bucket's own encryption.
    """

    def __init__(self, client: Any, name: str, account: str, region: str, kms_key: str | None = None) -> None:
        self.client, self.name, self.account, self.region = client, name, account, region
        self.owner = {"ExpectedBucketOwner": account}
        # Without a key of ours the bucket's own encryption holds, which may be a key of its own.
        self.encryption = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    def check(self, *, may_lack: bool = False) -> bool:
        """Make sure that the bucket is ours, is in the region, and is not public.

        Args:
            may_lack: Whether it is no error that it does not exist.

        Returns:
            Whether it is there.

        Raises:
            DogbreedError: It is missing, or is none to use.
        """
        from botocore.exceptions import ClientError

        try:
            with explained(f"looking for the bucket {self.name}"):
                head = self.client.head_bucket(Bucket=self.name, **self.owner)
        except AwsError as error:
            if error.code in ("404", "NoSuchBucket") and may_lack:
                return False
            raise self._refused(error) from error
        headers = head["ResponseMetadata"]["HTTPHeaders"]
        region = head.get("BucketRegion") or headers.get("x-amz-bucket-region") or self.region
        if region != self.region:
            raise self._elsewhere(region)
        try:
            public = self.client.get_bucket_policy_status(Bucket=self.name, **self.owner)["PolicyStatus"]["IsPublic"]
        except ClientError:  # no policy, or no permission to read it
            public = False
        if public:
            raise DogbreedError(
                f"The bucket {self.name} is public, by its policy; images and models do not belong there. Take "
                "the policy back (aws s3api put-public-access-block), or give another sagemaker.bucket."
            )
        return True

    def _refused(self, error: AwsError) -> DogbreedError:
        if error.code in ("404", "NoSuchBucket"):
            return DogbreedError(
                f"The bucket {self.name} does not exist; create it (aws s3 mb s3://{self.name} --region "
                f"{self.region}), or leave sagemaker.bucket out: the account's default bucket is then used."
            )
        if error.code in ("403", "AccessDenied", "Forbidden"):
            return DogbreedError(
                f"The bucket {self.name} is not of the account {self.account}, or these credentials may not use it; "
                "give a sagemaker.bucket of this account (python launch/policies.py upload shows what is needed)."
            )
        if error.code in ("301", "PermanentRedirect", "400", "AuthorizationHeaderMalformed"):
            inner = getattr(error.__cause__, "response", {})
            region = inner.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("x-amz-bucket-region")
            return self._elsewhere(region)
        return error

    def _elsewhere(self, region: str | None) -> DogbreedError:
        return DogbreedError(
            f"The bucket {self.name} is in {region or 'another region'}, and the job would run in {self.region}, where "
            f"it cannot read it; give sagemaker.region={region or 'REGION'}, or another sagemaker.bucket."
        )

    def make(self) -> None:
        """Create the bucket: nothing in it can be made public.

        Raises:
            DogbreedError: AWS refused.
        """
        where = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
        with explained(f"creating the bucket {self.name}"):
            self.client.create_bucket(Bucket=self.name, **({"CreateBucketConfiguration": where} if where else {}))
            blocked = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            self.client.put_public_access_block(
                Bucket=self.name,
                PublicAccessBlockConfiguration=dict.fromkeys(blocked, True),
                **self.owner,
            )

    def put(self, key: str, content: bytes) -> bool:
        """Store bytes unless they are there; return whether they had to be sent."""
        with explained(f"sending {key}"):
            if key in (there := self.listed(key)) and self._same(key, content, there):
                return False
            self.client.put_object(
                Bucket=self.name, Key=key, Body=content, ChecksumAlgorithm="SHA256", **self.encryption, **self.owner
            )
        return True

    def listed(self, prefix: str) -> dict[str, tuple[int, str]]:
        """Return size and ETag by key of everything below a prefix."""
        objects = {}
        pages = self.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self.name, Prefix=prefix, **self.owner):
            for entry in page.get("Contents", []):
                objects[entry["Key"]] = (entry["Size"], entry["ETag"].strip('"'))
        return objects

    def send(self, files: Mapping[str, Path], *, below: str | None = None, quiet: bool = False) -> Sent:
        """Upload files by key, those that are not there yet.

        Files that arrived stay when it is interrupted; the next call sends the rest. A file that is sent in
        parts is there whole or not at all.

        Args:
            files: Local paths by key.
            below: Prefix under which keys that are none of these are reported.
            quiet: No progress.

        Raises:
            DogbreedError: AWS refused, or could not be reached.
        """
        prefix = below if below is not None else posixpath.commonpath(list(files))
        with explained(f"listing s3://{self.name}/{prefix}"):
            there = self.listed(prefix)
        with ThreadPoolExecutor(PARALLEL) as pool, explained("comparing with what is in S3"):
            same = list(pool.map(lambda key: key in there and self._same(key, files[key], there), files))
        missing = [key for key, kept in zip(files, same, strict=True) if not kept]
        size = sum(files[key].stat().st_size for key in missing)
        if missing:
            with track(size, f"Sending {count(len(missing), 'file')}", unit="bytes", quiet=quiet) as tracker:
                self._send({key: files[key] for key in missing}, tracker)
        unexpected = tuple(sorted(there.keys() - files.keys())) if below is not None else ()
        return Sent(len(missing), size, len(files) - len(missing), unexpected)

    def _same(self, key: str, local: Path | bytes, there: Mapping[str, tuple[int, str]]) -> bool:
        """Return whether S3 holds this content: by MD5 where the ETag is one, else by S3's own SHA-256."""
        size, etag = there[key]
        if size != (len(local) if isinstance(local, bytes) else local.stat().st_size):
            return False
        if etag == _digest(local, "md5").hex():
            return True
        head = self.client.head_object(Bucket=self.name, Key=key, ChecksumMode="ENABLED", **self.owner)
        return str(head.get("ChecksumSHA256", "")).partition("-")[0] == _checksum(local)

    def _send(self, files: Mapping[str, Path], tracker: Tracker) -> None:
        from boto3.s3.transfer import TransferConfig, create_transfer_manager
        from s3transfer.subscribers import BaseSubscriber

        class Progress(BaseSubscriber):
            def on_progress(self, future: Any, bytes_transferred: int, **_: Any) -> None:
                tracker.advance(bytes_transferred)

        config = TransferConfig(
            max_concurrency=PARALLEL, multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES
        )
        try:
            with create_transfer_manager(self.client, config) as manager:
                futures = []
                for key, file in files.items():
                    extra = {**self.encryption, **self.owner, "ChecksumAlgorithm": "SHA256"}
                    futures.append(manager.upload(str(file), self.name, key, extra, subscribers=[Progress()]))
                for future in futures:
                    future.result()  # raises in here, so that leaving cancels the rest, parts included
        except OSError as error:
            raise DogbreedError(f"{error.filename or 'A file'} cannot be read: {error.strerror or error}.") from error
        except Exception as error:
            raise translated(error, "sending files to S3") from error

    def has(self, prefix: str) -> bool:
        """Return whether anything lies below a prefix."""
        with explained(f"looking into s3://{self.name}/{prefix}"):
            page = self.client.list_objects_v2(Bucket=self.name, Prefix=prefix, MaxKeys=1, **self.owner)
        return bool(page.get("Contents"))


def image_files(root: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Return the files below these folders of a folder, by their path in it; hidden ones are left out.

    Raises:
        DogbreedError: A split is missing, or there is no file.
    """
    missing = [split for split in splits if not (root / split).is_dir()]
    if missing:
        raise DogbreedError(
            f"{root} has no folder {missing[0]}/; give data.root=FOLDER with train/, valid/ and test/, or "
            "sagemaker.channels=root, which takes the folder as it is."
        )
    files = dict(sorted(_walk(root, splits)))
    if not files:
        raise DogbreedError(f"{root} holds no files; it should hold one folder per class, in folders of splits or not.")
    return files


def _walk(root: Path, splits: Sequence[str]) -> Iterator[tuple[str, Path]]:
    for split in splits:
        for file in (root / split).rglob("*"):
            inside = file.relative_to(root)
            if file.is_file() and not any(part.startswith((".", "__MACOSX")) for part in inside.parts):
                yield inside.as_posix(), file


def _digest(content: Path | bytes, name: str) -> bytes:
    if isinstance(content, bytes):
        return hashlib.new(name, content, usedforsecurity=False).digest()
    with content.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.new(name, usedforsecurity=False)).digest()


def _checksum(content: Path | bytes) -> str:
    """Return S3's ChecksumSHA256: of what is sent in parts, the digest of the parts' digests."""
    if isinstance(content, bytes) or content.stat().st_size < PART_BYTES:
        return base64.b64encode(_digest(content, "sha256")).decode()
    with content.open("rb") as stream:
        parts = [hashlib.sha256(part).digest() for part in iter(lambda: stream.read(PART_BYTES), b"")]
    return base64.b64encode(hashlib.sha256(b"".join(parts)).digest()).decode()
