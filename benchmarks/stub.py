"""A CUDA runtime without a GPU: torch's own code runs over it, kernels are counted and not executed.

It is built from `cuda_stub/` with the headers that torch's wheels bring along, and preloaded into a process of its own.
The part `stub` of the benchmark counts there what a GPU would be told to do, and what the host takes to tell it.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.bench import Bench

ROOT = Path(__file__).parents[1]
SOURCES = Path(__file__).with_name("cuda_stub")
_HEADERS = (
    Path("/usr/local/cuda/include"),
    Path(sysconfig.get_path("purelib")) / "triton" / "backends" / "nvidia" / "include",
)
_KEPT: list[TemporaryDirectory[str]] = []


class NoStubError(Exception):
    """The stub cannot be built here."""


@cache
def _built() -> Path:
    headers = [folder for folder in _HEADERS if (folder / "crt" / "host_defines.h").is_file()]
    if not (torch.version.cuda and headers and shutil.which("gcc") and sys.platform == "linux"):
        raise NoStubError("the stub of CUDA needs a compiler, CUDA's headers and a torch that is built for CUDA")
    _KEPT.append(TemporaryDirectory(prefix="dogbreed-stub-"))
    folder = Path(_KEPT[-1].name)
    shared = ["gcc", "-O1", "-w", "-shared", "-fPIC"]
    subprocess.run(
        [*shared, f"-I{headers[0]}", "-o", folder / "libstub.so", SOURCES / "stub.c", "-lpthread"], check=True
    )
    subprocess.run([*shared, "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", SOURCES / "cu.c"], check=True)
    shutil.copy(SOURCES / "counters.py", folder)
    return folder


def run(code: str, *paths: Path, **card: str) -> subprocess.CompletedProcess[str]:
    """Run Python code over the stub; `counters` is imported there.

    Args:
        code: What to run.
        paths: Where it imports from, besides the checkout.
        card: `STUB_CC` ("75" is a T4's), `STUB_DEVICES`, `STUB_GB`; other variables of the environment too.

    Raises:
        NoStubError: There is no stub.
    """
    folder = _built()
    library = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    own = {"LD_LIBRARY_PATH": library, "LD_PRELOAD": str(folder / "libstub.so"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **own, "PYTHONPATH": ":".join(map(str, (folder, ROOT, *paths))), **card}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.run(
        [sys.executable, "-c", f"import counters\n{code}"], env=environment, capture_output=True, text=True, check=False
    )


def stub(bench: Bench) -> None:
    """Note what `benchmarks.over_stub` counts."""
    try:
        done = run("from benchmarks.over_stub import main; main()")
    except NoStubError as reason:
        print(f"  skipped: {reason}", flush=True)
        return
    if done.returncode:
        raise RuntimeError(done.stderr)
    for name, value in json.loads(done.stdout.splitlines()[-1]).items():
        bench.note(name, value)
