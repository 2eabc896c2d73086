"""The profile: what a run under it leaves, that its numbers add up, and that its page holds for every kind of run."""

import csv
import json
import math
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import runs
from support.browser import browser, chromium  # noqa: F401
from support.reports import read_page

from dogbreed.config.compose import compose
from dogbreed.monitor.profiler import PHASES, Operator, Profile, Step, StepTimer
from dogbreed.monitor.rules import Finding
from dogbreed.monitor.system_metrics import Gpus, Sample, SystemMetrics
from dogbreed.monitor.system_rules import outliers, step_outlier
from dogbreed.report import profile_report
from dogbreed.report.profile_plots import _thinned

pytestmark = pytest.mark.slow


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def profiled(tmp_path_factory):
    """A run under the whole profile; 24 steps, of which ten are traced."""
    folder = tmp_path_factory.mktemp("profiled") / "run"
    more = ("trainer.max_epochs=4", "cache.mode=off", "data.batch_size=3", "profile=true")
    ran = runs.train_in(folder, *more)
    return folder, ran


def test_a_profiled_run_leaves_its_profile(profiled):
    folder, ran = profiled
    assert "profile/report.html" in ran.out
    left = {path.name for path in (folder / "profile").iterdir()}
    assert left == {"report.html", "trace.json", "operators.csv", "steps.csv", "system.csv"}
    page = read_page(folder / "profile" / "report.html")
    for title in ("Rules", "Where the time went", "Time per step", "Most expensive"):
        assert title in page
    assert "Cache" not in ran.err
    assert "USDT" not in ran.err


def test_the_phases_of_a_step_add_up(profiled):
    folder, _ = profiled
    steps = rows(folder / "profile" / "steps.csv")
    assert [int(step["step"]) for step in steps] == list(range(1, 25))
    for step in steps:
        phases = [float(step[name]) for name in PHASES]
        assert min(phases) >= 0
        assert sum(phases) == pytest.approx(float(step["seconds"]), abs=2e-5)
    for name in ("data", "forward", "backward", "optimizer", "callbacks"):
        assert all(float(step[name]) > 0 for step in steps), name
    # A validation lies between the epochs, and belongs to no step: the run is longer than its steps.
    assert sum(float(step["seconds"]) for step in steps) < sum(row["seconds"] for row in runs.history(folder))


def test_ten_steps_are_traced(profiled):
    folder, _ = profiled
    traced = [int(step["step"]) for step in rows(folder / "profile" / "steps.csv") if step["traced"] == "1"]
    assert traced == list(range(6, 16))
    trace = json.loads((folder / "profile" / "trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("ProfilerStep#") for name in names if name) >= 10
    operators = {row["operator"]: row for row in rows(folder / "profile" / "operators.csv")}
    assert int(operators["aten::conv2d"]["calls"]) == 26 * 10, "squeezenet1_1 has 26; the validation is not traced"


@pytest.mark.slow
def test_a_profile_changes_nothing_in_the_result(profiled, tmp_path):
    folder, _ = profiled
    runs.train_in(tmp_path / "plain", "trainer.max_epochs=4", "cache.mode=off", "data.batch_size=3")
    runs.assert_same_result(folder, tmp_path / "plain")


def test_only_the_machine(tmp_path):
    runs.train_in(tmp_path / "run", "profile=system")
    folder = tmp_path / "run" / "profile"
    assert {path.name for path in folder.iterdir()} == {"report.html", "system.csv"}
    assert "Only the machine was watched" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["profile=everything"], "profile=everything is unknown; it is one of true, system, false."),
        (["profile=true", "trainer.profiler=simple"], "profile=true and trainer.profiler=simple exclude each other"),
    ],
)
def test_a_bad_setting_is_a_sentence(tmp_path, overrides, said):
    ran = runs.run(*runs.overrides(tmp_path / "run", *overrides))
    assert ran.code == 2
    assert said in ran.err
    assert not (tmp_path / "run").exists()


def test_the_thread_ends_with_the_run(profiled):
    import threading

    assert "system-metrics" not in [thread.name for thread in threading.enumerate()]


# The timer by itself


