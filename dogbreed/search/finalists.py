"""The best settings of a search, trained again with several seeds, and whether they beat your settings.

The best of many trials on valid is also the luckiest. So the best three are trained again with new seeds, the winner
is chosen by their mean on valid, and this one alone is compared with your settings, on images that chose nothing: those
of test, or where there is no test split, those of train, each classified by a head that was trained without it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dogbreed.config.compose import fitting_batch_size, flatten
from dogbreed.core.text import count
from dogbreed.metrics.paired import sign_flips
from dogbreed.models.imbalance import log_prior
from dogbreed.search.space import BATCH_SIZE, head_of, shown
from dogbreed.search.study import Search
from dogbreed.training.stacked_heads import Head, HeadTrainer

BEST = 3
ALPHA = 0.05
FOLDS, PARTS = "folds", 5
Z = 1.959963984540054  # 95 % of a normal distribution
YOURS = "your settings"
SPLITS = (("valid", "val"), ("test", "test"))  # with their names in metrics


@dataclass
class Finalist:
    """Settings that are trained with several seeds.

    Attributes:
        name: Such as `trial 7`.
        params: By dotted key.
        trial: Optuna's; None for your settings.
        correct: By split, how many of the seeds classify each image correctly, [images].
        losses: By split, the mean loss of the seeds for each image in nats, [images].
        accuracies: By split, of each seed.
        objectives: On valid, of each seed.
    """

    name: str
    params: dict[str, Any]
    trial: Any | None = None
    correct: dict[str, Tensor] = field(default_factory=dict)
    losses: dict[str, Tensor] = field(default_factory=dict)
    accuracies: dict[str, list[float]] = field(default_factory=dict)
    objectives: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return what `winner.json` says of it."""
        figures: dict[str, Any] = {"name": self.name, "params": self.params, "objective": mean(self.objectives)}
        for split, name in SPLITS:
            if split in self.correct:
                figures |= {
                    f"{name}_acc": mean(self.accuracies[split]),
                    f"{name}_acc_by_seed": self.accuracies[split],
                    f"{name}_loss": float(self.losses[split].mean()),
                }
        return figures


@dataclass(frozen=True)
class Difference:
    """The winner less your settings over the same images: a mean, its 95 % interval, and whether it may be chance."""

    mean: float
    low: float
    high: float
    p_value: float

    @classmethod
    def of_accuracy(cls, differences: Tensor, seeds: int) -> "Difference":
        """Return that of how many seeds are right, [images], by the exact paired permutation test."""
        return cls(*_interval(differences.double() / seeds), sign_flips(differences.tolist()))

    @classmethod
    def of_loss(cls, differences: Tensor) -> "Difference":
        """Return that of losses, [images], by the normal distribution of their mean."""
        centre, low, high = _interval(differences)
        error = (high - low) / (2 * Z)
        return cls(centre, low, high, math.erfc(abs(centre) / error / math.sqrt(2)) if error else 1.0)


def _interval(differences: Tensor) -> tuple[float, float, float]:
    centre, reach = float(differences.mean()), Z * float(differences.std()) / len(differences) ** 0.5
    return centre, centre - reach, centre + reach


def _judged(figure: str, difference: Difference, better: int) -> str:
    if difference.p_value >= ALPHA:
        return f"By {figure} they cannot be told apart"
    return f"By {figure} it is {'better' if difference.mean * better > 0 else 'worse'}"


