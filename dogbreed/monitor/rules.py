"""Rules over what is recorded of a training run while it goes on.

Each rule is a pure function from series to a `Finding`. Names, definitions and default parameters follow the
built-in rules of Amazon SageMaker Debugger ("List of Debugger Built-in Rules", docs.aws.amazon.com/sagemaker/latest/dg/
debugger-built-in-rules.html). The code behind those is not public: these are rules of the same name, not AWS's own.
What the page leaves open is decided here and said so. The rules for the machine are in `system_rules`.

The rules over losses judge where a series has come to, and observe only: a finding is withdrawn when it is no longer
true, and what to do about it is said by `curve_diagnosis`, from the whole history. `steps` are the places at which a
series was recorded, rising: steps of the optimizer, or epochs.

Keyword arguments of a rule are its parameters: keys of the configuration's group of its name, where
`conf/rules/default.yaml` says what each does.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from itertools import pairwise
from typing import Any, ParamSpec

import numpy as np
from numpy.typing import ArrayLike, NDArray

Series = Sequence[float]
P = ParamSpec("P")


@dataclass(frozen=True)
class Finding:
    """What a rule observes in a series.

    Attributes:
        rule: Its name, as in the configuration.
        triggered: Whether it found what it looks for.
        message: One sentence with the figure.
        step: Where it was triggered; None where it was not.
        figures: The numbers in the message, by name.
        parameters: What the rule was asked to look for.
        applies: False where there is nothing that the rule could look at; the message says why.
    """

    rule: str
    triggered: bool
    message: str
    step: int | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    applies: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no number for what is not finite."""
        figures = {name: float(value) if math.isfinite(value) else None for name, value in self.figures.items()}
        return {**asdict(self), "figures": figures, "parameters": dict(self.parameters)}


LOOKS_FOR: dict[str, str] = {}  # what each rule looks for, from the first line of its docstring


def rule(function: Callable[P, Finding]) -> Callable[P, Finding]:
    """Write a function's name and its parameters into the finding that it returns."""
    name, defaults = function.__name__, function.__kwdefaults__ or {}
    LOOKS_FOR[name] = (function.__doc__ or "").partition(" (")[0].removeprefix("Look for ")

    @wraps(function)
    def named(*args: P.args, **kwargs: P.kwargs) -> Finding:
        parameters = {key: kwargs.get(key, default) for key, default in defaults.items()}
        return replace(function(*args, **kwargs), rule=name, parameters=parameters)

    return named


def triggered(message: str, step: int, **figures: float) -> Finding:
    """Return the finding of a rule that found what it looks for."""
    return Finding("", True, message, int(step), figures)


def clear(message: str, **figures: float) -> Finding:
    """Return the finding of a rule that did not find what it looks for."""
    return Finding("", False, message, figures=figures)


def not_applicable(rule: str, why: str) -> Finding:
    """Return the finding of a rule that has nothing to look at."""
    return Finding(rule, False, why, applies=False)


@rule
def loss_not_decreasing(
    steps: Sequence[int],
    losses: Series,
    *,
    num_steps: int = 10,
    diff_percent: float = 0.1,
    increase_threshold_percent: float = 5.0,
) -> Finding:
    """Look for a training loss that no longer falls (LossNotDecreasing).

    Every `num_steps` steps the loss is compared with the one that was compared last; the last comparison counts.
    The page allows a loss "to increase in case loss has been increasing" by `increase_threshold_percent`; here a loss
    that rises by less is one that does not fall.

    Args:
        steps: Where the losses were recorded.
        losses: Mean losses; noise between single batches would trigger the rule, so record means over many.
    """
    compared: list[tuple[int, float]] = []
    for step, loss in zip(steps, losses, strict=True):
        if math.isfinite(loss) and (not compared or step - compared[-1][0] >= num_steps):
            compared.append((step, loss))
    if len(compared) < 2:
        return clear(f"Fewer than {num_steps} steps between two losses.")
    # A loss of zero cannot fall.
    falls = [100 * (old - new) / old if old > 0 else math.inf for (_, old), (_, new) in pairwise(compared)]
    standing = _in_a_row([fall < diff_percent for fall in falls])
    (before, old), (step, new) = compared[-2:]
    if not standing:
        return clear(f"The training loss last fell by at least {diff_percent:g} %, to {new:.4f}.", after=new)
    fall = falls[-1]
    if -fall > increase_threshold_percent:
        change = f"rose by {-fall:.1f} %"
    else:
        change = f"fell by only {fall:.2f} %" if fall > 0 else f"did not fall ({-fall:+.2f} %)"
    message = f"The training loss {change} from step {before} to step {step} ({old:.4f} to {new:.4f})."
    return triggered(message, compared[-standing][0], before=old, after=new, fall_percent=fall)


