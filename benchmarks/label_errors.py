"""How many wrong labels a study finds, where it is known which are wrong.

    python -m benchmarks.label_errors PHOTOGRAPHS [KEY=VALUE ...]

PHOTOGRAPHS is laid out as dogImages. For each of three seeds, one image in twenty gets another class at random, a run
is trained on all the labels, and its study ranks them. Printed is the share of the wrong ones among the 5 % and the
10 % that come first. KEY=VALUE are settings of the run.
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dogbreed.inference.photographs import find_photographs

SHARE, SEEDS = 0.05, (0, 1, 2)


def plant(photographs: Path, table: Path, seed: int) -> set[str]:
    """Write a table of labels with wrong ones in it; return the paths of those."""
    paths = sorted(str(Path(name).relative_to(photographs)) for name in find_photographs([str(photographs)]))
    labels = [Path(path).parent.name for path in paths]
    random, classes = np.random.default_rng(seed), sorted(set(labels))
    planted = random.choice(len(paths), round(SHARE * len(paths)), replace=False)
    for row in planted:
        labels[row] = random.choice([label for label in classes if label != labels[row]])
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows((path, label, Path(path).parts[0]) for path, label in zip(paths, labels, strict=True))
    return {paths[row] for row in planted}


def run(*words: object) -> None:
    """Run one of the project's commands without its output."""
    subprocess.run([sys.executable, "-m", *map(str, words)], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Print what is found, a line for each seed."""
    frame = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    frame.add_argument("photographs", type=Path)
    frame.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    arguments = frame.parse_args()
    with TemporaryDirectory() as scratch:
        for seed in SEEDS:
            folder = Path(scratch, str(seed))
            folder.mkdir()
            planted = plant(arguments.photographs, folder / "labels.csv", seed)
            data = [f"data.root={arguments.photographs}", f"data.labels={folder / 'labels.csv'}"]
            run("dogbreed.train", *data, *arguments.settings, f"output_dir={folder / 'run'}", "progress=none")
            run("dogbreed.study", folder / "run", "--output", folder / "study")
            with (folder / "study" / "labels.csv").open(newline="") as file:
                ranked = [row["path"] for row in csv.DictReader(file)]
            first = {share: len(planted & {*ranked[: round(share * len(ranked))]}) for share in (SHARE, 2 * SHARE)}
            found = ", ".join(
                f"{number} ({number / len(planted):.0%}) among the first {share:.0%}" for share, number in first.items()
            )
            print(f"seed {seed}: of {len(planted)} wrong labels of {len(ranked)}, {found}", flush=True)


if __name__ == "__main__":
    main()
