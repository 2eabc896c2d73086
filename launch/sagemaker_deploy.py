"""`python launch/sagemaker_deploy.py`: from a model to an endpoint that is proven to answer as the model does."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch import commands

HELP = """
Deploys a model to SageMaker: packs it, proves that what was trained is what will be served, makes the endpoint, sends
it an image whose answer is known, and takes everything back if the answer is wrong.

  MODEL            an exported model, the folder of a run, or the model.tar.gz of a training job
  job=NAME         instead of MODEL: a training job on SageMaker, whose model is fetched

  mode=plan        show the exact requests and what they cost; needs no account and no network;
                   as=yaml, boto3, cli or cloudformation prints them in that form alone
  mode=rehearse    carry it out on this machine: S3, SageMaker's own container code, HTTP; needs Java
  mode=submit      send it (default)

What people change most, with the defaults:
  kind=realtime               serverless, async (answers land in S3), or batch input=FOLDER (no endpoint)
  name=...                    of the endpoint: the prefix and the backbone
  update=false                true puts the new model behind the endpoint of that name, without a pause
  expires=...                 2h, 30m, 7d: a tag that python launch/sagemaker_delete.py expired=true goes by
                              scheduler_role=ROLE has EventBridge Scheduler delete it
  watch=...                   10m: an update goes back by itself if requests fail; canary=10 tries a part first
  instance_type=ml.m5.large   instance_count=1, max_count=... for auto scaling
  photo=...                   an image, or a folder of them, to prove and to test it with
  capture=0                   percent of requests and answers to keep

Examples:
  python launch/sagemaker_deploy.py outputs/2026-05-01/10-30-00 mode=plan
  python launch/sagemaker_deploy.py outputs/2026-05-01/10-30-00 mode=rehearse photo=rex.jpg
  python launch/sagemaker_deploy.py model.tar.gz kind=serverless expires=2h sagemaker.role=SageMakerRole

All keys are in conf/sagemaker/default.yaml under endpoint; those of the group sagemaker (role, bucket, region, tags,
encryption, subnets, max_cost) hold too.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""

    def modes(names: list[str]) -> dict[str, commands.Mode]:
        def mode(config: dict[str, Any]) -> None:
            from launch.modes import run_deployment

            run_deployment(config["mode"], config, names)

        return dict.fromkeys(commands.MODES, mode)

    return commands.main_with_names("python launch/sagemaker_deploy.py MODEL", HELP, argv, modes)


if __name__ == "__main__":
    sys.exit(main())
