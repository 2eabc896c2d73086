"""What a model said about a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class Predictions:
    """What a model said about the images of one split.

    Attributes:
        split: `test`, `valid` or `train`.
        logits: [N, classes], before the temperature.
        labels: [N].
        paths: N files.
        temperature: Logits are divided by it before the softmax.
    """

    split: str
    logits: Tensor
    labels: Tensor
    paths: Sequence[Path]
    temperature: float = 1.0

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def probabilities(self) -> Tensor:
        """[N, classes] in float64."""
        return (self.logits.double() / self.temperature).softmax(1)

    @property
    def predicted(self) -> Tensor:
        """[N], the most probable class."""
        return self.logits.argmax(1)
