"""`python -m dogbreed.evaluate`: measures an exported model on folders of photographs.

Every image goes the way that it goes in an endpoint: its bytes into `images.load`, the input into `Predictor.logits`.
The figures therefore are those of what is served, whatever it was trained with.
"""

import csv
import difflib
import hashlib
import io
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dogbreed.config.compose import compose
from dogbreed.config.overrides import split as split_arguments
from dogbreed.core.cli import guard
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.core.metric_lines import TEST_LINE
from dogbreed.core.progress import track
from dogbreed.core.version import __version__
from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.images import BadImage, load
from dogbreed.data.layout import SPLITS, class_folders, list_images, plain_name
from dogbreed.inference.manifest import find_model
from dogbreed.inference.photographs import find_device
from dogbreed.inference.predictor import Predictor
from dogbreed.metrics.classification import PREDICTIONS, measure, prediction_rows
from dogbreed.metrics.predictions import Predictions
from dogbreed.report import training_report
from dogbreed.report.inputs import ReportInputs

OWN_KEYS = ("split", "device")  # the others are keys of the configuration, with its defaults
CONFIG_KEYS = ("data.root", "data.batch_size", "data.num_workers", "data.on_bad_image", "data.max_pixels", "output_dir")

HELP = """\
usage: python -m dogbreed.evaluate MODEL_DIR [key=value ...]

Measures an exported model (a run's model/, or the run's folder) on photographs, one folder a breed.
The images take the same way as in an endpoint. Breeds are matched by name; a number in front is ignored.

  data.root=FOLDER         holds test/<breed>/, or the breeds' folders themselves; default: what it was trained on
  split=test               test, valid or train, where data.root has these
  data.batch_size=64       images in one pass
  data.on_bad_image=skip   skip (told and listed in the report) or error
  output_dir=FOLDER        default: evaluation/<date>/<time>
  device=cpu               cpu, cuda, cuda:1, mps; default: a GPU where there is one

Examples:
  python -m dogbreed.evaluate outputs/2026-05-01/10-30-00/model
  python -m dogbreed.evaluate model/ data.root=my_dogs split=valid
  python -m dogbreed.evaluate model/ data.root=photos_of_friends output_dir=friends --batch-size 16

Writes metrics.json, predictions.csv and report.html.
"""


@dataclass(frozen=True)
class Result:
    """What an evaluation leaves.

    Attributes:
        metrics: As in its `metrics.json`.
        output_dir: Where the files are.
        predictions: For every image that could be used.
    """

    metrics: dict[str, Any]
    output_dir: Path
    predictions: Predictions


def evaluate(
    model: str | Path,
    root: str | Path | None = None,
    *,
    split: str = "test",
    output_dir: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = "skip",
    max_pixels: int = 100_000_000,
    device: str | None = None,
    quiet: bool = False,
) -> Result:
    """Measures an exported model on one split.

    Args:
        model: An exported model, or the folder of its run.
        root: Holds `<split>/<class>/`, or the class folders themselves; None takes what the model was trained on.
        split: `test`, `valid` or `train`.
        output_dir: None makes `evaluation/<date>/<time>/`.
        batch_size: Images in one pass.
        num_workers: Threads that decode; 0 takes one a core, 8 at most.
        on_bad_image: `skip` or `error`.
        max_pixels: Larger images count as bad.
        device: None takes a GPU where there is one.
        quiet: Neither progress nor lines.

    Raises:
        DogbreedError: No such folder, a class that the model does not know, no usable image, a model that cannot be
            read. Nothing has been written then.
    """
    started = time.monotonic()
    if split not in SPLITS:
        raise DogbreedError(f"split={split} is unknown; it is one of {', '.join(SPLITS)}.")
    if on_bad_image not in ("skip", "error"):
        raise DogbreedError(f"data.on_bad_image={on_bad_image} is unknown; it is one of skip, error.")
    if batch_size < 1 or not isinstance(num_workers, int) or num_workers < 0:
        raise DogbreedError("data.batch_size is a whole number from 1, and data.num_workers one from 0.")
    predictor = Predictor(find_model(Path(model)), device=find_device(device), max_pixels=max_pixels)
    root = _root(root, predictor.model.config)
    folder = _split_folder(root, split)
    files = _files(folder, predictor.class_names)
    predictions, samples, skipped = _predictions_of(
        predictor, files, split, batch_size, num_workers, on_bad_image, quiet
    )
    names = predictor.class_names
    missing = [names[label] for label in range(len(names)) if label not in set(samples.labels.tolist())]
    correct = int((predictions.predicted == predictions.labels).sum())
    metrics = {
        **measure(predictions),
        "temperature": predictions.temperature,
        "split": split,
        "images": len(predictions),
        "images_skipped": len(skipped),
        "classes_without_images": len(missing),
        "seconds": round(time.monotonic() - started, 3),
        "device": str(predictor.device),
        "backbone": predictor.model.backbone,
        "package_version": __version__,
    }
    destination = Path(output_dir) if output_dir else _new_folder()
    _write(destination, metrics, predictions, names, root)
    if not quiet:
        loss, percent = metrics["test_loss"], 100 * metrics["test_acc"]
        line = TEST_LINE.format(loss=loss, correct=correct, total=len(predictions), percent=percent)
        print(line.replace("Test", split.capitalize(), 1), flush=True)  # a tool that looks for a test finds no other
    command = ["python", "-m", "dogbreed.evaluate", str(model), f"data.root={root}"]
    command += [] if split == "test" else [f"split={split}"]
    photos = {split: samples, **_other_splits(root, folder, split, names)}
    training_report.write_safely(
        destination / "report.html",
        ReportInputs(
            class_names=names,
            backbone=predictor.model.backbone,
            preprocessing=predictor.model.preprocessing,
            root=root,
            photos=photos,
            predictions=predictions,
            metrics=metrics,
            skipped=skipped,
            config=predictor.model.config,
            command=shlex.join(command),
            network=predictor.model.network,
        ),
    )
    if not quiet:
        print(_summary(metrics, destination, skipped, missing))
    return Result(metrics, destination, predictions)


