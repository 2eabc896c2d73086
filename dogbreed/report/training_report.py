"""`report.html`: what was reached, what went wrong and why, in one file that needs nothing else.

In the order of reading: the result, the lesson of the curves, the breeds, what is mixed up, the most confident
mistakes, whether probabilities can be trusted, the photographs themselves, and how to do it again.
"""

import json
import math
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from dogbreed.config import reproduce
from dogbreed.config.compose import to_yaml
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write
from dogbreed.data.duplicates import Pair, find_duplicates
from dogbreed.data.layout import SPLITS
from dogbreed.metrics import classification
from dogbreed.metrics.classification import ClassMetrics
from dogbreed.metrics.predictions import Predictions
from dogbreed.report import environment, gallery, plots, rules_section
from dogbreed.report.curve_diagnosis import lesson
from dogbreed.report.inputs import ReportInputs
from dogbreed.report.page import Markup, bar, count, document, facts, joined, table, tag

T = TypeVar("T")

MOST_CELLS = 100
OPEN_BREEDS = 20  # more are folded away
_WHAT = {"test": "test", "valid": "validation", "train": "training"}
_USE = {"test": "to test", "valid": "to validate", "train": "to train"}


def write_safely(file: Path, run: ReportInputs) -> None:
    """As `write`, for the end of a run that has succeeded: what goes wrong is said on standard error, not raised."""
    try:
        write(file, run)
    except DogbreedError as error:
        print(f"The report could not be written: {error}", file=sys.stderr, flush=True)


