"""`python launch/sagemaker_train.py`: trains on SageMaker; `mode=plan` shows the request and its cost first."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch import commands

HELP = f"""
Trains on SageMaker with the settings of python -m dogbreed.train.
{commands.MODES_HELP}
What people change most, with the defaults:
  sagemaker.profile=null                   named profile of the AWS configuration; --profile NAME too
  sagemaker.role=null                      execution role, name or ARN
  sagemaker.instance_type=ml.g4dn.xlarge   ml.m5.xlarge needs no quota for GPUs
  sagemaker.bucket=null                    null: the account's default bucket
  sagemaker.spot=false                     true: cheaper, may be interrupted, resumes from its last epoch
  sagemaker.max_run=null                   seconds after which it is stopped; null: three times what is expected
  sagemaker.max_cost=null                  US dollars; what could cost more is not sent
  job=NAME                                 follow a job that runs already

Examples:
  python launch/sagemaker_train.py mode=plan experiment=published
  python launch/sagemaker_train.py mode=plan under=1 within=30m    which machine is the cheapest for that
  python launch/sagemaker_train.py mode=rehearse data=sample model.weights=none
  python launch/sagemaker_train.py sagemaker.role=DogbreedExecution data.root=dogImages --lr 0.001 --batch-size 64

conf/sagemaker/default.yaml says what each key means. The images are sent by launch/sagemaker_upload.py.
Ctrl-C leaves the job running, and says how to follow and how to stop it.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return commands.main_job("train", HELP, argv)


if __name__ == "__main__":
    sys.exit(main())