def _root(root: str | Path | None, config: Mapping[str, Any]) -> Path:
    if root is None:
        root = config.get("data", {}).get("root")
        if root is None or not Path(root).is_dir():
            told = "" if root is None else f" ({root}, on which it was trained, is not here)"
            raise DogbreedError(f"Give the folder of photographs with data.root=FOLDER{told}.")
    if not Path(root).is_dir():
        raise DogbreedError(f"The data folder {root} does not exist.")
    return Path(root)


def _split_folder(root: Path, split: str) -> Path:
    """`root/split`, or root itself where it has no splits."""
    if (root / split).is_dir():
        return root / split
    there = [name for name in SPLITS if (root / name).is_dir()]
    if there:
        raise DogbreedError(f"{root} has no folder {split}/; it has {', '.join(there)}: choose one with split=.")
    return root


def _files(folder: Path, names: Sequence[str]) -> list[tuple[Path, int]]:
    """Every file with the class that its folder names."""
    label_of = {name: label for label, name in enumerate(names)}
    found = []
    for name, inside in sorted(class_folders(folder).items()):
        plain = name if name in label_of else plain_name(name)
        if plain not in label_of:
            near = difflib.get_close_matches(plain, names, 1)
            hint = f"; is it {near[0]}?" if near else "."
            raise DogbreedError(
                f"{inside} is a breed that the model does not know (it knows {len(names)}){hint} "
                "Rename the folder, or move it away."
            )
        found += [(path, label_of[plain]) for path in list_images(inside)]
    if not found:
        raise DogbreedError(f"{folder} holds no class folders with images; it should hold one folder a breed.")
    return found


def _predictions_of(
    predictor: Predictor,
    files: Sequence[tuple[Path, int]],
    split: str,
    batch_size: int,
    num_workers: int,
    on_bad_image: str,
    quiet: bool,
) -> tuple[Predictions, SplitFiles, list[Skipped]]:
    """Logits of all files that are images; decoding runs in threads, one batch at a time."""

    def read(path: Path) -> tuple[str, Tensor] | BadImage:
        try:
            data = path.read_bytes()
            image = load(data, predictor.model.preprocessing, max_pixels=predictor.max_pixels)
        except BadImage as error:
            return BadImage(error.reason, str(path))
        except OSError as error:
            return BadImage(f"cannot be read: {error.strerror or error}", str(path))
        return hashlib.blake2b(data, digest_size=16).hexdigest(), image

    logits: list[Tensor] = []
    used: list[tuple[Path, int, str]] = []
    skipped: list[Skipped] = []
    with (
        ThreadPoolExecutor(num_workers or min(torch.get_num_threads(), 8)) as pool,
        track(len(files), "Evaluating", quiet=quiet) as progress,
    ):
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            inputs = []
            for (path, label), content in zip(batch, pool.map(read, [path for path, _ in batch]), strict=True):
                if isinstance(content, BadImage):
                    if on_bad_image == "error":
                        raise content
                    skipped.append(Skipped(path, content.reason))
                else:
                    used.append((path, label, content[0]))
                    inputs.append(content[1])
            if inputs:
                logits.append(predictor.logits(torch.stack(inputs)))
            progress.advance(len(batch))
    if not used:
        raise DogbreedError(f"None of the {len(files)} files can be used; the first: {skipped[0].reason}.")
    paths, labels, digests = ([*column] for column in zip(*used, strict=True))
    given = np.array(labels, dtype=np.int64)
    predictions = Predictions(split, torch.cat(logits), torch.from_numpy(given), paths, predictor.model.temperature)
    return predictions, SplitFiles(paths, given, digests, []), skipped


