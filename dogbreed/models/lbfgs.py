"""`model.optimizer=lbfgs`: the head as a logistic regression on cached features, without a learning rate.

The regression is convex, so it is solved once, before the first epoch; the epoch that follows changes nothing, and
measures. The strength of its L2 penalty, C as in scikit-learn, is the one of `GRID` with the lowest loss on valid once
the temperature is taken out: a strong penalty often ranks the classes best and only leaves the probabilities too even,
which one number mends. That temperature becomes part of the head. Penalties weaken along the grid; beyond the best of
them the loss rises, so the search ends where it is clearly higher.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datasets import FeatureBatch
from dogbreed.metrics.calibration import choose_temperature
from dogbreed.models.backbones import head_name

GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
PAST_THE_BEST = 1.02  # times the lowest loss on valid, above which no weaker penalty is tried
ROWS = 1024  # that pass the part before the head at once


def check_head(network: nn.Module, trainable: str) -> None:
    """Refuse a network in which more trains than a linear last layer.

    Raises:
        DogbreedError: Says what to set.
    """
    if trainable != "head":
        raise DogbreedError(
            f"model.optimizer=lbfgs trains the last layer of a frozen network, and model.trainable={trainable}; "
            "set model.trainable=head, or another optimizer."
        )
    if not isinstance(network.get_submodule(head_name(network)), nn.Linear):
        raise DogbreedError(f"model.optimizer=lbfgs needs a linear last layer, and {head_name(network)} is none.")


def fit_head(head: nn.Linear, inputs: Tensor, labels: Tensor, criterion: nn.CrossEntropyLoss, c: float) -> None:
    """Minimize C times the summed loss plus half the squared weights, as scikit-learn does, from where the head is.

    Args:
        head: Gets the solution.
        inputs: Its inputs, [N, inputs].
        labels: [N].
        criterion: Its class weights and label smoothing are used.
        c: Inverse strength of the penalty.
    """
    count = len(labels) if criterion.weight is None else criterion.weight[labels].sum()
    # Without their mean, which a bias can take, the inputs need fewer steps.
    mean = inputs.mean(0) if head.bias is not None else inputs.new_zeros(inputs.shape[1])
    centred = inputs - mean
    _shift(head, mean)
    optimizer = torch.optim.LBFGS(
        list(head.parameters()),
        max_iter=1000,
        history_size=10,
        tolerance_grad=1e-5,  # a tenth of scikit-learn's
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = criterion(head(centred), labels) + head.weight.square().sum() / (2 * c * count)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    optimizer.zero_grad()
    _shift(head, -mean)


def _shift(head: nn.Linear, inputs: Tensor) -> None:
    """Let the bias, if any, take the part of the logits that these inputs [D] have."""
    if head.bias is not None:
        with torch.no_grad():
            head.bias.add_(head.weight @ inputs)


class Solution(NamedTuple):
    """Which of the logistic regressions a head is."""

    c: float  # inverse strength of the penalty
    temperature: float = 1.0  # that its weights and bias were divided by


class LogisticRegression(Callback):
    """Solve the head before the first epoch; `DogBreedClassifier` brings this callback along."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and pl_module.parts is None:
            raise DogbreedError(
                "model.optimizer=lbfgs works on cached features, and the cache is off; cache.mode=require says why."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        head = model.network.get_submodule(head_name(model.network))
        train, solution = _head_inputs(model, head, data, "train"), model.solution
        valid = _head_inputs(model, head, data, "valid") if solution is None else train  # a refit has no valid
        model.solution = solve(head, train, valid, model.criterion, model.eval_criterion, solution)


def solve(
    head: nn.Linear,
    train: tuple[Tensor, Tensor],
    valid: tuple[Tensor, Tensor],
    criterion: nn.CrossEntropyLoss,
    eval_criterion: nn.CrossEntropyLoss,
    solution: Solution | None,
) -> Solution:
    """Solve a head, wherever it is.

    Args:
        head: Gets the solution.
        train: Its inputs [N, inputs] and labels [N].
        valid: The same for the choice of C.
        criterion: Of `fit_head`.
        eval_criterion: What C is chosen by.
        solution: Which one; None chooses it.

    Returns:
        The one that was used.
    """
    with torch.no_grad():  # the solution is one, but a start from nowhere in particular is the same for all seeds
        head.weight.zero_()
        head.bias.zero_()
    best = float("inf")
    state: dict[str, Tensor] = {}
    for c in GRID if solution is None else ():  # each from the solution of the one before
        fit_head(head, *train, criterion, c)
        with torch.no_grad():
            logits = head(valid[0])
            temperature = choose_temperature(logits, valid[1])
            loss = float(eval_criterion(logits / temperature, valid[1]))
        if loss < best or not state:
            best, solution = loss, Solution(c, temperature)
            state = {name: value.clone() for name, value in head.state_dict().items()}
        elif loss > PAST_THE_BEST * best:
            break
    assert solution is not None
    if state:
        head.load_state_dict(state)
    else:
        fit_head(head, *train, criterion, solution.c)
    with torch.no_grad():
        head.weight.div_(solution.temperature)
        head.bias.div_(solution.temperature)
    return solution


def _head_inputs(model: Any, head: nn.Module, data: Any, split: str) -> tuple[Tensor, Tensor]:
    """Return the last layer's input [N, inputs] of every view of a split's images, and the labels [N]."""
    files, reader = data.samples[split], data.reader(split)
    images, views = (np.ravel(grid) for grid in np.mgrid[: len(files), : len(files.views)])
    parts: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, inputs: parts.append(inputs[0].detach().float()))
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for start in range(0, len(images), ROWS):
                rows = slice(start, start + ROWS)
                labels = torch.from_numpy(files.labels[images[rows]])
                indices = torch.from_numpy(images[rows])
                model.logits(FeatureBatch(reader(images[rows], views[rows]).to(model.device), labels, indices))
    finally:
        hook.remove()
        model.train(training)
    return torch.cat(parts), torch.from_numpy(files.labels[images]).to(model.device)
