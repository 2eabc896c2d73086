"""What a model predicted for a split."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

PREFIX = {"test": "test", "valid": "val", "train": "train"}  # of a split's keys in metrics.json
_ROWS = 1024  # whose probabilities are in memory at once


@dataclass(frozen=True)
class Predictions:
    """What a model predicted for the images of one split.

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
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def losses(self) -> Tensor:
        """[N], the cross-entropy of each image without the temperature, in float64."""
        parts = zip(self.logits.split(_ROWS), self.labels.split(_ROWS), strict=True)
        losses = [cross_entropy(rows.double(), labels, reduction="none") for rows, labels in parts]
        return torch.cat(losses) if losses else torch.zeros(0, dtype=torch.float64)

    def top(self, most: int) -> tuple[Tensor, Tensor]:
        """Return the highest probabilities of each image and their classes, [N, most] or fewer, in float64."""
        parts = [
            (rows.double() / self.temperature).softmax(1).topk(min(most, self.num_classes))
            for rows in self.logits.split(_ROWS)
        ]
        return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])

    @cached_property
    def predicted(self) -> Tensor:
        """[N], the most probable class."""
        return self.logits.argmax(1)

    @cached_property
    def confidence(self) -> Tensor:
        """[N], the probability of the predicted class."""
        return self.probability(self.predicted)

    def probability(self, classes: Tensor | int) -> Tensor:
        """Return the probability of a class for each image, [N] in float64; `classes` is one, or one per image."""
        chosen = torch.as_tensor(classes).expand(len(self))[:, None]
        rows = self.logits.gather(1, chosen)[:, 0].double() / self.temperature
        return (rows - self._normalizer).exp()

    @cached_property
    def _normalizer(self) -> Tensor:
        parts = [(rows.double() / self.temperature).logsumexp(1) for rows in self.logits.split(_ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
