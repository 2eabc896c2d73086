"""Loss and hits of an epoch, added up without waiting for a GPU and with few launches."""

import torch
from torch import Tensor

STEPS = 16  # that a GPU keeps before it adds them up


class EpochSums:
    """Sums over the images of an epoch so far; torchmetrics' MeanMetric waits for a GPU, and takes 0.5 ms.

    On a GPU steps are kept, and added up together; on a CPU each at once.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._steps: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a step.

        Args:
            loss: Mean over the step's images.
            logits: [N, classes].
            labels: [N].
        """
        self._steps.append((loss.detach().float() * len(labels), logits.detach(), labels))
        if loss.device.type == "cpu" or len(self._steps) == STEPS:
            self._add_up()

    def total(self) -> Tensor:
        """Return the sums of loss and hits over the images, and their number, [3]; an epoch has at least one step."""
        if self._steps:
            self._add_up()
        assert self._sums is not None, "an epoch has at least one step"
        return self._sums

    def _add_up(self) -> None:
        losses, logits, labels = ([*column] for column in zip(*self._steps, strict=True))
        self._steps.clear()
        loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        hits = (_joined(logits).argmax(1) == _joined(labels)).sum()
        count = sum(len(one) for one in labels)
        step = torch.stack([loss, hits.float(), torch.full_like(loss, count)])
        self._sums = step if self._sums is None else self._sums + step


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)
