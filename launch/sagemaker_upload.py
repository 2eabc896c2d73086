"""`python launch/sagemaker_upload.py`: the images to S3; only what is not there yet is sent."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch import commands

HELP = """
Sends the images to S3, where SageMaker's jobs read them: in parallel, encrypted, and only what is not there yet.
After an interruption, only the rest is sent.

  data.root=data/dogImages     folder with train/ valid/ test/; dogImages is fetched if it is missing
  sagemaker.bucket=null        null: the account's default bucket, made if it is missing
  sagemaker.prefix=dogbreed    folder in the bucket; the images go to PREFIX/data/dogImages/
  sagemaker.kms_key=null       a KMS key to encrypt with
  mode=rehearse                sends them to a server on this machine instead
  mode=plan                    says how much would be sent; needs no AWS account

Example:
  python launch/sagemaker_upload.py data.root=my_dogs
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""

    def mode(config: dict[str, Any]) -> None:
        from launch.jobs.upload import upload
        from launch.rehearsal.s3 import serve

        upload(config, serve)

    return commands.main("python launch/sagemaker_upload.py", HELP, argv, dict.fromkeys(commands.MODES, mode))


if __name__ == "__main__":
    sys.exit(main())
