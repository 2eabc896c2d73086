"""What a result came from: the versions, the machine."""

import os
import platform
import re
import subprocess
from pathlib import Path

import lightning
import torch
import torchvision

from dogbreed.core.machine import cpu_count
from dogbreed.core.version import __version__


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    commit = _commit()
    return {
        "dogbreed": f"{__version__}, commit {commit}" if commit else __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "lightning": str(lightning.__version__),
    }


def _commit() -> str:
    """Return the commit of the checkout, and whether it has been changed since; empty for an installed package."""
    house = Path(__file__).resolve().parents[1]
    if not (house.parent / ".git").exists():
        return ""

    def git(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603
            ["git", "-C", str(house), *arguments],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(house), str(house.parent / "conf"))
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit} with changes" if changed else commit


def machine() -> dict[str, str]:
    """Return processor, cores, memory, graphics card and operating system; what cannot be found out is left out."""
    facts = {"processor": _processor(), "cores": str(cpu_count()), "memory": _memory()}
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        facts["GPU"] = f"{len(cards)} x {cards[0].name}, {cards[0].total_memory / 2**30:.0f} GiB"
    else:
        facts["GPU"] = "Apple (MPS)" if torch.backends.mps.is_available() else "none"
    facts["system"] = f"{platform.system()} {platform.machine()}"
    return {name: value for name, value in facts.items() if value}


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^(?:model name|Hardware|Processor)\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return ""
