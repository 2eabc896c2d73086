"""The one judge of a run's learning curves, over its whole history: what they show, and what to change.

The rules over losses only observe; whoever gives advice on them, while a run goes on or in its report, asks here.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from dogbreed.core.text import join

LEARNT = 0.95  # of the chance-level loss; a best val_loss above it that does not fall shows that nothing was learnt
RUNAWAY = 1.2  # times its lowest that each loss has risen to when training runs away
JUMP = 1.1  # times the epoch before: val_loss has jumped
OVERFITTED = 1.02  # times its lowest that val_loss stays above, while train_loss fell
RECENT = 3  # a third of the epochs tells where val_loss is going
FEWEST = 4  # epochs that a direction is read from, where it shows through the noise
WORTH_IT = 0.05  # by what share val_loss has to fall for more epochs to be worth it: as many again, at most
AHEAD = 10
SURE = 2.0  # standard errors
WIDE_GAP = 0.25  # nats; with a train_loss below half of val_loss, the model has memorised its images


class Diagnosis(NamedTuple):
    """What the curves show.

    Attributes:
        kind: `short`, `diverged`, `guessing`, `too_fast`, `overfitting`, `improving`, `settled` or `unclear`.
        observation: A sentence with the numbers.
        advice: A sentence with the settings to change, or that there is none; it never names what is already set.
    """

    kind: str
    observation: str
    advice: str = ""

    @property
    def sentence(self) -> str:
        return f"{self.observation} {self.advice}".strip()


def diagnose(history: Sequence[Mapping[str, float]], classes: int, config: Mapping[str, Any]) -> Diagnosis:
    """Read the curves of a run.

    Args:
        history: One row per epoch with `epoch`, `train_loss`, `val_loss` and `lr`, as in `metrics.csv`.
        classes: How many there are; guessing among them costs ln(classes) nats.
        config: Of the run; empty where it is not known.
    """
    advise = _Advice(config, history)
    if history and not any(math.isfinite(row["val_loss"]) for row in history):
        return Diagnosis("short", "Nothing was validated, so the curves cannot say when to stop training.")
    rows = [row for row in history if math.isfinite(row["train_loss"]) and math.isfinite(row["val_loss"])]
    if not rows:
        return Diagnosis("short", "No epoch finished, so there are no curves.")
    if len(rows) < len(history) and not math.isfinite(history[-1]["train_loss"]):
        return Diagnosis("diverged", "The loss stopped being a number: training diverged.", advise.slower())
    curves = _Curves(rows)
    return (
        _failed(curves, math.log(max(classes, 2)), classes, advise)
        or _overfitting(curves, advise)
        or _direction(curves, advise)
    )


class _Curves:
    """The epochs and losses of the rows that have both.

    Attributes:
        best: Position of the lowest val_loss.
        per_epoch: By what share val_loss fell per epoch of late.
        recent: How many of the last epochs tell where val_loss is going.
        gain: By how much its logarithm would fall in as many epochs again (`AHEAD` at most), were it to go on as of
            late; nearly the share by which val_loss would, where that is small.
        error: Its standard error times `SURE`; infinite for fewer than `FEWEST` epochs.
    """

    def __init__(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.epochs = [int(row["epoch"]) for row in rows]
        self.train = [row["train_loss"] for row in rows]
        self.valid = [row["val_loss"] for row in rows]
        self.best = self.valid.index(min(self.valid))
        self.recent = min(len(rows), max(FEWEST, len(rows) // RECENT))
        self.per_epoch = self.gain = self.error = math.nan
        if len(rows) > 1:
            fall, error = self._fall()
            self.per_epoch = -math.expm1(-fall)
            self.gain = fall * min(len(rows), AHEAD)
            self.error = SURE * error * min(len(rows), AHEAD) if len(rows) >= FEWEST else math.inf

    @property
    def falls(self) -> bool:
        """Whether val_loss still falls beyond doubt: through the noise, or each time where there are few epochs."""
        if len(self.valid) < FEWEST:
            return self.gain > WORTH_IT and all(one > other for one, other in pairwise(self.valid))
        return self.gain - self.error > WORTH_IT

    def _fall(self) -> tuple[float, float]:
        """Fit a line to the logarithm of the recent losses; return its fall per epoch and the standard error."""
        losses = np.log(np.maximum(self.valid[-self.recent :], 1e-12))
        epochs = np.array(self.epochs[-self.recent :], dtype=float)
        epochs -= epochs.mean()
        spread = float((epochs**2).sum())
        slope = float((epochs * losses).sum()) / spread
        rest = losses - losses.mean() - slope * epochs
        return -slope, math.sqrt(float((rest**2).sum()) / max(len(losses) - 2, 1) / spread)


def _failed(curves: _Curves, chance: float, classes: int, advise: "_Advice") -> Diagnosis | None:
    """Return what is wrong where training itself is."""
    train, valid, best = curves.train, curves.valid, curves.best
    if len(valid) == 1:
        return Diagnosis("short", "One epoch shows no direction yet.", advise.longer(5))
    if valid[best] > LEARNT * chance and not curves.falls:
        text = f"Nothing was learnt: the best val_loss of {valid[best]:.2f} is near that of guessing among {classes} "
        return Diagnosis("guessing", f"{text}classes ({chance:.2f}).", advise.start())
    if train[-1] > RUNAWAY * min(train) and valid[-1] > RUNAWAY * min(valid):
        text = f"Training runs away: both losses rise again after epoch {curves.epochs[best]}."
        return Diagnosis("too_fast", text, advise.slower())
    jumps = sum(later > JUMP * earlier for earlier, later in pairwise(valid))
    if jumps >= 2 and jumps >= (len(valid) - 1) / 3 and best < len(valid) - 1:
        return Diagnosis("too_fast", f"val_loss jumps up and down ({jumps} times by over 10 %).", advise.slower())
    return None


def _overfitting(curves: _Curves, advise: "_Advice") -> Diagnosis | None:
    train, valid, epochs, best = curves.train, curves.valid, curves.epochs, curves.best
    # One epoch may be above the best by chance; two in a row, or one by far, are not.
    two = len(valid) - best > 2 and min(valid[-2:]) > OVERFITTED * valid[best]
    if not (two or valid[-1] > JUMP * valid[best]) or train[-1] >= train[best]:
        return None
    # From the first epoch after the best whose loss never came back down to it.
    first = next(i for i in range(best + 1, len(valid)) if min(valid[i:]) > valid[best])
    text = (
        f"Overfitting from epoch {epochs[first]}: val_loss rose from {valid[best]:.3f} to {valid[-1]:.3f} while "
        f"train_loss fell; the weights of epoch {epochs[best]} were kept."
    )
    return Diagnosis("overfitting", text, advise.regularise(stop=True))


def _direction(curves: _Curves, advise: "_Advice") -> Diagnosis:
    """Return where val_loss is going: down, nowhere, or what noise hides."""
    train, valid, best, last = curves.train, curves.valid, curves.best, curves.epochs[-1]
    if curves.falls:
        text = (
            f"Still improving: val_loss fell by {100 * curves.per_epoch:.1f} % per epoch of late, to {valid[-1]:.3f}."
        )
        return Diagnosis("improving", text, advise.longer(2 * last))
    if len(valid) < FEWEST:
        text = f"{len(valid)} epochs are too few to tell where val_loss ({valid[-1]:.3f}) is going."
        return Diagnosis("short", text, advise.longer(2 * last))
    since = valid[-curves.recent]
    if curves.gain + curves.error >= WORTH_IT:
        text = (
            f"val_loss went from {since:.3f} to {valid[-1]:.3f} in the last {curves.recent} epochs, and varies too "
            "much from one to the next to tell whether it still falls."
        )
        return Diagnosis("unclear", text, advise.longer(2 * last))
    near = max(valid[-curves.recent :])
    settled = next(i for i in range(len(valid)) if max(valid[i:]) <= near)
    text = f"Settled: val_loss has stayed near {valid[best]:.3f} since epoch {curves.epochs[settled]}, so more epochs "
    text += f"will hardly help{advise.of_this_schedule()}."
    if valid[best] - train[best] > WIDE_GAP and 2 * train[best] < valid[best]:
        text += f" It fits the training images far better (train_loss {train[best]:.3f})."
        return Diagnosis("settled", text, advise.regularise(stop=False))
    return Diagnosis("settled", text, advise.stronger())


class _Advice:
    """Sentences that name settings to change, and never one that is set already."""

    def __init__(self, config: Mapping[str, Any], history: Sequence[Mapping[str, float]]) -> None:
        self.config = config
        self.rate = next((row["lr"] for row in history if row.get("lr")), 0.0)

    def slower(self) -> str:
        rate = self._get("model", "lr") or self.rate
        options = [f"a smaller learning rate, such as model.lr={rate / 3:.2g}" if rate else "a smaller model.lr"]
        if not self._get("trainer", "gradient_clip_val"):
            options.append("trainer.gradient_clip_val=1.0")
        return f"Try {join(options, 'or')}."

    def longer(self, epochs: int) -> str:
        stop = "" if self._get("early_stopping") else " and early_stopping=3"
        return f"Train longer, with trainer.max_epochs={epochs}{stop}."

    def start(self) -> str:
        options = ["the images and their folders", f"model.lr={self.rate:g}" if self.rate else "model.lr"]
        if self._get("model", "weights") != "imagenet":
            options.append("model.weights=imagenet")
        return f"Look at {join(options)}."

    def regularise(self, *, stop: bool) -> str:
        options = []
        if self._get("data", "augment") != "crop":
            options.append("data.augment=crop")
        if not self._get("model", "label_smoothing"):
            options.append("model.label_smoothing=0.1")
        if not self._get("model", "weight_decay"):
            options.append("model.weight_decay=1e-4")
        text = f"What may help: {join([*options, 'more images'], 'or')}."
        if stop and not self._get("early_stopping"):
            text += " early_stopping=2 would have ended the run sooner."
        return text

    def stronger(self) -> str:
        trainable = self._get("model", "trainable")
        larger = {"head": "model.trainable=block", "block": "model.trainable=all"}.get(str(trainable))
        return (
            f"What may help: {join([*([larger] if larger else []), 'a stronger model.backbone', 'more images'], 'or')}."
        )

    def of_this_schedule(self) -> str:
        falls = (self._get("model", "schedule") or "constant") != "constant"
        return " (its schedule has lowered the learning rate; a longer one starts its fall later)" if falls else ""

    def _get(self, *keys: str) -> Any:
        value: Any = self.config
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value
