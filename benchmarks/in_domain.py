"""How well a model tells photographs of its kind from others: the AUROC of the similarity that `in_domain` judges.

    python -m benchmarks.in_domain MODEL KNOWN OTHER

KNOWN are images of the kind that the model was trained on, but not those, such as the test split; OTHER are of none.
"""

import argparse
from pathlib import Path

import torch

from dogbreed.inference.photographs import find_photographs
from dogbreed.inference.predictor import Predictor


def similarities(predictor: Predictor, folder: Path) -> torch.Tensor:
    """Return the similarity of each image in a folder to the training images, [N]."""
    batches = torch.stack([predictor.read(name) for name in find_photographs([str(folder)])]).split(32)
    return torch.tensor([output.similarity for batch in batches for output in predictor.outputs(batch)])


def auroc(known: torch.Tensor, other: torch.Tensor) -> float:
    """Return the probability that an image of the kind is more similar than one of another, ties counted half."""
    difference = known[:, None] - other
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)


def main() -> None:
    """Print what is refused of each folder, and the AUROC between them."""
    frame = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "known", "other"):
        frame.add_argument(name, type=Path)
    arguments = frame.parse_args()
    predictor = Predictor(arguments.model)
    index = predictor.model.neighbours
    if index is None:
        frame.error(f"{arguments.model} has no index of training images")
    measured = [similarities(predictor, folder) for folder in (arguments.known, arguments.other)]
    for folder, values in zip((arguments.known, arguments.other), measured, strict=True):
        refused = int((values < index.threshold).sum())
        print(f"{folder}: {refused} of {len(values)} refused ({100 * refused / len(values):.1f} %)")
    print(f"AUROC {auroc(*measured):.4f}")


if __name__ == "__main__":
    main()
