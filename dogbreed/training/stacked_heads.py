"""Many heads in one pass: trials that differ in how the last layer is trained share everything in front of it.

The last layer's input is computed once per batch for all heads, dropout masks included, and the heads are one matrix
product forth and one back. Each has its own learning rate, weight decay and label smoothing. A head ends where it would
have ended alone: the batches, views and masks are those that `DogBreedClassifier` would have had with the same seed.

Heads may also have images and a seed of their own, such as those of a cross-validation. Those that agree in both are
one matrix product; the features are the same for all.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from dogbreed.config.settings import Config
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Indices
from dogbreed.data.samplers import TrainBatches
from dogbreed.models import backbones, lbfgs
from dogbreed.models.classifier import DogBreedClassifier, seed_generators, step_seed
from dogbreed.models.cut import to_memory_order
from dogbreed.models.optim import make_optimizer, make_scheduler

MEMORY_BYTES = 2 << 30  # what one stack's weights, gradients and two moments may take
JOINED = 512  # images of several steps that pass the stem at once: 32 would mostly wait for its weights

# Settings under which a head trained in a stack would not be the same run; it needs their defaults.
PLAIN_TRAINER: Mapping[str, Sequence[Any]] = {
    "accumulate_grad_batches": (1,),
    "gradient_clip_val": (None, 0),
    "precision": (None, 32, "32", "32-true"),
    "limit_train_batches": (None, 1.0),
    "limit_val_batches": (None, 1.0),
    "overfit_batches": (0, 0.0),
    "max_steps": (-1,),
    "max_time": (None,),
    "check_val_every_n_epoch": (1,),
    "fast_dev_run": (False,),
    "devices": ("auto", 1, "1"),
    "num_nodes": (1,),
}
# What gives an image the same result whichever images are beside it; dropout is drawn step by step.
ROW_WISE = (nn.Linear, nn.Dropout, nn.Flatten, nn.Identity, nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.GELU, nn.Tanh)


@dataclass
class Head:
    """One trial: how its head is trained, and what came out.

    Attributes:
        lr: Learning rate.
        weight_decay: As in `DogBreedClassifier`.
        label_smoothing: As in `DogBreedClassifier`.
        rows: Positions in train of the images that it is trained on, ascending; None takes all. With `augment=crop`
            the crops stay those of the whole split.
        valid_rows: Positions in valid of the images that it is evaluated on; None takes all.
        seed: Of its initial values, its batches and its dropout masks; None starts from the model's head with the
            model's seed.
        epochs: After which it ends, as it is then; the learning rate's schedule stays that of all. None trains to the
            last epoch and keeps the values of the lowest val_loss.
        history: One dict per epoch: `train_loss`, `val_loss`, `val_acc`.
        weight: [classes, inputs] and `bias` [classes].
        stopped: Whether it was stopped before the last epoch.
    """

    lr: float
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    rows: Indices | None = None
    valid_rows: Indices | None = None
    seed: int | None = None
    epochs: int | None = None
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


def why_not_stacked(config: Config) -> str | None:
    """Return which setting keeps heads from being trained side by side; None where none does."""
    if config.model.trainable != "head":
        return f"model.trainable={config.model.trainable}, so more than the last layer differs"
    if config.model.class_weights != "none":
        return f"model.class_weights={config.model.class_weights}, and heads side by side weigh all classes alike"
    if config.model.ema_decay is not None:
        return "model.ema_decay is set"
    if config.cache.mode == "off":
        return "cache.mode=off"
    for key, plain in PLAIN_TRAINER.items():
        if config.trainer.get(key) not in plain:
            return f"trainer.{key}={config.trainer[key]}"
    return None


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
        model: Uses features; its head's values are where every head without a seed starts. Its optimizer and schedule
            are used.
        data: Delivers features for train and valid.

    Raises:
        NotStackable: See `Stem`.
    """

    def __init__(self, model: DogBreedClassifier, data: DogImages) -> None:
        self.stem = Stem(model)
        self.data = data
        self._labels = {split: torch.from_numpy(files.labels) for split, files in data.samples.items()}
        self._valid = self.inputs("valid")

    def inputs(self, split: str, images: Indices | None = None, views: Indices | None = None) -> tuple[Tensor, Tensor]:
        """Return the last layer's input [N, inputs] in evaluation, which is without dropout, and the labels [N].

        Args:
            split: Name of the split.
            images: Positions in it; None takes all.
            views: Of each image; None takes the first.
        """
        images = np.arange(len(self.data.samples[split])) if images is None else images
        views = np.zeros_like(images) if views is None else views
        device, reader = self.stem.model.device, self.data.reader(split)
        self.stem.model.eval()
        rows = [slice(start, start + 512) for start in range(0, len(images), 512)]
        inputs = torch.cat([self.stem(reader(images[part], views[part]).to(device)) for part in rows])
        return inputs, self._labels[split][torch.from_numpy(images)].to(device)

    def _valid_of(self, head: Head) -> tuple[Tensor, Tensor]:
        inputs, labels = self._valid
        if head.valid_rows is None:
            return inputs, labels
        rows = torch.from_numpy(head.valid_rows).to(inputs.device)
        return inputs[rows], labels[rows]

    def valid_logits(self, head: Head) -> Tensor:
        """Return the logits [N, classes] of a trained head for the images that it is evaluated on."""
        assert head.weight is not None
        assert head.bias is not None
        return torch.addmm(head.bias, self._valid_of(head)[0], head.weight.T)

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
        alone = self.stem.model.hparams["optimizer"] == "lbfgs"
        groups: dict[Any, list[Head]] = {}
        for head in heads:
            rows = [None if own is None else own.tobytes() for own in (head.rows, head.valid_rows)]
            groups.setdefault((*rows, head.seed, id(head) if alone else None), []).append(head)
        for group in groups.values():
            for start in range(0, len(group), size):
                self._train_stack(group[start : start + size], batch_size, epochs, should_stop, on_epoch)

    def _train_stack(
        self,
        heads: Sequence[Head],
        batch_size: int,
        epochs: int,
        should_stop: ShouldStop | None,
        on_epoch: Callable[[int], None] | None,
    ) -> None:
        """Train heads that have the same images and the same seed."""
        steps = _Steps(self.stem, self.data, heads[0], batch_size)
        valid, hparams = self._valid_of(heads[0]), self.stem.model.hparams
        stack = _Stack(
            self._start(heads[0], steps.rows),
            heads,
            hparams["optimizer"],
            hparams["schedule"],
            epochs * len(steps.batches),
        )
        for epoch in range(epochs):
            self.stem.model.train()
            sums = stack.weight.new_zeros(len(stack.heads), dtype=stack.wide)  # there: nobody waits for a step's
            for inputs, targets in steps.of_epoch(epoch):
                sums += stack.step(inputs, targets).to(stack.wide) * len(targets)
            _note(stack, (sums / len(steps.rows)).cpu(), valid)
            if on_epoch:
                on_epoch(len(stack.heads))
            # A head that has diverged stays diverged.
            stop = [
                head.epochs == epoch + 1 or not np.isfinite(list(head.history[-1].values())).all()
                for head in stack.heads
            ]
            if should_stop and epoch + 1 < epochs:
                stop = [one or other for one, other in zip(stop, should_stop(epoch + 1, stack.heads), strict=True)]
            if any(stop):
                stack.drop(stop)
            if not stack.heads:
                return

    def _start(self, head: Head, rows: Indices) -> nn.Linear:
        """Return where a head starts: for `lbfgs` at the solution, which its steps leave as it is."""
        model, start = self.stem.model, self.stem.head
        solved = model.hparams["optimizer"] == "lbfgs"
        if solved or head.seed is not None:
            start = backbones.fresh_head(start, head.seed or 0).to(model.device)
        if solved:
            count = len(self.data.samples["train"].views)
            train = self.inputs("train", rows.repeat(count), np.tile(np.arange(count), len(rows)))
            criterion = nn.CrossEntropyLoss(label_smoothing=head.label_smoothing)
            lbfgs.solve(start, train, self._valid_of(head), criterion, model.eval_criterion, model.solution)
        return start


