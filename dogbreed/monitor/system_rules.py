"""What can be seen of the machine while it trains: rules over its utilisation and over the seconds of the steps.

As in `rules`, each is a pure function. Those for the GPU follow the built-in profiler rules of Amazon SageMaker
Debugger ("List of Debugger Built-in Profiler Rules"). The page and AWS's own code for these rules, which is public
(awslabs/sagemaker-debugger on GitHub, smdebug/profiler/analysis/rules), disagree on some defaults; those of the code
are used, since they are what its reports show: CPUBottleneck's patience is 1000 (the page says 100), IOBottleneck's
gpu_threshold 10 (70), GPUMemoryIncrease's increase, patience and window 5, 1000 and 10 (10, 100 and 500).

Utilisation is in percent, one value a sample; samples are taken every 500 ms, so that a patience of 1000 is 8 minutes.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dogbreed.monitor.rules import Finding, Series

NO_GPU = "There is no GPU to be watched."


def low_gpu_utilization(
    gpus: Mapping[str, Series],
    *,
    threshold_p95: float = 70.0,
    threshold_p5: float = 10.0,
    window: int = 500,
    patience: int = 1000,
) -> Finding:
    """Looks for a GPU that is idle most of the time, or now and then (LowGPUUtilization).

    Args:
        gpus: Utilisation of each GPU, by its name.
        threshold_p95: A 95th percentile below it is low.
        threshold_p5: Where the 95th percentile is high, a 5th percentile below it is a fluctuation.
        window: Percentiles are those of so many samples, the last ones.
        patience: Samples that have to be there before anything is said.
    """
    name = "low_gpu_utilization"
    parameters = {
        "threshold_p95": threshold_p95,
        "threshold_p5": threshold_p5,
        "window": window,
        "patience": patience,
    }
    if not gpus:
        return Finding(name, False, NO_GPU, parameters=parameters, applies=False)
    message, figures = "", {}
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
        return Finding(name, True, message, len(series), figures, parameters)
    if not figures:
        return _too_early(name, parameters, max(map(len, gpus.values())), patience)
    message = f"The GPUs are busy: 95th percentile {figures['p95']:.0f} %, 5th {figures['p5']:.0f} %."
    return Finding(name, False, message, figures=figures, parameters=parameters)


def cpu_bottleneck(
    gpus: Mapping[str, Series],
    cores: Sequence[Series],
    *,
    threshold: float = 50.0,
    gpu_threshold: float = 10.0,
    cpu_threshold: float = 90.0,
    patience: int = 1000,
) -> Finding:
    """Looks for a GPU that waits while a core is fully used (CPUBottleneck).

    Args:
        gpus: Utilisation of each GPU, by its name.
        cores: Utilisation of each core.
        threshold: Largest percentage of samples in which that is so.
        gpu_threshold: A GPU that is used less than this waits.
        cpu_threshold: A core that is used more than this is fully used.
        patience: Samples that have to be there before anything is said.
    """
    parameters = {
        "threshold": threshold,
        "gpu_threshold": gpu_threshold,
        "cpu_threshold": cpu_threshold,
        "patience": patience,
    }
    what, remedy = "while a core was fully used", "more cores, fewer data.num_workers than cores, or a frozen backbone"
    return _bottleneck("cpu_bottleneck", gpus, cores, parameters, cpu_threshold, what, remedy)


def io_bottleneck(
    gpus: Mapping[str, Series],
    io_waits: Sequence[Series],
    *,
    threshold: float = 50.0,
    gpu_threshold: float = 10.0,
    io_threshold: float = 50.0,
    patience: int = 1000,
) -> Finding:
    """Looks for a GPU that waits while a core waits for the disk (IOBottleneck).

    Args:
        gpus: Utilisation of each GPU, by its name.
        io_waits: Percentage of its time that each core waited for input and output.
        threshold: Largest percentage of samples in which that is so.
        gpu_threshold: A GPU that is used less than this waits.
        io_threshold: A core that waited for more than this waits for the disk.
        patience: Samples that have to be there before anything is said.
    """
    parameters = {
        "threshold": threshold,
        "gpu_threshold": gpu_threshold,
        "io_threshold": io_threshold,
        "patience": patience,
    }
    what, remedy = "while a core waited for the disk", "data.root on a faster disk, or cache.mode=auto"
    return _bottleneck("io_bottleneck", gpus, io_waits, parameters, io_threshold, what, remedy)


def gpu_memory_increase(
    memory: Mapping[str, Series], *, increase: float = 5.0, patience: int = 1000, window: int = 10
) -> Finding:
    """Looks for a GPU whose memory fills up (GPUMemoryIncrease).

    The moving average over `window` samples is compared with that over the `window` before.

    Args:
        memory: Percentage of each GPU's memory that is in use, by its name.
        increase: Largest rise of the moving average, in points.
        patience: Samples that have to be there before anything is said; memory fills up at the start.
        window: Samples of the moving average.
    """
    name = "gpu_memory_increase"
    parameters = {"increase": increase, "patience": patience, "window": window}
    if not memory:
        return Finding(name, False, NO_GPU, parameters=parameters, applies=False)
    longest = max(map(len, memory.values()))
    if longest <= max(patience, 2 * window):
        return _too_early(name, parameters, longest, patience)
    most = -math.inf
    for gpu, series in memory.items():
        values = np.asarray(series, dtype=float)
        means = np.convolve(values, np.full(window, 1 / window), "valid")  # means[i] is of values[i : i + window]
        rises = means[window:] - means[:-window]
        rises = rises[max(0, patience + 1 - 2 * window) :]  # those whose last sample lies behind the patience
        most = max(most, float(rises.max(initial=-math.inf)))
        over = np.flatnonzero(rises > increase)
        if over.size:
            step = int(over[0]) + max(0, patience + 1 - 2 * window) + 2 * window
            rise, now = float(rises[over[0]]), float(values[step - 1])
            message = (
                f"The memory of {gpu} rose by {rise:.0f} points to {now:.0f} % within {2 * window} samples: something "
                "holds on to tensors (a loss that is added up without .item(), say), or a batch is larger; try a "
                "smaller data.batch_size."
            )
            return Finding(name, True, message, step, {"rise": rise, "memory": now}, parameters)
    message = f"The GPU's memory never rose by more than {max(most, 0):.1f} points at a time."
    return Finding(name, False, message, figures={"rise": most}, parameters=parameters)


def data_loading(
    waits: Series,
    computes: Series,
    *,
    workers: int,
    cores: int,
    device: str = "cpu",
    threshold: float = 50.0,
    window: int = 200,
    patience: int = 20,
) -> Finding:
    """Looks for steps that mostly wait for their data, and says how many workers would be enough. No rule of AWS's.

    Args:
        waits: Seconds that each step waited for its batch.
        computes: Seconds that it took from then on.
        workers: Processes that load data now; 0 loads in the training process itself.
        cores: That this process may use.
        device: What waits, `cpu` or `cuda`.
        threshold: Largest percentage of the time that is spent waiting.
        window: Steps that are looked at, the last ones.
        patience: Steps that have to be there before anything is said.
    """
    name = "data_loading"
    parameters = {"threshold": threshold, "window": window, "patience": patience}
    waited, computed = np.asarray(waits[-window:], dtype=float), np.asarray(computes[-window:], dtype=float)
    steps = len(waited)
    if steps < patience:
        return _too_early(name, parameters, steps, patience, "steps")
    wait, compute = float(waited.sum()), float(computed.sum())
    share = 100 * wait / max(wait + compute, 1e-12)
    enough = workers_needed(wait, compute, workers)
    figures = {"wait_percent": share, "wait_seconds": wait / steps, "step_seconds": (wait + compute) / steps}
    who = "CPU" if device == "cpu" else "GPU"
    message = f"The {who} waited {share:.0f} % of the last {steps} steps for data"
    if share <= threshold:
        return Finding(name, False, f"{message}.", figures=figures, parameters=parameters)
    advised = min(enough, max(cores, 1))
    if advised > workers:
        message += f": data.num_workers={advised}"
        if enough > advised:
            message += f" (all cores; {enough} would be enough)"
    else:
        message += f", and {workers} workers already share {cores} cores: a machine with more cores"
    message += ", or cache.mode=auto with model.trainable=head, which reads each image once."
    return Finding(name, True, message, len(waits), {**figures, "workers": advised}, parameters)


def workers_needed(wait: float, compute: float, workers: int) -> int:
    """Workers that load a batch in the time that a step computes.

    In the training process itself a batch takes `wait` seconds to load; `workers` that cannot keep up deliver one every
    `wait + compute` seconds, so that each takes `workers` times as long.

    Args:
        wait: Seconds that a step waits.
        compute: Seconds that it takes from then on.
        workers: Processes that load data now.
    """
    loading = workers * (wait + compute) if workers else wait
    return max(1, math.ceil(loading / max(compute, 1e-12) - 1e-9)) if compute > 1e-3 * loading else 1000


def step_outlier(
    steps: Sequence[int], seconds: Series, *, stddev: float = 3.0, n_outliers: int = 10, patience: int = 100
) -> Finding:
    """Looks for steps that take much longer than the others (StepOutlier).

    Args:
        steps: Their numbers.
        seconds: How long each took.
        stddev: An outlier takes longer than the mean and so many standard deviations.
        n_outliers: So many are let pass.
        patience: Steps that have to be there before anything is said.
    """
    name = "step_outlier"
    parameters = {"stddev": stddev, "n_outliers": n_outliers, "patience": patience}
    if len(seconds) <= patience:
        return _too_early(name, parameters, len(seconds), patience, "steps")
    values = np.asarray(seconds, dtype=float)
    limit = float(values.mean() + stddev * values.std())
    places = outliers(values, stddev)
    figures = {"outliers": len(places), "limit_seconds": limit, "mean_seconds": float(values.mean())}
    message = f"{len(places)} of {len(values):,} steps took longer than {1000 * limit:.3g} ms"
    if len(places) <= n_outliers:
        return Finding(name, False, f"{message}.", figures=figures, parameters=parameters)
    message += (
        f" (on average {1000 * values.mean():.3g} ms): something else runs on this machine now and then, or "
        "data comes in bursts; try more data.num_workers."
    )
    return Finding(name, True, message, int(steps[places[n_outliers]]), figures, parameters)


def outliers(seconds: ArrayLike, stddev: float = 3.0) -> NDArray[np.intp]:
    """Places of the steps that take longer than the mean and `stddev` standard deviations."""
    values = np.asarray(seconds, dtype=float)
    return np.flatnonzero(values > values.mean() + stddev * values.std()) if values.size else np.empty(0, np.intp)


def _bottleneck(
    name: str,
    gpus: Mapping[str, Series],
    others: Sequence[Series],
    parameters: Mapping[str, float],
    limit: float,
    what: str,
    remedy: str,
) -> Finding:
    """In how many samples a GPU waited while something else was above its limit."""
    if not gpus or not others:
        return Finding(name, False, NO_GPU, parameters=parameters, applies=False)
    waiting = np.any(np.array([*gpus.values()], dtype=float) < parameters["gpu_threshold"], axis=0)
    busy = np.any(np.array([*others], dtype=float) > limit, axis=0)
    samples = int(waiting.size)
    if samples <= parameters["patience"]:
        return _too_early(name, parameters, samples, int(parameters["patience"]))
    share = 100 * float((waiting & busy).mean())
    message = f"A GPU waited {what} in {share:.0f} % of {samples:,} samples"
    if share > parameters["threshold"]:
        return Finding(name, True, f"{message}: try {remedy}.", samples, {"percent": share}, parameters)
    return Finding(name, False, f"{message}.", figures={"percent": share}, parameters=parameters)


def _too_early(name: str, parameters: Mapping[str, float], there: int, wanted: int, what: str = "samples") -> Finding:
    message = f"Too early to say: {there} {what}, and it waits for {wanted:,}."
    return Finding(name, False, message, parameters=parameters)
