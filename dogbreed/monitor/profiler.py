"""Where the time of a run goes: seconds of each step by phase, the most expensive operators, how busy the machine is.

Phases come from Lightning's own profiler interface, which tells when each part of a step begins and ends. Each second
counts once: what a callback takes within the optimizer's step is the callback's.
"""

import os
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.types import STEP_OUTPUT

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write, write_csv
from dogbreed.monitor import system_rules
from dogbreed.monitor.rules import Finding
from dogbreed.monitor.system_metrics import Sample, SystemMetrics

PHASES = ("data", "transfer", "forward", "backward", "optimizer", "callbacks", "other")
TRACED_STEPS = 10  # as in the published configuration of SageMaker's profiler
UNTRACED_STEPS = 5  # before them: the first steps are like no others
MOST_STEPS = 200_000  # of a longer run the last ones are kept
MOST_OPERATORS = 200
TRACE = "trace.json"


class Step(NamedTuple):
    """One step of training.

    Attributes:
        number: Of the batch, from 1.
        seconds: From asking for its batch until the next one is asked for, validation not counted.
        phases: Seconds of each of `PHASES`.
        traced: Whether it ran under torch.profiler, which slows it down.
    """

    number: int
    seconds: float
    phases: tuple[float, ...]
    traced: bool


class Operator(NamedTuple):
    """What torch.profiler says of an operator, over the traced steps; times in seconds, children not counted."""

    name: str
    calls: int
    cpu_seconds: float
    device_seconds: float


@dataclass
class Profile:
    """What was measured.

    Attributes:
        samples: Of the machine.
        stages: Seconds, as in `Sample.time`, at which a stage of the run began, with its name.
        seconds: Until the end.
        gpus: Names of the GPUs that were watched.
        gpu_reason: Why there are none.
        steps: In their order; none where only the machine was watched.
        operators: The most expensive first.
        device: Where the network ran.
        trace_reason: Why there are no operators.
        findings: Of the rules.
    """

    samples: Sequence[Sample]
    stages: Sequence[tuple[float, str]]
    seconds: float
    gpus: Sequence[str] = ()
    gpu_reason: str = ""
    steps: Sequence[Step] = ()
    operators: Sequence[Operator] = ()
    device: str = "cpu"
    trace_reason: str = ""
    findings: Sequence[Finding] = ()


def mode_of(profile: Any, trainer: Mapping[str, Any]) -> str | None:
    """Return what the key `profile` asks for: None, `system` (the machine only) or `all`.

    Raises:
        DogbreedError: It is none of its values, or Lightning's own profiler is asked for as well.
    """
    if profile is None or profile is False:
        return None
    if profile not in (True, "system"):
        raise DogbreedError(f"profile={profile} is unknown; it is one of true, system, false.")
    if profile is True and trainer["profiler"] is not None:
        raise DogbreedError(f"profile=true and trainer.profiler={trainer['profiler']} exclude each other; drop one.")
    return "all" if profile is True else "system"


