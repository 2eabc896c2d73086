"""What the learning curves say, in one sentence that names what to change."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

SETTLED = 0.01  # val_loss within 1 % of its best counts as settled
STILL_FALLING = 0.01  # less than 1 % an epoch is no reason to train on
OVERFITTED = 0.02  # val_loss 2 % above its best, with train_loss below what it was then
WIDE_GAP = 0.25  # nats; with a train_loss of less than half of val_loss, it has learnt by heart


class Lesson(NamedTuple):
    """What was found, and what is said about it.

    Attributes:
        kind: `overfitting`, `improving`, `settled`, `diverged`, `too_fast`, `guessing` or `short`.
        sentence: With the numbers, and the setting to change.
    """

    kind: str
    sentence: str


def lesson(history: Sequence[Mapping[str, float]], classes: int) -> Lesson:
    """Reads the curves of a run.

    Args:
        history: One row an epoch with `epoch`, `train_loss`, `val_loss` and `lr`, as in `metrics.csv`.
        classes: How many there are; guessing among them costs ln(classes) nats.
    """
    if history and not any(math.isfinite(row["val_loss"]) for row in history):
        return Lesson("short", "Nothing was validated, so the curves cannot say when to stop training.")
    rows = [row for row in history if math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])]
    if not rows:
        return Lesson("short", "No epoch was finished, so there are no curves to learn from.")
    rate = float(rows[0].get("lr") or 0)
    slower = f"; try a smaller learning rate than model.lr={rate:g}, such as {rate / 3:.2g}" if rate else ""
    if len(rows) < len(history):
        return Lesson("diverged", f"The loss stopped being a number: training diverged{slower}.")
    train = [row["train_loss"] for row in rows]
    valid = [row["val_loss"] for row in rows]
    epochs = [int(row["epoch"]) for row in rows]
    best = valid.index(min(valid))
    chance = math.log(max(classes, 2))
    if min(valid) > 0.97 * chance and len(rows) > 1:
        return Lesson(
            "guessing",
            f"Nothing was learnt: the best val_loss of {min(valid):.2f} is that of guessing among {classes} breeds "
            f"({chance:.2f}); look at the photographs and their folders, at model.weights, and at model.lr={rate:g}.",
        )
    if len(rows) == 1:
        return Lesson("short", "One epoch shows no direction yet; train longer, with trainer.max_epochs=5 or more.")
    if train[-1] > 1.2 * min(train) and valid[-1] > 1.2 * min(valid):
        return Lesson("too_fast", f"Training runs away: both losses rise again after epoch {epochs[best]}{slower}.")
    rises = sum(later > 1.1 * earlier for earlier, later in pairwise(valid))
    if rises >= 2 and rises >= (len(valid) - 1) / 3 and best < len(rows) - 1:
        return Lesson("too_fast", f"val_loss jumps up and down ({rises} times by over 10 %){slower}.")
    if valid[-1] > (1 + OVERFITTED) * valid[best] and train[-1] < train[best]:
        # From the first epoch after the best whose loss never came back down to the tolerance.
        first = next(i for i in range(best + 1, len(rows)) if min(valid[i:]) > valid[best])
        return Lesson(
            "overfitting",
            f"Overfitting from epoch {epochs[first]}: val_loss rises from {valid[best]:.3f} to {valid[-1]:.3f} while "
            f"train_loss falls; the weights of epoch {epochs[best]} were kept, and what helps is data.augment=crop, "
            f"model.label_smoothing=0.1, more photographs, or simply trainer.max_epochs={epochs[best]}.",
        )
    # What the last quarter has gained has to stand out from how far the loss jumps up by chance.
    recent = max(1, len(valid) // 4)
    before = min(valid[:-recent])
    jump = max(0.0, *(later - earlier for earlier, later in pairwise(valid[len(valid) // 2 - 1 :])))
    falling = (before - valid[best]) / before / recent
    if falling > STILL_FALLING and before - valid[best] > jump:
        return Lesson(
            "improving",
            f"Still improving: val_loss fell by {falling:.1%} an epoch at the end, so train longer, "
            f"with trainer.max_epochs={2 * epochs[-1]} and early_stopping=3.",
        )
    near = valid[best] + max(SETTLED * valid[best], jump)
    settled = next(epoch for epoch, loss in zip(epochs, valid, strict=True) if loss <= near)
    text = f"Settled: val_loss has stayed near {valid[best]:.3f} since epoch {settled}, so more epochs will not help"
    if valid[best] - train[best] > WIDE_GAP and 2 * train[best] < valid[best]:
        return Lesson(
            "settled",
            f"{text}; it fits what it has seen far better (train_loss {train[best]:.3f}), which more photographs, "
            "data.augment=crop or model.label_smoothing=0.1 may mend.",
        )
    return Lesson("settled", f"{text}; model.trainable=block or a stronger model.backbone may.")
