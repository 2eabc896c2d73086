"""`DogBreedClassifier`: fine-tuning of an image classification network as a LightningModule.

A training step is the usual one. Two things are particular: random numbers are keyed by (seed, epoch, step), so that
an interrupted run continues with the very numbers it would have used; and where the frozen prefix was computed
beforehand, batches hold its features, and only the tail of the network runs.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Batch, FeatureBatch
from dogbreed.data.images import Preprocessing
from dogbreed.data.transfer import LaggingValues
from dogbreed.models import backbones, lbfgs, mixing, own_networks
from dogbreed.models.averaging import AveragedWeights
from dogbreed.models.checkpoints import digest_of, network_state, read_checkpoint
from dogbreed.models.cut import CutNetwork
from dogbreed.models.epoch_sums import EpochSums
from dogbreed.models.model_folder import Exported, save
from dogbreed.models.neighbours import InDomain
from dogbreed.models.optim import check_training, make_optimizer, make_scheduler, parameter_groups

# What an export notes of how a model was trained.
TRAINING_ARGUMENTS = (
    *("backbone", "weights", "trainable", "lr", "backbone_lr", "weight_decay"),
    *("label_smoothing", "optimizer", "schedule"),
)


class Outputs(NamedTuple):
    """Logits [N, classes] in float32, labels [N] and positions in the split [N], in the order of the positions."""

    logits: Tensor
    labels: Tensor
    indices: Tensor


class NonFiniteLoss(DogbreedError):
    """Training has diverged; the last checkpoint is from before."""


class DogBreedClassifier(LightningModule):
    """A network with a new head, and how it is trained.

    Args:
        num_classes: Outputs of the head; the default is the 133 breeds of dogImages.
        backbone: `efficientnet_lite0`, any classification network of torchvision, `timm/NAME`, or the import path of a
            callable that returns a network (`package.module:name`).
        weights: `imagenet`, a member of torchvision's enum of the network's weights, `none` (random), or the path of a
            state_dict; None leaves the values out (meta device) for a state that is loaded next.
        trainable: `head`, `block` (head and last stage) or `all`.
        lr: Learning rate of the head. The default is the published recipe's (84.8 % on dogImages).
        backbone_lr: Learning rate of the backbone where it trains; None takes a tenth of `lr`.
        freeze_norm: Batch norm stays as it is where the rest trains, statistics included.
        layer_decay: The last layer of the backbone trains at `backbone_lr`, and each one before at so much less.
        ema_decay: Share of the averaged weights that a step leaves: they are validated and kept; None: no averages.
        mixup: Above 0, pairs of images are blended, with shares from Beta(mixup, mixup), and so are their labels.
        cutmix: The same with a rectangle of the other image; with both, each step takes one of them.
        weight_decay: L2 penalty (adam, sgd) or decoupled decay (adamw).
        label_smoothing: In the training loss; evaluation is always without.
        optimizer: `adam`, `adamw`, `sgd` (Nesterov momentum 0.9), or `lbfgs` (logistic regression on cached features,
            without a learning rate).
        schedule: `constant`, `cosine` (to zero over all steps) or `onecycle`.
        seed: Seed of the head's initial values and of dropout.
        class_names: Names by index; None numbers them.
        preprocessing: What the network's input is made with (`Preprocessing.to_dict`); None takes the weights' record.
        network: A network of one's own, instead of `backbone` and `weights`. It is changed in place.
        head: Dotted name of its last linear layer, which a new one replaces; None takes the one defined last.

    Raises:
        DogbreedError: An argument is unknown or out of range, or the weights cannot be loaded.
    """

    parts: CutNetwork | None = None
    solution: lbfgs.Solution | None = None  # of model.optimizer=lbfgs, once it is chosen
    predictions: Outputs | None = None  # of the last evaluation

    def __init__(
        self,
        num_classes: int = 133,
        *,
        backbone: str = "vgg16",
        weights: str | None = "imagenet",
        trainable: str = "head",
        lr: float = 0.0033047276512977604,
        backbone_lr: float | None = None,
        freeze_norm: bool = False,
        layer_decay: float = 1.0,
        ema_decay: float | None = None,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        weight_decay: float = 0.0,
        label_smoothing: float = 0.0,
        optimizer: str = "adam",
        schedule: str = "constant",
        seed: int = 0,
        class_names: Sequence[str] | None = None,
        preprocessing: dict[str, Any] | None = None,
        network: nn.Module | None = None,
        head: str | None = None,
    ) -> None:
        super().__init__()
        backbone = own_networks.name(network, head, backbone)
        self.preprocessing = (
            Preprocessing.from_dict(preprocessing)
            if preprocessing is not None
            else backbones.preprocessing_of(backbone, weights=weights)
        )
        check_training(
            num_classes, lr, backbone_lr, weight_decay, label_smoothing, optimizer, schedule, layer_decay, ema_decay
        )
        self.class_names = [*class_names] if class_names is not None else [str(i) for i in range(num_classes)]
        if len(self.class_names) != num_classes:
            raise DogbreedError(f"{len(self.class_names)} class names were given for {num_classes} classes.")
        class_names, preprocessing = self.class_names, self.preprocessing.to_dict()
        self.save_hyperparameters(ignore=["network"])  # plain values, so that a checkpoint loads with weights_only=True
        self.network = self._make_network(network)
        backbones.to_channels_last(self.network)
        backbones.freeze(self.network, backbone, trainable, freeze_norm)
        self.mixing = mixing.build(num_classes, mixup, cutmix, trainable)
        self._add_measures(num_classes, label_smoothing)
        if optimizer == "lbfgs":
            lbfgs.check_head(self.network, trainable)
        self.train()

    def _make_network(self, network: nn.Module | None) -> nn.Module:
        """Return a person's own network with a new head, or the one that the hyperparameters name."""
        hparams, size = self.hparams, self.preprocessing.size
        num_classes, seed, weights = hparams["num_classes"], hparams["seed"], hparams["weights"]
        if network is not None:
            return own_networks.with_new_head(network, hparams["head"], num_classes, seed)
        if weights is None:
            return backbones.skeleton(hparams["backbone"], num_classes, size)
        return backbones.create(hparams["backbone"], num_classes, weights=weights, seed=seed, size=size)

    def _add_measures(self, num_classes: int, label_smoothing: float) -> None:
        # Both are modules, so that hooks on modules see every loss.
        self.criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        self.eval_criterion = nn.CrossEntropyLoss()
        self.images_seen = 0
        self._collected: list[tuple[Tensor, Tensor, Tensor]] = []
        self._train_sums, self._eval_sums = EpochSums(), EpochSums()
        self._watched = LaggingValues()

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = None,
        *,
        strict: bool = True,
        weights_only: bool = True,
        **changes: Any,
    ) -> "DogBreedClassifier":
        """Return the model of a checkpoint, without downloading or running anything.

        Args:
            checkpoint_path: A `.ckpt` of a run.
            map_location: Device for the model.
            strict: Whether the checkpoint has to hold exactly the model's values. False takes those that fit and leaves
                the others random, such as a head for another number of classes.
            weights_only: As for Lightning; nothing is ever unpickled.
            changes: Constructor arguments that are to differ.

        Raises:
            DogbreedError: Missing or damaged file, or one of another network.
        """
        checkpoint = read_checkpoint(Path(checkpoint_path))
        if "num_classes" in changes:
            changes = {"class_names": None, **changes}
        model = cls(**{**checkpoint["hyper_parameters"], **changes, "weights": None if strict else "none"})
        state = network_state(checkpoint)
        if not strict:
            own = model.network.state_dict()
            state = {**own, **{name: v for name, v in state.items() if name in own and v.shape == own[name].shape}}
        try:
            model.load_network(state)
        except RuntimeError as error:
            raise DogbreedError(
                f"{checkpoint_path} holds another network than these arguments make; strict=False takes what fits."
            ) from error
        return model if map_location is None else model.to(map_location)

    def load_network(self, state: dict[str, Tensor]) -> None:
        """Take the network's values from a state_dict; the names and shapes have to be its own."""
        self.network.load_state_dict(state, assign=self.network_is_empty)
        backbones.to_channels_last(self.network)
        backbones.freeze(self.network, *(self.hparams[name] for name in ("backbone", "trainable", "freeze_norm")))

    @property
    def network_is_empty(self) -> bool:
        """Return whether the network has no values yet (`weights=None`)."""
        return any(parameter.is_meta for parameter in self.network.parameters())

    def use_features(self, parts: CutNetwork) -> None:
        """Run only the tail on batches of features."""
        self.parts = parts

    def train(self, mode: bool = True) -> "DogBreedClassifier":
        super().train(mode)
        backbones.set_mode(self.network, mode)
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, classes] of images [N, 3, S, S]."""
        logits: Tensor = self.network(images)
        return logits

    def logits(self, batch: Batch | FeatureBatch) -> Tensor:
        """Return logits [N, classes] of a batch of images, or of features where the prefix ran beforehand."""
        if isinstance(batch, FeatureBatch):
            assert self.parts is not None, "batches of features need use_features(parts)"
            return self.parts.tail(batch.inputs, self.training)
        return self(batch.inputs)

    def setup(self, stage: str) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DogImages):
            self.check_data(data, stage)

    def check_data(self, data: DogImages, stage: str = "fit") -> None:
        """Refuse images of other classes to train on, and those made for another network to train or predict on.

        Raises:
            DogbreedError: Says how to build the model, or the data.
        """
        outputs, classes = self.hparams["num_classes"], len(data.classes)
        if stage == "fit" and classes and outputs != classes:
            raise DogbreedError(
                f"The model has {outputs} outputs, and {data.root} {classes} classes; build the model with "
                "DogBreedClassifier(len(data.classes), class_names=data.classes, ...)."
            )
        if stage in ("fit", "predict") and data.preprocessing != self.preprocessing:
            raise DogbreedError(
                f"The images are made with {data.preprocessing}, and the model takes {self.preprocessing}; build the "
                "data with DogImages.for_model(model, FOLDER)."
            )

    def _whole(self, batch: Any) -> Batch | FeatureBatch:
        """Take batches of (images, labels), as other loaders have them, too."""
        if isinstance(batch, Batch | FeatureBatch):
            return batch
        if not (isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
            raise DogbreedError(f"A batch is (images [N, 3, S, S], labels [N]), not {type(batch).__name__}.")
        images, labels = batch
        first = sum(len(collected) for _, collected, _ in self._collected)
        return Batch(images, labels, torch.arange(first, first + len(labels)))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on the place in training alone, not on what else has drawn random numbers.
        seed_generators(step_seed(self.hparams["seed"], self.current_epoch, batch_idx, self.global_rank), self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        batch = self._whole(batch)
        inputs, targets = (batch.inputs, batch.labels) if self.mixing is None else self.mixing(*batch[:2])
        logits = self.logits(batch._replace(inputs=inputs))
        loss: Tensor = self.criterion(logits, targets)
        self._train_sums.add(loss, logits, batch.labels)
        # Waiting for the loss would stall a GPU at each step; there an earlier sum is looked at, on every 16th.
        if loss.device.type == "cpu" or batch_idx % 16 == 0:
            sums = self._watched.read(self._train_sums.total())
            if sums is not None and not math.isfinite(sums[0]):
                raise self._diverged("train_loss", batch_idx)
        self.images_seen += len(batch.labels) * self.trainer.world_size
        return loss

    def on_train_epoch_start(self) -> None:
        self._train_sums = EpochSums()
        self._watched = LaggingValues()  # no epoch ends before its sums are looked at

    def on_train_epoch_end(self) -> None:
        loss, accuracy = self._means(self._train_sums)
        if not math.isfinite(loss.item()):
            raise self._diverged("train_loss", int(self.trainer.num_training_batches) - 1)
        self.log_dict({"train_loss": loss, "train_acc": accuracy})

    def _means(self, epoch: EpochSums) -> tuple[Tensor, Tensor]:
        """Return mean loss and accuracy over the images of all devices, on the CPU; a GPU is waited for once."""
        sums = self.trainer.strategy.reduce(epoch.total(), reduce_op="sum")
        loss, accuracy = (sums[:2] / sums[2]).cpu()
        return loss, accuracy

    def on_validation_epoch_start(self) -> None:
        self._eval_sums = EpochSums()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(self._whole(batch))

    def on_validation_epoch_end(self) -> None:
        self._gather()
        loss, accuracy = self._means(self._eval_sums)
        self.log_dict({"val_loss": loss, "val_acc": accuracy})
        if not math.isfinite(loss.item()):
            raise self._diverged("val_loss", int(self.trainer.num_training_batches) - 1)

    def on_test_epoch_start(self) -> None:
        self._eval_sums = EpochSums()

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate(self._whole(batch))

    def on_test_epoch_end(self) -> None:
        logits, labels, _ = self._gather()
        loss, accuracy = self._means(self._eval_sums)
        likeliest = logits.topk(min(5, logits.shape[1])).indices
        top5 = (likeliest == labels[:, None]).any(1).double().mean().item()
        self.log_dict({"test_loss": loss, "test_acc": accuracy, "test_top5": top5})

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return probabilities [N, classes], without a temperature, of a batch with or without labels."""
        if isinstance(batch, list | tuple) and len(batch) == 1:
            batch = batch[0]
        logits = self(batch) if isinstance(batch, Tensor) else self.logits(self._whole(batch))
        return logits.float().softmax(1)

    def _evaluate(self, batch: Batch | FeatureBatch) -> None:
        """Keep what is predicted for a batch where it is: a GPU is not waited for before the split's end."""
        logits = self.logits(batch).float()
        self._collected.append((logits, batch.labels, batch.indices))
        self._eval_sums.add(self.eval_criterion(logits, batch.labels), logits, batch.labels)

    def _gather(self) -> Outputs:
        """Bring the predictions of all devices together, in the order of the split."""
        parts = [torch.cat(column).cpu() for column in zip(*self._collected, strict=True)]
        self._collected.clear()
        if self.trainer.world_size > 1:
            everyone: list[Any] = [None] * self.trainer.world_size
            torch.distributed.all_gather_object(everyone, parts)
            parts = [torch.cat(column) for column in zip(*everyone, strict=True)]
        logits, labels, indices = parts
        order = indices.argsort()
        self.predictions = Outputs(logits[order], labels[order], indices[order])
        return self.predictions

    def _diverged(self, name: str, batch_idx: int) -> NonFiniteLoss:
        step = f"step {batch_idx + 1} of epoch {self.current_epoch + 1}"
        return NonFiniteLoss(
            f"{name} is not finite at {step}: training has diverged; try a smaller learning rate than "
            f"model.lr={self.hparams['lr']}. The last good checkpoint is kept."
        )

    def configure_callbacks(self) -> list[Callback]:
        if self.hparams["optimizer"] == "lbfgs":
            return [lbfgs.LogisticRegression()]
        return [] if self.hparams["ema_decay"] is None else [AveragedWeights(self.hparams["ema_decay"])]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hparams = self.hparams
        rates = (hparams[name] for name in ("lr", "backbone_lr", "weight_decay", "layer_decay"))
        groups = parameter_groups(self.network, *rates)
        trainer = self._trainer  # None in a loop of somebody's own, where `self.trainer` raises
        precision = trainer and trainer.precision_plugin
        # A fused optimizer takes the scale off gradients itself: too late to clip them, or to look at them.
        unscaled = isinstance(precision, MixedPrecision) and (precision.scaler or self.trainer.gradient_clip_val)
        optimizer = make_optimizer(hparams["optimizer"], groups, fused=not unscaled)
        schedule = hparams["schedule"]
        if schedule == "constant":
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        if not math.isfinite(steps):
            raise DogbreedError(
                f"model.schedule={schedule} is spread over all steps, and this run has no end; give trainer.max_epochs."
            )
        scheduler = make_scheduler(schedule, optimizer, int(steps))
        assert scheduler is not None
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["images_seen"] = self.images_seen
        checkpoint["lbfgs"] = None if self.solution is None else list(self.solution)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.images_seen = checkpoint.get("images_seen", 0)
        c = checkpoint.get("inverse_penalty")  # of an older checkpoint
        solution = checkpoint.get("lbfgs", None if c is None else [c])
        self.solution = None if solution is None else lbfgs.Solution(*solution)
        if frozen := checkpoint.get("frozen"):  # read by a Trainer that knows nothing of what lies beside the file
            checkpoint["state_dict"] = {**self._frozen_values(frozen, checkpoint), **checkpoint["state_dict"]}

    def _frozen_values(self, names: Sequence[str], checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the model's own frozen values, if they are those of the run that wrote a checkpoint."""
        own = self.state_dict()
        values = {name: own[name] for name in names if name in own and not own[name].is_meta}
        known = {name: value.cpu().contiguous() for name, value in values.items()}
        if len(known) != len(names) or digest_of(known) != checkpoint["frozen_digest"]:
            raise DogbreedError(
                "The model's frozen weights are not those of the checkpoint; build it with "
                "DogBreedClassifier.load_from_checkpoint(PATH), which takes them from beside the file."
            )
        return values

    def export(
        self,
        folder: str | Path,
        data: DogImages | None = None,
        *,
        temperature: float = 1.0,
        conformal: Mapping[str, Any] | None = None,
        neighbours: InDomain | None = None,
        config: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write the model as the folder that `Predictor`, the commands and endpoints take; return the folder.

        Args:
            folder: New, empty, or an older export, which is replaced.
            data: What it was trained on: it has the classes' names, and evaluations find it again.
            temperature: What logits are divided by before the softmax.
            conformal: Thresholds of prediction sets, from `dogbreed.metrics.conformal`; None: none.
            neighbours: Index of the training images, from `dogbreed.models.neighbours`; None: none.
            config: The training configuration to note; None notes the model's arguments and where the data lie.
            metrics: What the training reached, to note.

        Raises:
            DogbreedError: The data have other classes, the network is one that no name brings back, or `folder` holds
                something else or cannot be written.
        """
        own_networks.check_name(self.hparams["backbone"])
        names = self.class_names
        about: dict[str, Any] = {"model": {key: self.hparams[key] for key in TRAINING_ARGUMENTS}}
        if data is not None:
            if not isinstance(data, DogImages):
                raise DogbreedError(
                    f"export takes the DogImages of the training, not {type(data).__name__}; leave the data out, and "
                    "the names of the classes are those of the model (class_names)."
                )
            data.setup()
            self.check_data(data)
            if names != data.classes and names != [str(label) for label in range(len(names))]:
                raise DogbreedError(
                    f"The model's classes have other names, or another order, than those of {data.root}."
                )
            names = data.classes
            labels, shares = data.labels and str(data.labels), list(data.shares)
            root, mismatch = str(data.root), data.class_mismatch
            about["data"] = {"root": root, "labels": labels, "split": shares, "class_mismatch": mismatch}
        network = self.network
        if any(value.is_floating_point() and value.dtype != torch.float32 for value in network.state_dict().values()):
            network = copy.deepcopy(network).float()
        exported = Exported(
            network=network,
            backbone=self.hparams["backbone"],
            class_names=names,
            preprocessing=self.preprocessing,
            temperature=temperature,
            conformal=conformal or {},
            neighbours=neighbours,
            config=about if config is None else config,
            metrics=metrics or {},
        )
        return save(Path(folder), exported)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed what a step on this device draws from; `torch.manual_seed` asks every kind of device, for up to 0.9 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Return the seed of the random numbers that one training step draws."""
    key = np.random.SeedSequence([seed, epoch, step, rank])
    return int(key.generate_state(1, np.uint64)[0] >> np.uint64(1))
