"""What the machine does while a run goes on: a thread that looks at processor, memory, disk, network and GPU.

Every 500 ms, as SageMaker's profiler does by default. A look takes well under a millisecond.
"""

import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

INTERVAL = 0.5  # seconds
MOST_SAMPLES = 100_000  # 14 hours; of a longer run the last ones are kept


class Sample(NamedTuple):
    """One look. Utilisation is in percent and that since the look before; rates are bytes per second.

    Attributes:
        time: Seconds since the start.
        cores: Utilisation of each core that this process may use.
        io_waits: What part of its time each of them waited for input and output.
        memory: Percentage of the machine's memory that is in use.
        process_memory: Bytes that this process holds in memory, without its data workers.
        disk_read: Of all disks; not a number where the system does not tell.
        disk_written: Likewise.
        received: From the network.
        sent: To it.
        gpus: Utilisation of each GPU.
        gpu_memory: Percentage of each GPU's memory that is in use.
    """

    time: float
    cores: tuple[float, ...]
    io_waits: tuple[float, ...]
    memory: float
    process_memory: int
    disk_read: float
    disk_written: float
    received: float
    sent: float
    gpus: tuple[float, ...]
    gpu_memory: tuple[float, ...]


class Gpus:
    """Watch NVIDIA's GPUs, those that this process may use, through NVML.

    Attributes:
        names: `GPU 0`, ... by the machine's own numbers.
        reason: Why there are none, as a sentence; empty where there are some.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._handles: list[Any] = []
        self._nvml: Any = None
        self.reason = self._open()

    def _open(self) -> str:
        try:
            import pynvml
        except ImportError:
            if Path("/proc/driver/nvidia/version").exists():
                return "The GPU was not watched: that needs NVML, pip install nvidia-ml-py."
            return "This machine has no NVIDIA GPU."
        try:
            pynvml.nvmlInit()
            for index in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                if _visible(index, str(_text(pynvml.nvmlDeviceGetUUID(handle)))):
                    self.names.append(f"GPU {index}")
                    self._handles.append(handle)
        except pynvml.NVMLError_LibraryNotFound:
            return "This machine has no NVIDIA GPU, or no driver for it."
        except pynvml.NVMLError as error:
            self.names, self._handles = [], []
            return f"The GPU was not watched: NVML says {str(error).rstrip('.').lower()}."
        self._nvml = pynvml
        return "" if self.names else "This process may use none of the machine's GPUs."

    def look(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return utilisation and memory in use of each GPU, in percent; not a number where NVML does not know."""
        used, full = [], []
        for handle in self._handles:
            busy = share = math.nan
            with suppress(self._nvml.NVMLError):
                busy = float(self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            with suppress(self._nvml.NVMLError):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                share = 100 * memory.used / memory.total
            used.append(busy)
            full.append(share)
        return tuple(used), tuple(full)


class SystemMetrics:
    """Watch the machine from a thread of its own.

    Args:
        interval: Seconds between two looks.

    Attributes:
        gpus: Those that are watched.
        cores: How many cores this process may use.
    """

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self.gpus = Gpus()
        self._mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.cores = len(self._mine) or os.cpu_count() or 1
        self._process = psutil.Process()
        self._samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._started = time.monotonic()
        self._before = self._counters()

    @property
    def samples(self) -> list[Sample]:
        """Return those taken so far."""
        with self._lock:
            return list(self._samples)

    def now(self) -> float:
        """Return the seconds since the start, as in `Sample.time`."""
        return time.monotonic() - self._started

    def start(self) -> "SystemMetrics":
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread; what was seen stays."""
        self._end.set()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        at = time.monotonic()
        while True:
            at += self.interval
            if at < time.monotonic():  # held up: it does not catch up, since a look needs some time to look at
                at = time.monotonic() + self.interval
            if self._end.wait(at - time.monotonic()):
                return
            with suppress(psutil.Error, OSError):  # what cannot be seen now, may be seen next time
                sample = self.look()
                with self._lock:
                    self._samples.append(sample)

    def look(self) -> Sample:
        """Return what has happened since the look before."""
        before, now = self._before, self._counters()
        self._before = now
        seconds = max(now.time - before.time, 1e-9)
        shares = [_shares(old, new) for old, new in zip(before.cores, now.cores, strict=True)]
        read, written, received, sent = (
            (new - old) / seconds for old, new in zip(before.bytes, now.bytes, strict=True)
        )
        used, full = self.gpus.look()
        return Sample(
            now.time - self._started,
            tuple(busy for busy, _ in shares),
            tuple(waited for _, waited in shares),
            psutil.virtual_memory().percent,
            self._process.memory_info().rss,
            read,
            written,
            received,
            sent,
            used,
            full,
        )

    def _counters(self) -> "_Counters":
        cores = psutil.cpu_times(percpu=True)
        if self._mine and self._mine[-1] < len(cores):
            cores = [cores[index] for index in self._mine]
        disk: Any = None
        net: Any = None
        with suppress(psutil.Error, OSError, RuntimeError):  # containers may hide them
            disk = psutil.disk_io_counters()
        with suppress(psutil.Error, OSError, RuntimeError):
            net = psutil.net_io_counters()
        read, written = (disk.read_bytes, disk.write_bytes) if disk else (math.nan, math.nan)
        received, sent = (net.bytes_recv, net.bytes_sent) if net else (math.nan, math.nan)
        return _Counters(time.monotonic(), cores, (read, written, received, sent))


class _Counters(NamedTuple):
    """Counts of the system since it was started."""

    time: float
    cores: Sequence[Any]
    bytes: tuple[float, float, float, float]


def _shares(before: Any, now: Any) -> tuple[float, float]:
    """Return how much of a core's time it worked, and waited for input and output, in percent."""
    spent = {name: max(0.0, getattr(now, name) - getattr(before, name)) for name in now._fields}
    # What guests spend is counted in user as well.
    total = sum(spent.values()) - spent.get("guest", 0.0) - spent.get("guest_nice", 0.0)
    waited = spent.get("iowait", 0.0)
    if total <= 0:
        return 0.0, 0.0
    return 100 * max(0.0, total - spent["idle"] - waited) / total, 100 * waited / total


def _visible(index: int, uuid: str) -> bool:
    """Return whether CUDA_VISIBLE_DEVICES names a GPU, by its number or by the start of its id."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None or visible == "all":
        return True
    names = [name.strip() for name in visible.split(",")]
    return str(index) in names or any(name and not name.isdigit() and uuid.startswith(name) for name in names)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
