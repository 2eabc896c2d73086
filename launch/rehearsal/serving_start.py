"""Starts what the inference image starts, within the environment of its toolkit: `python serving_start.py FOLDER`.

It is the image's own start (`sagemaker_pytorch_serving_container.serving`) but for two things: its properties file is
written to FOLDER and not to /etc, and of the model servers on this machine it looks at its own alone.
"""

import os
import sys
from pathlib import Path

import psutil
from sagemaker_pytorch_serving_container import serving, torchserve


def _in_this_session() -> list[psutil.Process]:
    mine = os.getsid(0)
    processes = []
    for pid in psutil.pids():
        try:
            if os.getsid(pid) == mine:
                processes.append(psutil.Process(pid))
        except (OSError, psutil.Error):
            continue
    return processes


def main() -> None:
    """Run until the model server ends."""
    torchserve.TS_CONFIG_FILE = str(Path(sys.argv[1]) / "sagemaker-ts.properties")
    psutil.process_iter = _in_this_session
    serving.main()


if __name__ == "__main__":
    main()