def test_each_second_counts_once():
    """A callback within the optimizer's step, which itself computes forward and backward."""
    timer = StepTimer()
    strategy, module = "[Strategy]SingleDeviceStrategy", "[LightningModule]DogBreedClassifier"
    for _ in range(2):
        timer.start("[_TrainingEpochLoop].train_dataloader_next")
        time.sleep(0.01)
        timer.stop("[_TrainingEpochLoop].train_dataloader_next")
        with timer.profile(f"{strategy}.batch_to_device"):
            time.sleep(0.002)
        with timer.profile("run_training_batch"), timer.profile(f"{module}.optimizer_step"):
            with timer.profile(f"{strategy}.training_step"):
                time.sleep(0.02)
            with timer.profile(f"{strategy}.backward"):
                time.sleep(0.03)
            with timer.profile("[Callback]X.on_before_optimizer_step"):
                time.sleep(0.004)
            time.sleep(0.006)
        time.sleep(0.008)
    with timer.profile("[Callback]X.on_validation_start"):
        time.sleep(0.05)  # belongs to no step
    assert [step.number for step in timer.steps] == [1, 2]
    for step in timer.steps:
        seconds = dict(zip(PHASES, step.phases, strict=True))
        slept = {"data": 10, "transfer": 2, "forward": 20, "backward": 30, "optimizer": 6, "callbacks": 4, "other": 8}
        for name, milliseconds in slept.items():
            assert seconds[name] >= milliseconds / 1000, name
        assert step.seconds == pytest.approx(sum(seconds.values())), "each second counted once"


# The machine


def test_a_busy_core_is_seen():
    machine = SystemMetrics(interval=0.05)
    machine.start()
    end = time.monotonic() + 0.6
    while time.monotonic() < end:
        math.sqrt(2.0)
    machine.stop()
    samples = machine.samples
    assert len(samples) >= 4
    assert all(len(sample.cores) == machine.cores for sample in samples)
    assert max(max(sample.cores) for sample in samples) > 90
    assert all(0 <= share <= 100 for sample in samples for share in (*sample.cores, *sample.io_waits, sample.memory))
    assert all(later.time > earlier.time for earlier, later in pairwise(samples))
    assert samples[-1].process_memory > 1e7
    assert samples[-1].disk_read >= 0 or math.isnan(samples[-1].disk_read)


class Nvml:
    """Stands for NVIDIA's library, which only a machine with a GPU has."""

    class NVMLError(Exception):
        pass

    class NVMLError_LibraryNotFound(NVMLError):
        pass

    def __init__(self, cards: int = 2, fails: type[Exception] | None = None) -> None:
        self.cards, self.fails = cards, fails

    def nvmlInit(self):
        if self.fails:
            raise self.fails("Driver Not Loaded.")

    def nvmlDeviceGetCount(self):
        return self.cards

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{handle}abc".encode()

    def nvmlDeviceGetUtilizationRates(self, handle):
        if handle == 1:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(gpu=76)

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(used=4e9, total=16e9)


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["GPU 0", "GPU 1"]), ("1", ["GPU 1"]), ("GPU-0a", ["GPU 0"]), ("", []), ("-1", [])]
)
def test_the_gpus_that_a_process_may_use(monkeypatch, visible, names):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml())
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpus = Gpus()
    assert gpus.names == names
    assert bool(gpus.reason) is not bool(names)
    used, full = gpus.look()
    assert full == (25.0,) * len(names)
    if "GPU 0" in names:
        assert used[0] == 76
    if names == ["GPU 1"]:
        assert math.isnan(used[0])


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, "no NVIDIA GPU"),
        (Nvml(fails=Nvml.NVMLError_LibraryNotFound), "no NVIDIA GPU, or no driver"),
        (Nvml(fails=Nvml.NVMLError), "NVML says driver not loaded."),
    ],
)
def test_where_nvml_is_missing_there_is_a_sentence(monkeypatch, module, said):
    monkeypatch.setitem(sys.modules, "pynvml", module)
    gpus = Gpus()
    assert gpus.names == []
    assert gpus.look() == ((), ())
    assert said in gpus.reason or (module is None and "pip install nvidia-ml-py" in gpus.reason)
    assert gpus.reason.endswith(".")


# The page