@rule
def overfit(
    steps: Sequence[int],
    train_losses: Series,
    val_losses: Series,
    *,
    start_step: int = 0,
    patience: int = 1,
    ratio_threshold: float = 0.1,
) -> Finding:
    """Look for a validation loss well above the training loss (Overfit).

    Args:
        steps: Where both losses were recorded.
        train_losses: Mean losses on the training images.
        val_losses: Mean losses on the validation images.
    """
    rows = _finite_rows(steps, train_losses, val_losses)
    ratios = [
        (val - train) / train if train > 0 else math.inf * (val > train)
        for step, train, val in rows
        if step >= start_step
    ]
    ratio = ratios[-1] if ratios else math.nan
    in_a_row = _in_a_row([one > ratio_threshold for one in ratios])
    if in_a_row >= patience:
        _, train, val = rows[-1]
        more = f"{100 * ratio:.0f} % above" if ratio < 10 else f"{ratio + 1:.0f} times"
        message = f"The validation loss ({val:.4f}) is {more} the training loss ({train:.4f})"
        lowest = min(row[2] for row in rows)
        message += f", and has risen from {lowest:.4f}." if val > lowest else ", and is at its lowest so far."
        return triggered(message, rows[patience - 1 - in_a_row][0], train_loss=train, val_loss=val, ratio=ratio)
    if math.isnan(ratio):
        return clear("No training and validation loss to compare.")
    limit, now = f"{100 * ratio_threshold:g}", f"{100 * ratio:+.0f}"
    return clear(f"The validation loss stayed within {limit} % of the training loss (now {now} %).", ratio=ratio)


@rule
def overtraining(
    steps: Sequence[int],
    train_losses: Series,
    val_losses: Series,
    unit: str = "step",
    *,
    patience_train: int = 5,
    patience_validation: int = 10,
    delta: float = 0.01,
) -> Finding:
    """Look for training that goes on although either loss has stopped improving (Overtraining).

    Args:
        steps: Where both losses were recorded.
        train_losses: As in `overfit`.
        val_losses: As in `overfit`.
        unit: What the steps are, for the message.
    """
    rows = _finite_rows(steps, train_losses, val_losses)
    if not rows:
        return clear("No training and validation loss to compare.")
    train, val = (_best_so_far([row[column] for row in rows], delta) for column in (1, 2))
    waits = [(position - train[position], position - val[position]) for position in range(len(rows))]
    stalled = _in_a_row([waits[i][0] >= patience_train or waits[i][1] >= patience_validation for i in range(len(rows))])
    best = {"best_train_loss": rows[train[-1]][1], "best_val_loss": rows[val[-1]][2]}
    if not stalled:
        return clear("The losses keep improving: training {:.4f}, validation {:.4f}.".format(*best.values()), **best)
    waited_train, waited = waits[-1]
    (step, _, lowest), which = rows[val[-1]], "validation"
    if waited < patience_validation:
        (step, lowest, _), which, waited = rows[train[-1]], "training", waited_train
    message = f"The {which} loss has not improved by {delta:g} on {lowest:.4f} ({unit} {step}) for {waited} {unit}s."
    figures = {"train_loss": rows[-1][1], "val_loss": rows[-1][2], "waited_train": waited_train}
    return triggered(message, rows[-stalled][0], **best, **figures, waited_validation=waits[-1][1])