def _note(stack: "_Stack", train_losses: Tensor, valid: tuple[Tensor, Tensor]) -> None:
    """Evaluate every head and keep the values of those that have become better, or end at an epoch."""
    losses, accuracies = stack.evaluate(*valid)
    for index, head in enumerate(stack.heads):
        row = {
            "train_loss": float(train_losses[index]),
            "val_loss": float(losses[index]),
            "val_acc": float(accuracies[index]),
        }
        if head.epochs is not None or not head.history or row["val_loss"] < head.best["val_loss"]:
            head.weight, head.bias = stack.weight[index].clone(), stack.bias[index].clone()
        head.history.append(row)


class _Steps:
    """The last layer's input and the labels of each step, with the random numbers of a run on its own.

    Args:
        stem: Of the model.
        data: Delivers features for train.
        head: Whose images and seed are used.
        batch_size: Images per step.
    """

    def __init__(self, stem: Stem, data: DogImages, head: Head, batch_size: int) -> None:
        files = data.samples["train"]
        self.rows = np.arange(len(files)) if head.rows is None else head.rows
        own = head.seed
        self._seed: int = stem.model.hparams["seed"] if own is None else own
        self.batches = TrainBatches(files.take(self.rows), batch_size, data.seed if own is None else own)
        self._stem, self._reader, self._labels = stem, data.reader("train"), torch.from_numpy(files.labels)

    def of_epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        self.batches.set_epoch(epoch)
        device = self._stem.model.device
        steps = [np.asarray(positions, dtype=np.int64).T for positions in self.batches]
        together = max(1, JOINED // self.batches.batch_size)
        for first in range(0, len(steps), together):
            group = [(self.rows[positions], views) for positions, views in steps[first : first + together]]
            features = [self._reader(*step).to(device, non_blocking=device.type == "cuda") for step in group]
            seeds = [step_seed(self._seed, epoch, first + index, 0) for index in range(len(group))]
            for (images, _), inputs in zip(group, self._stem.steps(features, seeds), strict=True):
                yield inputs, self._labels[torch.from_numpy(images)].to(device)


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
