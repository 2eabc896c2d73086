"""The images to S3; only what is not there yet is sent."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count
from dogbreed.data.download import fetch_dog_images
from launch.aws.account import Account, offline_target
from launch.aws.naming import parse_s3_uri
from launch.aws.pricing import Prices
from launch.aws.storage import Bucket, image_files
from launch.jobs.request import data_uri, folders


def upload(config: dict[str, Any], rehearsal: Callable[[str], AbstractContextManager[Any]] | None = None) -> None:
    """Send the images, with `mode=rehearse` to a server on this machine; with `mode=plan` say what would be sent.

    Args:
        config: A composed configuration.
        rehearsal: Runs such a server for a region.

    Raises:
        DogbreedError: There are none, the bucket cannot be used, or AWS cannot be reached.
    """
    data = config["data"]
    if data["source"] == "sample":
        raise DogbreedError("The sample is not sent: a job draws it itself. Give data.root=FOLDER, or skip this step.")
    account = Account(config) if config["mode"] == "submit" else None  # before anything is downloaded for it
    root = Path(data["root"])
    if account and not root.exists() and data["download"] and root.name == "dogImages":
        fetch_dog_images(root, data["url"]) if data["url"] else fetch_dog_images(root)
    if not root.is_dir():
        raise DogbreedError(f"The data folder {root} does not exist; give data.root=FOLDER.")
    files = image_files(root, folders(config))
    size = sum(file.stat().st_size for file in files.values())
    address = data_uri(config, account.target if account else offline_target(config))
    assert address is not None
    month = Prices(config).storage(size)
    print(
        f"{root}: {count(len(files), 'file')}, {size:,} bytes -> {address}/ (${month:.2f} per month in S3)", flush=True
    )
    name = parse_s3_uri(address, "sagemaker.data")[0]
    if account:
        client, region = account.client("s3"), account.target.region
        _send(config, Bucket(client, name, account.account, region, config["sagemaker"]["kms_key"]), files, address)
    elif config["mode"] == "rehearse":
        assert rehearsal is not None, "the command gives it"
        with rehearsal(offline_target(config).region) as server:
            server.make_bucket(name)
            _send(config, server.bucket(name), files, address)
        print("Rehearsed: it went to a server on this machine, which is gone again.")
    else:
        print("Nothing was sent: this is the plan.")


def _send(config: dict[str, Any], bucket: Bucket, files: Mapping[str, Path], address: str) -> None:
    cloud = config["sagemaker"]
    name, folder = parse_s3_uri(address, "sagemaker.data")
    if not bucket.check(may_lack=not (cloud["bucket"] or cloud["data"])):
        bucket.make()
    sent = bucket.send({f"{folder}/{path}": file for path, file in files.items()}, below=f"{folder}/")
    print(f"Sent {count(sent.files, 'file')}, {sent.bytes:,} bytes; {sent.kept:,} were there already.")
    if unexpected := sent.unexpected:
        print(
            f"Warning: {count(len(unexpected), 'file')} there, but not here, such as s3://{name}/{unexpected[0]}; jobs "
            f"will train on that too. Delete it: aws s3 sync --delete {config['data']['root']} {address}/"
        )