class StepTimer(Profiler):
    """Add up the seconds of each phase of a step.

    Args:
        synchronize: Waits for the GPU at the end of each phase, so that its work counts where it was ordered.
    """

    def __init__(self, synchronize: bool = False) -> None:
        super().__init__()
        self.synchronize = synchronize
        self.steps: deque[Step] = deque(maxlen=MOST_STEPS)
        self._traced = self._last_traced = False
        self._number = 0
        self._kinds: dict[str, str | None] = {}
        self._began: float | None = None  # of the step; None between epochs
        self._spent: dict[str, float] = {}
        self._stack: list[list[Any]] = []  # [action, phase, begin, seconds of what it calls]

    def trace(self, on: bool) -> None:
        """Note that this step is the first (`on`), or the last one, that is traced."""
        self._traced, self._last_traced = True, not on

    def start(self, action_name: str) -> None:
        kind = self._kind(action_name)
        if kind is None:
            return
        if kind == "end":
            self._finish(time.perf_counter())
        elif kind == "data":
            now = time.perf_counter()
            self._finish(now)
            self._began, self._spent, self._stack = now, dict.fromkeys(PHASES, 0.0), []
            self._stack.append([action_name, kind, now, 0.0])
        elif self._began is not None:
            self._stack.append([action_name, kind, time.perf_counter(), 0.0])

    def stop(self, action_name: str) -> None:
        if not self._stack or self._stack[-1][0] != action_name:
            return
        if self.synchronize and self._stack[-1][1] not in ("data", "callbacks"):
            torch.cuda.synchronize()
        self._pop(time.perf_counter())

    def _pop(self, now: float) -> None:
        _, phase, began, inner = self._stack.pop()
        self._spent[phase] += now - began - inner
        if self._stack:
            self._stack[-1][3] += now - began

    def _finish(self, now: float) -> None:
        if self._began is None:
            return
        while self._stack:
            self._pop(now)
        seconds = now - self._began
        self._number += 1
        self._spent["other"] = max(0.0, seconds - sum(self._spent.values()))
        self.steps.append(Step(self._number, seconds, tuple(self._spent.values()), self._traced))
        self._traced = self._traced and not self._last_traced
        self._began = None

    def _kind(self, action: str) -> str | None:
        """Return the phase of an action; `end` for what follows the last step of an epoch."""
        if action not in self._kinds:
            self._kinds[action] = _kind_of(action)
        return self._kinds[action]


def _kind_of(action: str) -> str | None:
    owner, _, rest = action.partition("]")
    name = rest.rpartition(".")[2] if rest else action
    if name == "train_dataloader_next":
        return "data"
    # After the last batch of an epoch, or before a validation within one.
    if name in ("on_validation_model_zero_grad", "on_validation_start", "on_train_epoch_end", "on_train_end"):
        return "end"
    if owner == "[Callback":
        return "callbacks"
    if owner == "[Strategy":
        return {"batch_to_device": "transfer", "training_step": "forward", "backward": "backward"}.get(name)
    if owner == "[LightningModule":
        return {"optimizer_step": "optimizer", "optimizer_zero_grad": "optimizer"}.get(name)
    return None


class Profiling(Callback):
    """Measure a run; stands first among the callbacks, so that preparing the features is seen.

    Args:
        mode: `system` or `all`, see `mode_of`.
        folder: Of the profile.

    Attributes:
        system: What watches the machine.
        timer: For Lightning's Trainer; None where only the machine is watched.
    """

    def __init__(self, mode: str, folder: Path) -> None:
        self.folder = folder
        self.system = SystemMetrics()
        self.timer = StepTimer() if mode == "all" else None
        self.operators: list[Operator] = []
        self.trace_reason = "" if mode == "all" else "Only the machine was watched (profile=system)."
        self._stages = [(0.0, "preparing")]
        self._profiler: Any = None
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        self._batches = self._traced = 0
        self._device = "cpu"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.system.start()
            self._device = trainer.strategy.root_device.type
            if self.timer:
                self.timer.synchronize = self._device == "cuda"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stage("training")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self.timer is None or self._traced or self._profiler is not None:
            return
        steps = trainer.estimated_stepping_batches
        # A run of few steps is traced from the second on.
        if self._batches >= (UNTRACED_STEPS if steps >= UNTRACED_STEPS + TRACED_STEPS else 1):
            self._start_trace()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self._profiler is None:
            return
        self._traced += 1
        self._profiler.step()
        if self._traced == TRACED_STEPS:
            self._stop_trace()

    # A validation between the traced steps is not traced.

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._profiler is not None:
            self._profiler.toggle_collection_dynamic(False, self._activities)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._profiler is not None:
            self._profiler.toggle_collection_dynamic(True, self._activities)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_trace()
        self._stage("evaluation")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._profiler is not None:
            self._profiler.stop()
            self._profiler = None
        self.system.stop()

    def close(self) -> None:
        """Stop watching the machine."""
        self.system.stop()

    def result(self, findings: Sequence[Finding], step_outlier: Mapping[str, Any]) -> Profile:
        """Stop watching the machine; return what was measured.

        Args:
            findings: Of the rules that watched the run.
            step_outlier: Parameters of that rule, which needs the times measured here.
        """
        self.system.stop()
        if self.timer:
            steps = [step for step in self.timer.steps if not step.traced]
            numbers, seconds = [step.number for step in steps], [step.seconds for step in steps]
            findings = [*findings, system_rules.step_outlier(numbers, seconds, **step_outlier)]
        return Profile(
            samples=self.system.samples,
            stages=self._stages,
            seconds=self.system.now(),
            gpus=self.system.gpus.names,
            gpu_reason=self.system.gpus.reason,
            steps=list(self.timer.steps) if self.timer else [],
            operators=self.operators,
            device=self._device,
            trace_reason=self.trace_reason,
            findings=findings,
        )

    def _stage(self, name: str) -> None:
        self._stages.append((self.system.now(), name))

    def _start_trace(self) -> None:
        if self._device == "cuda":
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on every machine without a GPU that there is none
        # With a schedule, the steps themselves stand in the trace too.
        profiler = torch.profiler.profile(
            activities=self._activities, schedule=lambda _: torch.profiler.ProfilerAction.RECORD
        )
        try:
            profiler.start()
        except RuntimeError as error:  # another profiler is at work in this process
            self._traced = TRACED_STEPS
            self.trace_reason = f"No trace: torch.profiler says {' '.join(str(error).split())}."
            return
        assert self.timer is not None
        self.timer.trace(True)
        self._profiler = profiler

    def _stop_trace(self) -> None:
        if self._profiler is None:
            if not self._traced and not self.trace_reason:
                self.trace_reason = "The run had no second step to be traced."
            return
        profiler, self._profiler = self._profiler, None
        profiler.stop()
        assert self.timer is not None
        self.timer.trace(False)
        self.operators = _operators(profiler)
        try:
            with atomic_write(self.folder / TRACE) as file:
                profiler.export_chrome_trace(str(file))
        except DogbreedError as error:  # no reason to end the training
            self.trace_reason = str(error)


