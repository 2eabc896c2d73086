"""How well a plan foretells what a job takes on this machine, once one rehearsal has measured it.

    python -m benchmarks.estimates PHOTOGRAPHS [--images N] [--repeats N]

Each job is rehearsed with a cache of its own, the second with the receipt of the first. Then the receipt of the first
alone, and of both, foretell all of them. PHOTOGRAPHS is laid out as dogImages. Weights are random, which takes as long.
On a machine that does something else meanwhile, one run tells nothing, and the fastest of several little.
"""

import argparse
import json
import math
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
    "resnet50, head": (1, ["model.backbone=resnet50"]),
    "mobilenet_v2, block": (1, ["model.backbone=mobilenet_v2", "model.trainable=block"]),
}
MEASURED = 2  # so many of them tell what the machine can do


def rehearse(folder: Path, photographs: Path, settings: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Rehearse a job into a folder; return its receipt, and the words that plan it beside its settings."""
    words = [*settings, "model.weights=none", f"data.root={photographs}", f"cache.dir={folder / 'cache'}"]
    command = [sys.executable, str(COMMAND), *words, "mode=rehearse", f"output_dir={folder}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    receipt: dict[str, Any] = json.loads((folder / "receipt.json").read_text())
    plan = ["model.weights=none", "mode=plan", "sagemaker.instance_type=local", f"data.root={folder / 'data'}"]
    return receipt, plan


def main() -> None:
    """Print what each job took, and what a plan expects of it by each job's receipt."""
    frame = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frame.add_argument("photographs", type=Path)
    frame.add_argument("--images", type=int, default=1, help="per breed and split, in the first job")
    frame.add_argument("--repeats", type=int, default=1, help="of which the fastest counts")
    arguments = frame.parse_args()
    with TemporaryDirectory() as scratch:
        plans: dict[str, list[str]] = {}
        taken: dict[str, float] = {}
        receipts: list[Path] = []
        for name, (times, settings) in JOBS.items():
            before = [f"sagemaker.prices={file}" for file in receipts[-1:]]
            best = None
            for repeat in range(arguments.repeats):
                folder = Path(scratch) / f"{len(plans)}-{repeat}"
                words = [*settings, f"sagemaker.rehearsal.images={times * arguments.images}", *before]
                receipt, plan = rehearse(folder, arguments.photographs.absolute(), words)
                seconds, row = receipt["training_seconds"], receipt["prices"]["machines"]["local"]
                print(f"{name}: {seconds} s, load {os.getloadavg()[0]:.1f}; {row}", flush=True)
                if seconds < taken.get(name, math.inf):
                    taken[name], plans[name], best = seconds, [*settings, *plan], folder / "receipt.json"
            if len(receipts) < MEASURED and best:
                receipts.append(best)
        for number, file in enumerate(receipts, 1):
            for name, words in plans.items():
                config = compose([*words, f"sagemaker.prices={file}"])
                expected = Prices(config).training(counts(config)).seconds or 0.0
                ratio = f"{expected / taken[name]:.2f} of {taken[name]:.1f} s taken"
                print(f"by {' and '.join([*JOBS][:number]):36} {name:20} {expected:6.1f} s expected, {ratio}")


if __name__ == "__main__":
    main()