@dataclass(frozen=True)
class Verdict:
    """The winner against your settings.

    Attributes:
        finalists: The best first, by the mean of the objective on valid; your settings last.
        seeds: With which each was trained.
        split: On which the winner and your settings are compared: `test`, or `folds` of train.
        objective: Of the search.
        accuracy: In shares.
        loss: In nats.
        yours_lead: Whether your settings have the best mean of the objective on valid, before every trial.
    """

    finalists: Sequence[Finalist]
    seeds: Sequence[int]
    split: str
    objective: str
    accuracy: Difference
    loss: Difference
    yours_lead: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the content of `winner.json`."""
        return {
            "winner": self.finalists[0].name,
            "seeds": list(self.seeds),
            "compared_on": self.split,
            "images": len(self.finalists[0].correct[self.split]),
            "accuracy_difference": vars(self.accuracy),
            "loss_difference": vars(self.loss),
            "your_settings_lead_on_valid": self.yours_lead,
            "verdict": self.sentence(),
            "finalists": [finalist.figures() for finalist in self.finalists],
        }

    def sentence(self) -> str:
        """Return whether the winner is better than your settings, by the objective first."""
        one, yours, split = self.finalists[0], self.finalists[-1], self.split
        losses = [f"{float(finalist.losses[split].mean()):.3f}" for finalist in (one, yours)]
        rates = [f"{100 * mean(finalist.accuracies[split]):.1f}" for finalist in (one, yours)]
        loss, rate = self.loss, self.accuracy
        by_loss = _judged("loss", loss, -1) + (
            f": {losses[0]} against {losses[1]}, {loss.mean:+.3f} "
            f"(95 % CI {loss.low:+.3f} to {loss.high:+.3f}, p = {loss.p_value:.2g})."
        )
        by_accuracy = _judged("accuracy", rate, 1) + (
            f": {rates[0]} against {rates[1]} %, {100 * rate.mean:+.1f} points "
            f"(95 % CI {100 * rate.low:+.1f} to {100 * rate.high:+.1f}, p = {rate.p_value:.2g})."
        )
        images = f"{len(one.correct[split]):,} {'test' if split == 'test' else 'training'} images"
        how = f"{count(len(self.seeds), 'seed')} each" if split == "test" else "each by a head trained without it"
        ordered = (by_loss, by_accuracy) if self.objective == "val_loss" else (by_accuracy, by_loss)
        said = f"The winner, {one.name}, against your settings on {images}, {how}. {' '.join(ordered)}"
        return f"{said} On valid your settings are better than every trial: keep them." if self.yours_lead else said

    def lines(self) -> list[str]:
        """Return the finalists as a table, and the verdict."""
        splits = [(split, name) for split, name in SPLITS if split in self.finalists[0].correct]
        heading = ["", *(f"{name}_{figure}" for _, name in splits for figure in ("loss", "acc")), "settings"]
        rows = [heading]
        for finalist in self.finalists:
            row = [finalist.name]
            for split, _ in splits:
                spread = f" ± {100 * stdev(finalist.accuracies[split]):.1f}" if len(self.seeds) > 1 else ""
                row.append(f"{float(finalist.losses[split].mean()):.4f}")
                row.append(f"{100 * mean(finalist.accuracies[split]):.1f}{spread} %")
            rows.append([*row, shown(finalist.params)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return [f"Trained again with {count(len(self.seeds), 'new seed')}:", *table, "", self.sentence()]


def confirm(search: Search, trainer: HeadTrainer) -> Verdict | None:
    """Train the best trials and your settings again, choose among the trials, and compare the winner with yours.

    Args:
        search: With its trials; it takes the one that is chosen.
        trainer: Which the trials were trained by.

    Returns:
        None where no trial has finished, or `search.seeds` is 0.
    """
    seeds = [search.config.seed + 1 + number for number in range(search.settings.seeds)]
    finalists = _finalists(search, trainer)
    if not seeds or len(finalists) < 2:
        return None
    _train(search, trainer, finalists, seeds)
    direction = 1 if search.settings.direction == "minimize" else -1

    def order(finalist: Finalist) -> float:
        value = direction * mean(finalist.objectives)
        return value if math.isfinite(value) else math.inf

    *others, yours = finalists
    others.sort(key=order)
    search.chosen = others[0].trial
    split = "test" if "test" in yours.correct else FOLDS
    if split == FOLDS:
        _cross_validate(search, trainer, (others[0], yours), seeds[0])
    one, number = others[0], len(seeds) if split == "test" else 1
    return Verdict(
        [*others, yours],
        seeds,
        split,
        search.settings.objective,
        Difference.of_accuracy(one.correct[split] - yours.correct[split], number),
        Difference.of_loss(one.losses[split] - yours.losses[split]),
        order(yours) < order(one),
    )


def _finalists(search: Search, trainer: HeadTrainer) -> list[Finalist]:
    """Return the best trials, and behind them your settings as a training would take them."""
    complete = [trial for trial in search.finished() if trial.state.name == "COMPLETE"]
    complete.sort(key=lambda trial: trial.value, reverse=search.settings.direction == "maximize")
    distinct = {tuple(trial.params.items()): trial for trial in reversed(complete)}
    best = sorted(distinct.values(), key=complete.index)[:BEST]
    config = search.config
    batch_size = fitting_batch_size(vars(config.data), len(trainer.data.samples["train"]))
    yours = {key: flatten(config.to_dict())[key] for key in search.space} | (
        {BATCH_SIZE: batch_size} if BATCH_SIZE in search.space else {}
    )
    return [
        *(Finalist(f"trial {search.number_of(trial)}", trial.params, trial) for trial in best),
        Finalist(YOURS, yours),
    ]


def _train(search: Search, trainer: HeadTrainer, finalists: Sequence[Finalist], seeds: Sequence[int]) -> None:
    """Train every finalist with every seed, side by side where batch sizes agree, and measure it."""
    heads = [[head_of(search.config, finalist.params, seed) for seed in seeds] for finalist in finalists]
    sizes = [finalist.params.get(BATCH_SIZE, trainer.data.batch_size) for finalist in finalists]
    for size in sorted(set(sizes)):
        together = [head for own, other in zip(heads, sizes, strict=True) if other == size for head in own]
        trainer.train(together, batch_size=size, epochs=search.config.trainer["max_epochs"])
    for split in ("valid", "test"):
        if split == "test" and not (search.config.test and trainer.data.has_features("test")):
            continue
        inputs, labels = trainer.inputs(split)
        for finalist, own in zip(finalists, heads, strict=True):
            _measure(finalist, split, torch.stack([_logits(search, trainer, head, inputs) for head in own]), labels)
    for finalist, own in zip(finalists, heads, strict=True):
        finalist.objectives = [head.best[search.settings.objective] for head in own]


def _cross_validate(search: Search, trainer: HeadTrainer, finalists: Sequence[Finalist], seed: int) -> None:
    """Classify each image of train by a head that was trained on the other folds."""
    inputs, labels = trainer.inputs("train")
    fold_of = trainer.data.with_folds(PARTS, ["train"])[1]
    for finalist in finalists:
        head = head_of(search.config, finalist.params, seed)
        heads = [replace(head, rows=np.flatnonzero(fold_of != fold), history=[]) for fold in range(PARTS)]
        size = finalist.params.get(BATCH_SIZE, trainer.data.batch_size)
        trainer.train(heads, batch_size=size, epochs=search.config.trainer["max_epochs"])
        logits = inputs.new_empty(len(inputs), trainer.stem.head.out_features)
        for fold, head in enumerate(heads):
            rows = torch.from_numpy(np.flatnonzero(fold_of == fold)).to(inputs.device)
            logits[rows] = _logits(search, trainer, head, inputs[rows])
        _measure(finalist, FOLDS, logits[None], labels)


def _logits(search: Search, trainer: HeadTrainer, head: Head, inputs: Tensor) -> Tensor:
    """Return the logits [N, classes] of a trained head as a run would export it."""
    assert head.weight is not None
    assert head.bias is not None
    bias = head.bias
    if search.config.model.prior == "uniform":
        labels = torch.from_numpy(trainer.data.samples["train"].labels)
        labels = labels if head.rows is None else labels[torch.from_numpy(head.rows)]
        bias = bias - log_prior(labels.bincount(minlength=len(bias))).to(bias)
    return torch.addmm(bias, inputs, head.weight.T)


def _measure(finalist: Finalist, split: str, logits: Tensor, labels: Tensor) -> None:
    """Keep what is right and the losses, from the logits [seeds, N, classes] and the labels [N]."""
    logits, labels = logits.cpu(), labels.cpu()
    right = logits.argmax(2) == labels
    losses = torch.stack([cross_entropy(own.double(), labels, reduction="none") for own in logits])
    finalist.correct[split] = right.sum(0)
    finalist.losses[split] = losses.mean(0)
    finalist.accuracies[split] = right.double().mean(1).tolist()
