"""The best model of a run that is under way, kept where it is looked for when the run is stopped."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

from dogbreed.core.background import in_background
from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing
from dogbreed.inference import archive
from dogbreed.models import backbones, model_folder
from dogbreed.models.checkpoints import network_state, read_checkpoint

POLL_SECONDS = 0.5
PAUSE = 4  # times as long as an export took, so that frequent improvements do not keep the disk busy


def export_checkpoint(file: Path, folder: Path) -> None:
    """Export the model of a run's checkpoint into a folder, with the code of an endpoint beside it.

    It is not calibrated yet (its temperature is 1), and its metrics are those of its epoch.

    Raises:
        DogbreedError: The checkpoint cannot be read, or the folder not be written.
    """
    checkpoint = read_checkpoint(file)
    settings, history = checkpoint["hyper_parameters"], checkpoint["callbacks"]["History"]
    network = backbones.skeleton(settings["backbone"], len(settings["class_names"]))
    network.load_state_dict(network_state(checkpoint), assign=True)
    model = model_folder.Exported(
        network.float(),  # where the training was not in float32
        settings["backbone"],
        list(settings["class_names"]),
        Preprocessing.from_dict(settings["preprocessing"]),
        config=history["config"],
        metrics=history["rows"][-1],
    )
    model_folder.write_files(folder, model)
    archive.write_code(folder)


@contextmanager
def kept(checkpoint: Path, folder: Path) -> Iterator[None]:
    """Export a checkpoint into a folder whenever it is written anew, from a thread of its own.

    A process that is killed leaves what was the best some seconds before, whole.

    Args:
        checkpoint: That of the best epoch; need not exist yet.
        folder: For the model.
    """

    def keep(ended: Event) -> None:
        exported: int | None = None
        pause = POLL_SECONDS
        while not ended.wait(pause):
            written = _written(checkpoint)
            if written == exported:
                continue
            start = time.monotonic()
            try:
                export_checkpoint(checkpoint, folder)
            except (DogbreedError, OSError) as error:
                print(f"The best model so far could not be kept: {error}", file=sys.stderr, flush=True)
            exported, pause = written, max(POLL_SECONDS, PAUSE * (time.monotonic() - start))

    with in_background(keep):
        yield


def _written(file: Path) -> int | None:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None
