"""Many heads in one pass: trials that differ in how the last layer is trained share everything in front of it.

The last layer's input is computed once per batch for all heads, dropout masks included, and the heads are one matrix
product forth and one back. Each has its own learning rate, weight decay and label smoothing. A head ends where it would
have ended alone: the batches, views and masks are those that `DogBreedClassifier` would have had with the same seed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import FeatureReader
from dogbreed.data.samplers import TrainBatches
from dogbreed.models import backbones
from dogbreed.models.classifier import DogBreedClassifier, seed_generators, step_seed
from dogbreed.models.cut import to_memory_order
from dogbreed.models.optim import make_optimizer, make_scheduler

MEMORY_BYTES = 2 << 30  # what one stack's weights, gradients and two moments may take
JOINED = 512  # images of several steps that pass the stem at once: 32 would mostly wait for its weights

# What gives an image the same result whichever images are beside it; dropout is drawn step by step.
ROW_WISE = (nn.Linear, nn.Dropout, nn.Flatten, nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh)


@dataclass
class Head:
    """One trial: how its head is trained, and what came out.

    Attributes:
        lr: Learning rate.
        weight_decay: As in `DogBreedClassifier`.
        label_smoothing: As in `DogBreedClassifier`.
        history: One dict per epoch: `train_loss`, `val_loss`, `val_acc`.
        weight: [classes, inputs] and `bias` [classes] at the lowest val_loss.
        stopped: Whether it was stopped before the last epoch.
    """

    lr: float
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)
    weight: Tensor | None = None
    bias: Tensor | None = None
    stopped: bool = False

    @property
    def best(self) -> dict[str, float]:
        """Return the row of the lowest val_loss, the first of equals."""
        return min(self.history, key=lambda row: row["val_loss"])


class NotStackable(Exception):
    """The model's last layer cannot be trained apart from what comes before it; the message says why."""


class Stem:
    """What lies between the features and the last layer: frozen, but with dropout, so it runs once per batch.

    Args:
        model: Uses features (`DogBreedClassifier.use_features`), with only its head trainable.

    Raises:
        NotStackable: The last layer is not a linear one that alone trains and alone gives the logits.
    """

    def __init__(self, model: DogBreedClassifier) -> None:
        if model.parts is None:
            raise NotStackable("the features of its frozen part are not there")
        name = backbones.head_name(model.network)
        head = model.network.get_submodule(name)
        if not isinstance(head, nn.Linear):
            raise NotStackable(f"its last layer, {name}, is not a linear one")
        trained = {id(parameter) for parameter in model.network.parameters() if parameter.requires_grad}
        if trained != {id(parameter) for parameter in head.parameters()}:
            raise NotStackable(f"more of it trains than its last layer, {name}")
        self.head = head
        self.model = model
        self._graphs = {mode: _without_head(model.parts.tail.graph(mode), name) for mode in (True, False)}
        self.row_wise = _is_row_wise(self._graphs[True])

    def __call__(self, features: Tensor) -> Tensor:
        """Return the last layer's input [N, inputs] in evaluation, from features [N, ...]."""
        with torch.no_grad():
            result: Tensor = self._graphs[False](features)
        return result

    def steps(self, features: Sequence[Tensor], seeds: Sequence[int]) -> list[Tensor]:
        """Return the last layer's input [N, inputs] of several training steps, from each one's features and seed."""
        graph = self._graphs[True]
        with torch.no_grad():
            if self.row_wise:
                sizes = [len(own) for own in features]
                joined: Tensor = _Joined(graph, sizes, seeds).run(torch.cat(list(features)))
                return list(joined.split(sizes))
            results = []
            for own, seed in zip(features, seeds, strict=True):
                seed_generators(seed, own.device)
                results.append(graph(own))
            return results


def _without_head(tail: fx.GraphModule, name: str) -> fx.GraphModule:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(tail.graph, copies)
    if not isinstance(output, fx.Node) or output.op != "call_module" or output.target != name:
        raise NotStackable(f"something follows its last layer, {name}")
    (features,) = output.args
    assert isinstance(features, fx.Node)
    graph.output(features)
    graph.erase_node(output)
    return fx.GraphModule(tail, graph)


def _is_row_wise(graph: fx.GraphModule) -> bool:
    """Return whether an image comes to the same, but for its dropout, whichever images are beside it."""
    for node in graph.graph.nodes:
        if node.op == "call_module":
            if not isinstance(graph.get_submodule(str(node.target)), ROW_WISE):
                return False
        elif node.op == "call_function":
            if node.target is not to_memory_order or node.args[1][0] != 0:  # images one after the other in memory
                return False
        elif node.op not in ("placeholder", "output"):
            return False
    return True


