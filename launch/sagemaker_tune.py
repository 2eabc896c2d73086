"""`python launch/sagemaker_tune.py`: searches hyperparameters on SageMaker; `mode=plan` shows the request first."""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch import commands

HELP = f"""
Searches hyperparameters on SageMaker: the group search as a tuning job, or all of it in one job.
{commands.MODES_HELP}
What people change most, with the defaults:
  search.trials=20 sagemaker.parallel=4    training jobs, and how many at a time (the account's quota must allow it)
  search.objective=val_loss                val_acc with search.direction=maximize; 'average test loss' as published
  search.where=trials                      one_job: all trials in one job, on features computed once
  sagemaker.strategy=bayesian              random, hyperband, grid
  sagemaker.warm_start=null                name of an earlier tuning job to learn from
  job=NAME                                 follow a tuning job that runs already

Examples:
  python launch/sagemaker_tune.py mode=plan
  python launch/sagemaker_tune.py mode=plan search.where=one_job
  python launch/sagemaker_tune.py sagemaker.role=DogbreedExecution search.trials=10 sagemaker.parallel=2

The plan shows the cost of both kinds of search. The winner is printed, saved, and trained with by one command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return commands.main_job("tune", HELP, argv)


if __name__ == "__main__":
    sys.exit(main())
