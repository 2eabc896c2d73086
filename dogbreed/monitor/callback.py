"""The rules at work: a callback that records a run's series, and says once what each rule finds in them.

Recording has to cost nothing beside a step of a few milliseconds. Losses stay where they are until they are looked at,
every 50 steps; gradients and activations are taken on every tenth step only, and time is read twice a step.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.machine import cpu_count
from dogbreed.models.classifier import DogBreedClassifier, NonFiniteLoss
from dogbreed.monitor import rules, system_rules
from dogbreed.monitor.curve_diagnosis import Diagnosis, diagnose
from dogbreed.monitor.history import History
from dogbreed.monitor.recorder import Recorder
from dogbreed.monitor.rules import Finding
from dogbreed.monitor.system_metrics import Gpus, Sample, SystemMetrics

LOOK_EVERY = 50  # batches
LOOK_AT_MACHINE_EVERY = 60.0  # seconds, as SageMaker's rules do

OF_LOSSES = ("loss_not_decreasing", "overfit", "overtraining")
OF_TRAINING = (
    *OF_LOSSES,
    "vanishing_gradient",
    "exploding_tensor",
    "poor_weight_initialization",
    "dead_relu",
)
OF_GPU = ("low_gpu_utilization", "cpu_bottleneck", "io_bottleneck", "gpu_memory_increase")
RULES = (*OF_TRAINING, "imbalance", "data_loading", *OF_GPU)
# Parameters that are counts, and mean nothing below one.
FROM_ONE = ("every", "num_steps", "window", "patience", "patience_train", "patience_validation", "first_steps")


class LiveRules(Checkpoint):  # Lightning calls those last, when the epoch's losses are known and History has them
    """Watch a run with the rules of the configuration's group `rules`.

    Args:
        settings: The group.
        history: That of the run, with the losses of its epochs.
        system: What watches the machine; None starts one where there is a GPU.

    Attributes:
        findings: What each rule found last, by its name.

    Raises:
        DogbreedError: A setting is unknown or out of range.
    """

    def __init__(self, settings: Mapping[str, Any], history: History, system: SystemMetrics | None = None) -> None:
        check(settings)
        self.settings = settings
        self.history = history
        self.system = system
        self._own_system = False
        self.findings: dict[str, Finding] = {}
        skipped = settings["skip"] or ()
        self._active = [name for name in RULES if settings["enabled"] and name not in skipped]
        self._classes = 2
        self._wants_stop = ""
        self._recorder: Recorder | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit" or not self._active or self.system is not None:
            return
        # Without a GPU there is nothing that they could find; a profile watches the machine all the same.
        if set(self._active) & set(OF_GPU) and Gpus().names:
            self.system, self._own_system = SystemMetrics().start(), True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, DogBreedClassifier)
        self._classes = len(pl_module.class_names)
        if self.history.rows:  # resumed: what was found before the interruption was said then
            before = self._of_epochs(trainer)
            self.findings |= {name: finding for name, finding in before.items() if name in self._active}
        images = _class_counts(trainer, pl_module)
        if not self.history.rows:
            self._say_single_step(trainer, sum(images.values()))
        if "imbalance" in self._active:
            self.findings["imbalance"] = rules.imbalance(images, **self.settings["imbalance"])
            if self.findings["imbalance"].triggered and not self.history.rows:
                self._speak(trainer, self.findings["imbalance"])
        if self._active:
            self._recorder = Recorder(
                pl_module,
                self.settings,
                step=trainer.global_step,
                workers=getattr(trainer.datamodule, "num_workers", 0),  # type: ignore[attr-defined]
                cores=cpu_count(),
                scaled=trainer.precision == "16-mixed",
            )
            self._looked_at_machine = time.monotonic()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recorder:
            self._recorder.pause()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recorder:
            self._recorder.pause()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._recorder:
            self._recorder.start(batch)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._recorder:
            self._recorder.gradients()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if self._recorder is None:
            return
        self._recorder.end(outputs["loss"] if isinstance(outputs, Mapping) else outputs)
        if self._recorder.batches % LOOK_EVERY == 0:
            self._look(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recorder is None:
            return
        self._look(trainer, epoch_ended=True)
        if self.settings["on_trigger"] == "stop":
            # All devices stop, or none: one that went on alone would wait for the others forever.
            stop = trainer.strategy.reduce_boolean_decision(bool(self._wants_stop), all=False)
            if stop and not trainer.should_stop:
                trainer.should_stop = True
                who = f"rule {self._wants_stop}" if self._wants_stop else "a rule on another device"
                self._say(trainer, f"Stopped after epoch {trainer.current_epoch + 1} by {who}.")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._recorder:
            self._look(trainer, last=True)
            self._write(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The model stops on its own at a loss that is not finite, and says so; the rules note it down.
        if self._recorder and isinstance(exception, NonFiniteLoss) and "exploding_tensor" in self._active:
            step = trainer.global_step
            parameters = self.settings["exploding_tensor"]
            self.findings["exploding_tensor"] = rules.exploding_tensor([step], {"The loss": [math.nan]}, **parameters)
            self._write(trainer)
        self.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.close()

    def close(self) -> None:
        """Stop watching the machine, where this callback started it."""
        if self.system is not None and self._own_system:
            self.system.stop()

    def _look(self, trainer: Trainer, epoch_ended: bool = False, last: bool = False) -> None:
        recorder = self._recorder
        assert recorder is not None
        latest = recorder.findings(last)
        if epoch_ended:
            latest |= self._of_epochs(trainer)
        if self.system and (last or time.monotonic() - self._looked_at_machine > LOOK_AT_MACHINE_EVERY):
            self._looked_at_machine = time.monotonic()
            latest |= machine_findings(self.system.samples, self.system.gpus.names, self.settings)
        for name in self._active:
            before = self.findings.get(name)
            # The losses are known from the first epoch on; of a gradient, what was found once stays found.
            if name not in latest or (before and before.triggered and name not in OF_LOSSES):
                continue
            self.findings[name] = latest[name]
            if latest[name].triggered and not (before and before.triggered):
                self._speak(trainer, latest[name])
            elif before and before.triggered and not latest[name].triggered:
                self._say(trainer, f"Rule {name}, epoch {trainer.current_epoch + 1}: withdrawn. {latest[name].message}")

    def _speak(self, trainer: Trainer, finding: Finding) -> None:
        if finding.rule in OF_TRAINING:
            self._wants_stop = self._wants_stop or finding.rule
        advice = f" {self._advice()}" if finding.rule in OF_LOSSES else ""
        self._say(trainer, f"Rule {finding.rule}, epoch {trainer.current_epoch + 1}: {finding.message}{advice}")
        self._write(trainer)

    def _advice(self) -> str:
        """Return what the diagnosis of the curves so far advises while the run goes on."""
        diagnosis = self._diagnosis()
        return "Too early to advise." if diagnosis.kind in ("short", "improving", "unclear") else diagnosis.advice

    def _diagnosis(self) -> Diagnosis:
        return diagnose(self.history.rows, self._classes, self.history.config)

    def _of_epochs(self, trainer: Trainer) -> dict[str, Finding]:
        """Return what the rules over losses find, as far as the diagnosis of the curves agrees.

        While the validation loss falls, or before a direction shows, there is nothing to change, and no finding;
        where the direction is lost in noise, what was found stays found.
        """
        findings = epoch_findings(self.history.rows, _steps_per_epoch(trainer), self.settings)
        kind = self._diagnosis().kind
        for name in ("overfit", "overtraining"):
            stays = kind == "unclear" and name in self.findings and self.findings[name].triggered
            if kind in ("short", "improving", "unclear") and not stays:
                findings[name] = replace(findings[name], triggered=False, step=None)
        return findings

    def _say_single_step(self, trainer: Trainer, images: int) -> None:
        size = self.history.config.get("data", {}).get("batch_size", 0)
        if 1 < images <= size * trainer.world_size and trainer.num_training_batches == 1:
            smaller = 2 ** max(0, int(math.log2(images / 8)))
            text = f"One optimizer step per epoch: data.batch_size={size} takes all {images} training images at once; "
            self._say(trainer, f"{text}data.batch_size={smaller} would make it {math.ceil(images / smaller)}.")

    def _say(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(text, flush=True)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            write_findings(self.history.folder / "rules.json", self.all_findings())

    def all_findings(self) -> list[Finding]:
        """Return those of every active rule, in their order, also of rules that had nothing to look at."""
        reasons = {name: "There is no GPU to be watched." for name in OF_GPU} | (
            self._recorder.reasons if self._recorder else {}
        )
        return [
            self.findings.get(name) or rules.not_applicable(name, reasons.get(name, "There was nothing to look at."))
            for name in self._active
        ]


def _class_counts(trainer: Trainer, model: DogBreedClassifier) -> dict[str, int]:
    samples = getattr(trainer.datamodule, "samples", {})  # type: ignore[attr-defined]
    labels = samples["train"].labels if "train" in samples else np.empty(0, np.int64)
    return dict(zip(model.class_names, np.bincount(labels, minlength=len(model.class_names)).tolist(), strict=True))


def _steps_per_epoch(trainer: Trainer) -> int:
    return math.ceil(int(trainer.num_training_batches) / trainer.accumulate_grad_batches)


def check(settings: Mapping[str, Any]) -> None:
    """Check the group `rules`.

    Raises:
        DogbreedError: A setting is unknown or out of range.
    """
    if settings["on_trigger"] not in ("warn", "stop"):
        raise DogbreedError(f"rules.on_trigger={settings['on_trigger']} is unknown; it is one of warn, stop.")
    skip = settings["skip"]
    if skip is not None and not (isinstance(skip, list) and all(name in RULES for name in skip)):
        raise DogbreedError(f"rules.skip={skip} is not a list of rules; they are {', '.join(RULES)}.")
    groups = [("rules", settings), *((f"rules.{name}", settings[name]) for name in (*RULES, "step_outlier"))]
    for group, values in groups:
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            least = 1 if key in FROM_ONE else 0
            if not value >= least:
                raise DogbreedError(f"{group}.{key}={value} is out of range; it is {least} or more.")


def epoch_findings(rows: Sequence[Mapping[str, float]], steps: int, settings: Mapping[str, Any]) -> dict[str, Finding]:
    """Apply the rules over losses to the epochs.

    Args:
        rows: As in `metrics.csv`.
        steps: How many the optimizer takes per epoch.
        settings: The group `rules`.
    """
    epochs = [int(row["epoch"]) for row in rows]
    train = [row["train_loss"] for row in rows]
    val = [row["val_loss"] for row in rows]
    return {
        "loss_not_decreasing": rules.loss_not_decreasing(
            [epoch * steps for epoch in epochs], train, **settings["loss_not_decreasing"]
        ),
        "overfit": rules.overfit(epochs, train, val, **settings["overfit"]),
        "overtraining": rules.overtraining(epochs, train, val, unit="epoch", **settings["overtraining"]),
    }


def machine_findings(samples: Sequence[Sample], gpus: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Finding]:
    """Apply the rules over the machine to the samples of `SystemMetrics`."""
    used = _by_gpu(gpus, [sample.gpus for sample in samples])
    memory = _by_gpu(gpus, [sample.gpu_memory for sample in samples])
    cores = list(np.array([sample.cores for sample in samples]).T)
    waits = list(np.array([sample.io_waits for sample in samples]).T)
    return {
        "low_gpu_utilization": system_rules.low_gpu_utilization(used, **settings["low_gpu_utilization"]),
        "cpu_bottleneck": system_rules.cpu_bottleneck(used, cores, **settings["cpu_bottleneck"]),
        "io_bottleneck": system_rules.io_bottleneck(used, waits, **settings["io_bottleneck"]),
        "gpu_memory_increase": system_rules.gpu_memory_increase(memory, **settings["gpu_memory_increase"]),
    }


def _by_gpu(names: Sequence[str], rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return one series per GPU, without those of which NVML does not know it."""
    values = np.array(rows, dtype=float).reshape(len(rows), len(names)).T
    return {name: series for name, series in zip(names, values, strict=True) if not np.isnan(series).any()}


def write_findings(file: Path, findings: Sequence[Finding]) -> None:
    """Write `rules.json`.

    Raises:
        DogbreedError: The file cannot be written.
    """
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps([finding.to_dict() for finding in findings], indent=2) + "\n")
