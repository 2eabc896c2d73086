"""Whether the temperature that is exported helps on images it was not chosen on, for valid splits of 8 to 360 images.

    python -m benchmarks.temperature                 on drawn logits, a second per size
    python -m benchmarks.temperature RUN [RUN ...]   on the logits of runs: their valid and test images together

Of each set of logits, 200 valid splits of every size are drawn; a temperature is chosen on each, and cross-entropy
with it is compared with that of temperature 1 on all other images.
"""

import argparse
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dogbreed import evaluate
from dogbreed.metrics.calibration import choose_temperature, fit_temperature

SIZES = (8, 16, 24, 48, 96, 180, 360)
SPLITS = 200


class Row(NamedTuple):
    """What came of the splits of one size.

    Attributes:
        images: In a split.
        kept: Share of the splits with temperature 1.
        mean: Change of the held-out cross-entropy in nats, mean over the splits; negative is better.
        worst: The largest change.
        fitted: `mean` with the temperature that merely fits the split.
        noise: Standard error of the cross-entropy of one split in nats.
    """

    images: int
    kept: float
    mean: float
    worst: float
    fitted: float
    noise: float


def study(logits: Tensor, labels: Tensor, images: int, splits: int = SPLITS) -> Row:
    """Draw valid splits of so many images from [N, classes] logits and their labels, and hold the rest out."""
    generator = torch.Generator().manual_seed(images)
    chosen, changes, fitted = [], [], []
    plain = cross_entropy(logits.double(), labels, reduction="none")
    for _ in range(splits):
        order = torch.randperm(len(labels), generator=generator)
        valid, rest = order[:images], order[images:]
        chosen.append(choose_temperature(logits[valid], labels[valid]))
        for temperature, into in ((chosen[-1], changes), (fit_temperature(logits[valid], labels[valid]), fitted)):
            into.append(float(cross_entropy(logits[rest].double() / temperature, labels[rest]) - plain[rest].mean()))
    kept = sum(temperature == 1 for temperature in chosen) / splits
    noise = float(plain.std()) / images**0.5
    return Row(images, kept, sum(changes) / splits, max(changes), sum(fitted) / splits, noise)


def drawn(scale: float, images: int = 2400, classes: int = 20) -> tuple[Tensor, Tensor]:
    """Return logits whose probabilities are right when divided by `scale`, and labels drawn from these."""
    generator = torch.Generator().manual_seed(0)
    logits = 2.5 * torch.randn(images, classes, generator=generator)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def of_run(run: str) -> tuple[Tensor, Tensor]:
    """Return logits and labels of a run's valid and test images."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            evaluate(run, split=split, output_dir=Path(folder) / split, quiet=True).predictions
            for split in ("valid", "test")
        ]
    return torch.cat([part.logits for part in parts]), torch.cat([part.labels for part in parts])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.temperature", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", nargs="*", help="folders of runs, whose images are still where they were")
    sets = {run: of_run(run) for run in parser.parse_args().run} or {
        f"drawn, right at temperature {scale:g}": drawn(scale) for scale in (1.0, 2.0, 0.6)
    }
    for name, (logits, labels) in sets.items():
        best = fit_temperature(logits, labels)
        print(f"\n{name}: {len(labels):,} images, {cross_entropy(logits, labels):.3f} nats, fits at {best:.2f}")
        print(f"{'images':>6} {'kept 1':>7} {'mean':>8} {'worst':>8} {'fitted':>8} {'noise':>8}")
        for images in SIZES:
            row = study(logits, labels, images)
            print(f"{row.images:6} {row.kept:7.0%}" + "".join(f" {change:+8.4f}" for change in row[2:5]), end="")
            print(f" {row.noise:8.4f}", flush=True)


if __name__ == "__main__":
    main()
