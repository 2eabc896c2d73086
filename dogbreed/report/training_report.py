"""`report.html`: how well a run does, what goes wrong and why; a single self-contained HTML file.

In the order of reading: the result, the diagnosis of the curves, the classes, which are confused, the most confident
errors, the calibration, the images themselves, and how to repeat the run.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from dogbreed.config import reproduce
from dogbreed.config.compose import to_yaml
from dogbreed.core.text import count, duration
from dogbreed.data.duplicates import Pair, find_duplicates
from dogbreed.data.layout import SPLITS
from dogbreed.metrics import classification
from dogbreed.metrics.classification import ClassMetrics
from dogbreed.metrics.predictions import Predictions
from dogbreed.monitor.curve_diagnosis import diagnose
from dogbreed.report import environment, photographs, plots, rules_section
from dogbreed.report.inputs import ReportInputs
from dogbreed.report.photographs import SPLIT_NAMES
from dogbreed.report.plots import BLUE, ORANGE
from dogbreed.report.rendering import Section, attempt, facts, fragment, percent, without_failing, write_page

TEMPLATE = "training_report.html.j2"
MOST_CELLS = 100
OPEN_CLASSES = 20  # more are folded away
WHOLE_MATRIX = 30  # classes up to which the whole matrix is shown at once
MOST_CONFUSED = 24  # classes of the part that is shown first of a larger one
MOST_LABELS = 160  # classes up to which the whole one can be opened: beyond, names and cells are too small to read
FEW_TO_CALIBRATE = 100  # images below which a calibration error is mostly noise
TOP5_FROM = 10  # classes below which a top-5 accuracy says nothing
_USE = {"test": "to test", "valid": "to validate", "train": "to train"}
_TRAINED = {"head": "the head was trained", "block": "head and last stage were trained", "all": "all was trained"}
_START = {"imagenet": "starting from ImageNet weights", "none": "starting from random weights"}


def write_safely(file: Path, run: ReportInputs) -> None:
    """Write the report at the end of a run that has succeeded: a failure is printed, not raised."""
    without_failing(lambda: write(file, run), "report")


def write(file: Path, run: ReportInputs) -> None:
    """Write the report; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    none: list[Pair] = []
    duplicates, problem = attempt(lambda: find_duplicates(run.photos), none)
    sections = [
        Section("curves", "Learning curves", lambda: _curves(run)),
        Section("rules", "Rules", lambda: rules_section.rules(run.findings)),
        Section("classes", "Breeds" if run.noun == "breed" else "Classes", lambda: _classes(run)),
        Section("confused", f"Most confused {'breeds' if run.noun == 'breed' else 'classes'}",
                lambda: photographs.confused_classes(run)),
        Section("matrix", "Confusion matrix", lambda: _matrix(run)),
        Section("errors", "Most confident errors", lambda: photographs.confident_errors(run)),
        Section("calibration", "Calibration", lambda: _calibration(run)),
        Section("images", "Images", lambda: problem or photographs.images(run, duplicates)),
        Section("reproduce", "How to repeat this run", lambda: _reproduce(run)),
    ]  # fmt: skip
    write_page(file, run.title, lambda: _header(run, duplicates), sections)


# The beginning: what, how well, and what to change


def _header(run: ReportInputs, duplicates: Sequence[Pair]) -> Markup:
    counts = ", ".join(f"{len(run.photos[split]):,} {_USE[split]}" for split in SPLITS if split in run.photos)
    about = f"{count(len(run.class_names), run.noun)}; images: {counts}."
    model = run.config.get("model", {})
    if run.history and model.get("trainable") in _TRAINED:
        weights = str(model.get("weights"))
        start = _START.get(weights, f"starting from the weights in {Path(weights).name}")
        about += f" Of the network {_TRAINED[model['trainable']]}, {start}."
    result = leak = None
    if run.predictions is not None:
        result, leak = _result(run, run.predictions), _leak(run, run.predictions, duplicates)
    diagnosis = diagnose(run.history, len(run.class_names), run.config) if run.history else None
    return fragment(TEMPLATE, "header", run.title, about, leak, result, diagnosis)