def _other_splits(root: Path, folder: Path, split: str, names: Sequence[str]) -> dict[str, SplitFiles]:
    """The files beside the evaluated split, among which the report looks for copies of its photographs."""
    found: dict[str, SplitFiles] = {}
    for other in SPLITS if folder != root else ():
        if other == split or not (root / other).is_dir():
            continue
        try:
            files = _files(root / other, names)
        except DogbreedError:  # it was not asked for
            continue
        labels = np.array([label for _, label in files], dtype=np.int64)
        found[other] = SplitFiles([path for path, _ in files], labels, [], [])
    return found


def _new_folder() -> Path:
    now = datetime.now().astimezone()
    base = Path("evaluation") / now.strftime("%Y-%m-%d") / now.strftime("%H-%M-%S")
    folder, number = base, 1
    while folder.exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _write(
    folder: Path, metrics: Mapping[str, Any], predictions: Predictions, names: Sequence[str], root: Path
) -> None:
    with atomic_write(folder / "metrics.json") as file:
        file.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(PREDICTIONS)
    writer.writerows(prediction_rows(predictions, names, root))
    with atomic_write(folder / "predictions.csv") as file:
        file.write_text(text.getvalue(), encoding="utf-8", errors="surrogateescape")


def _summary(metrics: Mapping[str, Any], folder: Path, skipped: Sequence[Skipped], missing: Sequence[str]) -> str:
    low, high = metrics["test_acc_ci95"]
    lines = [
        f"Accuracy {metrics['test_acc']:.1%} (95 % interval {low:.1%} to {high:.1%}), "
        f"among the first five {metrics['test_top5']:.1%}.",
        f"Calibration error {metrics['test_ece']:.3f} with temperature {metrics['temperature']:.3f}, "
        f"{metrics['test_ece_uncalibrated']:.3f} without.",
    ]
    if skipped:
        lines.append(f"Skipped {len(skipped)} files, such as {skipped[0].path} ({skipped[0].reason}).")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        lines.append(f"No images of {len(missing)} of the model's breeds: {', '.join(missing[:3])}{more}.")
    return "\n".join([*lines, f"Wrote {folder}/report.html, predictions.csv and metrics.json."])


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return guard(lambda: _run(sys.argv[1:] if argv is None else list(argv)))


def _run(argv: list[str]) -> int:
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0 if argv else 2
    # The model may come anywhere among the settings, which all have a name.
    flags, words = split_arguments(argv)
    models = [word for word in words if "=" not in word or Path(word).exists()]
    overrides = [word for word in words if word not in models]
    if flags or len(models) != 1:
        raise DogbreedError("Give one exported model, then settings as key=value; --help shows them.")
    given = dict(word.split("=", 1) for word in overrides)
    for key in given:
        if key not in (*OWN_KEYS, *CONFIG_KEYS):
            raise DogbreedError(f"{key} is not a setting of an evaluation; known are {', '.join(known_settings())}.")
    settings = compose([word for word in overrides if word.split("=", 1)[0] not in OWN_KEYS])
    data = settings["data"]
    evaluate(
        models[0],
        data["root"] if "data.root" in given else None,
        split=given.get("split", "test"),
        output_dir=settings["output_dir"],
        batch_size=data["batch_size"] if "data.batch_size" in given else 64,
        num_workers=0 if data["num_workers"] == "auto" else data["num_workers"],
        on_bad_image=data["on_bad_image"],
        max_pixels=data["max_pixels"],
        device=given.get("device"),
    )
    return 0


def known_settings() -> list[str]:
    """Every key that `python -m dogbreed.evaluate` takes."""
    return [*CONFIG_KEYS, *OWN_KEYS]
