"""`model.mixup`, `model.cutmix`: training on mixtures of two images and their labels, by torchvision.

Both draw from torch's default generator, which is seeded anew for each step: a resumed run draws the same.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torchvision.transforms import v2

from dogbreed.core.errors import DogbreedError

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def build(num_classes: int, mixup: float, cutmix: float, trainable: str) -> Mixing | None:
    """Return what makes mixtures [N, C, H, W] and their labels [N, classes] of inputs and labels [N]; None for neither.

    Raises:
        DogbreedError: A strength is below 0, or only the head trains.
    """
    for key, value in (("mixup", mixup), ("cutmix", cutmix)):
        if not 0 <= value < float("inf"):
            raise DogbreedError(f"model.{key}={value} is out of range; it is 0 or more.")
        if value and trainable == "head":
            raise DogbreedError(
                f"model.{key}={value} needs model.trainable=block or all: behind a frozen network mixtures change "
                "nothing measurable (72.0 to 72.9 % instead of 72.2 % on 120 breeds)."
            )
    kinds = [
        kind(alpha=float(alpha), num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, mixup), (v2.CutMix, cutmix))
        if alpha
    ]
    return partial(_mix, v2.RandomChoice(kinds)) if kinds else None


def _mix(mixture: v2.Transform, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if inputs.ndim != 4:
        raise DogbreedError(
            f"model.mixup and model.cutmix take images or feature maps, and the cached features are of shape "
            f"{list(inputs.shape[1:])}; cache.mode=off trains on images."
        )
    mixed: tuple[Tensor, Tensor] = mixture(inputs, labels)
    return mixed
