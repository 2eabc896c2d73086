"""`python launch/sagemaker_upload.py`: the images to S3; only what is not there yet is sent."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.config import cli
from dogbreed.core.errors import DogbreedError
from dogbreed.data.download import fetch_dog_images
from launch.aws.account import Account, offline_target
from launch.aws.naming import parse_s3_uri
from launch.aws.pricing import Prices
from launch.aws.storage import Bucket, image_files
from launch.aws.validate import check_kinds
from launch.jobs.request import SPLITS, data_uri

HELP = """
Sends the images to S3, where SageMaker's jobs read them: in parallel, encrypted, and only what is not there yet.
After an interruption, only the rest is sent.

  data.root=data/dogImages     folder with train/ valid/ test/; dogImages is fetched if it is missing
  sagemaker.bucket=null        null: the account's default bucket, made if it is missing
  sagemaker.prefix=dogbreed    folder in the bucket; the images go to PREFIX/data/dogImages/
  sagemaker.kms_key=null       a KMS key to encrypt with
  mode=plan                    says how much would be sent; needs no AWS account

Example:
  python launch/sagemaker_upload.py data.root=my_dogs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return cli.run(upload, prog="python launch/sagemaker_upload.py", help=HELP, argv=argv)


def upload(config: dict[str, Any]) -> None:
    """Send the images, or with `mode=plan` say what would be sent.

    Raises:
        DogbreedError: There are none, the bucket cannot be used, or AWS cannot be reached.
    """
    check_kinds(config)
    if config["mode"] not in ("plan", "submit"):
        raise DogbreedError(f"mode={config['mode']} is not for uploads; it is plan or submit.")
    data = config["data"]
    if data["source"] == "sample":
        raise DogbreedError("The sample is not sent: a job draws it itself. Give data.root=FOLDER, or skip this step.")
    account = None if config["mode"] == "plan" else Account(config)  # before anything is downloaded for it
    root = Path(data["root"])
    if account and not root.exists() and data["download"] and root.name == "dogImages":
        fetch_dog_images(root, data["url"]) if data["url"] else fetch_dog_images(root)
    if not root.is_dir():
        raise DogbreedError(f"The data folder {root} does not exist; give data.root=FOLDER.")
    files = image_files(root, SPLITS)
    size = sum(file.stat().st_size for file in files.values())
    address = data_uri(config, account.target if account else offline_target(config))
    assert address is not None
    month = Prices(config).storage(size)
    print(f"{root}: {len(files):,} files, {size:,} bytes -> {address}/ (${month:.2f} per month in S3)", flush=True)
    if account is None:
        print("Nothing was sent: this is the plan.")
        return
    _send(config, account, files, address)


def _send(config: dict[str, Any], account: Account, files: Mapping[str, Path], address: str) -> None:
    cloud = config["sagemaker"]
    name, folder = parse_s3_uri(address, "sagemaker.data")
    bucket = Bucket(account.client("s3"), name, account.account, account.target.region, cloud["kms_key"])
    if not bucket.check(may_lack=not (cloud["bucket"] or cloud["data"])):
        bucket.make()
    sent = bucket.send({f"{folder}/{path}": file for path, file in files.items()}, below=f"{folder}/")
    print(f"Sent {sent.files:,} files, {sent.bytes:,} bytes; {sent.kept:,} were there already.")
    if unexpected := sent.unexpected:
        count = "1 file is" if len(unexpected) == 1 else f"{len(unexpected):,} files are"
        print(
            f"Warning: {count} there and not here, such as s3://{name}/{unexpected[0]}; jobs will train on them too. "
            f"Delete them: aws s3 sync --delete {config['data']['root']} {address}/"
        )


if __name__ == "__main__":
    sys.exit(main())
