"""What a warm run of VGG16 costs beside its epochs: imports, the cut, hashes, checkpoints, the export, the report."""

import os
import resource
import subprocess
import sys

from benchmarks.bench import Bench


def fixed(bench: Bench) -> None:
    """Processor seconds of a whole `dogbreed.train` on a few drawn photographs whose features are there."""
    command = [
        *(sys.executable, "-m", "dogbreed.train", f"data.root={bench.folder / 'sample'}", "model.weights=none"),
        *(f"cache.dir={bench.folder / 'fixed-cache'}", f"output_dir={bench.folder / 'fixed'}", "overwrite=true"),
        *("trainer.max_epochs=1", f"trainer.accelerator={bench.device.type}", "data.num_workers=0", "progress=none"),
    ]

    def train() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    train()  # computes the features
    bench.note("fixed_cpu_seconds", min(train() for _ in range(3)))
