"""`python -m dogbreed.evaluate`: measure an exported model on folders of photographs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from dogbreed.config.help import EVALUATE_HELP as HELP
from dogbreed.config.overrides import split_argv
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.version import __version__

OWN_KEYS = (
    "split",
    "device",
    "data.on_unknown",
    "data.names",
)  # the others are keys of the configuration, with its defaults
CONFIG_KEYS = (
    "data.root",
    "data.labels",
    "data.batch_size",
    "data.num_workers",
    "data.on_bad_image",
    "data.max_pixels",
    "cache.mode",
    "cache.dir",
    "cache.max_gb",
    "output_dir",
)


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
    from dogbreed.models.manifest import find_model, read_manifest

    read_manifest(find_model(models[0]))  # a wrong path needs no torch to be named
    config = compose([word for word in overrides if word.split("=", 1)[0] not in OWN_KEYS])
    data = config["data"]
    from dogbreed.cache.callback import FeatureCache
    from dogbreed.training.evaluate import evaluate

    cache = config["cache"]

    evaluate(
        models[0],
        data["root"] if "data.root" in values else None,
        labels=data["labels"] if "data.labels" in values else None,
        split=values.get("split", "test"),
        on_unknown=values.get("data.on_unknown", "error"),
        names=_names(values.get("data.names", "{}")),
        output_dir=config["output_dir"],
        batch_size=data["batch_size"] if "data.batch_size" in values else 64,
        num_workers=0 if data["num_workers"] == "auto" else data["num_workers"],
        on_bad_image=data["on_bad_image"],
        max_pixels=data["max_pixels"],
        device=values.get("device"),
        cache=FeatureCache(cache["mode"], folder=cache["dir"], max_gb=cache["max_gb"]),
    )
    return 0


def _names(text: str) -> dict[str, str]:
    """Return the pairs of data.names={here: there}, with a blank behind the colon or without."""
    import yaml

    try:
        pairs = yaml.safe_load(text.replace(":", ": "))
    except yaml.YAMLError:
        pairs = None
    if not isinstance(pairs, dict) or None in pairs.values():
        raise DogbreedError(f"data.names={text} is no list of pairs; write 'data.names={{here: there, other: there}}'.")
    return {str(here): str(there) for here, there in pairs.items()}


def known_settings() -> list[str]:
    """Return every key that `python -m dogbreed.evaluate` takes."""
    return [*CONFIG_KEYS, *OWN_KEYS]


if __name__ == "__main__":
    sys.exit(main())
