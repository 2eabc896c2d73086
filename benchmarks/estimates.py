"""How well a plan foretells what a job takes on this machine, once one rehearsal has measured it.

    python -m benchmarks.estimates PHOTOGRAPHS [--images N] [--repeats N]

Each job is rehearsed with a cache of its own; then each one's receipt foretells all of them. PHOTOGRAPHS is laid out
as dogImages. Weights are random, which takes as long. On a machine that does something else meanwhile, one run
tells nothing, and the fastest of several little.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dogbreed.config.compose import compose
from launch.aws.pricing import Prices
from launch.jobs.estimate import counts

COMMAND = Path(__file__).parents[1] / "launch" / "sagemaker_train.py"
JOBS = {  # and how many times as many images per breed and split
    "resnet18, head": (1, ["model.backbone=resnet18"]),
    "mobilenet_v2, head": (2, ["model.backbone=mobilenet_v2"]),
    "mobilenet_v2, block": (1, ["model.backbone=mobilenet_v2", "model.trainable=block"]),
}


def rehearse(folder: Path, photographs: Path, images: int, settings: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Rehearse a job into a folder; return its receipt, and the settings that plan the same."""
    given = [*settings, "model.weights=none"]
    words = [f"data.root={photographs}", f"sagemaker.rehearsal.images={images}", f"cache.dir={folder / 'cache'}"]
    words += ["mode=rehearse", f"output_dir={folder}"]
    subprocess.run([sys.executable, COMMAND, *given, *words], check=True, stdout=subprocess.DEVNULL)
    receipt: dict[str, Any] = json.loads((folder / "receipt.json").read_text())
    return receipt, [*given, "mode=plan", "sagemaker.instance_type=local", f"data.root={folder / 'data'}"]


def main() -> None:
    """Print what each job took, and what a plan expects of it by each job's receipt."""
    frame = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frame.add_argument("photographs", type=Path)
    frame.add_argument("--images", type=int, default=1, help="per breed and split, in the first job")
    frame.add_argument("--repeats", type=int, default=1, help="of which the fastest counts")
    arguments = frame.parse_args()
    with TemporaryDirectory() as scratch:
        plans, receipts = {}, {}
        for number, (name, (times, settings)) in enumerate(JOBS.items()):
            for repeat in range(arguments.repeats):
                folder = Path(scratch) / f"{number}-{repeat}"
                images = times * arguments.images
                receipt, plan = rehearse(folder, arguments.photographs.absolute(), images, settings)
                seconds, row = receipt["training_seconds"], receipt["prices"]["machines"]["local"]
                figures = ", ".join(f"{key} {value}" for key, value in row.items())
                print(f"{name}: {seconds} s, load {os.getloadavg()[0]:.1f}; {figures}", flush=True)
                if name not in receipts or seconds < receipts[name][0]:
                    receipts[name], plans[name] = (seconds, folder / "receipt.json"), plan
        for by, (_, file) in receipts.items():
            for name, words in plans.items():
                config = compose([*words, f"sagemaker.prices={file}"])
                expected, taken = Prices(config).training(counts(config)).seconds or 0.0, receipts[name][0]
                print(f"by {by:20} {name:20} {expected:6.1f} s expected, {expected / taken:.2f} of {taken:.1f} s taken")


if __name__ == "__main__":
    main()
