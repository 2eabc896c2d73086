"""Rules over what is recorded of a training run while it goes on.

Each rule is a pure function from series to a `Finding`. Names, definitions and default parameters follow the
built-in rules of Amazon SageMaker Debugger ("List of Debugger Built-in Rules", docs.aws.amazon.com/sagemaker/latest/dg/
debugger-built-in-rules.html). The code behind those is not public: these are rules of the same name, not AWS's own.
What the page leaves open is decided here and said so. The rules for the machine are in `system_rules`.

The rules over losses judge where a series has come to, and observe only: a finding is withdrawn when it is no longer
true, and what to do about it is said by `curve_diagnosis`, from the whole history. `steps` are the places at which a
series was recorded, rising: steps of the optimizer, or epochs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Series = Sequence[float]


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
        """Plain values for JSON, which has no number for what is not finite."""
        figures = {name: float(value) if math.isfinite(value) else None for name, value in self.figures.items()}
        return {**asdict(self), "figures": figures, "parameters": dict(self.parameters)}


def not_applicable(rule: str, why: str) -> Finding:
    """The finding of a rule that has nothing to look at."""
    return Finding(rule, False, why, applies=False)


def loss_not_decreasing(
    steps: Sequence[int],
    losses: Series,
    *,
    num_steps: int = 10,
    diff_percent: float = 0.1,
    increase_threshold_percent: float = 5.0,
) -> Finding:
    """Look for a loss that no longer falls (LossNotDecreasing).

    Every `num_steps` steps the loss is compared with the one that was compared last; the last comparison counts.

    Args:
        steps: Where the losses were recorded.
        losses: Mean losses; noise between single batches would trigger the rule, so record means over many.
        num_steps: Least distance of the steps that are compared.
        diff_percent: It has to fall by this many percent.
        increase_threshold_percent: A rise by more than this is called one. The page allows a loss "to increase in case
            loss has been increasing" by so much; here a loss that rises by less is one that does not fall.
    """
    parameters = {
        "num_steps": num_steps,
        "diff_percent": diff_percent,
        "increase_threshold_percent": increase_threshold_percent,
    }
    name = "loss_not_decreasing"
    pairs = [(step, loss) for step, loss in zip(steps, losses, strict=True) if math.isfinite(loss)]
    compared, since, finding = 0, 0, None
    for index in range(1, len(pairs)):
        (before, old), (step, new) = pairs[compared], pairs[index]
        if step - before < num_steps:
            continue
        compared = index
        fall = 100 * (old - new) / old if old > 0 else math.inf  # a loss of zero cannot fall
        if fall >= diff_percent:
            finding = None
            continue
        figures = {"before": old, "after": new, "fall_percent": fall}
        if -fall > increase_threshold_percent:
            change = f"rose by {-fall:.1f} %"
        else:
            change = f"fell by only {fall:.2f} %" if fall > 0 else f"did not fall ({-fall:+.2f} %)"
        message = f"The training loss {change} from step {before} to step {step} ({old:.4f} to {new:.4f})."
        since = since if finding else step
        finding = Finding(name, True, message, since, figures, parameters)
    if finding:
        return finding
    if not compared:
        return Finding(name, False, f"Fewer than {num_steps} steps between two losses.", parameters=parameters)
    message = f"The training loss last fell by at least {diff_percent:g} %, to {pairs[compared][1]:.4f}."
    return Finding(name, False, message, figures={"after": pairs[compared][1]}, parameters=parameters)


def overfit(
    steps: Sequence[int],
    train_losses: Series,
    val_losses: Series,
    *,
    start_step: int = 0,
    patience: int = 1,
    ratio_threshold: float = 0.1,
) -> Finding:
    """Look for a validation loss that ends well above the training loss (Overfit).

    Args:
        steps: Where both losses were recorded.
        train_losses: Mean losses on the training images.
        val_losses: Mean losses on the validation images.
        start_step: Nothing before it counts.
        patience: The ratio has to be exceeded at so many of them in a row.
        ratio_threshold: Largest (validation - training) / training.
    """
    parameters = {"start_step": start_step, "patience": patience, "ratio_threshold": ratio_threshold}
    name = "overfit"
    rows = _finite_rows(steps, train_losses, val_losses)
    in_a_row, ratio, since = 0, math.nan, 0
    train = val = math.nan
    for step, train, val in rows:
        if step < start_step:
            continue
        ratio = (val - train) / train if train > 0 else math.inf * (val > train)
        in_a_row = in_a_row + 1 if ratio > ratio_threshold else 0
        since = step if in_a_row == patience else since
    if in_a_row >= patience:
        figures = {"train_loss": train, "val_loss": val, "ratio": ratio}
        more = f"{100 * ratio:.0f} % above" if ratio < 10 else f"{ratio + 1:.0f} times"
        message = f"The validation loss ({val:.4f}) is {more} the training loss ({train:.4f})"
        lowest = min(row[2] for row in rows)
        message += f", and has risen from {lowest:.4f}." if val > lowest else ", though it still falls."
        return Finding(name, True, message, since, figures, parameters)
    if math.isnan(ratio):
        return Finding(name, False, "No training and validation loss to compare.", parameters=parameters)
    limit, now = f"{100 * ratio_threshold:g}", f"{100 * ratio:+.0f}"
    message = f"The validation loss stayed within {limit} % of the training loss (now {now} %)."
    return Finding(name, False, message, figures={"ratio": ratio}, parameters=parameters)


def overtraining(
    steps: Sequence[int],
    train_losses: Series,
    val_losses: Series,
    *,
    patience_train: int = 5,
    patience_validation: int = 10,
    delta: float = 0.01,
    unit: str = "step",
) -> Finding:
    """Look for training that goes on although either loss has stopped improving (Overtraining).

    Args:
        steps: Where both losses were recorded.
        train_losses: Mean losses on the training images.
        val_losses: Mean losses on the validation images.
        patience_train: So many in a row without a better training loss.
        patience_validation: So many in a row without a better validation loss.
        delta: A loss is better when it is lower by at least this than the best so far.
        unit: What the steps are, for the message.
    """
    parameters = {"patience_train": patience_train, "patience_validation": patience_validation, "delta": delta}
    name = "overtraining"
    rows = _finite_rows(steps, train_losses, val_losses)
    if not rows:
        return Finding(name, False, "No training and validation loss to compare.", parameters=parameters)
    best_train, best_val, last = rows[0], rows[0], rows[-1]
    waited_train = waited_val = since = 0
    for row in rows[1:]:
        waited_train = 0 if best_train[1] - row[1] >= delta else waited_train + 1
        waited_val = 0 if best_val[2] - row[2] >= delta else waited_val + 1
        best_train = row if not waited_train else best_train
        best_val = row if not waited_val else best_val
        stalled = waited_train >= patience_train or waited_val >= patience_validation
        since = since or row[0] if stalled else 0
    figures = {"best_train_loss": best_train[1], "best_val_loss": best_val[2]}
    if not since:
        message = f"The losses keep improving: training {best_train[1]:.4f}, validation {best_val[2]:.4f}."
        return Finding(name, False, message, figures=figures, parameters=parameters)
    which = "validation" if waited_val >= patience_validation else "training"
    waited, best, step = (
        (waited_val, best_val[2], best_val[0])
        if which == "validation"
        else (waited_train, best_train[1], best_train[0])
    )
    message = f"The {which} loss has not improved by {delta:g} on {best:.4f} ({unit} {step}) for {waited} {unit}s."
    figures |= {
        "train_loss": last[1],
        "val_loss": last[2],
        "waited_train": waited_train,
        "waited_validation": waited_val,
    }
    return Finding(name, True, message, since, figures, parameters)


def vanishing_gradient(steps: Sequence[int], gradients: Mapping[str, Series], *, threshold: float = 1e-7) -> Finding:
    """Look for gradients that have all but disappeared (VanishingGradient).

    Args:
        steps: Where they were recorded.
        gradients: Mean of the absolute values of each parameter's gradient, by its name.
        threshold: Less than this has vanished.
    """
    name, parameters = "vanishing_gradient", {"threshold": threshold}
    if not gradients or not len(steps):
        return Finding(name, False, "No gradients were recorded.", parameters=parameters)
    values = np.array([np.asarray(series, dtype=float) for series in gradients.values()])
    found = np.argwhere((values < threshold).T)
    names = list(gradients)
    if len(found):
        place, which = found[0]
        small = values[which, place]
        message = (
            f"The mean gradient of {names[which]} is {small:.1e} at step {steps[place]}, less than {threshold:g}: it "
            "hardly learns any more; where the loss is still high, try a larger model.lr, model.weights=imagenet, or a "
            "network with shortcuts such as model.backbone=resnet50."
        )
        return Finding(name, True, message, int(steps[place]), {"gradient": float(small)}, parameters)
    low = float(np.nanmin(values)) if not np.isnan(values).all() else math.nan
    message = f"The smallest mean gradient of a parameter was {low:.1e}."
    return Finding(name, False, message, figures={"gradient": low}, parameters=parameters)


def exploding_tensor(steps: Sequence[int], tensors: Mapping[str, Series], *, only_nan: bool = False) -> Finding:
    """Look for values that are not finite (ExplodingTensor).

    Args:
        steps: Where they were recorded.
        tensors: One number for each, by its name; a mean or a norm will do, it is finite only if all values are.
        only_nan: Infinity does not count.
    """
    name, parameters = "exploding_tensor", {"only_nan": only_nan}
    if not tensors or not len(steps):
        return Finding(name, False, "No tensors were recorded.", parameters=parameters)
    values = np.array([np.asarray(series, dtype=float) for series in tensors.values()])
    found = np.argwhere((np.isnan(values) if only_nan else ~np.isfinite(values)).T)
    if len(found):
        place, which = found[0]
        bad = "not a number" if np.isnan(values[which, place]) else "infinite"
        message = (
            f"{list(tensors)[which]} is {bad} at step {steps[place]}: try a smaller model.lr, "
            "trainer.gradient_clip_val=1.0, or trainer.precision=bf16-mixed in place of 16-mixed."
        )
        return Finding(name, True, message, int(steps[place]), {"value": float(values[which, place])}, parameters)
    return Finding(name, False, "All recorded values are finite.", parameters=parameters)


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
        threshold: Largest ratio of the largest to the smallest variance.
        distribution_range: Smallest distance of the percentiles.
        patience: Steps without a lower loss after which it stands still.
        first_steps: So many are looked at; `steps` on the page.
    """
    name = "poor_weight_initialization"
    parameters = {
        "threshold": threshold,
        "distribution_range": distribution_range,
        "patience": patience,
        "first_steps": first_steps,
    }
    count = min(len(steps), first_steps)
    if count == 0 or not (activation_variances or gradient_ranges):
        return Finding(name, False, "Nothing was recorded of the first steps.", parameters=parameters)
    best, waited, ratio, narrow = math.inf, 0, 1.0, math.inf
    for place in range(count):
        waited = 0 if losses[place] < best else waited + 1
        best = min(best, losses[place]) if math.isfinite(losses[place]) else best
        variances = [float(series[place]) for series in activation_variances.values()]
        if len(variances) > 1:
            ratio = max(ratio, max(variances) / min(variances) if min(variances) > 0 else math.inf)
        narrow = min([narrow, *(float(series[place]) for series in gradient_ranges.values())])
        if waited < patience or (ratio <= threshold and narrow >= distribution_range):
            continue
        causes = []
        if ratio > threshold:
            causes.append(f"the inputs of its activations differ {ratio:.0f}-fold in variance")
        if narrow < distribution_range:
            causes.append(f"90 % of a gradient's values lie within {narrow:.1e}")
        message = (
            f"The loss has stood still for {waited} of the first {place + 1} steps and {' and '.join(causes)}: the "
            "weights are poorly initialised; start from model.weights=imagenet, or take a network with batch norm."
        )
        figures = {"variance_ratio": ratio, "gradient_range": narrow, "waited": waited}
        return Finding(name, True, message, int(steps[place]), figures, parameters)
    message = f"In the first {count} steps the loss came down to {best:.4f}."
    return Finding(name, False, message, figures={"variance_ratio": ratio, "loss": best}, parameters=parameters)


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
        threshold_inactivity: A unit that fires in a smaller percentage is dead.
        threshold_layer: Largest percentage of dead units in a layer.
    """
    name = "dead_relu"
    parameters = {"threshold_inactivity": threshold_inactivity, "threshold_layer": threshold_layer}
    if not activity or not len(steps):
        return Finding(name, False, "No activations were recorded.", parameters=parameters)
    most, where = 0.0, ""
    for place, step in enumerate(steps):
        for layer, series in activity.items():
            units: NDArray[np.float64] = np.asarray(series[place], dtype=float)
            dead = 100 * float((units < threshold_inactivity).mean()) if units.size else 0.0
            if dead > threshold_layer:
                message = (
                    f"{dead:.0f} % of the {units.size} rectifiers of {layer} are dead at step {step} (they fire for "
                    f"less than {threshold_inactivity:g} % of their inputs): try a smaller model.lr, or start again "
                    "from model.weights=imagenet."
                )
                return Finding(name, True, message, int(step), {"dead_percent": dead}, parameters)
            if dead >= most:
                most, where = dead, layer
    message = f"At most {most:.0f} % of a layer's rectifiers are dead ({where})."
    return Finding(name, False, message, figures={"dead_percent": most}, parameters=parameters)


def _finite_rows(steps: Sequence[int], one: Series, other: Series) -> list[tuple[int, float, float]]:
    rows = zip(steps, one, other, strict=True)
    return [(int(step), float(a), float(b)) for step, a, b in rows if math.isfinite(a) and math.isfinite(b)]
