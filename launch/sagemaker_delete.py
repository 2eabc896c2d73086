"""`python launch/sagemaker_delete.py`: see `launch.serving.delete`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the checkout, so that launch/ and dogbreed/ are found

from launch.serving.delete import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
