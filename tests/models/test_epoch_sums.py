"""Sums of an epoch, step by step or several steps at a time."""

import pytest
import torch

from dogbreed.models import epoch_sums
from dogbreed.models.epoch_sums import EpochSums

STEPS = 2 * epoch_sums.STEPS + 5


@pytest.mark.parametrize("device", ["cpu", "kept"])
def test_sums_are_those_of_all_images(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    sums, losses, hits, images = EpochSums(), 0.0, 0, 0
    add_up = EpochSums._add_up
    if device == "kept":  # as on a GPU, whose steps are added up together
        monkeypatch.setattr(EpochSums, "_add_up", lambda self: len(self._steps) >= 4 and add_up(self))
    for step in range(STEPS):
        count = 3 if step == STEPS - 1 else 7
        logits, labels = torch.randn(count, 5, generator=generator), torch.randint(5, (count,), generator=generator)
        sums.add(torch.nn.functional.cross_entropy(logits, labels), logits, labels)
        losses += torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum").item()
        hits += sum(row.index(max(row)) == label for row, label in zip(logits.tolist(), labels.tolist(), strict=True))
        images += count
    monkeypatch.undo()
    assert sums.total().tolist() == [pytest.approx(losses, rel=1e-5), hits, images]
    assert sums.total().tolist() == sums.total().tolist()