def _result(run: ReportInputs, predictions: Predictions) -> dict[str, Any]:
    measured = classification.measure(predictions, "x")
    low, high = measured["x_acc_ci95"]
    correct = int((predictions.predicted == predictions.labels).sum())
    sentence = f"{SPLIT_NAMES[predictions.split].capitalize()} accuracy: {correct:,} of "
    sentence += f"{count(len(predictions), 'image')}, 95 % CI {100 * low:.1f} to {percent(high, 1)}."
    if predictions.split != "test":
        sentence += " The test split was not evaluated; this is not a final figure."
    training = run.photos.get("train")
    known = predictions.labels if training is None else torch.as_tensor(training.labels)
    chance = classification.chance(predictions.labels, known, predictions.num_classes)
    epoch, seconds = run.metrics.get("best_epoch"), run.metrics.get("seconds")
    values = {
        "Chance-level accuracy": percent(chance.accuracy, 1),
        "Top-5 accuracy": percent(measured["x_top5"], 1) if predictions.num_classes >= TOP5_FROM else None,
        "Balanced accuracy": percent(measured["x_balanced_acc"], 1),
        "Macro F1": percent(measured["x_macro_f1"], 1),
        "Loss": f"{measured['x_loss']:.3f} nats",
        "Chance-level loss": f"{chance.loss:.3f} nats",
        "Calibration error": f"{measured['x_ece']:.3f}",
        "Best epoch": None if epoch is None else f"{epoch:g} of {run.metrics.get('epochs', len(run.history))}",
        "Time": duration(seconds) if isinstance(seconds, int | float) else None,
    }
    share = measured["x_acc"]
    return {"share": share, "low": low, "high": high, "sentence": sentence, "facts": facts(values)}


def _leak(run: ReportInputs, predictions: Predictions, duplicates: Sequence[Pair]) -> str:
    """Return a sentence on images that were both measured on and trained on; empty where there are none."""
    positions = {path: position for position, path in enumerate(predictions.paths)}
    paths = {run.photos[p.split].paths[p.index] for p in duplicates if p.split == predictions.split}
    leaked = sorted(positions[path] for path in paths if path in positions)
    if not leaked:
        return ""
    kept = torch.ones(len(predictions), dtype=torch.bool)
    kept[leaked] = False
    text = f"{count(len(leaked), 'image')} of the {SPLIT_NAMES[predictions.split]} split also "
    text += f"{'lies' if len(leaked) == 1 else 'lie'} in another split, so the result may look better than it is"
    if not kept.any():
        return f"{text}: no other image is left."
    correct = (predictions.predicted == predictions.labels)[kept]
    text += f"; without {'it' if len(leaked) == 1 else 'them'} the accuracy is "
    return f"{text}{percent(float(correct.double().mean()), 1)} of {len(correct):,}."


# Sections


def _curves(run: ReportInputs) -> Markup | None:
    if not run.history:
        return None
    text = "Losses are means per image. The weights of the epoch with the lowest validation loss were kept."
    smoothing = run.config.get("model", {}).get("label_smoothing")
    if smoothing:
        text += f" Label smoothing ({smoothing:g}) raises the training loss; validation is without."
    return fragment(TEMPLATE, "plots", text, plots.learning_curves(run.history, run.metrics.get("best_epoch")))