def write(file: Path, run: ReportInputs) -> None:
    """Writes the report; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    none: list[Pair] = []
    duplicates, gap = _attempt(lambda: find_duplicates(run.photos), none)
    sections: list[tuple[str, str, Callable[[], Markup | None]]] = [
        ("curves", "Learning curves", lambda: _curves(run)),
        ("rules", "What the rules found", lambda: rules_section.verdicts(run.findings)),
        ("breeds", "ClassMetrics by breed", lambda: _breeds(run)),
        ("mixed-up", "What is mixed up", lambda: gallery.mixed_up(run)),
        ("matrix", "Confusion matrix", lambda: _matrix(run)),
        ("mistakes", "The most confident mistakes", lambda: gallery.mistakes(run)),
        ("trust", "Can its probabilities be trusted?", lambda: _trust(run)),
        ("photographs", "The photographs", lambda: gallery.photographs(run, duplicates) if gap is None else gap),
        ("again", "How it was made, and how to repeat it", lambda: _again(run)),
    ]
    made = []
    for anchor, title, build in sections:
        content, problem = _attempt(build, None)
        if problem or content:
            made.append((anchor, title, problem or content))
    head, problem = _attempt(lambda: _head(run, duplicates), Markup(""))
    links = tag("nav", *(tag("a", title, href=f"#{anchor}") for anchor, title, _ in made), aria_label="Sections")
    body = tag(
        "main",
        head if problem is None else problem,
        links,
        *(tag("section", tag("h2", title, id=anchor), content) for anchor, title, content in made),
    )
    with atomic_write(file) as temporary:
        temporary.write_text(document(_title(run), body), encoding="utf-8")


def _attempt(build: Callable[[], T], otherwise: T) -> tuple[T, Markup | None]:
    """Builds a part of the page. Its failure costs this part, neither the page nor the run that it tells about."""
    try:
        return build(), None
    except Exception as error:
        traceback.print_exc()
        told = " ".join(str(error).split()) or type(error).__name__
        return otherwise, tag("p", f"This part could not be made: {told}", class_="warning")


# The beginning: what, how well, and what to learn from it


def _title(run: ReportInputs) -> str:
    data = run.root.resolve().name or str(run.root)
    return f"{run.backbone} {'trained' if run.history else 'evaluated'} on {data}"


def _head(run: ReportInputs, duplicates: Sequence[Pair]) -> Markup:
    counts = ", ".join(f"{len(run.photos[s]):,} {_USE[s]}" for s in SPLITS if s in run.photos)
    trained = run.config.get("model", {}).get("trainable")
    said = {"head": "its head was trained", "block": "head and last stage were trained", "all": "all of it was trained"}
    about = f"{len(run.class_names):,} breeds; photographs: {counts}."
    if run.history and trained in said:
        about += f" Of the network {said[trained]}, {_start(str(run.config['model'].get('weights')))}."
    parts = [tag("h1", _title(run)), tag("p", about, class_="muted")]
    if run.predictions is not None:
        parts += [_result(run, run.predictions), _leak_warning(run, duplicates)]
    else:
        parts.append(tag("p", "No split was evaluated.", class_="warning"))
    if run.history:
        kind = lesson(run.history, len(run.class_names))
        parts.append(tag("p", tag("strong", "The lesson. "), kind.sentence, class_="lesson"))
    return tag("header", *parts)


def _start(weights: str) -> str:
    named = {"imagenet": "starting from weights that had learnt ImageNet", "none": "starting from random weights"}
    return named.get(weights, f"starting from the weights in {Path(weights).name}")


def _result(run: ReportInputs, predictions: Predictions) -> Markup:
    measured = classification.measure(predictions, "x")
    low, high = measured["x_acc_ci95"]
    note = "" if predictions.split == "test" else " The test split was not evaluated; this is not a final figure."
    big = tag("div", f"{100 * measured['x_acc']:.1f}", tag("small", "%"), class_="big")
    photographs = count(len(predictions), f"{_WHAT[predictions.split]} photograph")
    sentence = f"of {photographs} named rightly; 95% interval {low:.1%} to {high:.1%}.{note}"
    ends = tag("div", tag("span", "0%"), tag("span", "100%"), class_="ends")
    epoch = run.metrics.get("best_epoch")
    pairs: list[tuple[object, object]] = [
        ("Among the first five", f"{measured['x_top5']:.1%}"),
        ("Loss", f"{measured['x_loss']:.3f} nats"),
        ("Loss of guessing", f"{math.log(len(run.class_names)):.3f} nats"),
        ("Calibration error", f"{measured['x_ece']:.3f}"),
    ]
    if epoch is not None:
        pairs.append(("Best epoch", f"{epoch:g} of {run.metrics.get('epochs', len(run.history))}"))
    if isinstance(run.metrics.get("seconds"), int | float):
        pairs.append(("Time", _duration(run.metrics["seconds"])))
    left = tag("div", big, tag("p", sentence), bar(low, measured["x_acc"], high), ends)
    return tag("div", left, tag("div", facts(pairs)), class_="result")


def _leak_warning(run: ReportInputs, duplicates: Sequence[Pair]) -> Markup:
    """The plain word on photographs that were measured on and trained on."""
    predictions = run.predictions
    assert predictions is not None
    places = {path: place for place, path in enumerate(predictions.paths)}
    paths = {run.photos[p.split].paths[p.index] for p in duplicates if p.split == predictions.split}
    leaked = sorted(places[path] for path in paths if path in places)
    if not leaked:
        return Markup("")
    kept = torch.ones(len(predictions), dtype=torch.bool)
    kept[leaked] = False
    told = f"{count(len(leaked), 'photograph')} of the {_WHAT[predictions.split]} split also "
    told += f"{'lies' if len(leaked) == 1 else 'lie'} in another split, so the result may look better than it is"
    if kept.any():
        right = (predictions.predicted == predictions.labels)[kept]
        told += f"; without {'it' if len(leaked) == 1 else 'them'} it is {float(right.double().mean()):.1%}"
        told += f" of {len(right):,}"
    link = tag("a", "See which.", href="#photographs")
    return tag("p", tag("strong", "A leak. "), told, ". ", link, class_="warning")


# Sections


def _curves(run: ReportInputs) -> Markup | None:
    if not run.history:
        return None
    best = run.metrics.get("best_epoch")
    note = ""
    smoothing = run.config.get("model", {}).get("label_smoothing")
    if smoothing:
        note = f" Label smoothing ({smoothing:g}) raises the training loss; validation is without."
    text = f"Losses are means per image. The weights of the epoch with the lowest validation loss were kept.{note}"
    return joined([tag("p", text), plots.learning_curves(run.history, best)])


def _breeds(run: ReportInputs) -> Markup | None:
    if run.predictions is None:
        return None
    breeds = classification.per_class(run.predictions)
    perfect = sum(breed.correct == breed.total for breed in breeds)
    never = sum(breed.correct == 0 for breed in breeds)
    width = sorted(breed.high - breed.low for breed in breeds)[len(breeds) // 2]
    typical = sorted(breed.total for breed in breeds)[len(breeds) // 2]
    text = f"Of {count(len(breeds), 'breed')}, {perfect} were always named rightly, {never} never."
    if width > 0.3:
        text += (
            f" With {count(typical, 'photograph')} a breed, a breed's figure is uncertain by {100 * width:.0f} "
            "percentage points from end to end (the pale band): the order of breeds is a hint, not a ranking."
        )
    missing = len(run.class_names) - len(breeds)
    if missing:
        text += f" {count(missing, 'breed')} had no photograph."
    parts = [tag("p", text), _breed_table(run, breeds[:OPEN_BREEDS], "Breeds, the worst first")]
    if len(breeds) > OPEN_BREEDS:
        rest = _breed_table(run, breeds[OPEN_BREEDS:], "All other breeds")
        parts.append(tag("details", tag("summary", f"The other {len(breeds) - OPEN_BREEDS:,} breeds"), rest))
    return joined(parts)


def _breed_table(run: ReportInputs, breeds: Sequence[ClassMetrics], label: str) -> Markup:
    rows = [
        (
            run.name(breed.label),
            bar(breed.low, breed.correct / breed.total, breed.high),
            f"{breed.correct / breed.total:.0%}",
            f"{breed.correct} of {breed.total}",
            f"{breed.low:.0%} to {breed.high:.0%}",
            "" if breed.mistaken_for is None else run.name(breed.mistaken_for),
        )
        for breed in breeds
    ]
    head = ("ClassMetrics", "0 to 100%", "Right", "Photographs", "95% interval", "Most often taken for")
    return table(head, rows, label, numeric=(2, 3, 4))


def _matrix(run: ReportInputs) -> Markup | None:
    if run.predictions is None:
        return None
    matrix = classification.confusion(run.predictions)
    order = classification.similarity_order(run.predictions)
    present = [label for label in order if matrix[label].any() or matrix[:, label].any()]
    text = (
        "A row for each breed, a column for what it was taken for. Breeds that the model finds alike are neighbours, "
        "so families of breeds show as clusters along the diagonal. Only mistakes are coloured, the stronger the more "
        "(logarithmic); point at one to read it."
    )
    if len(present) < len(order):
        text += f" {count(len(order) - len(present), 'breed')} without a photograph, and never said, left out."
    parts = [tag("p", text), plots.confusion_matrix(matrix, present, run.class_names)]
    np.fill_diagonal(matrix, 0)
    cells = sorted(np.argwhere(matrix).tolist(), key=lambda cell: -matrix[tuple(cell)])[:MOST_CELLS]
    if cells:
        totals = torch.bincount(run.predictions.labels, minlength=len(matrix)).tolist()
        rows = [(run.name(a), run.name(b), f"{matrix[a, b]} of {totals[a]}") for a, b in cells]
        listed = table(("ClassMetrics", "Taken for", "Photographs"), rows, "The most frequent mistakes", numeric=(2,))
        parts.append(tag("details", tag("summary", "The mistakes as a table, the most frequent first"), listed))
    return joined(parts)


def _trust(run: ReportInputs) -> Markup | None:
    predictions = run.predictions
    if predictions is None:
        return None
    logits, labels = predictions.logits, predictions.labels
    before = classification.reliability(logits, labels)
    after = classification.reliability(logits, labels, temperature=predictions.temperature)
    measured = classification.measure(predictions, "x")
    mean = float(logits.double().softmax(1).max(1).values.mean())
    off = mean - measured["x_acc"]
    way = "over" if off > 0 else "under"
    text = (
        f"Before the temperature the model gave {mean:.1%} on average and was right in {measured['x_acc']:.1%}: "
        + (f"it is {way}confident by {abs(100 * off):.1f} points. " if abs(off) >= 0.01 else "well balanced. ")
        + f"The temperature {predictions.temperature:.3f}, fitted on the validation split, brings the calibration "
        f"error from {measured['x_ece_uncalibrated']:.3f} to {measured['x_ece']:.3f}; "
        "the breeds it says stay the same. "
        "On the dashed line a probability means what it says; below it the model claims too much. Larger dots hold "
        "more photographs."
    )
    errors = (measured["x_ece_uncalibrated"], measured["x_ece"])
    return joined([tag("p", text), plots.reliability_diagrams(before, after, errors)])


def _again(run: ReportInputs) -> Markup:
    parts = []
    command = run.command or (reproduce.command(run.config) if run.config else "")
    if command:
        parts += [tag("p", "One click selects all of it:"), tag("pre", tag("code", command), class_="command")]
    metrics = run.metrics
    told = {
        "Time": _duration(metrics["seconds"]) if isinstance(metrics.get("seconds"), int | float) else None,
        "Images seen in training": _whole(metrics.get("images_seen")),
        "Images a second": _whole(metrics.get("images_per_second")),
        "Feature cache": metrics.get("cache"),
        "Device": metrics.get("device"),
    }
    pairs: list[tuple[object, object]] = [(name, value) for name, value in told.items() if value is not None]
    pairs += [(name.capitalize() if name[0].islower() else name, v) for name, v in environment.machine().items()]
    parts += [facts(pairs), tag("h3", "Versions", style="margin-top:1.5rem"), facts(environment.versions().items())]
    if run.config:
        yaml = tag("pre", tag("code", to_yaml(reproduce.shown(run.config))))
        parts.append(tag("details", tag("summary", "The whole configuration"), yaml))
    if metrics:
        numbers = tag("pre", tag("code", json.dumps(_finite(metrics), indent=2)))
        parts.append(tag("details", tag("summary", "All figures (metrics.json)"), numbers))
    return joined(parts)


def _finite(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Without what JSON has no number for."""
    bad = {name: None for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)}
    return {**metrics, **bad}


def _whole(value: Any) -> str | None:
    return f"{value:,.0f}" if isinstance(value, int | float) else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
