"""S3 on this machine, for rehearsals: a moto server on the loopback interface, and what its clients need to find it."""

import logging
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from launch.aws.naming import parse_s3_uri
from launch.aws.storage import Bucket

ACCOUNT = "123456789012"  # moto's
NOBODY = "rehearsal"  # the access key: nobody's, so that no real credential can be used by mistake
LOOPBACK = "127.0.0.1"


class LocalS3:
    """A running server.

    Args:
        endpoint: Its address.
        region: In which its buckets are.
    """

    def __init__(self, endpoint: str, region: str) -> None:
        import boto3
        from botocore.config import Config

        self.endpoint = endpoint
        self.region = region
        session = boto3.session.Session(
            aws_access_key_id=NOBODY, aws_secret_access_key=NOBODY, region_name=region, botocore_session=_no_files()
        )
        self.client = session.client("s3", endpoint_url=endpoint, config=Config(proxies={}, max_pool_connections=16))

    def variables(self) -> dict[str, str]:
        """Return what makes a process find this server and no other, whatever credentials this machine has."""
        inherited = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
        no_proxy = ",".join(filter(None, [*inherited, LOOPBACK, "localhost"]))
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": NOBODY,
            "AWS_SECRET_ACCESS_KEY": NOBODY,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }

    def put(self, file: Path, uri: str) -> None:
        """Upload a file, as the service does with what a job leaves; the bucket is there."""
        bucket, key = parse_s3_uri(uri, "address")
        self.client.upload_file(str(file), bucket, key)

    def get(self, uri: str, folder: Path) -> int:
        """Download an object, or all objects below a prefix, into a folder as the service does for a channel.

        Returns:
            How many objects.
        """
        bucket, key = parse_s3_uri(uri, "address")
        count = 0
        for name in self.names(uri):
            relative = Path(name).name if name == key else name[len(key) :].lstrip("/")
            file = folder / relative
            if not file.resolve().is_relative_to(folder.resolve()):
                raise DogbreedError(f"s3://{bucket}/{name} would be written outside {folder}.")
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                shutil.copyfileobj(self.client.get_object(Bucket=bucket, Key=name)["Body"], stream)
            count += 1
        return count

    def names(self, uri: str) -> list[str]:
        """Return the keys of the object of this address and of those below it."""
        bucket, key = parse_s3_uri(uri, "address")
        keys: list[str] = []
        with suppress(self.client.exceptions.NoSuchBucket):
            for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key):
                keys += [entry["Key"] for entry in page.get("Contents", ())]
        below = f"{key.rstrip('/')}/" if key else ""
        return [name for name in keys if name == key or name.startswith(below)]

    def put_archive(self, folder: Path, uri: str) -> bool:
        """Upload what is in a folder as one tar.gz, as the service does with a job's model and output.

        Returns:
            Whether there was anything.
        """
        content = sorted(folder.iterdir()) if folder.is_dir() else []
        if not content:
            return False
        with TemporaryDirectory(prefix="dogbreed-rehearsal-") as beside:
            archive = Path(beside) / "archive.tar.gz"
            with tarfile.open(archive, "w:gz", compresslevel=1) as tar:  # weights do not get smaller by trying harder
                for path in content:
                    tar.add(path, path.name)
            self.put(archive, uri)
        return True

    def bucket(self, name: str) -> Bucket:
        """Return a bucket as the commands that talk to AWS use it."""
        return Bucket(self.client, name, ACCOUNT, self.region)

    def make_bucket(self, name: str) -> None:
        """Make a bucket, if there is none of this name."""
        if not self.bucket(name).check(may_lack=True):
            self.bucket(name).make()


@contextmanager
def serve(region: str) -> Iterator[LocalS3]:
    """Run a server for as long as the context lasts; its buckets are gone afterwards.

    Raises:
        DogbreedError: moto is not installed.
    """
    try:
        import boto3  # noqa: F401
        from moto.core import DEFAULT_ACCOUNT_ID  # noqa: F401
        from moto.s3.models import s3_backends
        from moto.server import ThreadedMotoServer
    except ModuleNotFoundError as error:
        raise DogbreedError(
            f"A rehearsal needs moto, which plays S3 ({error.name} is not installed): {install('rehearse')}."
        ) from error
    log = logging.getLogger("werkzeug")
    level = log.level
    log.setLevel(logging.ERROR)  # it names every request
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield LocalS3(f"http://{host}:{port}", region)
    finally:
        server.stop()
        s3_backends.reset()
        log.setLevel(level)


def _no_files() -> Any:
    """Return a botocore session that reads neither the configuration nor the credentials of this machine."""
    from botocore.session import Session

    nothing: Mapping[str, tuple[Any, ...]] = {
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
        "profile": (None, None, None, None),
    }
    return Session(session_vars=nothing)
