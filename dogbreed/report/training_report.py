"""`report.html`: how well a run does, what goes wrong and why; a single self-contained HTML file.

In the order of reading: the result, the diagnosis of the curves, the classes, which are confused, the most confident
errors, the calibration, the images themselves, and how to repeat the run.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from dogbreed.config import reproduce
from dogbreed.config.compose import to_yaml
from dogbreed.core.metric_lines import TOP5_FROM, folds_line
from dogbreed.core.text import count, duration
from dogbreed.data.layout import SPLITS
from dogbreed.metrics import classification
from dogbreed.metrics.calibration import binned, calibration_interval
from dogbreed.metrics.classification import ClassMetrics
from dogbreed.metrics.conformal import LEVELS
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.monitor.curve_diagnosis import diagnose
from dogbreed.report import environment, photographs, plots, rules_section
from dogbreed.report.inputs import SPLIT_NAMES, Caveats, ReportInputs, head_sentence
from dogbreed.report.plots import BLUE, ORANGE
from dogbreed.report.rendering import Section, attempt, facts, fragment, percent, without_failing, write_page

TEMPLATE = "training_report.html.j2"
MOST_CELLS = 100
OPEN_CLASSES = 20  # more are folded away
MOST_CLASSES = 1000  # rows of the table
WHOLE_MATRIX = 30  # classes up to which the whole matrix is shown at once
MOST_CONFUSED = 24  # classes of the part that is shown first of a larger one
MOST_LABELS = 160  # classes up to which the whole one can be opened: beyond, names and cells are too small to read
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
    classes = "breeds" if run.noun == "breed" else "classes"

    def measured(anchor: str, title: str, build: Callable[[ReportInputs, Predictions], Markup]) -> Section:
        return Section(anchor, title, lambda: None if run.predictions is None else build(run, run.predictions))

    sections = [
        Section("curves", "Learning curves", lambda: _curves(run)),
        Section("rules", "Rules", lambda: rules_section.rules(run.findings)),
        measured("classes", classes.capitalize(), _classes),
        measured("confused", f"Most confused {classes}", photographs.confused_classes),
        measured("matrix", "Confusion matrix", _matrix),
        measured("errors", "Most confident errors", photographs.confident_errors),
        measured("calibration", "Calibration", _calibration),
        Section("images", "Images", lambda: photographs.images(run)),
        Section("reproduce", "How to repeat this run", lambda: _reproduce(run)),
    ]
    write_page(file, run.title, lambda: _header(run), sections)


def caveats(run: ReportInputs) -> Caveats:
    """Return what to know of the result. A failure costs neither it nor the run: it is printed, and in the report."""
    return attempt(lambda: run.caveats, Caveats([], [], {}))[0]


# The beginning: what, how well, and what to change


def about(run: ReportInputs) -> str:
    """Return what was trained, on what."""
    counts = ", ".join(f"{len(run.photos[split]):,} {_USE[split]}" for split in SPLITS if split in run.photos)
    text = f"{count(len(run.class_names), run.noun)}; images: {counts}."
    model = run.config.get("model", {})
    if run.history and model.get("trainable") in _TRAINED:
        weights = str(model.get("weights"))
        start = _START.get(weights, f"starting from the weights in {Path(weights).name}")
        text += f" Of the network {_TRAINED[model['trainable']]}, {start}."
    return text


def _header(run: ReportInputs) -> Markup:
    measured = None if run.predictions is None else result(run, run.predictions)
    leak, _ = attempt(lambda: run.leak, None)  # the section of the images says what failed
    diagnosis = diagnose(run.history, len(run.class_names), run.config) if run.history else None
    return fragment(TEMPLATE, "header", run.title, about(run), leak and leak.sentence, measured, diagnosis)


def result(run: ReportInputs, predictions: Predictions) -> dict[str, Any]:
    """Return the accuracy with its interval, in figures and as a sentence, and the other figures by name."""
    measured = run.measured
    low, high = measured["acc_ci95"]
    correct = int((predictions.predicted == predictions.labels).sum())
    sentence = f"{SPLIT_NAMES[predictions.split].capitalize()} accuracy: {correct:,} of "
    sentence += f"{count(len(predictions), 'image')}, 95 % CI {100 * low:.1f} to {percent(high, 1)}."
    if predictions.split != "test":
        sentence += " The test split was not evaluated; this is not a final figure."
    if "gain_acc" in run.metrics:
        sentence += f" {head_sentence(run.metrics)}"
    if "folds" in run.metrics:
        sentence += f" {folds_line(run.metrics)}."
    training = run.photos.get("train")
    known = predictions.labels if training is None else torch.as_tensor(training.labels)
    chance = classification.chance(predictions.labels, known, predictions.num_classes)
    epoch, seconds = run.metrics.get("best_epoch"), run.metrics.get("seconds")
    train_accuracy = run.metrics.get("train_acc")
    values = {
        "Chance-level accuracy": percent(chance.accuracy, 1),
        "Top-5 accuracy": percent(measured["top5"], 1) if predictions.num_classes >= TOP5_FROM else None,
        "Training accuracy": None if train_accuracy is None else percent(train_accuracy, 1),
        "Balanced accuracy": percent(measured["balanced_acc"], 1),
        "Macro F1": percent(measured["macro_f1"], 1),
        "Loss": f"{measured['loss']:.3f} nats",
        "Chance-level loss": f"{chance.loss:.3f} nats",
        "Calibration error": "{:.3f} ({:.3f} to {:.3f})".format(measured["ece"], *measured["ece_ci95"]),
        "Best epoch": None if epoch is None else f"{epoch:g} of {run.metrics.get('epochs', len(run.history))}",
        "Time": duration(seconds) if isinstance(seconds, int | float) else None,
    }
    share = measured["acc"]
    return {"share": share, "low": low, "high": high, "sentence": sentence, "facts": facts(values)}


# Sections


def _curves(run: ReportInputs) -> Markup | None:
    if not run.history:
        return None
    text = "Losses are means per image, those of training over the whole epoch, while the weights change. "
    text += "The weights of the epoch with the lowest validation loss were kept."
    if run.head_history:
        text += f" The first {count(len(run.head_history), 'epoch')} trained the head alone; the second stage starts "
        text += "from the best of them, and its epochs count from 1 again."
    smoothing = run.config.get("model", {}).get("label_smoothing")
    if smoothing:
        text += f" Label smoothing ({smoothing:g}) raises the training loss; validation is without."
    curves = plots.learning_curves(run.history, run.metrics.get("best_epoch"), run.head_history)
    return fragment(TEMPLATE, "plots", text, curves)


def _classes(run: ReportInputs, predictions: Predictions) -> Markup:
    classes = classification.per_class(predictions)
    perfect, never = (sum(one.recall == recall for one in classes) for recall in (1, 0))
    text = f"Of {count(len(classes), run.noun)}, {perfect} {'was' if perfect == 1 else 'were'} always classified "
    text += f"correctly, {never} never."
    if len(classes) > 1:
        always, none = classification.expected_extremes(classes)
        text += f" If all had the same accuracy, chance alone would give {always:.0f} and {none:.0f}."
    precision = sum(one.precision or 0.0 for one in classes) / len(classes)
    text += f" The mean over all is an accuracy of {percent(run.measured['balanced_acc'], 1)}, a precision of "
    text += f"{percent(precision, 1)} and an F1 of {percent(run.measured['macro_f1'], 1)}."
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
    listed = classes
    if len(classes) > MOST_CLASSES:
        listed = [*classes[: MOST_CLASSES - OPEN_CLASSES], *classes[-OPEN_CLASSES:]]
        text += f" Listed are the {MOST_CLASSES - OPEN_CLASSES} worst and the {OPEN_CLASSES} best; predictions.csv has "
        text += "every image of the others."
    rows = [_class_row(run, one) for one in listed]
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


def _matrix(run: ReportInputs, predictions: Predictions) -> Markup:
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


def _calibration(run: ReportInputs, predictions: Predictions) -> Markup:
    measured, logits, labels = run.measured, predictions.logits, predictions.labels
    number, temperature = count(len(predictions), "image"), predictions.temperature
    mean = float(binned(logits, labels, 1.0, 1)[0].mean())
    off, (low, high) = 100 * (mean - measured["acc"]), measured["acc_ci95"]
    text = "" if temperature == 1 else "Without the temperature "
    text += f"the mean confidence is {percent(mean, 1)} and the accuracy {percent(measured['acc'], 1)}: "
    if low <= mean <= high:
        text += f"whether the model is over- or underconfident cannot be told on {number}. "
    else:
        text += f"the model is {'over' if off > 0 else 'under'}confident by {abs(off):.1f} points. "
    errors = {"As it is served": (measured["ece"], measured["ece_ci95"], temperature, BLUE)}
    if temperature == 1:
        text += "There is no temperature: on the validation split none was better beyond doubt. "
    else:
        without = calibration_interval(logits, labels)
        errors = {"Without temperature": (measured["ece_uncalibrated"], without, 1.0, ORANGE), **errors}
        text += (
            f"The temperature {temperature:.3f}, chosen on the validation split, changes the calibration error from "
        )
        text += f"{measured['ece_uncalibrated']:.3f} to {measured['ece']:.3f}"
        text += ", measured on the very images it was fitted on" if predictions.split == "valid" else ""
        (begin, end), (first, last) = measured["ece_ci95"], without
        text += f", a difference that cannot be told on {number}" if begin <= last and first <= end else ""
        text += "; the predicted classes stay the same. "
    if measured["ece_ci95"][0] == 0:
        text += f"Whether its probabilities are right cannot be told on {number}: "
        text += "a perfectly calibrated model would show as large an error. "
    text += "On the dashed line confidence is accuracy; below it the model claims too much. Each dot has its number of "
    text += "images and its 95 % interval. " + _sets(run, predictions)
    drawings = []
    for name, (error, (begin, end), divisor, colour) in errors.items():
        bins = classification.reliability(logits, labels, temperature=divisor)
        title = f"{name}: error {error:.3f} ({begin:.3f} to {end:.3f})"
        drawings.append(plots.reliability_diagram(title, bins, colour))
    return fragment(TEMPLATE, "plots", text[:1].upper() + text[1:], drawings)


def _sets(run: ReportInputs, predictions: Predictions) -> str:
    """Return what is known of the prediction sets on these images; nothing where there are none."""
    text = ""
    for level in LEVELS:
        name = f"{PREFIX[predictions.split]}_set{level}"
        covered = run.metrics.get(f"{name}_coverage", "none")
        if covered is None:
            text += f"There are no {level} % sets: the validation split has too few images. "
        elif covered != "none":
            low, high = (percent(end, 1) for end in run.metrics[f"{name}_coverage_ci95"])
            text += f"The {level} % sets hold the right class for {percent(covered, 1)} of "
            text += f"{count(len(predictions), 'image')} (95 % CI {low} to {high}), "
            text += f"with {run.metrics[f'{name}_size']:.2f} classes on average. "
    if text and "refit_epochs" in run.metrics:
        text += "Their thresholds are from the head before the refit."
    return text


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
