"""`python -m dogbreed.evaluate`: measure an exported model on folders of photographs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.config.overrides import split_argv
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.version import __version__

OWN_KEYS = ("split", "device")  # the others are keys of the configuration, with its defaults
CONFIG_KEYS = (
    "data.root",
    "data.labels",
    "data.batch_size",
    "data.num_workers",
    "data.on_bad_image",
    "data.max_pixels",
    "output_dir",
)

HELP = """\
usage: python -m dogbreed.evaluate MODEL_DIR [key=value ...]

Measure an exported model (a run's model/, or the run's folder) on photographs, one folder per breed.
The images take the same path as in an endpoint. Breeds are matched by name; a number in front is ignored.

  data.root=FOLDER         holds test/<breed>/, or the breeds' folders themselves; default: what it was trained on
  data.labels=FILE         CSV file with columns path and label, in place of the breeds' folders
  split=test               test, valid or train, where data.root has these
  data.batch_size=64       images in one pass
  data.num_workers=auto    threads that decode; auto: one per core, 8 at most
  data.on_bad_image=skip   skip (reported) or error
  data.max_pixels=100e6    images with more pixels count as bad
  output_dir=FOLDER        default: evaluation/<date>/<time>
  device=cpu               cpu, cuda, cuda:1, mps; default: a GPU where there is one

Examples:
  python -m dogbreed.evaluate outputs/2026-05-01/10-30-00/model
  python -m dogbreed.evaluate model/ data.root=my_dogs split=valid
  python -m dogbreed.evaluate model/ data.root=photos_of_friends output_dir=friends --batch-size 16

Writes metrics.json, predictions.csv and report.html.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code."""
    return guard(lambda: _evaluate(sys.argv[1:] if argv is None else list(argv)))


def _evaluate(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0 if argv else 2
    if "--version" in argv:
        print(f"dogbreed {__version__}")
        return 0
    # The model may come anywhere among the settings, which all have a name.
    flags, words = split_argv(argv)
    models = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = [word for word in words if word not in models]
    if flags or len(models) != 1:
        raise DogbreedError("Give one exported model, then settings as key=value; --help shows them.")
    values = dict(word.split("=", 1) for word in overrides)
    for key in values:
        if key not in (*OWN_KEYS, *CONFIG_KEYS):
            raise DogbreedError(f"{key} is not a setting of an evaluation; known are {', '.join(known_settings())}.")
    from dogbreed.config.compose import compose

    config = compose([word for word in overrides if word.split("=", 1)[0] not in OWN_KEYS])
    data = config["data"]
    from dogbreed.training.evaluate import evaluate

    evaluate(
        models[0],
        data["root"] if "data.root" in values else None,
        labels=data["labels"] if "data.labels" in values else None,
        split=values.get("split", "test"),
        output_dir=config["output_dir"],
        batch_size=data["batch_size"] if "data.batch_size" in values else 64,
        num_workers=0 if data["num_workers"] == "auto" else data["num_workers"],
        on_bad_image=data["on_bad_image"],
        max_pixels=data["max_pixels"],
        device=values.get("device"),
    )
    return 0


def known_settings() -> list[str]:
    """Return every key that `python -m dogbreed.evaluate` takes."""
    return [*CONFIG_KEYS, *OWN_KEYS]


if __name__ == "__main__":
    sys.exit(main())
