"""What an image costs in each network, as `benchmarks/count_networks.py` has counted it; a plan has no torch."""

import csv
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("networks.csv")
CLASSES = 133  # of dogImages, in place of the 1,000 of the table
STAND_IN = "vgg16"  # most networks need less
_TIMM_VIT = re.compile(r"vit_(base|large|huge)_patch(16|32|14)_224")


class Network(NamedTuple):
    """A network's figures.

    Attributes:
        name: Of the row.
        row: Per image: multiply-adds and outputs in millions, memory in MB.
        assumed: A sentence where the row is another network's; "" where it is the network's own.
    """

    name: str
    row: Mapping[str, float]
    assumed: str = ""

    @property
    def gmacs(self) -> float:
        """Billions of multiply-adds forward."""
        return self.row["macs"] / 1000

    @property
    def traffic_gb(self) -> float:
        """Size of what the layers write, each output once written and once read, in float32."""
        return 8e-3 * self.row["outputs"]

    def frozen(self, trainable: str) -> float:
        """Return the share of a forward pass that the cache spares."""
        return self.row[f"{trainable}_frozen"] / self.row["macs"]

    def step(self, trainable: str) -> float:
        """Return how many forward passes a step of training is worth, forward and backward."""
        return self.row[f"{trainable}_step"] / self.row["macs"]

    def features_gb(self, trainable: str) -> float:
        """Return the size of an image's features in float32."""
        return self.row[f"{trainable}_features"] / 1000

    def memory_gb(self, trainable: str, images: int) -> float:
        """Return what a step keeps in memory: activations, and four numbers per parameter that trains, at most."""
        return (self.row[f"{trainable}_mb"] * images + 16 * self.row["parameters"]) / 1000


def network(backbone: str, size: int | None = None) -> Network:
    """Return the figures of a network, or of one that stands in for it.

    Args:
        backbone: As in model.backbone.
        size: Side of the input in pixels; None takes the network's own.
    """
    rows = _table()
    name = backbone if backbone in rows else _relative(backbone)
    row = rows[name]
    if size and size != row["pixels"]:
        scale = (size / row["pixels"]) ** 2
        row = {key: value if key in ("pixels", "parameters") else value * scale for key, value in row.items()}
    if name == backbone:
        return Network(name, row)
    less = sum(other["macs"] < rows[name]["macs"] for other in rows.values()) / len(rows)
    stands = f"with the figures of torchvision's {name}, {row['macs'] / 1000:.1f} billion multiply-adds per image"
    if name == STAND_IN:
        stands += f", more than {less:.0%} of its networks need"
    return Network(name, row, f"{backbone} is not in the table of networks, and is counted {stands}")


def _relative(backbone: str) -> str:
    """Return the network of torchvision with another package's name, or the stand-in."""
    plain = backbone.removeprefix("timm/").partition(".")[0]
    if vit := _TIMM_VIT.match(plain):
        plain = f"vit_{vit[1][0]}_{vit[2]}"
    names = {name.replace("_", ""): name for name in _table()}
    return names.get(plain.replace("_", "").removesuffix("100"), STAND_IN)


@cache
def _table() -> dict[str, dict[str, float]]:
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {row.pop("network"): _with_classes(row) for row in csv.DictReader(file)}


def _with_classes(row: Mapping[str, str]) -> dict[str, float]:
    """Return a row for as many classes as dogImages has, where the table has 1,000."""
    figures = {key: float(value) for key, value in row.items()}
    # A step of the head alone goes through the last layer once more than a forward pass: its weights' gradient.
    less = (figures["head_step"] - figures["macs"]) * (1 - CLASSES / 1000)
    for key, times in {"macs": 1, "head_step": 2, "block_step": 3, "all_step": 3}.items():
        figures[key] -= times * less
    return figures
