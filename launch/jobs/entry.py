"""What runs in the container: the training toolkit calls it with the job's hyperparameters, `--name value ...`.

It lies at the root of the staged archive. It gives the package its paths, trains (or searches, and trains with the
winner), and leaves the model in SM_MODEL_DIR, which becomes the job's artefact, and everything else in
SM_OUTPUT_DATA_DIR. The run itself lies in the folder of the checkpoints, which a spot job keeps: `resume=auto` goes on
from the last epoch.
"""

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dogbreed.config.compose import compose
from dogbreed.config.overrides import quote, split
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.metric_lines import EXPORT_LINE

SPLITS = ("train", "valid", "test")


def main(argv: Sequence[str] | None = None) -> int:
    """The whole job; returns the exit code."""

    def task() -> None:
        try:
            run(sys.argv[1:] if argv is None else argv)
        except DogbreedError as error:
            # The toolkit takes as the reason of a failure what follows the name of one of Python's own errors.
            print(f"RuntimeError: {error}", file=sys.stderr)
            raise

    return guard(task)


def run(argv: Sequence[str]) -> None:
    """Trains as the hyperparameters say and puts the results where SageMaker looks for them.

    Raises:
        DogbreedError: Something a person can put right.
    """
    show_channels()
    folder = Path(os.environ["DOGBREED_CHECKPOINTS"]) / os.environ.get("TRAINING_JOB_NAME", "job")
    _, given = split(argv)
    ours = [*weights(), f"output_dir={folder}", "resume=auto", "progress=plain"]
    if compose(given)["search"]["where"] == "one_job":
        given = [*given, *search([*given, *weights()], folder)]
    from dogbreed.training.run import train

    result = train(overrides=[*given, *ours])
    if result.metrics:  # only where the others' work comes together
        hand_over(result.output_dir, result.metrics)


def show_channels() -> None:
    """Three channels lie side by side, as the splits of one folder do; the configuration asks for that folder."""
    places = {os.environ.get(f"SM_CHANNEL_{split.upper()}") for split in SPLITS}
    if "SM_CHANNEL_TRAINING" in os.environ or places == {None}:
        return
    if None in places:
        raise DogbreedError("The channels are train, valid and test, all three, or a single one named training.")
    (root,) = {Path(place).parent for place in places if place}
    os.environ["SM_CHANNEL_TRAINING"] = str(root)


def weights() -> list[str]:
    """The channel of weights holds one file, which goes before what the configuration names."""
    channel = os.environ.get("SM_CHANNEL_WEIGHTS")
    if channel is None:
        return []
    files = sorted(path for path in Path(channel).rglob("*") if path.is_file())
    if len(files) != 1:
        raise DogbreedError(f"The channel weights should hold one file, and holds {len(files)}.")
    return [f"model.weights={quote(str(files[0]))}"]


def search(given: Sequence[str], folder: Path) -> list[str]:
    """Tries all trials of the search group here; returns the winner's settings as overrides."""
    from dogbreed.search.run import tune

    done = tune(overrides=[*given, f"output_dir={folder / 'search'}", "progress=plain"])
    best = done.best()
    if best is None:
        raise DogbreedError("No trial of the search came to an end with a finite loss; try smaller learning rates.")
    return [f"{key}={value}" for key, value in best.params.items()]


def hand_over(folder: Path, metrics: dict[str, Any]) -> None:
    """The model becomes the artefact; metrics, report and the like are kept beside it, checkpoints are not."""
    model, output = Path(os.environ["SM_MODEL_DIR"]), Path(os.environ["SM_OUTPUT_DATA_DIR"])
    shutil.copytree(folder / "model", model, dirs_exist_ok=True)
    shutil.copytree(folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("checkpoints", "model"))
    print(EXPORT_LINE.format(**metrics), flush=True)
    print(json.dumps(metrics), flush=True)


if __name__ == "__main__":
    sys.exit(main())
