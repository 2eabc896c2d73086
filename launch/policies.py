"""`python launch/policies.py COMMAND`: the least that a command needs to be allowed, as IAM policies to paste."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from dogbreed.core.cli import guard
from dogbreed.core.version import __version__

HELP = """usage: python launch/policies.py COMMAND [key=value ...]

Prints the least IAM policy for a command, for the names in the configuration.

  upload train tune deploy delete invoke logs   for whoever runs launch/sagemaker_COMMAND.py
  execution                                     for the role that jobs and endpoints run under (sagemaker.role)
  trust                                         the trust policy of that role; with its ARN, for its account alone
  scheduler scheduler-trust                     the same two for the role that deletes endpoints (scheduler_role)

  sagemaker.role=NAME sagemaker.bucket=NAME sagemaker.region=us-east-1 sagemaker.prefix=dogbreed
  sagemaker.job_name=NAME sagemaker.endpoint.name=NAME   where these do not begin with the prefix
  logger=mlflow loggers.mlflow.tracking_uri=ARN   of execution: the managed MLflow that jobs log to

From nothing to a role:
  python launch/policies.py trust > trust.json
  python launch/policies.py execution sagemaker.bucket=MY-BUCKET > execution.json
  aws iam create-role --role-name DogbreedExecution --assume-role-policy-document file://trust.json
  aws iam put-role-policy --role-name DogbreedExecution --policy-name dogbreed --policy-document file://execution.json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)

    def task() -> None:
        if not words or {"-h", "--help"} & set(words):
            print(HELP, end="")
            return
        if "--version" in words:
            print(f"dogbreed {__version__}")
            return
        from dogbreed.config.compose import compose
        from dogbreed.config.overrides import to_overrides
        from launch.aws.account import offline_target
        from launch.aws.iam import policy
        from launch.aws.validate import check_kinds

        config = compose(to_overrides(words[1:]))
        check_kinds(config)
        print(json.dumps(policy(words[0], config, offline_target(config)), indent=2))

    return guard(task)


if __name__ == "__main__":
    sys.exit(main())