def _operators(profiler: Any) -> list[Operator]:
    rows = [
        Operator(
            str(event.key),
            int(event.count),
            float(event.self_cpu_time_total) / 1e6,
            float(getattr(event, "self_device_time_total", 0.0)) / 1e6,
        )
        for event in profiler.key_averages()
        if not str(event.key).startswith("ProfilerStep")
    ]
    return sorted(rows, key=lambda row: -max(row.cpu_seconds, row.device_seconds))[:MOST_OPERATORS]


def write_tables(folder: Path, profile: Profile) -> None:
    """Write `system.csv`, `steps.csv` and `operators.csv`.

    Raises:
        DogbreedError: A file cannot be written.
    """
    cores = len(profile.samples[0].cores) if profile.samples else 0
    head = [
        *("seconds", "memory_percent", "process_memory_bytes", "disk_read_bytes_per_second"),
        *("disk_written_bytes_per_second", "received_bytes_per_second", "sent_bytes_per_second"),
        *(f"core_{index}_percent" for index in range(cores)),
        *(f"core_{index}_io_wait_percent" for index in range(cores)),
        *(f"{name} percent".replace(" ", "_").lower() for name in profile.gpus),
        *(f"{name} memory percent".replace(" ", "_").lower() for name in profile.gpus),
    ]
    rows = [
        [
            *(f"{value:.3f}" for value in (s.time, s.memory)),
            s.process_memory,
            *(f"{value:.0f}" for value in (s.disk_read, s.disk_written, s.received, s.sent)),
            *(f"{value:.1f}" for value in (*s.cores, *s.io_waits, *s.gpus, *s.gpu_memory)),
        ]
        for s in profile.samples
    ]
    write_csv(folder / "system.csv", head, rows)
    if profile.steps:
        head = ["step", "seconds", *PHASES, "traced"]
        steps = [[s.number, *(f"{v:.6f}" for v in (s.seconds, *s.phases)), int(s.traced)] for s in profile.steps]
        write_csv(folder / "steps.csv", head, steps)
    if profile.operators:
        head = ["operator", "calls", "self_cpu_seconds", "self_device_seconds"]
        listed = [[o.name, o.calls, f"{o.cpu_seconds:.6f}", f"{o.device_seconds:.6f}"] for o in profile.operators]
        write_csv(folder / "operators.csv", head, listed)
