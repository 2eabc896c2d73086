"""How well a plan foretells what a job takes on this machine, once one rehearsal has measured it.

    python -m benchmarks.estimates PHOTOGRAPHS [--images N]

Each job is rehearsed once, with a cache of its own; then each one's receipt foretells all of them. PHOTOGRAPHS is laid
out as dogImages. Weights are random, which takes as long. A machine that does something else meanwhile tells little.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from dogbreed.config.compose import compose
from launch.aws.pricing import Prices
from launch.jobs.estimate import counts

COMMAND = Path(__file__).parents[1] / "launch" / "sagemaker_train.py"
JOBS = {  # and how many times as many images per breed and split
    "resnet18, head": (1, ["model.backbone=resnet18"]),
    "mobilenet_v2, head": (2, ["model.backbone=mobilenet_v2"]),
    "mobilenet_v2, block": (1, ["model.backbone=mobilenet_v2", "model.trainable=block"]),
}


def rehearse(folder: Path, photographs: Path, images: int, settings: list[str]) -> list[str]:
    """Rehearse a job into a folder; return the settings that plan the same."""
    given = [*settings, "model.weights=none"]
    words = [f"data.root={photographs}", f"sagemaker.rehearsal.images={images}", f"cache.dir={folder / 'cache'}"]
    words += ["mode=rehearse", f"output_dir={folder}"]
    subprocess.run([sys.executable, COMMAND, *given, *words], check=True, stdout=subprocess.DEVNULL)
    return [*given, "mode=plan", "sagemaker.instance_type=local", f"data.root={folder / 'data'}"]


def main() -> None:
    """Print what each job took, and what a plan expects of it by each job's receipt."""
    frame = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frame.add_argument("photographs", type=Path)
    frame.add_argument("--images", type=int, default=1, help="per breed and split, in the first job")
    arguments = frame.parse_args()
    with TemporaryDirectory() as folder:
        plans, taken = {}, {}
        for number, (name, (times, settings)) in enumerate(JOBS.items()):
            place = Path(folder) / str(number)
            plans[name] = rehearse(place, arguments.photographs.absolute(), times * arguments.images, settings)
            taken[name] = json.loads((place / "receipt.json").read_text())["training_seconds"]
            print(f"{name:20} took {taken[name]:6.1f} s (load of the machine {os.getloadavg()[0]:.1f})", flush=True)
        for number, by in enumerate(JOBS):
            for name, words in plans.items():
                receipt = f"sagemaker.prices={Path(folder) / str(number) / 'receipt.json'}"
                config = compose([*words, receipt])
                expected = Prices(config).training(counts(config)).seconds or 0.0
                print(f"by {by:20} {name:20} {expected:6.1f} s expected, {expected / taken[name]:.2f} of what it took")


if __name__ == "__main__":
    main()
