"""What can be seen of the machine while it trains: rules over its utilisation and over the seconds of the steps.

As in `rules`, each is a pure function. Those for the GPU follow the built-in profiler rules of Amazon SageMaker
Debugger ("List of Debugger Built-in Profiler Rules"). The page and AWS's own code for these rules, which is public
(awslabs/sagemaker-debugger on GitHub, smdebug/profiler/analysis/rules), disagree on some defaults; those of the code
are used, since they are what its reports show: CPUBottleneck's patience is 1000 (the page says 100), IOBottleneck's
gpu_threshold 10 (70), GPUMemoryIncrease's increase, patience and window 5, 1000 and 10 (10, 100 and 500).

`gpus` holds a series for each GPU by its name. Utilisation is in percent, one value a sample; samples are taken every
500 ms, so that a patience of 1000 is 8 minutes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dogbreed.monitor.rules import Finding, Series, clear, not_applicable, rule, triggered

NO_GPU = "There is no GPU to be watched."


@rule
def low_gpu_utilization(
    gpus: Mapping[str, Series],
    *,
    threshold_p95: float = 70.0,
    threshold_p5: float = 10.0,
    window: int = 500,
    patience: int = 1000,
) -> Finding:
    """Look for a GPU that is idle most of the time, or stops and goes (LowGPUUtilization)."""
    if not gpus:
        return not_applicable("", NO_GPU)
    figures: dict[str, float] = {}
    for gpu, series in gpus.items():
        if len(series) <= patience:
            continue
        low, high = np.quantile(np.asarray(series[-window:], dtype=float), (0.05, 0.95)).tolist()
        figures = {"p95": high, "p5": low}
        if high < threshold_p95:
            message = f"{gpu} is idle: in 95 % of the time no more than {high:.0f} % of it is used"
        elif high > threshold_p95 and low < threshold_p5:
            message = f"{gpu} stops and goes: it is used up to {high:.0f} %, but now and then only {low:.0f} %"
        else:
            continue
        message += "; try a larger data.batch_size, more data.num_workers, or cache.mode=auto with a frozen backbone."
        return triggered(message, len(series), **figures)
    if not figures:
        return _too_early(max(map(len, gpus.values())), patience)
    return clear("The GPUs are busy: 95th percentile {p95:.0f} %, 5th {p5:.0f} %.".format(**figures), **figures)


@rule
def cpu_bottleneck(
    gpus: Mapping[str, Series],
    cores: Sequence[Series],
    *,
    threshold: float = 50.0,
    gpu_threshold: float = 10.0,
    cpu_threshold: float = 90.0,
    patience: int = 1000,
) -> Finding:
    """Look for a GPU that waits while a core is fully used (CPUBottleneck)."""
    waiting = _waiting(gpus, gpu_threshold, cores, cpu_threshold)
    remedy = "more cores, fewer data.num_workers than cores, or a frozen backbone"
    return _bottleneck(waiting, threshold, patience, "while a core was fully used", remedy)


@rule
def io_bottleneck(
    gpus: Mapping[str, Series],
    io_waits: Sequence[Series],
    *,
    threshold: float = 50.0,
    gpu_threshold: float = 10.0,
    io_threshold: float = 50.0,
    patience: int = 1000,
) -> Finding:
    """Look for a GPU that waits while a core waits for the disk (IOBottleneck)."""
    waiting = _waiting(gpus, gpu_threshold, io_waits, io_threshold)
    remedy = "data.root on a faster disk, or cache.mode=auto"
    return _bottleneck(waiting, threshold, patience, "while a core waited for the disk", remedy)


@rule
def gpu_memory_increase(
    memory: Mapping[str, Series], *, increase: float = 5.0, patience: int = 1000, window: int = 10
) -> Finding:
    """Look for a GPU whose memory fills up (GPUMemoryIncrease).

    The moving average over `window` samples is compared with that over the `window` before.

    Args:
        memory: Percentage of each GPU's memory that is in use, by its name.
    """
    if not memory:
        return not_applicable("", NO_GPU)
    longest = max(map(len, memory.values()))
    if longest <= max(patience, 2 * window):
        return _too_early(longest, patience)
    most = -math.inf
    first = max(0, patience + 1 - 2 * window)  # rise whose last sample lies behind the patience
    for gpu, series in memory.items():
        values = np.asarray(series, dtype=float)
        means = np.convolve(values, np.full(window, 1 / window), "valid")  # means[i] is of values[i : i + window]
        rises = (means[window:] - means[:-window])[first:]
        most = max(most, float(rises.max(initial=-math.inf)))
        over = np.flatnonzero(rises > increase)
        if over.size:
            step = int(over[0]) + first + 2 * window
            rise, now = float(rises[over[0]]), float(values[step - 1])
            message = (
                f"The memory of {gpu} rose by {rise:.0f} points to {now:.0f} % within {2 * window} samples: something "
                "holds on to tensors (a loss that is added up without .item(), say), or a batch is larger; try a "
                "smaller data.batch_size."
            )
            return triggered(message, step, rise=rise, memory=now)
    return clear(f"The GPU's memory never rose by more than {max(most, 0):.1f} points at a time.", rise=most)


@rule
def data_loading(
    waits: Series,
    computes: Series,
    workers: int,
    cores: int,
    device: str = "cpu",
    *,
    threshold: float = 50.0,
    window: int = 200,
    patience: int = 20,
) -> Finding:
    """Look for steps that mostly wait for data (no rule of AWS's), and say how many workers would be enough.

    Args:
        waits: Seconds that each step waited for its batch.
        computes: Seconds that it took from then on.
        workers: Processes that load data now; 0 loads in the training process itself.
        cores: That this process may use.
        device: What waits, `cpu` or `cuda`.
    """
    waited, computed = np.asarray(waits[-window:], dtype=float), np.asarray(computes[-window:], dtype=float)
    steps = len(waited)
    if steps < patience:
        return _too_early(steps, patience, "steps")
    wait, compute = float(waited.sum()), float(computed.sum())
    share = 100 * wait / max(wait + compute, 1e-12)
    enough = workers_needed(wait, compute, workers)
    figures = {"wait_percent": share, "wait_seconds": wait / steps, "step_seconds": (wait + compute) / steps}
    message = f"The {'CPU' if device == 'cpu' else 'GPU'} waited {share:.0f} % of the last {steps} steps for data"
    if share <= threshold:
        return clear(f"{message}.", **figures)
    advised = min(enough, max(cores, 1))
    if advised > workers:
        message += f": data.num_workers={advised}"
        if enough > advised:
            message += f" (all cores; {enough} would be enough)"
    else:
        message += f", and {workers} workers already share {cores} cores: a machine with more cores"
    message += ", or cache.mode=auto with model.trainable=head, which reads each image once."
    return triggered(message, len(waits), **figures, workers=advised)


def workers_needed(wait: float, compute: float, workers: int) -> int:
    """Return how many workers load a batch in the time that a step computes.

    In the training process itself a batch takes `wait` seconds to load; `workers` that cannot keep up deliver one every
    `wait + compute` seconds, so that each takes `workers` times as long.

    Args:
        wait: Seconds that a step waits.
        compute: Seconds that it takes from then on.
        workers: Processes that load data now.
    """
    loading = workers * (wait + compute) if workers else wait
    return max(1, math.ceil(loading / max(compute, 1e-12) - 1e-9)) if compute > 1e-3 * loading else 1000


@rule
def step_outlier(
    steps: Sequence[int], seconds: Series, *, stddev: float = 3.0, n_outliers: int = 10, patience: int = 100
) -> Finding:
    """Look for steps that take much longer than the others (StepOutlier).

    Args:
        steps: Their numbers.
        seconds: How long each took.
    """
    if len(seconds) <= patience:
        return _too_early(len(seconds), patience, "steps")
    values = np.asarray(seconds, dtype=float)
    mean = float(values.mean())
    limit = mean + stddev * float(values.std())
    far = outliers(values, stddev)
    figures = {"outliers": len(far), "limit_seconds": limit, "mean_seconds": mean}
    message = f"{len(far)} of {len(values):,} steps took longer than {1000 * limit:.3g} ms"
    if len(far) <= n_outliers:
        return clear(f"{message}.", **figures)
    message += (
        f" (on average {1000 * mean:.3g} ms): something else runs on this machine now and then, or data comes in "
        "bursts; try more data.num_workers."
    )
    return triggered(message, steps[far[n_outliers]], **figures)


def outliers(seconds: ArrayLike, stddev: float = 3.0) -> NDArray[np.intp]:
    """Return the positions of the steps that take longer than the mean and `stddev` standard deviations."""
    values = np.asarray(seconds, dtype=float)
    return np.flatnonzero(values > values.mean() + stddev * values.std()) if values.size else np.empty(0, np.intp)


def _waiting(
    gpus: Mapping[str, Series], gpu_threshold: float, others: Sequence[Series], limit: float
) -> NDArray[np.bool_] | None:
    """Return for each sample whether a GPU waited while something else was above its limit; None without a GPU."""
    if not gpus or not others:
        return None
    waiting = np.any(np.array([*gpus.values()], dtype=float) < gpu_threshold, axis=0)
    return np.logical_and(waiting, np.any(np.array([*others], dtype=float) > limit, axis=0))


def _bottleneck(waiting: NDArray[np.bool_] | None, threshold: float, patience: int, what: str, remedy: str) -> Finding:
    if waiting is None:
        return not_applicable("", NO_GPU)
    samples = int(waiting.size)
    if samples <= patience:
        return _too_early(samples, patience)
    share = 100 * float(waiting.mean())
    message = f"A GPU waited {what} in {share:.0f} % of {samples:,} samples"
    if share > threshold:
        return triggered(f"{message}: try {remedy}.", samples, percent=share)
    return clear(f"{message}.", percent=share)


def _too_early(count: int, patience: int, what: str = "samples") -> Finding:
    return clear(f"Too early to say: {count} {what}, and it waits for {patience:,}.")
