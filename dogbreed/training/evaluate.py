"""Measure an exported model on folders of photographs.

Features of the frozen part come from the cache. With `cache.mode=off`, every image goes the way that it goes in an
endpoint: its bytes into `images.load`, the input into `Predictor.logits`. Either way the figures are those of what is
served, whatever it was trained with.
"""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dogbreed.cache.callback import FeatureCache
from dogbreed.cache.folders import scan_memory
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import new_folder, write_csv, write_json
from dogbreed.core.metric_lines import accuracy_line
from dogbreed.core.text import count
from dogbreed.core.version import __version__
from dogbreed.data.datasets import Skipped, SplitFiles
from dogbreed.data.images import WHOLE, BadImage
from dogbreed.data.layout import SPLITS
from dogbreed.data.scan import scan
from dogbreed.inference.predictor import Predictor, find_device
from dogbreed.metrics.classification import PREDICTIONS, measure, prediction_rows
from dogbreed.metrics.conformal import coverage
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.models.manifest import find_model
from dogbreed.report import training_report
from dogbreed.report.inputs import ReportInputs
from dogbreed.training.evaluation_files import Found, find_files
from dogbreed.training.evaluation_passes import compute_logits
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
    predictions: Predictions = field(repr=False)


def evaluate(
    model: str | Path,
    root: str | Path | None = None,
    *,
    labels: str | Path | None = None,
    split: str = "test",
    on_unknown: str = "error",
    names: Mapping[str, str] | None = None,
    output_dir: str | Path | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    on_bad_image: str = "skip",
    max_pixels: int = 100_000_000,
    device: str | None = None,
    cache: FeatureCache | None = None,
    quiet: bool = False,
) -> Result:
    """Measure an exported model on one split, as `dogbreed.evaluate` describes it."""
    started = time.monotonic()
    _check_arguments(split, on_unknown, on_bad_image, batch_size, num_workers)
    cache = cache or FeatureCache(quiet=quiet)
    predictor = Predictor(find_model(Path(model)), device=find_device(device), max_pixels=max_pixels)
    settings, skip = predictor.model.config.get("data", {}), on_unknown == "skip"
    data = find_files(root, labels, split, predictor.class_names, settings, renamed=names or {}, skip_unknown=skip)
    samples, skipped = _usable(data.files[split], on_bad_image, max_pixels, cache, num_workers, quiet)
    logits = compute_logits(predictor, samples, cache, batch_size=batch_size, num_workers=num_workers, quiet=quiet)
    labelled = torch.from_numpy(samples.labels)
    predictions = Predictions(split, logits, labelled, samples.paths, predictor.model.temperature)
    metrics = _metrics(predictor, predictions, data, skipped)
    metrics |= {"model": str(model), "cache": cache.state, "seconds": round(time.monotonic() - started, 3)}
    photos = {split: samples, **{other: _listed(rest) for other, rest in data.files.items() if other != split}}
    command = _command(str(model), data.folder, labels, split, on_unknown, names or {})
    report = _report(command, data.folder, predictor, photos, predictions, metrics, skipped)
    caveats = training_report.caveats(report)
    metrics |= caveats.metrics
    destination = Path(output_dir) if output_dir else new_folder(Path("evaluation"))
    rows = prediction_rows(predictions, predictor.class_names, data.folder)
    write_json(destination / "metrics.json", metrics)
    write_csv(destination / "predictions.csv", PREDICTIONS, rows)
    training_report.write_safely(destination / "report.html", report)
    if not quiet:
        print(*caveats.leak, test_line(predictions, metrics[f"{PREFIX[split]}_loss"]), sep="\n")
        print(_summary(report, caveats.sentences, destination, data.unknown), flush=True)
    return Result(metrics, destination, predictions)


def _listed(files: Sequence[tuple[Path, int]]) -> SplitFiles:
    """Return images that are not read, among which the report looks for copies."""
    return SplitFiles([path for path, _ in files], np.array([label for _, label in files], np.int64), [], [])


def _metrics(predictor: Predictor, predictions: Predictions, data: Found, skipped: Sequence[Skipped]) -> dict[str, Any]:
    classes, present = len(predictor.class_names), len(predictions.labels.unique())
    return {
        **measure(predictions),
        **coverage(predictions, predictor.model.conformal.get("least_probability", {})),
        "temperature": predictions.temperature,
        "split": predictions.split,
        "images": len(predictions),
        "images_skipped": len(skipped),
        "classes_without_images": classes - present,
        "classes_unknown": len(data.unknown),
        "root": str(data.folder),
        "device": str(predictor.device),
        "backbone": predictor.model.backbone,
        "package_version": __version__,
    }


