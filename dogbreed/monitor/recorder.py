"""Recording of what the rules look at while a model trains: losses, gradients, activations, the wait for data."""

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dogbreed.data.datasets import FeatureBatch
from dogbreed.data.transfer import to_device
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.monitor import rules, system_rules
from dogbreed.monitor.rules import Finding

# Of 200 images a unit that fires for 2 % of them is missed with a probability of 0.98^200, 2 %.
ENOUGH_IMAGES = 200
MOST_VALUES = 100_000  # of a gradient, for its percentiles


class Recorder:
    """Record the series of one run's steps, and apply the rules to them.

    A step costs two readings of the clock. What lies on a GPU stays there until `findings` asks for it.

    Args:
        model: The one that trains.
        settings: The configuration's group `rules`.
        step: Steps of the optimizer that were taken before, in a run that is resumed.
        workers: Processes that load data.
        cores: That this process may use.
        scaled: Whether gradients are scaled (16-mixed); infinite ones are then part of finding the scale.

    Attributes:
        batches: That were recorded.
        reasons: Why a rule has nothing to look at, by its name.
    """

    def __init__(
        self,
        model: DogBreedClassifier,
        settings: Mapping[str, Any],
        *,
        step: int = 0,
        workers: int = 0,
        cores: int = 1,
        scaled: bool = False,
    ) -> None:
        self.settings = settings
        self.workers, self.cores, self.scaled = workers, cores, scaled
        self.batches = 0
        self.reasons: dict[str, str] = {}
        self._device = model.device.type
        self._clock = _Clock(self._device)
        # The bias before a batch norm has no gradient but rounding errors, so only matrices and kernels are looked at.
        weights = {name: p for name, p in model.network.named_parameters() if p.requires_grad and p.ndim > 1}
        self._weights = weights
        rectifiers = (nn.ReLU, nn.ReLU6)
        self._activations = _Activations({n: m for n, m in model.network.named_modules() if isinstance(m, rectifiers)})
        self.reasons["dead_relu"] = (
            f"None of its rectifiers trained on {ENOUGH_IMAGES} images."
            if self._activations.modules
            else "The network has no rectifiers."
        )
        self._first_steps = 0
        if model.hparams["weights"] != "none":
            self.reasons["poor_weight_initialization"] = "The weights were trained before."
        elif len(weights) < 2:
            self.reasons["poor_weight_initialization"] = "Only the last layer trains."
        elif step == 0:
            self._first_steps = settings["poor_weight_initialization"]["first_steps"]
        self._step = step
        self._optimizer_steps = 0
        self._gradients: list[tuple[int, Tensor]] = []  # (step, mean absolute gradient of each weight)
        self._first: list[tuple[Tensor, Tensor, dict[str, Tensor]]] = []  # (loss, gradient ranges, variances)
        self._ranges: Tensor | None = None
        self._losses: list[tuple[int, Tensor]] = []
        self._timed: list[tuple[Any, Any, Any]] = []
        window = settings["data_loading"]["window"]
        self._waits: deque[float] = deque(maxlen=window)
        self._computes: deque[float] = deque(maxlen=window)
        self._ended: Any = None
        self._started: Any = None

    def pause(self) -> None:
        """Note that something else than data comes between the last step and the next one."""
        self._ended = None

    def start(self, batch: Any) -> None:
        """Note that a batch is there."""
        if isinstance(batch, FeatureBatch):
            self._started = None
            self.reasons["data_loading"] = "Features are read from memory; no image is decoded while training."
        else:
            self._started = self._clock.mark()
        if self._due:
            self._activations.listen(variances=self._in_first_steps)

    def gradients(self) -> None:
        """Record the gradients; the optimizer is about to step."""
        if self._due:
            if self._optimizer_steps == 0:  # what takes no part in the loss, such as an auxiliary head, has none
                self._weights = {name: p for name, p in self._weights.items() if p.grad is not None}
            gradients = [p.grad for p in self._weights.values() if p.grad is not None]
            if len(gradients) == len(self._weights) and gradients:
                self._gradients.append((self._step + 1, _mean_absolute(gradients)))
                if self._in_first_steps:
                    self._ranges = torch.stack([_range(gradient) for gradient in gradients])
        self._optimizer_steps += 1
        self._step += 1

    def end(self, loss: Tensor | None) -> None:
        """Record the loss; the step is done."""
        if loss is not None:
            self._losses.append((self._step, loss.detach()))
        variances = self._activations.silence()
        if self._ranges is not None and loss is not None:
            self._first.append((loss.detach(), self._ranges, variances))
            self._ranges = None
        if self._started is not None:
            now = self._clock.mark()
            if self._ended is not None:
                self._timed.append((self._ended, self._started, now))
            self._ended = now
        self.batches += 1

    @property
    def _in_first_steps(self) -> bool:
        return self._optimizer_steps < self._first_steps

    @property
    def _due(self) -> bool:
        return self._in_first_steps or self._optimizer_steps % self.settings["every"] == 0

    def findings(self, last: bool = False) -> dict[str, Finding]:
        """Apply the rules to what was recorded since the last call.

        Args:
            last: Nothing more will be recorded; what is there has to do.
        """
        settings = self.settings
        latest = self._finite()
        if self._gradients:
            steps, values = _together(self._gradients)
            by_name = dict(zip(self._weights, values.T.tolist(), strict=True))
            latest["vanishing_gradient"] = rules.vanishing_gradient(steps, by_name, **settings["vanishing_gradient"])
        if self._first and (last or not self._in_first_steps):
            latest["poor_weight_initialization"] = self._initialization()
            self._first = []
        if self._activations.images >= ENOUGH_IMAGES:
            activity = {layer: [percent] for layer, percent in self._activations.take().items()}
            if activity:
                latest["dead_relu"] = rules.dead_relu([self._step], activity, **settings["dead_relu"])
        if self._timed:
            latest["data_loading"] = self._data_loading()
        self._gradients, self._losses = [], []
        return latest

    def _finite(self) -> dict[str, Finding]:
        only_nan = self.settings["exploding_tensor"]["only_nan"]
        findings = []
        if self._losses:
            steps, losses = _together(self._losses)
            findings.append(rules.exploding_tensor(steps, {"The loss": losses.tolist()}, only_nan=only_nan))
        if self._gradients and not self.scaled:
            steps, values = _together(self._gradients)
            names = [f"The gradient of {name}" for name in self._weights]
            series = dict(zip(names, values.T.tolist(), strict=True))
            findings.append(rules.exploding_tensor(steps, series, only_nan=only_nan))
        worst = sorted(findings, key=lambda finding: not finding.triggered)[:1]
        return {finding.rule: finding for finding in worst}

    def _initialization(self) -> Finding:
        losses = [float(loss) for loss, _, _ in self._first]
        ranges = torch.stack([ranges for _, ranges, _ in self._first]).T.tolist()
        layers = self._first[0][2]
        variances = {layer: [float(row[layer]) for _, _, row in self._first] for layer in layers}
        return rules.poor_weight_initialization(
            range(1, len(losses) + 1),
            losses,
            variances,
            dict(zip(self._weights, ranges, strict=True)),
            **self.settings["poor_weight_initialization"],
        )

    def _data_loading(self) -> Finding:
        self._clock.wait(self._timed[-1][-1])
        for ended, started, now in self._timed:
            self._waits.append(self._clock.between(ended, started))
            self._computes.append(self._clock.between(started, now))
        self._timed = []
        return system_rules.data_loading(
            list(self._waits),
            list(self._computes),
            workers=self.workers,
            cores=self.cores,
            device=self._device,
            **self.settings["data_loading"],
        )


