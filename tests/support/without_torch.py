"""Commands where there is no torch, and perhaps no network."""

import subprocess
import sys

from support.places import ROOT

WITHOUT = """
import runpy, socket, sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "lightning", "torchmetrics", "pytorch_lightning"):
            raise ModuleNotFoundError(f"there is no {name} here", name=name)

sys.meta_path.insert(0, Forbidden())
if %(offline)r:
    def refuse(*_):
        raise OSError("there is no network here")
    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
sys.argv = %(argv)r
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def without_torch(*argv: str, offline: bool) -> subprocess.CompletedProcess[str]:
    """A script of launch/ in an interpreter of its own that has no torch and, if `offline`, no network."""
    program = WITHOUT % {"argv": [str(ROOT / "launch" / argv[0]), *argv[1:]], "offline": offline}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
