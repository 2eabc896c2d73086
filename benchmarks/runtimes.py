"""An exported model on a CPU by torch, by ONNX Runtime and in int8: milliseconds per image, and agreement.

python -m benchmarks.runtimes MODEL_DIR IMAGES        after python -m dogbreed.export --runtime onnx, and int8

Where OpenVINO is installed (pip install openvino), it computes the same two files, for comparison alone.

The runtimes take turns, from inputs that are decoded already. On a machine that does other work as well the seconds of
the CPU say more than those of the clock; both are printed, as medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from dogbreed import Predictor
from dogbreed.data.layout import list_images
from dogbreed.models.manifest import RUNTIME_FILES, WEIGHTS, find_model

ROUNDS = 15
FILES = {"torch": WEIGHTS, **RUNTIME_FILES}
Compute = Callable[[Tensor], Tensor]  # inputs [N, 3, S, S] to logits [N, classes]


def main() -> None:
    """Print a table: one row per runtime."""
    frame = argparse.ArgumentParser()
    frame.add_argument("model", type=Path)
    frame.add_argument("images", type=Path)
    frame.add_argument("--most", type=int, default=360, help="images on which the runtimes have to agree")
    arguments = frame.parse_args()
    folder = find_model(arguments.model)
    files = {name: folder / file for name, file in FILES.items() if (folder / file).is_file()}
    one = Predictor(folder, device="cpu", runtime="torch")
    computes = {name: Predictor(folder, device="cpu", runtime=name).logits for name in files}
    for name in [name for name in RUNTIME_FILES if name in files and find_spec("openvino")]:
        files[f"{name}, OpenVINO"], computes[f"{name}, OpenVINO"] = files[name], _openvino(files[name])
    images = list_images(arguments.images)
    inputs = torch.stack([one.read(file) for file in images[:: -(-len(images) // arguments.most)]])
    labels = {
        name: torch.cat([compute(part).argmax(1) for part in inputs.split(8)]) for name, compute in computes.items()
    }
    taken = {count: _in_turns(computes, inputs[:count]) for count in (1, 8)}
    print(f"{one.model.backbone}, {torch.get_num_threads()} threads, {len(inputs)} images; ms per image: CPU (clock)")
    print(f"{'':<14} {'size':>10}  {'one image':>16}  {'batch of 8':>16}  {'speed (CPU)':>11}  same class as torch")
    base = "onnx" if "onnx" in files else "torch"
    for name, file in files.items():
        times = [f"{cpu:.1f} ({clock:.1f})" for cpu, clock in (rows[name] for rows in taken.values())]
        speed = f"{taken[8][base][0] / taken[8][name][0]:.2f} x"
        same = float((labels[name] == labels["torch"]).double().mean())
        size = f"{file.stat().st_size / 1e6:.1f} MB"
        print(f"{name:<14} {size:>10}  {times[0]:>16}  {times[1]:>16}  {speed:>11}  {same:.1%}")
    print(f"speed: in batches of 8, that of {base} is 1")


def _openvino(file: Path) -> Compute:
    """Return what OpenVINO makes of an ONNX file, with as many threads as torch has."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(file), "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
    request = compiled.create_infer_request()
    return lambda inputs: torch.from_numpy(request.infer({"images": inputs.contiguous().numpy()})["logits"].copy())


def _in_turns(computes: dict[str, Compute], inputs: Tensor) -> dict[str, tuple[float, float]]:
    """Return milliseconds per image, of the CPU and of the clock."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in computes}
    for _ in range(ROUNDS + 1):
        for name, compute in computes.items():
            started = time.process_time(), time.perf_counter()
            compute(inputs)
            taken[name].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    scale = 1000 / len(inputs)
    return {
        name: (scale * statistics.median(cpu for cpu, _ in rows[1:]), scale * statistics.median(s for _, s in rows[1:]))
        for name, rows in taken.items()
    }


if __name__ == "__main__":
    main()