def _check_arguments(split: str, on_unknown: str, on_bad_image: str, batch_size: int, num_workers: int) -> None:
    if split not in SPLITS:
        raise DogbreedError(f"split={split} is unknown; it is one of {', '.join(SPLITS)}.")
    if on_unknown not in ("skip", "error"):
        raise DogbreedError(f"data.on_unknown={on_unknown} is unknown; it is one of skip, error.")
    if on_bad_image not in ("skip", "error"):
        raise DogbreedError(f"data.on_bad_image={on_bad_image} is unknown; it is one of skip, error.")
    if batch_size < 1 or not isinstance(num_workers, int) or num_workers < 0:
        raise DogbreedError("data.batch_size is a whole number from 1, and data.num_workers one from 0.")


def _command(
    model: str, root: Path, labels: str | Path | None, split: str, on_unknown: str, names: Mapping[str, str]
) -> str:
    """Return the line for a shell that repeats the evaluation."""
    command = ["python", "-m", "dogbreed.evaluate", model, f"data.root={root}"]
    command += [f"data.labels={labels}"] if labels else []
    command += [f"split={split}"] if split != "test" else []
    command += [f"data.on_unknown={on_unknown}"] if on_unknown != "error" else []
    command += [f"data.names={json.dumps(dict(names), ensure_ascii=False)}"] if names else []
    return shlex.join(command)


def _report(
    command: str,
    root: Path,
    predictor: Predictor,
    photos: Mapping[str, SplitFiles],
    predictions: Predictions,
    metrics: dict[str, Any],
    skipped: Sequence[Skipped],
) -> ReportInputs:
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
        command=command,
        network=predictor.model.network,
    )


def _usable(
    files: Sequence[tuple[Path, int]],
    on_bad_image: str,
    max_pixels: int,
    cache: FeatureCache,
    workers: int,
    quiet: bool,
) -> tuple[SplitFiles, list[Skipped]]:
    """Return the files that are images, and the others with the reason.

    Raises:
        BadImage: With `on_bad_image=error`, the first that cannot be used.
        DogbreedError: None can be used.
    """
    paths = [path for path, _ in files]
    memory = scan_memory(cache.folder.parent)  # as in a run
    scanned = scan(paths, memory=memory, max_pixels=max_pixels, workers=workers or None, quiet=quiet)
    skipped = [Skipped(file.path, file.reason) for file in scanned if file.reason]
    if skipped and on_bad_image == "error":
        raise BadImage(skipped[0].reason, str(skipped[0].path))
    used = [(file, label) for file, (_, label) in zip(scanned, files, strict=True) if not file.reason]
    if not used:
        raise DogbreedError(f"None of the {len(files)} files can be used; the first: {skipped[0].reason}.")
    labels = np.array([label for _, label in used], np.int64)
    digests = [file.digest for file, _ in used]
    return SplitFiles([file.path for file, _ in used], labels, digests, [[WHOLE] * len(used)]), skipped


def _summary(run: ReportInputs, caveats: Sequence[str], folder: Path, unknown: Sequence[str]) -> str:
    metrics, prefix = run.metrics, PREFIX[run.metrics["split"]]
    low, high = metrics[f"{prefix}_ece_ci95"]
    uncertain = f"; whether it is calibrated cannot be told on {count(metrics['images'], 'image')}" if low == 0 else ""
    lines = [
        f"{accuracy_line(metrics, prefix, metrics['images'], len(run.class_names))}.",
        *caveats,
        f"Calibration error {metrics[f'{prefix}_ece']:.3f} (95 % CI {low:.3f}-{high:.3f}) with temperature "
        f"{metrics['temperature']:.3f}, {metrics[f'{prefix}_ece_uncalibrated']:.3f} without{uncertain}.",
    ]
    if run.skipped:
        lines.append(f"Skipped {len(run.skipped)} files, such as {run.skipped[0].path} ({run.skipped[0].reason}).")
    classes = "breeds" if run.noun == "breed" else "classes"
    present = set(run.photos[metrics["split"]].labels.tolist())
    missing = [name for label, name in enumerate(run.class_names) if label not in present]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        lines.append(f"No images of {len(missing)} of the model's {classes}: {', '.join(missing[:3])}{more}.")
    if unknown:
        lines.append(f"Left out, since the model does not know them: {', '.join(unknown)}.")
    others = {name: len(samples) for name, samples in run.photos.items() if name != metrics["split"]}
    if others:
        images = count(sum(others.values()), "image")
        lines.append(f"{images} of {' and '.join(sorted(others))} not measured; split= chooses another split.")
    return "\n".join([*lines, f"Wrote {folder}/report.html, predictions.csv and metrics.json."])