class _Joined(fx.Interpreter):
    """Run the images of several steps at once; each step draws the dropout masks that it would have drawn alone."""

    def __init__(self, graph: fx.GraphModule, sizes: list[int], seeds: Sequence[int]) -> None:
        super().__init__(graph)
        self.sizes = sizes
        self.seeds = seeds
        self._states: list[Tensor] = []

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, nn.Dropout):
            return super().call_module(target, args, kwargs)
        (inputs,) = args
        random = torch.cuda if inputs.is_cuda else torch
        outputs, states = torch.empty_like(inputs), []
        for index, (part, result) in enumerate(zip(inputs.split(self.sizes), outputs.split(self.sizes), strict=True)):
            if self._states:
                random.set_rng_state(self._states[index])
            else:
                seed_generators(self.seeds[index], inputs.device)
            result.copy_(module(part))
            states.append(random.get_rng_state())
        self._states = states
        return outputs


ShouldStop = Callable[[int, Sequence[Head]], Sequence[bool]]


class HeadTrainer:
    """Train heads of one model on one set of features.

    Args:
        model: Uses features; its head's values are where every head starts. Its optimizer and schedule are used.
        data: Delivers features for train and valid.

    Raises:
        NotStackable: See `Stem`.
    """

    def __init__(self, model: DogBreedClassifier, data: DogImages) -> None:
        self.stem = Stem(model)
        self.data = data
        samples, reader = data.samples["valid"], data.reader("valid")
        model.eval()
        parts = []  # dropout is off in evaluation, so the last layer's inputs are computed once
        for start in range(0, len(samples), 512):
            indices = np.arange(start, min(start + 512, len(samples)))
            parts.append(self.stem(reader(indices, np.zeros_like(indices)).to(model.device)))
        self._valid_inputs = torch.cat(parts)
        self._valid_labels = torch.from_numpy(samples.labels).to(model.device)

    def train(
        self,
        heads: Sequence[Head],
        *,
        batch_size: int,
        epochs: int,
        should_stop: ShouldStop | None = None,
        on_epoch: Callable[[int], None] | None = None,
    ) -> None:
        """Train all heads side by side, in as many stacks as memory asks for, and fill in their results.

        Args:
            heads: What to train.
            batch_size: Images per step, the same for all.
            epochs: Number of epochs.
            should_stop: Called after each epoch but the last, with the epoch (from 1) and the heads that still train;
                says for each whether to stop it.
            on_epoch: Called after each epoch with the number of heads that took part.
        """
        one = 4 * 4 * self.stem.head.weight.numel()
        size = max(1, MEMORY_BYTES // one)
        for start in range(0, len(heads), size):
            self._train_stack(heads[start : start + size], batch_size, epochs, should_stop, on_epoch)

    def _train_stack(
        self,
        heads: Sequence[Head],
        batch_size: int,
        epochs: int,
        should_stop: ShouldStop | None,
        on_epoch: Callable[[int], None] | None,
    ) -> None:
        samples = self.data.samples["train"]
        batches = TrainBatches(samples, batch_size, self.data.seed)
        labels = torch.from_numpy(samples.labels)
        hparams = self.stem.model.hparams
        stack = _Stack(self.stem.head, heads, hparams["optimizer"], hparams["schedule"], epochs * len(batches))
        for epoch in range(epochs):
            self.stem.model.train()
            batches.set_epoch(epoch)
            sums = stack.weight.new_zeros(len(stack.heads), dtype=stack.wide)  # there: nobody waits for a step's
            for inputs, targets in _stem_batches(self.stem, self.data.reader("train"), labels, batches, epoch):
                sums += stack.step(inputs, targets).to(stack.wide) * len(targets)
            self._note(stack, (sums / len(samples)).cpu())
            if on_epoch:
                on_epoch(len(stack.heads))
            # A head that has diverged stays diverged.
            stop = [not np.isfinite(list(head.history[-1].values())).all() for head in stack.heads]
            if should_stop and epoch + 1 < epochs:
                stop = [one or other for one, other in zip(stop, should_stop(epoch + 1, stack.heads), strict=True)]
            if any(stop):
                stack.drop(stop)
            if not stack.heads:
                return

    def _note(self, stack: "_Stack", train_losses: Tensor) -> None:
        """Evaluate every head and keep the values of those that have become better."""
        losses, accuracies = stack.evaluate(self._valid_inputs, self._valid_labels)
        for index, head in enumerate(stack.heads):
            row = {
                "train_loss": float(train_losses[index]),
                "val_loss": float(losses[index]),
                "val_acc": float(accuracies[index]),
            }
            if not head.history or row["val_loss"] < head.best["val_loss"]:
                head.weight, head.bias = stack.weight[index].clone(), stack.bias[index].clone()
            head.history.append(row)


def _stem_batches(
    stem: Stem, reader: FeatureReader, labels: Tensor, batches: TrainBatches, epoch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the last layer's input and the labels for an epoch, with the random numbers of a run on its own."""
    device, seed = stem.model.device, stem.model.hparams["seed"]
    steps = [np.asarray(positions, dtype=np.int64).T for positions in batches]
    together = max(1, JOINED // batches.batch_size)
    for first in range(0, len(steps), together):
        group = steps[first : first + together]
        features = [reader(indices, views).to(device, non_blocking=device.type == "cuda") for indices, views in group]
        seeds = [step_seed(seed, epoch, first + index, 0) for index in range(len(group))]
        for (indices, _), inputs in zip(group, stem.steps(features, seeds), strict=True):
            yield inputs, labels[torch.from_numpy(indices.copy())].to(device)


class _Stack:
    """Heads side by side: weights [heads, classes, inputs], one parameter group of the optimizer each."""

    def __init__(self, start: nn.Linear, heads: Sequence[Head], optimizer: str, schedule: str, steps: int) -> None:
        self.heads = list(heads)
        self.wide = torch.float32 if start.weight.device.type == "mps" else torch.float64  # MPS has no float64
        self.weight = start.weight.detach().expand(len(heads), -1, -1).clone()
        bias = start.bias.detach() if start.bias is not None else start.weight.new_zeros(start.out_features)
        self.bias = bias.expand(len(heads), -1).clone()
        self.smoothing = self.weight.new_tensor([head.label_smoothing for head in heads])
        self._parameters: list[nn.Parameter] = []
        groups = []
        for index, head in enumerate(heads):
            # Views of the stack: the optimizer sees separate parameters, the matrix product one.
            own = [nn.Parameter(self.weight[index]), nn.Parameter(self.bias[index])]
            self._parameters += own
            groups.append({"params": own, "lr": head.lr, "weight_decay": head.weight_decay})
        self.optimizer = make_optimizer(optimizer, groups)
        self.scheduler = make_scheduler(schedule, self.optimizer, steps)
        self._gradient = torch.empty_like(self.weight)

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step of every head; return the losses [heads] before it."""
        count = len(inputs)
        heads, classes, width = self.weight.shape
        logits = torch.addmm(self.bias.reshape(-1), inputs, self.weight.view(-1, width).T).view(count, heads, classes)
        logp = logits.log_softmax(2)
        chosen = logp.gather(2, labels[:, None, None].expand(count, heads, 1))
        smoothing = self.smoothing[None, :, None]
        losses = -((1 - smoothing) * chosen + smoothing * logp.mean(2, keepdim=True)).mean(0).squeeze(1)
        # Slope of the mean loss by the logits: (softmax - target) / N, with (1 - s) on the label and s spread evenly.
        slope = logp.exp_().sub_(smoothing / classes)
        slope.scatter_add_(2, labels[:, None, None].expand(count, heads, 1), (smoothing - 1).expand(count, heads, 1))
        slope.div_(count)
        flat = slope.view(count, -1)
        torch.mm(flat.T, inputs, out=self._gradient.view(-1, width))
        bias_gradient = flat.sum(0).view(heads, classes)
        for index in range(heads):
            self._parameters[2 * index].grad = self._gradient[index]
            self._parameters[2 * index + 1].grad = bias_gradient[index]
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return losses

    def evaluate(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean loss in nats and accuracy of every head [heads]."""
        losses, correct = [], []
        for weight, bias in zip(self.weight, self.bias, strict=True):
            logits = torch.addmm(bias, inputs, weight.T)
            losses.append(nn.functional.cross_entropy(logits.to(self.wide), labels))
            correct.append((logits.argmax(1) == labels).to(self.wide).mean())
        return torch.stack(losses), torch.stack(correct)

    def drop(self, stop: Sequence[bool]) -> None:
        """Take heads out of the stack; what they have reached stays with them."""
        keep = [index for index, stopped in enumerate(stop) if not stopped]
        for head, stopped in zip(self.heads, stop, strict=True):
            head.stopped |= stopped
        self.heads = [self.heads[index] for index in keep]
        self.smoothing = self.smoothing[keep]
        old = self._parameters
        self.weight, self.bias = self.weight[keep].clone(), self.bias[keep].clone()
        self._gradient = torch.empty_like(self.weight)
        self._parameters = []
        groups = []
        for new, index in enumerate(keep):
            group = self.optimizer.param_groups[index]
            for before, values in ((old[2 * index], self.weight[new]), (old[2 * index + 1], self.bias[new])):
                before.grad = None
                before.data = values  # the optimizer's state stays with the parameter
                self._parameters.append(before)
            groups.append(group)
        for index, stopped in enumerate(stop):
            if stopped:
                for parameter in old[2 * index : 2 * index + 2]:
                    self.optimizer.state.pop(parameter, None)
        self.optimizer.param_groups[:] = groups
        if self.scheduler is not None:
            self.scheduler.base_lrs = [self.scheduler.base_lrs[index] for index in keep]
