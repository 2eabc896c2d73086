"""`study.html`: labels that look wrong, what more images would bring, and a map; a single self-contained HTML file."""

from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.ticker import PercentFormatter

from dogbreed.core.extras import install
from dogbreed.report.photographs import Photo
from dogbreed.report.plots import BLUE, INK, drawing
from dogbreed.report.rendering import Section, fragment, percent, shown, thumbnail, write_page
from dogbreed.report.study import FEW, ClassGain, Label, Study

TEMPLATE = "study.html.j2"
MOST_CLASSES = 20
MAP_THUMBNAIL = 72  # pixels: 2,000 images take about 5 MB
MOST_COLOURS = 20  # classes up to which colours are named


def write(file: Path, study: Study) -> None:
    """Write the page; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    sections = [
        Section("labels", "Labels that look wrong", lambda: _labels(study)),
        Section("twins", "The same picture with two labels", lambda: _twins(study)),
        Section("more", "Would more images help?", lambda: _more(study)),
        Section("classes", "Which classes gain most?", lambda: _classes(study)),
        Section("map", "Which images lie together?", lambda: _map(study)),
    ]
    title = f"Study of {study.run.resolve().name}"
    write_page(file, title, lambda: fragment(TEMPLATE, "header", title, study.judgement(), study.outlook()), sections)


def _photo(study: Study, path: str, label: str, caption: str) -> Photo:
    return Photo(thumbnail(study.root / path), shown(label), caption, path)


def _labels(study: Study) -> Markup:
    photos = []
    for suspect in study.suspects:
        caption = (
            f"Labelled {shown(suspect.label)} ({percent(suspect.probability, 1)}), "
            f"looks like {shown(suspect.suggested)} ({percent(suspect.suggested_probability, 1)})"
        )
        if alike := study.alike.get(suspect.path):
            caption += f"; most similar: {', '.join(map(shown, alike))}"
        photos.append(_photo(study, suspect.path, suspect.label, caption))
    return fragment(TEMPLATE, "labels", photos, study.effects())


def _twins(study: Study) -> Markup | None:
    sides = [
        (_photo(study, path, label, f"Labelled {shown(label)}"))
        for pair in study.twins
        for path, label in ((pair.path, pair.label), (pair.other_path, pair.other_label))
    ]
    return fragment(TEMPLATE, "twins", sides) if sides else None


def _more(study: Study) -> Markup:
    images, curve = [point.images for point in study.curve], study.curve
    means = np.array([point.accuracy for point in curve])
    margins = 1.96 * np.array([point.error for point in curve])
    with drawing("Accuracy by number of training images", "Accuracy by number of training images") as made:
        for point in curve:
            folds = [accuracy for seed in point.folds for accuracy in seed]
            made.axes.scatter([point.images] * len(folds), folds, s=8, color=INK, alpha=0.3, linewidths=0)
        low, high = np.clip([means - margins, means + margins], 0, 1)
        made.axes.fill_between(images, low, high, color=BLUE, alpha=0.2, linewidth=0)
        made.axes.plot(images, means, color=BLUE, marker="o", linewidth=1.8, label="measured, with 95 % band")
        if study.law:
            more = np.geomspace(images[0], 2 * images[-1], 100)
            expected = [study.law.accuracy(number) for number in more]
            made.axes.plot(more, expected, color=INK, linestyle="--", linewidth=1, label="power law, to twice as many")
        made.axes.set(xlabel="training images", ylabel="accuracy", xscale="log")
        made.axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        made.axes.minorticks_off()
        made.axes.set_xticks(images, [f"{number:,}" for number in images])
        made.axes.legend(loc="lower right", frameon=False)
    rows = [
        (
            f"{point.images:,}",
            percent(point.accuracy, 1) + (f" ± {percent(point.error, 1)}" if point.error else ""),
            ", ".join(percent(accuracy, 1) for accuracy in point.seeds),
        )
        for point in curve
    ]
    return fragment(TEMPLATE, "more", [made.markup], rows)


def _classes(study: Study) -> Markup | None:
    if len(study.classes) < 2:
        return None
    rows = [
        (
            shown(one.name),
            f"{one.images:,}",
            percent(one.few, 0),
            percent(one.accuracy, 0),
            _points(one),
        )
        for one in study.classes[:MOST_CLASSES]
    ]
    return fragment(TEMPLATE, "classes", rows, len(study.classes), study.next_classes(), percent(FEW, 0))


def _map(study: Study) -> Markup:
    if study.spots is None:
        return fragment(TEMPLATE, "no_map", install("map"))
    names = sorted({label.label for label in study.labels})
    hues = {name: round(360 * number / len(names)) for number, name in enumerate(names)}
    # What is classified otherwise lies on top, where it is seen.
    spots = sorted(study.spots, key=lambda spot: spot.image.label != spot.image.suggested)
    rows = []
    for spot in spots:
        image = spot.image
        wrong = image.label != image.suggested
        rows.append(
            (
                f"{spot.x:.4f}",
                f"{1 - spot.y:.4f}",
                hues[image.label],
                wrong,
                _caption(image),
                thumbnail(study.root / image.path, MAP_THUMBNAIL),
                image.path,
            )
        )
    colours = [(shown(name), hue) for name, hue in hues.items()] if len(names) <= MOST_COLOURS else []
    return fragment(TEMPLATE, "map", rows, len(study.labels), colours)


def _caption(image: Label) -> str:
    if image.label == image.suggested:
        return shown(image.label)
    return f"{shown(image.label)}, classified as {shown(image.suggested)}"


def _points(one: ClassGain) -> str:
    return f"{100 * one.gain:+.0f} ± {100 * one.error:.0f}"
