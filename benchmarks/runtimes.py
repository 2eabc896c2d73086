"""An exported model on a CPU by torch, by ONNX Runtime and in int8: milliseconds per image, and agreement.

python -m benchmarks.runtimes MODEL_DIR IMAGES        after python -m dogbreed.export --runtime onnx, and int8

The runtimes take turns, from inputs that are decoded already. On a machine that does other work as well the seconds of
the CPU say more than those of the clock; both are printed, as medians.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from dogbreed import Predictor
from dogbreed.data.layout import list_images
from dogbreed.models.manifest import RUNTIME_FILES, WEIGHTS, find_model

ROUNDS = 15
FILES = {"torch": WEIGHTS, **RUNTIME_FILES}


def main() -> None:
    """Print a table: one row per runtime."""
    frame = argparse.ArgumentParser()
    frame.add_argument("model", type=Path)
    frame.add_argument("images", type=Path)
    frame.add_argument("--most", type=int, default=360, help="images on which the runtimes have to agree")
    arguments = frame.parse_args()
    folder = find_model(arguments.model)
    runtimes = [name for name, file in FILES.items() if (folder / file).is_file()]
    predictors = {name: Predictor(folder, device="cpu", runtime=name) for name in runtimes}
    one = predictors["torch"]
    files = list_images(arguments.images)
    inputs = torch.stack([one.read(file) for file in files[:: -(-len(files) // arguments.most)]])
    labels = {
        name: torch.cat([each.logits(part).argmax(1) for part in inputs.split(8)]) for name, each in predictors.items()
    }
    taken = {count: _in_turns(predictors, inputs[:count]) for count in (1, 8)}
    print(f"{one.model.backbone}, {torch.get_num_threads()} threads, {len(inputs)} images; ms per image: CPU (clock)")
    for name in runtimes:
        times = ", ".join(f"batch {count}: {cpu:.1f} ({clock:.1f})" for count, (cpu, clock) in
                          ((count, rows[name]) for count, rows in taken.items()))  # fmt: skip
        same = float((labels[name] == labels["torch"]).double().mean())
        print(f"{name:<6} {(folder / FILES[name]).stat().st_size / 1e6:7.1f} MB  {times}  same top-1 {same:.1%}")


def _in_turns(predictors: dict[str, Predictor], inputs: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Return milliseconds per image, of the CPU and of the clock."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in predictors}
    for _ in range(ROUNDS + 1):
        for name, each in predictors.items():
            started = time.process_time(), time.perf_counter()
            each.logits(inputs)
            taken[name].append((time.process_time() - started[0], time.perf_counter() - started[1]))
    scale = 1000 / len(inputs)
    return {
        name: (scale * statistics.median(cpu for cpu, _ in rows[1:]), scale * statistics.median(s for _, s in rows[1:]))
        for name, rows in taken.items()
    }


if __name__ == "__main__":
    main()
