"""Many heads in one pass: trials that differ in how the last layer is trained share everything in front of it.

The last layer's input is computed once per batch for all heads, dropout masks included, and the heads are one matrix
product forth and one back. Each has its own learning rate, weight decay and label smoothing. A head ends where it would
have ended alone: the batches, views and masks are those that `DogBreedClassifier` would have had with the same seed.

Heads may also have images and a seed of their own, such as those of a cross-validation. Those that agree in both are
one matrix product. Those that agree in the seed and the number of steps are a batch of products, with one draw of their
dropout masks.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from dogbreed.config.settings import Config
from dogbreed.core.machine import free_memory
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Indices
from dogbreed.data.samplers import order_of_epoch
from dogbreed.data.transfer import to_device
from dogbreed.models import backbones, lbfgs
from dogbreed.models.classifier import DogBreedClassifier, step_seed
from dogbreed.models.optim import make_optimizer, make_scheduler
from dogbreed.training import adam_steps
from dogbreed.training.stem import Stem

MEMORY_BYTES = 2 << 30  # what one stack's weights, gradients and two moments may take
EVALUATED = 1 << 24  # logits of all heads that are evaluated at once
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
    def inputs(self) -> tuple[bytes | None, int | None]:
        """Return what tells its steps from another head's."""
        return None if self.rows is None else self.rows.tobytes(), self.seed

    @property
    def best(self) -> dict[str, float]:
        """Return the row of the lowest val_loss, the first of equals."""
        return min(self.history, key=lambda row: row["val_loss"])


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
        self._steps: dict[int, _Steps] = {}  # of heads without images and a seed of their own, by batch size
        self._room = _Room(model.device)
        self._drawing = threading.RLock()
        self._stopped = False  # whether threads that train side by side are to end

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
    ) -> None:
        """Train all heads side by side, in as many stacks as memory asks for, and fill in their results.

        Args:
            heads: What to train.
            batch_size: Images per step, the same for all.
            epochs: Number of epochs.
            should_stop: Called after each epoch but the last, with the epoch (from 1) and the heads that still train;
                says for each whether to stop it.
        """
        one = 4 * 4 * self.stem.head.weight.numel()
        threads = 1 if should_stop else self._threads(heads)
        size = max(1, MEMORY_BYTES // (one * threads))

        def train(stacks: Iterable[Sequence[Head]]) -> None:
            for stack in stacks:
                for start in range(0, len(stack), size):
                    self._train_stack(stack[start : start + size], batch_size, epochs, should_stop)

        self._stopped, stacks = False, self._stacks(heads, batch_size)
        if threads == 1:
            train(stacks)
        else:
            self._side_by_side(train, _shares(stacks, threads))

    def _threads(self, heads: Sequence[Head]) -> int:
        """Return on how many threads to train: the steps of heads with images or seeds of their own are small.

        They leave a CPU's other cores idle. What is solved rather than stepped is one large product at a time.
        """
        alike = len({head.inputs for head in heads}) == 1
        if alike or self.stem.model.device.type != "cpu" or self.stem.model.hparams["optimizer"] == "lbfgs":
            return 1
        return min(torch.get_num_threads(), len(heads))

    def _side_by_side(
        self, train: Callable[[Iterable[Sequence[Head]]], None], shares: Sequence[Iterable[Sequence[Head]]]
    ) -> None:
        """Train each share of the heads in a thread of its own, whose operations use no others."""
        before = torch.get_num_threads()
        with ThreadPoolExecutor(len(shares), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for future in as_completed([pool.submit(train, share) for share in shares]):
                    future.result()
            except BaseException:
                self._stopped = True
                raise
            finally:
                torch.set_num_threads(before)  # of threads that are started later

    def _stacks(self, heads: Sequence[Head], batch_size: int) -> list[list[Head]]:
        """Return the stacks: heads with the same images and seed; of the others, of one seed with as many steps."""
        if self.stem.model.hparams["optimizer"] == "lbfgs":
            return [[head] for head in heads]
        alike: dict[Any, list[Head]] = {}
        for head in heads:
            alike.setdefault(head.inputs, []).append(head)
        alone: dict[Any, list[Head]] = {}
        for own in alike.values():
            if len(own) == 1:
                rows = self.data.samples["train"] if own[0].rows is None else own[0].rows
                alone.setdefault((own[0].seed, math.ceil(len(rows) / batch_size)), []).extend(own)
        return [own for own in alike.values() if len(own) > 1] + list(alone.values())

    def _train_stack(
        self,
        heads: Sequence[Head],
        batch_size: int,
        epochs: int,
        should_stop: ShouldStop | None,
    ) -> None:
        """Train heads that have the same seed, and the same images or equally many steps."""
        steps, hparams = self._steps_of(heads, batch_size), self.stem.model.hparams
        starts = [self._start(head, rows) for head, rows in zip(heads, steps.rows, strict=False)]
        stack = _Stack(starts, heads, hparams["optimizer"], hparams["schedule"], epochs * steps.per_epoch)
        self.stem.model.train()
        for epoch in range(epochs):
            sums = stack.rates.new_zeros(len(stack.heads), dtype=stack.wide)  # there: nobody waits for a step's
            for some in steps.together(epoch):
                if self._stopped:
                    return
                sums += stack.take_steps(some)
            self._note(stack, epoch, sums / sums.new_tensor([len(rows) for rows in steps.rows]))
            # A head that has diverged stays diverged.
            stop = [
                head.epochs == epoch + 1
                or not np.isfinite([v for row in head.history[-1:] for v in row.values()]).all()
                for head in stack.heads
            ]
            if should_stop and epoch + 1 < epochs:
                stop = [one or other for one, other in zip(stop, should_stop(epoch + 1, stack.heads), strict=True)]
            if any(stop):
                stack.drop(stop)
                steps.drop(stop)
            if not stack.heads:
                return

    def _note(self, stack: "_Stack", epoch: int, train_losses: Tensor) -> None:
        """Evaluate the heads and keep the values of those that have become better, or end at this epoch.

        Where all heads end at an epoch, only then.
        """
        heads = stack.heads
        if all(head.epochs is not None and head.epochs > epoch + 1 for head in heads):
            return
        if all(head.valid_rows is heads[0].valid_rows for head in heads):
            evaluated = stack.evaluate(*self._valid_of(heads[0]))
        else:
            each = [stack.evaluate(*self._valid_of(head))[:, index] for index, head in enumerate(heads)]
            evaluated = torch.stack(each, 1)
        figures = torch.cat([train_losses[:, None], evaluated.T], 1).tolist()  # one wait for a GPU
        for index, (head, numbers) in enumerate(zip(heads, figures, strict=True)):
            row = dict(zip(("train_loss", "val_loss", "val_acc"), numbers, strict=True))
            if head.epochs is not None or not head.history or row["val_loss"] < head.best["val_loss"]:
                head.weight, head.bias = stack.values(index)
            head.history.append(row)

    def _steps_of(self, heads: Sequence[Head], batch_size: int) -> "_Steps":
        """Return the steps of a stack; those that the next trials of a search take too are kept."""
        own = list({head.inputs: head for head in heads}.values())
        if len(own) > 1 or own[0].inputs != (None, None):
            return _Steps(self.stem, self.data, own, batch_size, self._drawing)
        if batch_size not in self._steps:
            self._steps[batch_size] = _Steps(self.stem, self.data, own, batch_size, self._drawing, self._room)
        return self._steps[batch_size]

    def _start(self, head: Head, rows: Indices) -> nn.Linear:
        """Return where a head starts: for `lbfgs` at the solution, which its steps leave as it is."""
        model, start = self.stem.model, self.stem.head
        solved = model.hparams["optimizer"] == "lbfgs"
        if solved or head.seed is not None:
            with self._drawing:
                start = backbones.fresh_head(start, head.seed or 0).to(model.device)
        if solved:
            count = len(self.data.samples["train"].views)
            train = self.inputs("train", rows.repeat(count), np.tile(np.arange(count), len(rows)))
            criterion = nn.CrossEntropyLoss(label_smoothing=head.label_smoothing)
            lbfgs.solve(start, train, self._valid_of(head), criterion, model.eval_criterion, model.solution)
        return start


def _shares(stacks: Sequence[Sequence[Head]], count: int) -> list[list[list[Head]]]:
    """Return the stacks in shares of equally many heads, but for one; a stack that lies across two shares is cut."""
    shares: list[list[list[Head]]] = [[] for _ in range(count)]
    total, place = sum(map(len, stacks)), 0
    for stack in stacks:
        for share, part in groupby(enumerate(stack, place), lambda numbered: numbered[0] * count // total):
            shares[share].append([head for _, head in part])
        place += len(stack)
    return shares


class _Room:
    """Memory for what is kept from one training to the next: a quarter of what is free on the device at first."""

    def __init__(self, device: torch.device) -> None:
        self.free = (torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()) // 4

    def take(self, size: int) -> bool:
        """Take so many bytes, if they are there."""
        enough = size <= self.free
        self.free -= size * enough
        return enough


# The last layer's input [N, inputs] and the labels [N]. Of heads with images of their own [heads, N, inputs] and
# [heads, N], where the label -1 fills up the shorter ones.
Step = tuple[Tensor, Tensor]


class _Steps:
    """The last layer's input and the labels of each step, with the random numbers of a run on its own.

    Args:
        stem: Of the model.
        data: Delivers features for train.
        heads: Whose images and seed are used: one for all of a stack, or several of one seed and equally many steps.
        batch_size: Images per step.
        drawing: Held while random numbers are drawn and features are read, of which a process has one source each.
        room: For epochs that are kept as they were first computed; None keeps none.
    """

    def __init__(
        self,
        stem: Stem,
        data: DogImages,
        heads: Sequence[Head],
        batch_size: int,
        drawing: AbstractContextManager[Any],
        room: _Room | None = None,
    ) -> None:
        files, own = data.samples["train"], heads[0].seed
        self.rows = [np.arange(len(files)) if head.rows is None else head.rows for head in heads]
        self._seed: int = stem.model.hparams["seed"] if own is None else own
        self._order_seed = data.seed if own is None else own
        self.per_epoch = math.ceil(len(self.rows[0]) / batch_size)
        self._batch_size, self._views = batch_size, len(files.views)
        self._stem, self._reader, self._labels = stem, data.reader("train"), torch.from_numpy(files.labels)
        self._drawing, self._room = drawing, room
        self._kept: dict[int, list[Step]] = {}

    @property
    def _joined(self) -> int:
        """Return how many steps have `JOINED` images."""
        return max(1, JOINED // (self._batch_size * len(self.rows)))

    def drop(self, stop: Sequence[bool]) -> None:
        """Leave out heads that have ended, where each has its own images."""
        if len(self.rows) > 1:
            self.rows = [rows for rows, stopped in zip(self.rows, stop, strict=True) if not stopped]

    def together(self, epoch: int) -> Iterator[list[Step]]:
        """Return the steps of an epoch, as many at once as have `JOINED` images."""
        steps = iter(self.of_epoch(epoch))
        while some := list(islice(steps, self._joined)):
            yield some

    def of_epoch(self, epoch: int) -> Iterable[Step]:
        with self._drawing:
            if epoch not in self._kept:
                size = 4 * self._stem.head.in_features * len(self.rows[0])
                if self._room is None or not self._room.take(size):
                    return self._computed(epoch)
                self._kept[epoch] = list(self._computed(epoch))
            return self._kept[epoch]

    def _computed(self, epoch: int) -> Iterator[Step]:
        size, device, heads = self._batch_size, self._stem.model.device, len(self.rows)
        orders = [order_of_epoch(self._order_seed, epoch, self._views, len(rows)) for rows in self.rows]
        images = [rows[order] for rows, (order, _) in zip(self.rows, orders, strict=True)]
        for first in range(0, self.per_epoch, self._joined):
            numbers = range(first, min(first + self._joined, self.per_epoch))
            parts = [(head, slice(size * number, size * (number + 1))) for number in numbers for head in range(heads)]
            chosen = [images[head][part] for head, part in parts]
            sizes, rows = [len(own) for own in chosen], np.concatenate(chosen)
            views = np.concatenate([orders[head][1][part] for head, part in parts])
            labels = to_device(self._labels[torch.from_numpy(rows)], device)
            seeds = [step_seed(self._seed, epoch, number, 0) for number in numbers for _ in range(heads)]
            with self._drawing:
                inputs = self._stem.steps(to_device(self._reader(rows, views), device), sizes, seeds)
            if heads == 1:
                yield from zip(inputs.split(sizes), labels.split(sizes), strict=True)
                continue
            each = [sizes[start : start + heads] for start in range(0, len(sizes), heads)]
            steps = [sum(own) for own in each]
            for own, of, step in zip(inputs.split(steps), labels.split(steps), each, strict=True):
                yield _beside(own, step, 0), _beside(of, step, -1)


def _beside(rows: Tensor, sizes: list[int], fill: int) -> Tensor:
    """Return rows of several heads, which follow each other, as [heads, largest size, ...]; the rest is filled up."""
    if min(sizes) == max(sizes):
        return rows.unflatten(0, (len(sizes), -1))
    return pad_sequence(rows.split(sizes), True, fill)


class _Stack:
    """Heads side by side, stepped by one of torch's fused optimizers.

    Adam and SGD take a step along a direction that the learning rate has no part in. So each head's weights are kept
    divided by its rate, [heads, classes, inputs], and the optimizer steps all of them at once with the rate that the
    schedule makes of 1.
    """

    def __init__(
        self, starts: Sequence[nn.Linear], heads: Sequence[Head], optimizer: str, schedule: str, steps: int
    ) -> None:
        self.heads = list(heads)
        start = starts[0]
        self.wide = torch.float32 if start.weight.device.type == "mps" else torch.float64  # MPS has no float64
        # A rate that changes no float32 may stand for a smaller one; lbfgs takes no steps.
        rates = [1.0 if optimizer == "lbfgs" else max(head.lr, 1e-30) for head in heads]
        self.rates = start.weight.new_tensor(rates)[:, None]
        self.decays = start.weight.new_tensor([head.weight_decay for head in heads])[:, None]
        self.smoothing = start.weight.new_tensor([head.label_smoothing for head in heads])[:, None]
        self._notice()
        self._decoupled = optimizer == "adamw"
        weight = torch.stack([own.weight.detach() for own in starts])
        bias = weight.new_zeros(1, start.out_features)
        if start.bias is not None:
            bias = torch.stack([own.bias.detach() for own in starts])
        self._weight = nn.Parameter(weight / self.rates[..., None])
        self._bias = nn.Parameter(bias / self.rates)
        group = {"params": [self._weight, self._bias], "lr": 1.0, "weight_decay": 0.0}
        self.optimizer = make_optimizer(optimizer, [group])
        self.scheduler = make_scheduler(schedule, self.optimizer, steps)
        self._gradient = torch.empty_like(self._weight)

    def _notice(self) -> None:
        """Note which of the settings no head has, so that steps need not apply them."""
        self._decays, self._smooths = (bool(values.any()) for values in (self.decays, self.smoothing))
        self._on_label = self.smoothing - 1

    def values(self, index: int) -> tuple[Tensor, Tensor]:
        """Return a head's weight [classes, inputs] and bias [classes], as they are now."""
        rate = self.rates[index]
        return self._weight.detach()[index] * rate, self._bias.detach()[index] * rate

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the logits of every head, [N, heads, classes], for inputs [N, D] or its own of [heads, N, D]."""
        heads, classes, width = self._weight.shape
        if inputs.ndim == 3:
            own = torch.baddbmm(self._bias.detach()[:, None], inputs, self._weight.detach().mT)
            return own.transpose(0, 1).mul_(self.rates)
        weight, bias = self._weight.detach().view(-1, width), self._bias.detach().view(-1)
        return torch.addmm(bias, inputs, weight.T).view(-1, heads, classes).mul_(self.rates)

    def take_steps(self, steps: Sequence[Step]) -> Tensor:
        """Take some steps of every head; return the sums [heads] of the losses before each over its images."""
        sums = self.rates.new_zeros(len(self.heads), dtype=self.wide)
        for index, (inputs, labels) in enumerate(steps):
            if adam_steps.available(self._weight, self.optimizer, steps[index:]):
                settings = torch.cat([self.rates, self.smoothing, self.rates * self.decays], 1).tolist()
                values = self._weight, self._bias
                return sums + adam_steps.take_steps(values, settings, steps[index:], self.optimizer, self.scheduler)
            sums += self.step(inputs, labels).to(self.wide) * (labels >= 0).sum(-1)
        return sums

    def step(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Take one step of every head; return the losses [heads] before it. See `Step`."""
        heads, classes, width = self._weight.shape
        count: Any = len(labels)  # no tensor: a GPU would wait for it
        targets, there = labels[:, None], None
        if labels.ndim == 2:
            there = (labels >= 0).T[..., None]  # what fills up has no part in anything
            targets, count = labels.T.clamp(min=0), there.sum(0)
        logp = self.logits(inputs).log_softmax(2)
        if there is not None:
            logp.mul_(there)
        own = targets[..., None].expand(-1, heads, 1)
        losses = (-logp.gather(2, own).sum(0) / count).squeeze(1)
        if self._smooths:
            smoothing = self.smoothing.squeeze(1)
            losses = (1 - smoothing) * losses - smoothing * (logp.mean(2, keepdim=True).sum(0) / count).squeeze(1)
        # Slope of the mean loss by the logits: (softmax - target) / N, with (1 - s) on the label and s spread evenly.
        slope = logp.exp_()
        if self._smooths:
            slope.sub_(self.smoothing / classes)
        slope.scatter_add_(2, own, self._on_label.expand(len(slope), heads, 1))
        slope.div_(count)
        if there is not None:
            slope.mul_(there)
        if inputs.ndim == 3:
            torch.bmm(slope.permute(1, 2, 0), inputs, out=self._gradient)
        else:
            torch.mm(slope.view(len(slope), -1).T, inputs, out=self._gradient.view(-1, width))
        self._weight.grad, self._bias.grad = self._gradient, slope.sum(0)
        self._decay()
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return losses

    @torch.no_grad()
    def _decay(self) -> None:
        """Let weights decay as the optimizer would: by themselves (adamw), or as a part of the gradient."""
        if not self._decays:
            return
        rate = self.optimizer.param_groups[0]["lr"]
        for values in (self._weight, self._bias):
            decays, rates = (each.view(-1, *[1] * (values.ndim - 1)) for each in (self.decays, self.rates))
            if self._decoupled:
                values.mul_(1 - rate * rates * decays)
            else:
                assert values.grad is not None
                values.grad.addcmul_(values, rates * decays)

    def evaluate(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return mean loss in nats and accuracy of every head, [2, heads]."""
        rows = max(1, EVALUATED // self._bias.numel())
        sums = [
            torch.stack(
                [
                    -logits.to(self.wide).log_softmax(2).gather(2, own).sum(0).squeeze(1),
                    (logits.argmax(2, keepdim=True) == own).to(self.wide).sum(0).squeeze(1),
                ]
            )
            for part, of in zip(inputs.split(rows), labels.split(rows), strict=True)
            for logits, own in [(self.logits(part), of[:, None, None].expand(-1, len(self.heads), 1))]
        ]
        return torch.stack(sums).sum(0) / len(inputs)

    def drop(self, stop: Sequence[bool]) -> None:
        """Take heads out of the stack; what they have reached stays with them."""
        keep = [index for index, stopped in enumerate(stop) if not stopped]
        for head, stopped in zip(self.heads, stop, strict=True):
            head.stopped |= stopped
        self.heads = [self.heads[index] for index in keep]
        self.rates, self.decays, self.smoothing = self.rates[keep], self.decays[keep], self.smoothing[keep]
        self._notice()
        for values in (self._weight, self._bias):
            values.grad = None
            for name, moment in self.optimizer.state[values].items():
                if isinstance(moment, Tensor) and moment.shape == values.shape:
                    self.optimizer.state[values][name] = moment[keep]
            values.data = values.data[keep]  # the optimizer's state stays with the parameter
        self._gradient = torch.empty_like(self._weight)
