"""Measure an exported model on folders of photographs.

Every image goes the way that it goes in an endpoint: its bytes into `images.load`, the input into `Predictor.logits`.
The figures therefore are those of what is served, whatever it was trained with.
"""

import hashlib
import shlex
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import new_folder, write_csv, write_json
from dogbreed.core.metric_lines import accuracy_line
from dogbreed.core.progress import track
from dogbreed.core.text import count
from dogbreed.core.version import __version__
from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.images import BadImage, load
from dogbreed.data.layout import SPLITS
from dogbreed.inference.manifest import find_model
from dogbreed.inference.photographs import find_device
from dogbreed.inference.predictor import Predictor
from dogbreed.metrics.classification import PREDICTIONS, measure, prediction_rows
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.report import training_report
from dogbreed.report.inputs import ReportInputs
from dogbreed.training.evaluation_files import find_files
from dogbreed.training.results import test_line


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
    labels: str | Path | None = None,
    split: str = "test",
    output_dir: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = "skip",
    max_pixels: int = 100_000_000,
    device: str | None = None,
    quiet: bool = False,
) -> Result:
    """Measure an exported model on one split, as `dogbreed.evaluate` describes it."""
    started = time.monotonic()
    _check_arguments(split, on_bad_image, batch_size, num_workers)
    predictor = Predictor(find_model(Path(model)), device=find_device(device), max_pixels=max_pixels)
    names = predictor.class_names
    folder, files = find_files(root, labels, split, names, predictor.model.config.get("data", {}))
    predictions, samples, skipped = _predictions_of(
        predictor, files.pop(split), split, batch_size, num_workers, on_bad_image, quiet
    )
    missing = [names[label] for label in range(len(names)) if label not in set(samples.labels.tolist())]
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
        "model": str(model),
        "root": str(folder),
        "package_version": __version__,
    }
    destination = Path(output_dir) if output_dir else new_folder(Path("evaluation"))
    photos = {split: samples, **{other: _listed(rest) for other, rest in files.items()}}
    report = _report(str(model), folder, labels, predictor, photos, predictions, metrics, skipped)
    caveats = training_report.caveats(report)
    metrics |= caveats.metrics
    write_json(destination / "metrics.json", metrics)
    write_csv(destination / "predictions.csv", PREDICTIONS, prediction_rows(predictions, names, folder))
    training_report.write_safely(destination / "report.html", report)
    if not quiet:
        lines = [*caveats.leak, test_line(predictions, metrics[f"{PREFIX[split]}_loss"])]
        print(*lines, _summary(report, caveats.sentences, destination, missing), sep="\n", flush=True)
    return Result(metrics, destination, predictions)


def _listed(files: Sequence[tuple[Path, int]]) -> SplitFiles:
    """Return images that are not read, among which the report looks for copies."""
    return SplitFiles([path for path, _ in files], np.array([label for _, label in files], np.int64), [], [])


def _check_arguments(split: str, on_bad_image: str, batch_size: int, num_workers: int) -> None:
    if split not in SPLITS:
        raise DogbreedError(f"split={split} is unknown; it is one of {', '.join(SPLITS)}.")
    if on_bad_image not in ("skip", "error"):
        raise DogbreedError(f"data.on_bad_image={on_bad_image} is unknown; it is one of skip, error.")
    if batch_size < 1 or not isinstance(num_workers, int) or num_workers < 0:
        raise DogbreedError("data.batch_size is a whole number from 1, and data.num_workers one from 0.")


def _report(
    model: str,
    root: Path,
    labels: str | Path | None,
    predictor: Predictor,
    photos: Mapping[str, SplitFiles],
    predictions: Predictions,
    metrics: dict[str, Any],
    skipped: Sequence[Skipped],
) -> ReportInputs:
    command = ["python", "-m", "dogbreed.evaluate", model, f"data.root={root}"]
    command += [f"data.labels={labels}"] if labels else []
    command += [] if predictions.split == "test" else [f"split={predictions.split}"]
    return ReportInputs(
        class_names=predictor.class_names,
        backbone=predictor.model.backbone,
        preprocessing=predictor.model.preprocessing,
        root=root,
        photos=dict(photos),
        predictions=predictions,
        metrics=metrics,
        skipped=skipped,
        config=predictor.model.config,
        command=shlex.join(command),
        network=predictor.model.network,
    )


def _predictions_of(
    predictor: Predictor,
    files: Sequence[tuple[Path, int]],
    split: str,
    batch_size: int,
    num_workers: int,
    on_bad_image: str,
    quiet: bool,
) -> tuple[Predictions, SplitFiles, list[Skipped]]:
    """Return logits of all files that are images; decoding runs in threads, one batch at a time."""

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
    indices = np.array(labels, dtype=np.int64)
    predictions = Predictions(split, torch.cat(logits), torch.from_numpy(indices), paths, predictor.model.temperature)
    return predictions, SplitFiles(paths, indices, digests, []), skipped


def _summary(run: ReportInputs, caveats: Sequence[str], folder: Path, missing: Sequence[str]) -> str:
    metrics, prefix = run.metrics, PREFIX[run.metrics["split"]]
    low, high = metrics[f"{prefix}_ece_ci95"]
    unknown = f"; whether it is calibrated cannot be told on {count(metrics['images'], 'image')}" if low == 0 else ""
    lines = [
        f"{accuracy_line(metrics, prefix, metrics['images'], len(run.class_names))}.",
        *caveats,
        f"Calibration error {metrics[f'{prefix}_ece']:.3f} (95 % CI {low:.3f}-{high:.3f}) with temperature "
        f"{metrics['temperature']:.3f}, {metrics[f'{prefix}_ece_uncalibrated']:.3f} without{unknown}.",
    ]
    if run.skipped:
        lines.append(f"Skipped {len(run.skipped)} files, such as {run.skipped[0].path} ({run.skipped[0].reason}).")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        lines.append(f"No images of {len(missing)} of the model's breeds: {', '.join(missing[:3])}{more}.")
    return "\n".join([*lines, f"Wrote {folder}/report.html, predictions.csv and metrics.json."])
