"""An exported model that took no training: for tests of what uses one."""

from collections.abc import Sequence
from pathlib import Path

from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, model_folder
from dogbreed.models.neighbours import InDomain

NAMES = ("Amber_hound", "Blue_spitz", "Green-eyed_setter", "Red_terrier")  # as in conftest's folders


def export_tiny(
    folder: Path,
    names: Sequence[str] = NAMES,
    temperature: float = 0.7,
    least: float | None = None,
    neighbours: InDomain | None = None,
) -> Path:
    """A network of random weights for inputs of 64 pixels, in `folder`; `least` is what a class of its sets reaches."""
    sets = {} if least is None else {"least_probability": {"90": least, "95": None}, "images": 9, "abstain_above": 2}
    network = backbones.create("squeezenet1_1", len(names), weights="none", seed=1)
    model = model_folder.Exported(
        network,
        "squeezenet1_1",
        list(names),
        Preprocessing(size=64),
        temperature,
        conformal=sets,
        neighbours=neighbours,
    )
    return model_folder.save(folder, model)
