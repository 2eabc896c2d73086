"""`python launch/sagemaker_train.py`: trains on SageMaker; `mode=plan` shows the request and its cost first."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch.commands import main
from launch.help import TRAIN_HELP

if __name__ == "__main__":
    sys.exit(main("train", "python launch/sagemaker_train.py", TRAIN_HELP, sys.argv[1:]))
