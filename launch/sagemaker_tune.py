"""`python launch/sagemaker_tune.py`: searches hyperparameters on SageMaker; `mode=plan` shows the request first."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch.commands import main
from launch.help import TUNE_HELP

if __name__ == "__main__":
    sys.exit(main("tune", "python launch/sagemaker_tune.py", TUNE_HELP, sys.argv[1:]))
