"""`make bench`: what computing the frozen part once is worth, side by side in one process on the same files.

    python -m benchmarks                      everything; writes benchmarks/results/<machine>.local.json
    python -m benchmarks --only training      loops, warm and search; any part can be named
    python -m benchmarks --record             writes the result that the documentation cites, <machine>.json

`benchmarks.training` says what is compared and what is scaled.
"""

import argparse
import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.agreement import agreement
from benchmarks.bench import Bench
from benchmarks.extraction import decoding, extraction, machine
from benchmarks.fixed import first_loss, fixed
from benchmarks.profiling import profiling
from benchmarks.serving import serving
from benchmarks.stub import stub
from benchmarks.training import loops, search, tasks, warm
from dogbreed.core.files import atomic_write
from dogbreed.report import environment
from dogbreed.training.build import prepare_process

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "machine": machine,
    "decoding": decoding,
    "extraction": extraction,
    "loops": loops,
    "warm": warm,
    "search": search,
    "fixed": fixed,
    "first_loss": first_loss,
    "profiling": profiling,
    "agreement": agreement,
    "serving": serving,
    "stub": stub,
}
GROUPS = {"training": ("loops", "warm", "search")}
FOUR, FIFTY = "4 trials and the final training", "50 trials and the final training"
TARGETS = (  # what, at least or at most, the figure's name
    ("1 epoch cold, float32", "2.5x", "1 epoch cold_float32"),
    ("5 epochs cold, float32", "6.5x", "5 epochs cold_float32"),
    ("5 epochs cold, bfloat16", "12x", "5 epochs cold_bfloat16"),
    (f"{FOUR}, cold, float32", "15x", f"{FOUR} cold_float32"),
    (f"{FOUR}, cold, bfloat16", "60x", f"{FOUR} cold_bfloat16"),
    (f"{FIFTY}, cold, float32", "150x", f"{FIFTY} cold_float32"),
    ("an epoch on a warm cache, dropout and flips kept", "1,000x", "1 epoch warm"),
    ("one more trial of 5 epochs, mean over 32 to 512 per step", "0.5 s", "one_more_trial_seconds"),
    ("frozen part against torchvision's called plainly, float32", "2.7x", "extraction_float32_ratio"),
    ("the same in bfloat16", "5x", "extraction_bfloat16_ratio"),
    ("training of heads, share of the products' rate, 512 per step", "0.6", "head_share_512"),
    ("the same, mean over 32 to 512 per step", "0.6", "head_share"),
    ("a cold run's first line with a loss, 8,351 images", "60 s", "first_loss_seconds"),
    ("processor seconds of a warm run beside its epochs", "10 s", "fixed_cpu_seconds"),
    ("a run with system metrics, compared with one without", "1.02", "profiling_system_ratio"),
    ("what HTTP adds to an answer, one client that keeps its connection", "1 ms", "serving_http_milliseconds"),
    ("over the stub: host time of a warm step of 512", "1.5 ms", "stub_warm_step_host_ms"),
    ("over the stub: waits and pageable copies of a warm step", "0", "stub_warm_step_waits_and_copies"),
    ("over the stub: launches of a step of 50 heads over those of one", "1", "stub_launches_ratio"),
    ("over the stub: processor's time to feed a view", "0.1 ms", "stub_extraction_feed_ms_per_view"),
)


def targets_and_measured(measured: dict[str, float]) -> list[tuple[str, str, float]]:
    """Return each target beside what was measured, where it was: (what, target, measured)."""
    figures = dict(measured)
    if "stub_warm_step_waits" in measured:
        waits = measured["stub_warm_step_waits"] + measured["stub_warm_step_pageable_copies"]
        figures["stub_warm_step_waits_and_copies"] = waits
        figures["stub_launches_ratio"] = measured["stub_stack_of_50_launches"] / measured["stub_stack_of_1_launches"]
    for task, seconds in tasks(measured).items():
        figures |= {f"{task} {way}": seconds["published"] / taken for way, taken in seconds.items()}
    return [(what, target, figures[name]) for what, target, name in TARGETS if name in figures]


def show(measured: dict[str, float]) -> None:
    """Print the seconds of each task in each loop, and each target beside what was measured."""
    rows = tasks(measured)
    for number, (task, seconds) in enumerate(rows.items()):
        if number == 0:
            print(f"\n{'seconds, scaled to dogImages':34}" + "".join(f"{way:>15}" for way in seconds))
        print(f"{task:34}" + "".join(f"{taken:15,.1f}" for taken in seconds.values()))
    print(f"\n{'x: compared with the published loop':66} {'target':>8} {'measured':>10}")
    for what, target, value in targets_and_measured(measured):
        print(f"{what:66} {target:>8} {value:>10.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", nargs="+", choices=[*PARTS, *GROUPS], default=list(PARTS), help="some parts")
    parser.add_argument("--photographs", type=Path, help="folder laid out as dogImages, for agreement")
    parser.add_argument("--weights", type=Path, help="state_dict of a pretrained MobileNetV2, for agreement")
    parser.add_argument("--record", action="store_true", help="write the tracked result, not the one beside it")
    arguments = parser.parse_args()
    parts = [part for name in arguments.only for part in GROUPS.get(name, (name,))]
    warnings.filterwarnings("ignore")
    prepare_process()
    machine_facts = environment.machine()
    print(", ".join(machine_facts.values()))
    machine_facts["instructions"] = torch.backends.cpu.get_cpu_capability()
    main = machine_facts["GPU" if torch.cuda.is_available() else "processor"]
    file = result_file(f"{main} {machine_facts['instructions']}", arguments.record)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.photographs, arguments.weights)
        for name in parts:
            print(name, flush=True)
            PARTS[name](bench)
            measured = write(file, machine_facts, bench.measured)  # a later part that fails takes nothing with it
    show(measured)
    print(f"\n{file}")


def result_file(processor: str, record: bool) -> Path:
    """Return where a result goes: to the tracked file of this processor only where that is asked for."""
    name = "".join(c if c.isalnum() else "-" for c in processor).strip("-").lower()
    return RESULTS / f"{name}{'' if record else '.local'}.json"


def write(file: Path, machine: dict[str, Any], measured: dict[str, float]) -> dict[str, float]:
    """Write the result; parts that did not run this time keep their figures if machine and versions are the same.

    Returns:
        The figures, with those that were kept.
    """
    result: dict[str, Any] = {"machine": machine, "versions": environment.versions()}
    before = json.loads(file.read_text()) if file.exists() else {}
    same = all(before.get(key) == result[key] for key in result)
    measured = {**(before["measured"] if same else {}), **measured}
    result["seconds"] = tasks(measured)
    result["targets"] = [
        {"what": what, "target": target, "measured": value} for what, target, value in targets_and_measured(measured)
    ]
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as beside:
        beside.write_text(json.dumps({**result, "measured": measured}, indent=2) + "\n")
    return measured


if __name__ == "__main__":
    main()