class _Activations:
    """Count how often the units of rectifiers fire, and take the variance of their inputs, where they train.

    A module may be called several times in a pass, each time with other units: each call counts as a layer.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.modules = modules
        self.images = 0
        self._handles: list[Any] = []
        self._calls: dict[str, int] = {}
        self._fired: dict[str, tuple[Tensor, int]] = {}
        self._variances: dict[str, Tensor] = {}

    def listen(self, variances: bool) -> None:
        """Start, until `silence`; `variances` cost a pass over the values."""
        self._calls, self._variances = {}, {}
        for name, module in self.modules.items():
            self._handles.append(module.register_forward_hook(self._after(name)))
            if variances:
                self._handles.append(module.register_forward_pre_hook(self._before(name)))

    def silence(self) -> dict[str, Tensor]:
        """Stop; return the variances of the pass."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self._variances

    def take(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return in what percentage of its inputs each unit of each layer fired, since the last call."""
        shares = {name: (100 * fired / count).cpu().numpy() for name, (fired, count) in self._fired.items()}
        self._fired, self.images = {}, 0
        return shares

    def _before(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs[0].requires_grad:  # what it does not is frozen, and cannot die or be badly begun
                layer = f"{name} ({self._calls.get(name, 0) + 1})"
                self._variances[layer] = inputs[0].detach().float().var()

        return look

    def _after(self, name: str) -> Any:
        def look(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            self._calls[name] = self._calls.get(name, 0) + 1
            if not output.requires_grad:
                return
            layer = name if self._calls[name] == 1 else f"{name} ({self._calls[name]})"
            units = 1 if output.ndim == 4 else output.ndim - 1  # channels, or the last dimension
            others = [dimension for dimension in range(output.ndim) if dimension != units]
            fired = (output.detach() > 0).sum(others)
            count = output.numel() // output.shape[units]
            before, so_far = self._fired.get(layer, (0, 0))
            self._fired[layer] = (before + fired, so_far + count)
            if layer == next(iter(self._fired)):
                self.images += len(output)

        return look


class _Clock:
    """Read the time as the device has it: a GPU computes on while the process waits for the next batch."""

    def __init__(self, device: str) -> None:
        self._cuda = device == "cuda"

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark: Any) -> None:
        if self._cuda:
            mark.synchronize()

    def between(self, one: Any, other: Any) -> float:
        """Return the seconds between two marks."""
        return one.elapsed_time(other) / 1000 if self._cuda else other - one


def _together(rows: list[tuple[int, Tensor]]) -> tuple[list[int], np.ndarray[Any, Any]]:
    """Return steps, and the values at them, brought from the device at once."""
    return [step for step, _ in rows], torch.stack([values for _, values in rows]).float().cpu().numpy()


def _mean_absolute(gradients: list[Tensor]) -> Tensor:
    """Return the mean absolute value of each of N gradients, [N] in float32."""
    if gradients[0].device.type == "cpu":  # where the 1-norm takes nine times as long as this
        return torch.stack([gradient.abs().mean().float() for gradient in gradients])
    sizes = torch.tensor([gradient.numel() for gradient in gradients], dtype=torch.float32)
    return torch.stack(torch._foreach_norm(gradients, 1)).float() / to_device(sizes, gradients[0].device)


def _range(gradient: Tensor) -> Tensor:
    """Return the distance of the 5th and the 95th percentile of its values, or of as many as are enough."""
    values = gradient.detach().float().reshape(-1)
    values = values[:: max(1, len(values) // MOST_VALUES)]
    low, high = torch.quantile(values[: 2 * MOST_VALUES], to_device(torch.tensor([0.05, 0.95]), values.device))
    return high - low