def sample(at: float, gpus: int = 0, cores: int = 2, nan: bool = False) -> Sample:
    bad = math.nan if nan else 1e6
    busy = tuple(50.0 + 10 * index for index in range(cores))
    return Sample(at, busy, (0.0,) * cores, 40.0, 10**9, bad, bad, bad, bad, (76.0,) * gpus, (30.0,) * gpus)


def step(number: int, seconds: float = 0.1, traced: bool = False) -> Step:
    return Step(number, seconds, (seconds / 2, 0.0, seconds / 2, *([0.0] * 4)), traced)


EMPTY = Profile([], [(0.0, "preparing")], 1.0)
FULL = Profile(
    samples=[sample(place / 2, gpus=2) for place in range(50)],
    stages=[(0.0, "preparing"), (5.0, "training"), (20.0, "evaluation")],
    seconds=25.0,
    gpus=["GPU 0", "GPU 1"],
    steps=[step(number, 2.0 if number == 70 else 0.1, 6 <= number < 16) for number in range(1, 151)],
    operators=[Operator("aten::<b>add</b>", 3, 0.2, 0.1), *(Operator(f"op{i}", 1, 0.01, 0.0) for i in range(30))],
    device="cuda",
    findings=[Finding("data_loading", True, "The GPU waited <76 %> of it.", 200, {}, {"threshold": 50})],
)


def page_of(profile: Profile, folder: Path) -> str:
    profile_report.write(folder, profile, "net <i>on</i> dogs", compose(["data.root=dogs"]))
    return read_page(folder / "report.html")


@pytest.mark.parametrize(
    "profile",
    [
        EMPTY,
        FULL,
        Profile([sample(0.5)] * 3, [(0.0, "preparing")], 0.0, steps=[step(1)], trace_reason="The run was too short."),
        Profile([sample(i / 2, cores=1, nan=True) for i in range(9)], [(0.0, "preparing"), (4.9, "training")], 5.0),
        Profile([sample(i / 2, cores=64) for i in range(2000)], [(0.0, "preparing")], 1000.0),
        Profile([], [], 3.0, steps=[step(number, traced=True) for number in range(10)]),
        Profile([], [], 3.0, steps=[step(number, seconds=0.0) for number in range(10)]),
    ],
    ids=["nothing", "everything", "one-step", "one-core", "many-cores", "traced-only", "no-time"],
)
def test_the_page_holds_for_every_kind_of_run(profile, tmp_path):
    page_of(profile, tmp_path)


def test_what_the_page_says(tmp_path):
    page = page_of(FULL, tmp_path)
    assert "net &lt;i&gt;on&lt;/i&gt; dogs" in page
    assert "aten::&lt;b&gt;add" in page
    assert "The GPU waited &lt;76 %&gt; of it." in page
    assert "60 % of the run went into training" in page
    assert "50 % of a training step into waiting for data" in page
    assert "The 10 steps under torch.profiler" in page
    assert "1 step took longer than the mean and three standard deviations" in page
    assert "python -m dogbreed.train data.root=dogs" in page
    assert "NVIDIA" in page_of(Profile([], [], 1.0, gpu_reason="This machine has no NVIDIA GPU."), tmp_path)


def test_a_full_disk_is_told_not_raised(tmp_path, largest_file, capsys):
    with largest_file(1000):
        profile_report.write_safely(tmp_path / "profile", FULL, "net", {})
    assert "The profile could not be written" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.html"))


def test_a_thinned_line_keeps_its_peaks():
    import numpy as np

    values = np.zeros(10_000)
    values[7777] = 1.0
    keep = _thinned(values, 400)
    assert 7777 in keep
    assert len(keep) <= 400
    assert (np.diff(keep) > 0).all()


def test_outliers_of_the_page_are_those_of_the_rule():
    seconds = [0.1] * 200 + [5.0] * 2
    assert len(outliers(seconds)) == step_outlier(range(202), seconds).figures["outliers"] == 2
    assert len(outliers([])) == 0


def test_the_page_in_a_browser(profiled, browser):  # noqa: F811
    folder, _ = profiled
    for theme in ("light", "dark"):
        for width in (1200, 390):
            browser.open(folder / "profile" / "report.html", theme=theme, width=width)
            assert browser.errors == []
            assert browser.outside == []
            assert browser.too_wide() == []
