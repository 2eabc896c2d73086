"""`python launch/sagemaker_upload.py`: the photographs to S3; only what is not there yet is sent."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.config import cli
from dogbreed.core.errors import DogbreedError
from dogbreed.data.download import fetch_dog_images
from launch import commands
from launch.aws.account import Account
from launch.aws.naming import split_s3
from launch.aws.pricing import Prices
from launch.aws.settings import check_kinds
from launch.aws.storage import Bucket, photographs
from launch.help import UPLOAD_HELP
from launch.jobs.request import SPLITS, data_uri


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return cli.run(upload, prog="python launch/sagemaker_upload.py", help=UPLOAD_HELP, argv=argv)


def upload(config: dict[str, Any]) -> None:
    """Sends the photographs, or with `mode=plan` says what would be sent.

    Raises:
        DogbreedError: There are none, the bucket cannot be used, or AWS cannot be reached.
    """
    check_kinds(config)
    if config["mode"] not in ("plan", "submit"):
        raise DogbreedError(f"mode={config['mode']} is not for uploads; it is plan or submit.")
    root = Path(config["data"]["root"])
    if config["data"]["source"] == "sample":
        raise DogbreedError("The sample is not sent: a job draws it itself. Give data.root=FOLDER, or skip this step.")
    planned = config["mode"] == "plan"
    account = None if planned else Account(config)  # before anything is fetched for it
    if not root.exists() and config["data"]["download"] and root.name == "dogImages" and not planned:
        fetch_dog_images(root, config["data"]["url"]) if config["data"]["url"] else fetch_dog_images(root)
    if not root.is_dir():
        raise DogbreedError(f"The data folder {root} does not exist; give data.root=FOLDER.")
    files = photographs(root, SPLITS)
    size = sum(file.stat().st_size for file in files.values())
    place = account.place if account else commands.offline(config)
    address = data_uri(config, place)
    assert address is not None
    month = Prices(config).storage(size)
    print(f"{root}: {len(files):,} files, {size:,} bytes -> {address}/ (${month:.2f} a month in S3)", flush=True)
    if account is None:
        print("Nothing was sent: this is the plan.")
        return
    name, folder = split_s3(address, "sagemaker.data")
    bucket = Bucket(account.client("s3"), name, account.account, place.region, config["sagemaker"]["kms_key"])
    if not bucket.check(may_lack=not (config["sagemaker"]["bucket"] or config["sagemaker"]["data"])):
        bucket.make()
    sent = bucket.send({f"{folder}/{path}": file for path, file in files.items()}, below=f"{folder}/")
    print(f"Sent {sent.files:,} files, {sent.bytes:,} bytes; {sent.kept:,} were there already.")
    if sent.strange:
        print(
            f"Beware: {len(sent.strange):,} files are there and not here, such as s3://{name}/{sent.strange[0]}; jobs "
            f"will train on them too. Take them away: aws s3 sync --delete {root} {address}/"
        )


if __name__ == "__main__":
    sys.exit(main())
