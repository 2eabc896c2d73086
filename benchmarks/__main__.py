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

from benchmarks.agreement import agreement
from benchmarks.bench import Bench
from benchmarks.extraction import decoding, extraction, machine
from benchmarks.fixed import fixed
from benchmarks.profiling import profiling
from benchmarks.serving import serving
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
    "profiling": profiling,
    "agreement": agreement,
    "serving": serving,
}
GROUPS = {"training": ("loops", "warm", "search")}
NEEDED = ("machine", "extraction", "loops", "warm", "search", "profiling")  # for the table


def targets_and_measured(measured: dict[str, float]) -> list[tuple[str, str, float]]:
    """Return each target beside what was measured: (what, target, measured)."""
    rows = tasks(measured)

    def times(task: str, way: str) -> float:
        return rows[task]["published"] / rows[task][way]

    search4, search50 = "4 trials and the final training", "50 trials and the final training"
    plain, matmul = measured["plain_images_per_second"], measured["matmul_gflops_float32"]
    return [
        ("an epoch on a warm cache, dropout and flips kept", "500x", times("1 epoch", "warm")),
        ("5 epochs cold, float32", "3x", times("5 epochs", "cold_float32")),
        ("5 epochs cold, bfloat16", "12x", times("5 epochs", "cold_bfloat16")),
        (f"{search4}, cold, float32", "15x", times(search4, "cold_float32")),
        (f"{search4}, cold, bfloat16", "60x", times(search4, "cold_bfloat16")),
        (f"{search50}, cold, float32", "150x", times(search50, "cold_float32")),
        ("one more trial of 5 epochs", "1 s or less", measured["one_more_trial_seconds"]),
        ("extraction, float32", "1.3x", measured["extraction_float32_per_second"] / plain),
        ("extraction, bfloat16", "5x", measured["extraction_bfloat16_per_second"] / plain),
        (
            "head training, share of the matrix product's rate, 512 per step",
            "0.6",
            measured["head_gflops_512"] / matmul,
        ),
        ("the same, mean over 32 to 512 per step", "0.6", measured["head_gflops"] / matmul),
        ("a run with system metrics, compared with one without", "1.02 or less", measured["profiling_system_ratio"]),
    ]


def show(measured: dict[str, float]) -> None:
    """Print the seconds of each task in each loop, and each target beside what was measured."""
    rows = tasks(measured)
    ways = list(next(iter(rows.values())))
    print(f"\n{'seconds, scaled to dogImages':34}" + "".join(f"{way:>15}" for way in ways))
    for task, seconds in rows.items():
        print(f"{task:34}" + "".join(f"{seconds[way]:15,.1f}" for way in ways))
    print(f"\n{'compared with the published loop':64} {'target':>12} {'measured':>10}")
    for what, target, value in targets_and_measured(measured):
        print(f"{what:64} {target:>12} {value:>10.3g}")


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
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.photographs, arguments.weights)
        for name in parts:
            print(name, flush=True)
            PARTS[name](bench)
    if set(NEEDED) <= set(parts):
        show(bench.measured)
    main = machine_facts["GPU"] if bench.device.type == "cuda" else machine_facts["processor"]
    print(f"\n{write(result_file(main, arguments.record), machine_facts, bench.measured)}")


def result_file(processor: str, record: bool) -> Path:
    """Return where a result goes: to the tracked file of this processor only where that is asked for."""
    name = "".join(c if c.isalnum() else "-" for c in processor).strip("-").lower()
    return RESULTS / f"{name}{'' if record else '.local'}.json"


def write(file: Path, machine: dict[str, Any], measured: dict[str, float]) -> Path:
    """Write the result; parts that did not run this time keep their figures if machine and versions are the same."""
    result: dict[str, Any] = {"machine": machine, "versions": environment.versions()}
    before = json.loads(file.read_text()) if file.exists() else {}
    same = all(before.get(key) == result[key] for key in result)
    measured = {**(before["measured"] if same else {}), **measured}
    try:
        result["seconds"] = tasks(measured)
        result["targets"] = [
            {"what": what, "target": target, "measured": value}
            for what, target, value in targets_and_measured(measured)
        ]
    except KeyError:  # parts that have never run
        pass
    file.parent.mkdir(exist_ok=True)
    with atomic_write(file) as beside:
        beside.write_text(json.dumps({**result, "measured": measured}, indent=2) + "\n")
    return file


if __name__ == "__main__":
    main()
