"""Heavy imports: what waits meanwhile, and that everything is as it was afterwards."""

import gc
import importlib
import subprocess
import sys

import pytest
from support.places import ROOT

from dogbreed.core.loading import loading

pytest.importorskip("scipy")


def printed(program: str) -> str:
    """Return what a program prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.strip()


@pytest.mark.slow
def test_torchmetrics_loads_without_scipy_signal_which_works_afterwards():
    program = (
        "import sys\nfrom dogbreed.core.loading import loading\n"
        "with loading():\n    import torchmetrics\n"
        "print([name for name in sys.modules if name.startswith('scipy.signal')])\n"
        "import scipy.signal, scipy\n"
        "print(scipy.signal.medfilt([1.0, 9.0, 2.0], 3).tolist(), scipy.signal.__file__ is not None)"
    )
    assert printed(program).splitlines() == ["[]", "[1.0, 2.0, 2.0] True"]


@pytest.mark.parametrize("line", ["from scipy.signal import medfilt", "from scipy.signal.windows import hamming"])
def test_what_uses_scipy_signal_meanwhile_gets_it(line):
    name = line.split()[-1]
    program = f"from dogbreed.core.loading import loading\nwith loading():\n    {line}\nprint({name}.__module__)"
    assert printed(program).startswith("scipy.signal.")


def test_the_garbage_collector_is_as_it_was_also_after_an_error():
    with pytest.raises(ModuleNotFoundError), loading():
        importlib.import_module("no_such_module")
    assert gc.isenabled()
    with loading():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with loading():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
