"""Writing a run's checkpoints through Lightning; `checkpoints` reads them, and needs no Lightning."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from safetensors.torch import save_file
from torch import Tensor

from dogbreed.core.files import atomic_write
from dogbreed.models.checkpoints import FROZEN, PREFIX, digest_in, digest_of, has_values, read_checkpoint


class RunCheckpointIO(CheckpointIO):
    """What Lightning writes and reads a run's checkpoint files with.

    Args:
        changing: Names in the network's state_dict that training may change.
        shared: Folder in which equal frozen values are kept once for all runs, as hard links; None keeps them by run.
    """

    def __init__(self, changing: set[str], shared: Path | None = None) -> None:
        self.changing, self.shared = {PREFIX + name for name in changing}, shared
        self._frozen_digest: str | None = None
        self._written: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        file = Path(path)
        state = checkpoint["state_dict"]
        frozen = {name: value for name, value in state.items() if name not in self.changing}
        beside = file.with_name(FROZEN)
        if frozen and beside not in self._written:  # a callback may save into another folder
            values = {name: value.cpu().contiguous() for name, value in frozen.items()}
            self._frozen_digest = self._linked(values, beside) or digest_of(values)
            # A resumed run has the very values that lie there; another run in the same folder has others.
            if digest_in(beside) != self._frozen_digest:
                self._write_frozen(values, beside, self._frozen_digest)
            self._written.add(beside)
        kept = {name: value for name, value in state.items() if name in self.changing}
        with atomic_write(file) as temporary:
            torch.save(
                {**checkpoint, "state_dict": kept, "frozen": sorted(frozen), "frozen_digest": self._frozen_digest},
                temporary,
            )

    def _linked(self, values: dict[str, Tensor], beside: Path) -> str | None:
        """Take the shared file that has these very values, if there is one, without hashing them; return its digest."""
        for one in self.shared.glob("*.safetensors") if self.shared else ():
            if digest_in(one) == one.stem and has_values(one, values) and link(one, beside):
                return one.stem
        return None

    def _write_frozen(self, values: dict[str, Tensor], beside: Path, digest: str) -> None:
        one = self.shared and self.shared / f"{digest}.safetensors"
        if one and digest_in(one) == digest and link(one, beside):
            return
        with atomic_write(beside) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            save_file(values, temporary, metadata={"digest": digest})
            temporary.chmod(mode)  # safetensors writes for its owner alone
        if one:
            link(beside, one)

    def load_checkpoint(self, path: Any, map_location: Any | None = None, weights_only: bool | None = None) -> Any:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def link(source: Path, target: Path) -> bool:
    """Make `target` another name of a file; return whether that could be done (not across disks, nor on every one)."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, temporary)
        temporary.replace(target)
    except OSError:
        return False
    finally:
        with suppress(OSError):  # two names of one file are left as they are
            temporary.unlink(missing_ok=True)
    return True