@rule
def vanishing_gradient(steps: Sequence[int], gradients: Mapping[str, Series], *, threshold: float = 1e-7) -> Finding:
    """Look for gradients that have all but disappeared (VanishingGradient).

    Args:
        steps: Where they were recorded.
        gradients: Mean of the absolute values of each parameter's gradient, by its name.
    """
    if not gradients or not len(steps):
        return clear("No gradients were recorded.")
    values = np.array([np.asarray(series, dtype=float) for series in gradients.values()])
    vanished = np.argwhere((values < threshold).T)
    if len(vanished):
        position, parameter = vanished[0]
        gradient = float(values[parameter, position])
        message = (
            f"The mean gradient of {list(gradients)[parameter]} is {gradient:.1e} at step {steps[position]}, less than "
            f"{threshold:g}: it hardly learns any more; where the loss is still high, try a larger model.lr, "
            "model.weights=imagenet, or a network with shortcuts such as model.backbone=resnet50."
        )
        return triggered(message, steps[position], gradient=gradient)
    low = float(np.nanmin(values)) if not np.isnan(values).all() else math.nan
    return clear(f"The smallest mean gradient of a parameter was {low:.1e}.", gradient=low)


@rule
def exploding_tensor(steps: Sequence[int], tensors: Mapping[str, Series], *, only_nan: bool = False) -> Finding:
    """Look for values that are not finite (ExplodingTensor).

    Args:
        steps: Where they were recorded.
        tensors: One number for each, by its name; a mean or a norm will do, it is finite only if all values are.
    """
    if not tensors or not len(steps):
        return clear("No tensors were recorded.")
    values = np.array([np.asarray(series, dtype=float) for series in tensors.values()])
    exploded = np.argwhere((np.isnan(values) if only_nan else ~np.isfinite(values)).T)
    if not len(exploded):
        return clear("All recorded values are finite.")
    position, tensor = exploded[0]
    value = float(values[tensor, position])
    message = (
        f"{list(tensors)[tensor]} is {'not a number' if math.isnan(value) else 'infinite'} at step {steps[position]}: "
        "try a smaller model.lr, trainer.gradient_clip_val=1.0, or trainer.precision=bf16-mixed in place of 16-mixed."
    )
    return triggered(message, steps[position], value=value)


@rule
def poor_weight_initialization(
    steps: Sequence[int],
    losses: Series,
    activation_variances: Mapping[str, Series],
    gradient_ranges: Mapping[str, Series],
    *,
    threshold: float = 10.0,
    distribution_range: float = 0.001,
    patience: int = 5,
    first_steps: int = 10,
) -> Finding:
    """Look for weights that were drawn so that the network cannot learn (PoorWeightInitialization).

    The page checks "the variance of activation inputs across layers, the distribution of gradients, and the loss
    convergence for the initial steps". Here the loss has to stand still and one of the other two has to be poor: on
    its own, either is common in networks that learn well.

    Args:
        steps: Where all of them were recorded, from the first step on.
        losses: Of each step.
        activation_variances: Variance of the input of each activation, by layer.
        gradient_ranges: Distance of the 5th and the 95th percentile of each parameter's gradient, by its name.
    """
    count = min(len(steps), first_steps)
    if count == 0 or not (activation_variances or gradient_ranges):
        return clear("Nothing was recorded of the first steps.")
    best, waited, ratio, narrow = math.inf, 0, 1.0, math.inf
    for position in range(count):
        waited = 0 if losses[position] < best else waited + 1
        best = min(best, losses[position]) if math.isfinite(losses[position]) else best
        variances = [float(series[position]) for series in activation_variances.values()]
        if len(variances) > 1:
            ratio = max(ratio, max(variances) / min(variances) if min(variances) > 0 else math.inf)
        narrow = min([narrow, *(float(series[position]) for series in gradient_ranges.values())])
        causes = [f"the inputs of its activations differ {ratio:.0f}-fold in variance"] if ratio > threshold else []
        causes += [f"90 % of a gradient's values lie within {narrow:.1e}"] if narrow < distribution_range else []
        if waited >= patience and causes:
            message = (
                f"The loss has stood still for {waited} of the first {position + 1} steps and {' and '.join(causes)}: "
                "the weights are poorly initialised; start from model.weights=imagenet, or take a network with batch "
                "norm."
            )
            return triggered(message, steps[position], variance_ratio=ratio, gradient_range=narrow, waited=waited)
    return clear(f"In the first {count} steps the loss came down to {best:.4f}.", variance_ratio=ratio, loss=best)


