"""`study.html`: labels that look wrong, and what more images would bring; a single self-contained HTML file."""

from pathlib import Path

from markupsafe import Markup
from matplotlib.ticker import PercentFormatter

from dogbreed.report.photographs import Photo
from dogbreed.report.plots import BLUE, INK, drawing
from dogbreed.report.rendering import Section, fragment, percent, shown, thumbnail, write_page
from dogbreed.report.study import Study

TEMPLATE = "study.html.j2"


def write(file: Path, study: Study) -> None:
    """Write the page; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    sections = [
        Section("labels", "Labels that look wrong", lambda: _labels(study)),
        Section("more", "Would more images help?", lambda: _more(study)),
    ]
    title = f"Study of {study.run.resolve().name}"
    write_page(file, title, lambda: fragment(TEMPLATE, "header", title, study.judgement(), study.outlook()), sections)


def _labels(study: Study) -> Markup:
    photos = []
    for suspect in study.suspects:
        caption = (
            f"Labelled {shown(suspect.label)} ({percent(suspect.probability, 1)}), "
            f"looks like {shown(suspect.suggested)} ({percent(suspect.suggested_probability, 1)})"
        )
        photos.append(Photo(thumbnail(study.root / suspect.path), shown(suspect.label), caption, suspect.path))
    return fragment(TEMPLATE, "labels", photos)


def _more(study: Study) -> Markup:
    images = [point.images for point in study.curve]
    with drawing("Accuracy by number of training images", "Accuracy by number of training images") as made:
        for point in study.curve:
            each = [point.images] * len(point.folds)
            made.axes.scatter(each, point.folds, s=12, color=INK, alpha=0.4, linewidths=0)
        made.axes.plot(images, [point.accuracy for point in study.curve], color=BLUE, marker="o", linewidth=1.8)
        made.axes.set(xlabel="training images", ylabel="accuracy", xscale="log")
        made.axes.yaxis.set_major_formatter(PercentFormatter(1))
        made.axes.minorticks_off()
        made.axes.set_xticks(images, [f"{number:,}" for number in images])
    rows = [
        (f"{point.images:,}", percent(point.accuracy, 1), ", ".join(percent(share, 1) for share in point.folds))
        for point in study.curve
    ]
    return fragment(TEMPLATE, "more", [made.markup], rows)
