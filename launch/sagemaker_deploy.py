"""`python launch/sagemaker_deploy.py`: see `launch.deploy`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch.deploy import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