@rule
def dead_relu(
    steps: Sequence[int],
    activity: Mapping[str, Sequence[ArrayLike]],
    *,
    threshold_inactivity: float = 1.0,
    threshold_layer: float = 50.0,
) -> Finding:
    """Look for layers in which most rectifiers never fire (DeadRelu).

    Args:
        steps: Where the activity was recorded.
        activity: By layer, and for each step an array [units]: in what percentage of its inputs a unit fires.
    """
    if not activity or not len(steps):
        return clear("No activations were recorded.")
    most, where = 0.0, ""
    for position, step in enumerate(steps):
        for layer, series in activity.items():
            units: NDArray[np.float64] = np.asarray(series[position], dtype=float)
            dead = 100 * float((units < threshold_inactivity).mean()) if units.size else 0.0
            if dead > threshold_layer:
                message = (
                    f"{dead:.0f} % of the {units.size} rectifiers of {layer} are dead at step {step} (they fire for "
                    f"less than {threshold_inactivity:g} % of their inputs): try a smaller model.lr, or start again "
                    "from model.weights=imagenet."
                )
                return triggered(message, step, dead_percent=dead)
            if dead >= most:
                most, where = dead, layer
    return clear(f"At most {most:.0f} % of a layer's rectifiers are dead ({where}).", dead_percent=most)


@rule
def imbalance(images: Mapping[str, int], *, threshold_imbalance: float = 10.0) -> Finding:
    """Look for classes with far fewer training images than others (the first part of ClassImbalance).

    Args:
        images: How many there are to train with, by class.
    """
    if not any(images.values()):
        return clear("No class has images to train with.")
    classes = sorted((name for name in images if images[name]), key=lambda name: images[name])
    small, large = images[classes[0]], images[classes[-1]]
    message = f"{classes[-1]} has {large:,} training images and {classes[0]} {small:,}"
    if large <= threshold_imbalance * small:
        return clear(f"{message}.", ratio=large / small)
    message += (
        f", {large / small:.0f} times fewer: accuracy favours the frequent classes; judge by balanced accuracy and "
    )
    return triggered(
        f"{message}macro F1, and try model.prior=uniform or model.class_weights=balanced.", 0, ratio=large / small
    )


def _finite_rows(steps: Sequence[int], one: Series, other: Series) -> list[tuple[int, float, float]]:
    rows = zip(steps, one, other, strict=True)
    return [(int(step), float(a), float(b)) for step, a, b in rows if math.isfinite(a) and math.isfinite(b)]


def _in_a_row(flags: Sequence[bool]) -> int:
    """Return how many at the end are true."""
    return next((number for number, flag in enumerate(reversed(flags)) if not flag), len(flags))


def _best_so_far(losses: Series, delta: float) -> list[int]:
    """Return the position of the best loss up to each; a loss is better when it is lower by at least `delta`."""
    best = [0]
    for position in range(1, len(losses)):
        best.append(position if losses[best[-1]] - losses[position] >= delta else best[-1])
    return best
