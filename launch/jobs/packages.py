"""What a training job without network installs: the packages that AWS's training image lacks, as pinned wheels.

Against the lock of the image of PyTorch 2.13 they are these eleven; none replaces a package of it.
"""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from dogbreed.config.compose import default_config
from dogbreed.core.errors import DogbreedError
from launch.aws.wheels import Wheel
from launch.jobs.source import requirements

VERSION = "2.13"  # of PyTorch in the image whose lock was read

# As of 2026-11-27.
WHEELS = (
    Wheel(
        "absl-py==2.5.1",
        "absl_py-2.5.1-py3-none-any.whl",
        "721200f2f0e9960f2ca9dc3a2a706b201f5f75d812c158f059cbbe29eeafbdb8",
        137_673,
    ),
    Wheel(
        "grpcio==1.85.3",
        "grpcio-1.85.3-cp312-cp312-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "8266434d54c3442ebdba71d97e6f688b73dd00194bda6e1e35e57272afbd2d73",
        7_360_708,
    ),
    Wheel(
        "hydra-core==1.3.8",
        "hydra_core-1.3.8-py3-none-any.whl",
        "d5f184c291691cba835c7f04bc4e36270ad88b1d7e394a3712f5af084c30b394",
        168_949,
    ),
    Wheel(
        "lightning==2.6.6",
        "lightning-2.6.6-py3-none-any.whl",
        "2bcbd6ee840071cd076c7dc9953d7ac1040df92f1c5fa76583aae644f037ab85",
        849_265,
    ),
    Wheel(
        "lightning-utilities==0.15.3",
        "lightning_utilities-0.15.3-py3-none-any.whl",
        "6c55f1bee70084a1cbeaa41ada96e4b3a0fea5909e844dd335bd80f5a73c5f91",
        31_906,
    ),
    Wheel(
        "markdown==3.11.3",
        "markdown-3.11.3-py3-none-any.whl",
        "e1a31a112232504d753e5c01bb8c2de90d3f0ba986b063e10770cf7695b09e73",
        116_758,
    ),
    Wheel(
        "pytorch-lightning==2.6.6",
        "pytorch_lightning-2.6.6-py3-none-any.whl",
        "71f95c7b22f25c4f91cc659e1734bcdc6c69c8b66543f2ed2d78dbe29ce2f167",
        853_045,
    ),
    Wheel(
        "safetensors==0.8.0",
        "safetensors-0.8.0-cp310-abi3-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "fd6f3f93c9a0a7cc2788ee63fb763353d4bd2e89b0751bc78fcf7dda00bea774",
        516_040,
    ),
    Wheel(
        "tensorboard==2.21.0",
        "tensorboard-2.21.0-py3-none-any.whl",
        "7279316dcb6bd5bc391d623dea841531299cde1887310e8133bc34a996d32255",
        5_516_204,
    ),
    Wheel(
        "tensorboard-data-server==0.7.2",
        "tensorboard_data_server-0.7.2-py3-none-any.whl",
        "7e0610d205889588983836ec05dc098e80f97b7e7bbff7e994ebb78f578d0ddb",
        2_356,
    ),
    Wheel(
        "torchmetrics==1.9.0",
        "torchmetrics-1.9.0-py3-none-any.whl",
        "bfdcbff3dd1d96b3374bb2496eb39f23c4b28b8a845b6a18c313688e0d2d9ca1",
        983_384,
    ),
)


def carried(config: Mapping[str, Any], *, search: bool = False) -> tuple[Wheel, ...]:
    """Return the wheels to send along with a job: none where it has a network, or packages or an image of its own.

    Args:
        config: A composed configuration.
        search: Whether the job itself searches.

    Raises:
        DogbreedError: There are no wheels for it.
    """
    cloud = config["sagemaker"]
    if not cloud["isolate"] or cloud["packages"] or cloud["image"]:
        return ()
    usual = requirements(default_config()).splitlines()
    more = [line for line in requirements(config, search=search).splitlines() if line not in usual]
    reason = ""
    if cloud["debugger"]["enabled"]:
        reason = "the managed Debugger needs smdebug"
    elif more:
        reason = f"the job needs {re.split(r'[^A-Za-z0-9_.-]', more[0])[0]}"
    elif str(cloud["pytorch_version"]) != VERSION:
        reason = f"the image of PyTorch {cloud['pytorch_version']} has other packages"
    if reason:
        raise DogbreedError(
            f"sagemaker.isolate=true: {reason}, for which there are no wheels here; put some into "
            "sagemaker.packages=s3://bucket/folder (pip download -d wheels -r requirements.txt --only-binary=:all: "
            "--python-version 3.12 --platform manylinux_2_28_x86_64), or give a sagemaker.image that has all of them."
        )
    return WHEELS


def digest(wheels: tuple[Wheel, ...]) -> str:
    """Return what tells a set of wheels apart, for the address of their folder."""
    return hashlib.sha256("".join(wheel.sha256 for wheel in wheels).encode()).hexdigest()[:12]
