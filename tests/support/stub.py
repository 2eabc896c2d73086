"""A CUDA runtime without a GPU: torch's own code runs over it, kernels are counted and not executed.

It is built from `cuda_stub/` with the headers that torch's wheels bring along, and preloaded into a process of its own.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from support import runs

SOURCES = Path(__file__).with_name("cuda_stub")
_HEADERS = (
    Path("/usr/local/cuda/include"),
    Path(sysconfig.get_path("purelib")) / "triton" / "backends" / "nvidia" / "include",
)
_KEPT: list[TemporaryDirectory[str]] = []


@cache
def _built() -> Path:
    headers = [folder for folder in _HEADERS if (folder / "crt" / "host_defines.h").is_file()]
    if not (torch.version.cuda and headers and shutil.which("gcc") and sys.platform == "linux"):
        pytest.skip("the stub of CUDA needs a compiler, CUDA's headers and a torch that is built for CUDA")
    _KEPT.append(TemporaryDirectory(prefix="dogbreed-stub-"))
    folder = Path(_KEPT[-1].name)
    shared = ["gcc", "-O1", "-w", "-shared", "-fPIC"]
    subprocess.run(
        [*shared, f"-I{headers[0]}", "-o", folder / "libstub.so", SOURCES / "stub.c", "-lpthread"], check=True
    )
    subprocess.run([*shared, "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", SOURCES / "cu.c"], check=True)
    shutil.copy(SOURCES / "counters.py", folder)
    return folder


def run(code: str, **card: str) -> subprocess.CompletedProcess[str]:
    """Run Python code over the stub; `counters` is imported there.

    Args:
        code: What to run.
        card: `STUB_CC` ("75" is a T4's), `STUB_DEVICES`, `STUB_GB`.
    """
    folder = _built()
    library = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    environment = runs.environment(LD_LIBRARY_PATH=library, LD_PRELOAD=str(folder / "libstub.so"), **card)
    environment["PYTHONPATH"] = f"{folder}:{environment['PYTHONPATH']}:{runs.ROOT / 'tests'}"
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    return subprocess.run(
        [sys.executable, "-c", f"import counters\n{code}"], env=environment, capture_output=True, text=True, check=False
    )