def _classes(run: ReportInputs) -> Markup | None:
    if run.predictions is None:
        return None
    classes = classification.per_class(run.predictions)
    perfect, never = (sum(one.recall == recall for one in classes) for recall in (1, 0))
    text = f"Of {count(len(classes), run.noun)}, {perfect} {'was' if perfect == 1 else 'were'} always classified "
    text += f"correctly, {never} never."
    if len(classes) > 1:
        always, none = classification.expected_extremes(classes)
        text += f" If all had the same accuracy, chance alone would give {always:.0f} and {none:.0f}."
    width = sorted(one.high - one.low for one in classes)[len(classes) // 2]
    if width > 0.3:
        typical = sorted(one.total for one in classes)[len(classes) // 2]
        text += (
            f" With {count(typical, 'image')} per {run.noun}, the accuracy of one is uncertain by {100 * width:.0f} "
            "percentage points from end to end (the pale band): their order is a hint, not a ranking."
        )
    missing = len(run.class_names) - len(classes)
    if missing:
        text += f" {count(missing, run.noun)} had no image."
    unpredicted = [run.name(one.label) for one in classes if not one.predicted]
    names = ", ".join(unpredicted[:OPEN_CLASSES]) + (" ..." if len(unpredicted) > OPEN_CLASSES else "")
    rows = [_class_row(run, one) for one in classes]
    return fragment(TEMPLATE, "classes", run.noun.capitalize(), text, names, rows[:OPEN_CLASSES], rows[OPEN_CLASSES:])


def _class_row(run: ReportInputs, one: ClassMetrics) -> dict[str, Any]:
    return {
        "name": run.name(one.label),
        "bar": (one.low, one.recall, one.high),
        "recall": percent(one.recall),
        "precision": "" if one.precision is None else percent(one.precision),
        "counts": f"{one.correct} of {one.total}",
        "interval": f"{100 * one.low:.0f} to {percent(one.high)}",
        "confused_with": "" if one.confused_with is None else run.name(one.confused_with),
    }


def _matrix(run: ReportInputs) -> Markup | None:
    predictions = run.predictions
    if predictions is None:
        return None
    errors = classification.errors(predictions)
    totals = predictions.labels.bincount(minlength=predictions.num_classes).tolist()
    present = sorted({*predictions.labels.tolist(), *predictions.predicted.tolist()})
    part = present if len(present) <= WHOLE_MATRIX else _most_confused_part(errors)
    text = (
        "A row for each class, a column for what it was classified as. Classes that the model confuses are neighbours. "
        "Only errors are coloured, the stronger the more (logarithmic); point at one, or touch it, to read it."
    )
    if len(part) < len(present):
        text += f" Shown are the {len(part)} most confused of {len(present):,} classes."
        if len(present) > MOST_LABELS:
            text += " The others are left out: their names and cells would be too small to read."
    elif len(present) < len(run.class_names):
        text += (
            f" {count(len(run.class_names) - len(present), 'class')} with neither an image nor a prediction left out."
        )

    def draw(classes: Sequence[int]) -> Markup:
        order = classification.cluster_order(predictions, classes)
        matrix = classification.confusion(predictions, order)
        return plots.confusion_matrix(matrix, [totals[i] for i in order], [run.class_names[i] for i in order])

    whole = draw(present) if len(part) < len(present) <= MOST_LABELS else None
    rows = [(run.name(a), run.name(b), f"{images} of {totals[a]}") for a, b, images in errors[:MOST_CELLS]]
    drawn = draw(part) if part else None
    return fragment(TEMPLATE, "matrix", text, drawn, whole, rows, len(present))


def _most_confused_part(errors: Sequence[tuple[int, int, int]]) -> list[int]:
    classes: dict[int, None] = {}
    for label, other, _ in errors:
        if len(classes | {label: None, other: None}) > MOST_CONFUSED:
            break
        classes |= {label: None, other: None}
    return sorted(classes)


def _calibration(run: ReportInputs) -> Markup | None:
    predictions = run.predictions
    if predictions is None:
        return None
    measured = classification.measure(predictions, "x")
    mean = float(predictions.logits.double().softmax(1).max(1).values.mean())
    off = mean - measured["x_acc"]
    text = f"Without the temperature the mean confidence is {percent(mean, 1)} and the accuracy "
    text += f"{percent(measured['x_acc'], 1)}: the model is "
    text += (
        f"{'over' if off > 0 else 'under'}confident by {abs(100 * off):.1f} points. "
        if abs(off) >= 0.01
        else "well balanced. "
    )
    if predictions.temperature == 1:
        text += "No temperature: on the validation split none was better beyond doubt. "
    else:
        text += (
            f"The temperature {predictions.temperature:.3f}, chosen on the validation split, changes the calibration "
        )
        text += f"error from {measured['x_ece_uncalibrated']:.3f} to {measured['x_ece']:.3f}"
        text += ", measured on the very images it was fitted on; " if predictions.split == "valid" else "; "
        text += "the predicted classes stay the same. "
    if len(predictions) < FEW_TO_CALIBRATE:
        text += f"How well calibrated the model is cannot be told on {count(len(predictions), 'image')}. "
    text += "On the dashed line confidence is accuracy; below it the model claims too much. Each dot has its number of "
    text += "images and its 95 % interval."
    drawings = []
    for name, key, temperature, colour in (
        ("Without the temperature", "x_ece_uncalibrated", 1.0, ORANGE),
        ("As it is served", "x_ece", predictions.temperature, BLUE),
    ):
        bins = classification.reliability(predictions.logits, predictions.labels, temperature=temperature)
        drawings.append(plots.reliability_diagram(f"{name}: calibration error {measured[key]:.3f}", bins, colour))
    return fragment(TEMPLATE, "plots", text, drawings)


def _reproduce(run: ReportInputs) -> Markup:
    metrics = run.metrics
    seconds = metrics.get("seconds")
    values = {
        "Time": duration(seconds) if isinstance(seconds, int | float) else None,
        "Images seen in training": _whole(metrics.get("images_seen")),
        "Images per second": _whole(metrics.get("images_per_second")),
        "Feature cache": metrics.get("cache"),
        "Device": metrics.get("device"),
    }
    command = run.command or (reproduce.command(run.config) if run.config else "")
    config = to_yaml(reproduce.shown(run.config)) if run.config else ""
    figures = json.dumps(_finite(metrics), indent=2) if metrics else ""
    machine, versions = facts(environment.machine()), list(environment.versions().items())
    return fragment(TEMPLATE, "reproduce", command, facts(values), machine, versions, config, figures)


def _finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metrics without what JSON has no number for."""
    bad = {name: None for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**metrics, **bad}


def _whole(value: Any) -> str | None:
    return f"{value:,.0f}" if isinstance(value, int | float) else None
