"""What watching a run costs: the same training with and without it, turn by turn.

Measured where it would show most, on the head of VGG16 with features that are there: a step takes milliseconds. Each
figure is the median over pairs of what the watched run took, over what the other of its pair took.
"""

import statistics
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO

from lightning.pytorch import Callback, Trainer

from benchmarks.bench import Bench
from benchmarks.training import on_features
from dogbreed.config.compose import compose
from dogbreed.models import backbones
from dogbreed.models.checkpoint_io import RunCheckpointIO
from dogbreed.monitor.callback import LiveRules
from dogbreed.monitor.history import History
from dogbreed.monitor.profiler import StepTimer
from dogbreed.monitor.system_metrics import SystemMetrics

EPOCHS, PAIRS = 3, 11


def profiling(bench: Bench) -> None:
    """Ratios of the times with and without system metrics, the rules, and the timing of phases."""
    model, data = on_features(bench)
    settings = compose()

    def fit(watch: str) -> None:
        history = History(bench.folder / "watched", settings)
        callbacks: list[Callback] = [history]
        if watch == "rules":
            callbacks.append(LiveRules(settings["rules"], history))
        system = SystemMetrics().start() if watch == "system" else None
        trainer = Trainer(
            max_epochs=EPOCHS, accelerator=bench.device.type, devices=1, logger=False, callbacks=callbacks,
            profiler=StepTimer(bench.device.type == "cuda") if watch == "phases" else None,
            plugins=[RunCheckpointIO(backbones.changing_names(model.network))],
            enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        )  # fmt: skip
        model.train()
        with redirect_stdout(StringIO()):
            trainer.fit(model, datamodule=data)
        if system:
            system.stop()

    for watch in ("system", "rules", "phases"):
        bench.note(f"profiling_{watch}_ratio", paired_ratio(bench, lambda: fit(""), lambda w=watch: fit(w)))  # type: ignore[misc]


def paired_ratio(bench: Bench, plain: Callable[[], None], watched: Callable[[], None]) -> float:
    """Median over pairs, the order of which alternates, so that neither gains from being second."""
    plain(), watched()
    ratios = []
    for pair in range(PAIRS):
        if pair % 2:
            with_it, without = bench.once(watched), bench.once(plain)
        else:
            without, with_it = bench.once(plain), bench.once(watched)
        ratios.append(with_it / without)
    return statistics.median(ratios)
