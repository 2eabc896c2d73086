"""`inspection.html`: what a folder of images holds and what is wrong with it; a single self-contained HTML file."""

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from markupsafe import Markup

from dogbreed.core.text import count, join
from dogbreed.data.inspection import BLURRED, DARK, SIDE, TINY, Group, Inspection
from dogbreed.report.photographs import Card, Photo
from dogbreed.report.plots import BLUE, drawing
from dogbreed.report.rendering import Section, facts, fragment, shown, thumbnail, write_page

TEMPLATE = "inspection.html.j2"
MOST_CARDS = 24  # groups or images that are shown of each kind
MOST_PHOTOS = 4  # of a group
MOST_ROWS = 300
MOST_DOTS = 5000  # of a drawing with one for each image
OPEN_ROWS = 20
_DARK = f"95 % of the pixels are darker than {DARK} of 255."
_BLURRED = f"At {SIDE} pixels, about what a network sees, next to no detail is left (sharpness below {BLURRED})."
_TINY = f"The shorter side has fewer than {TINY} pixels."
_USE = {"train": "to train", "valid": "to validate", "test": "to test"}


def write(file: Path, inspection: Inspection) -> None:
    """Write the page; a section that cannot be made says so in its place.

    Raises:
        DogbreedError: The file cannot be written.
    """
    sections = [
        Section("labels", "In several classes", lambda: _groups(inspection, inspection.two_labels)),
        Section("leaks", "In several splits", lambda: _groups(inspection, inspection.across_splits)),
        Section("copies", "Several times in one class", lambda: _groups(inspection, inspection.within_splits)),
        Section("dark", "Dark", lambda: _gallery(inspection, inspection.dark, _DARK)),
        Section("blurred", "Blurred", lambda: _gallery(inspection, inspection.blurred, _BLURRED)),
        Section("tiny", "Tiny", lambda: _gallery(inspection, inspection.tiny, _TINY)),
        Section("unusable", "Unusable files", lambda: _unusable(inspection)),
        Section("classes", "Classes", lambda: _classes(inspection)),
        Section("sizes", "Sizes", lambda: _sizes(inspection)),
        Section("next", "What next", lambda: _next(inspection)),
    ]  # fmt: skip
    name = inspection.root.resolve().name or str(inspection.root)
    write_page(file, f"Images of {name}", lambda: _header(inspection, f"Images of {name}"), sections)


def _header(inspection: Inspection, title: str) -> Markup:
    counts = [f"{sum(inspection.counts(split)):,} {_USE[split]}" for split in inspection.splits]
    about = f"{count(len(inspection.entries), 'image')} in {count(len(inspection.classes), 'class')}"
    about += f": {', '.join(counts)}." if counts else ", not split yet."
    alarms = [
        f"{count(len(groups), 'picture')} {'lies' if len(groups) == 1 else 'lie'} {where}"
        for groups, where in (
            (inspection.two_labels, "in several classes: one of the labels is wrong"),
            (inspection.across_splits, "in several splits: results would look better than they are"),
        )
        if groups
    ]
    suspicious: dict[str, Sequence[Any]] = {
        "dark": inspection.dark, "blurred": inspection.blurred, "tiny": inspection.tiny,
        "unusable files": inspection.unusable, "copies in one class": inspection.within_splits,
    }  # fmt: skip
    values: dict[str, Any] = {
        "Largest to smallest class": f"{inspection.imbalance:.1f} to 1" if inspection.imbalance else None,
        **{name: f"{len(images):,}" for name, images in suspicious.items()},
    }
    clean = not alarms and not any(map(len, suspicious.values()))
    return fragment(TEMPLATE, "header", title, about, alarms, inspection.notes, clean, facts(values))


def _classes(inspection: Inspection) -> Markup:
    splits = inspection.splits or [""]
    totals = inspection.counts()
    order = sorted(range(len(totals)), key=lambda label: -totals[label])
    most = max(totals, default=0) or 1
    training = inspection.counts("train" if inspection.splits else None)
    text = f"{min(training):,} to {max(training):,} images per class to train on, median {median(training):g}."
    if inspection.imbalance and inspection.imbalance >= 3:
        text += " Few images of a class let a model overlook it: watch the balanced accuracy, which counts all alike."
    by_split = [inspection.counts(split) for split in splits]
    rows = [
        (shown(inspection.classes[label]), totals[label] / most, [counts[label] for counts in by_split])
        for label in order
    ]
    if len(rows) > MOST_ROWS:
        text += f" The {MOST_ROWS // 2} largest and smallest of {len(rows):,} are listed."
        rows = rows[: MOST_ROWS // 2] + rows[-MOST_ROWS // 2 :]
    heads = [split.capitalize() or "Images" for split in splits]
    return fragment(TEMPLATE, "classes", text, heads, rows[:OPEN_ROWS], rows[OPEN_ROWS:])


def _sizes(inspection: Inspection) -> Markup | None:
    if not len(inspection.looks):
        return None
    widths, heights = inspection.looks[:, 0], inspection.looks[:, 1]
    ratios = widths / heights
    dots = inspection.looks[:: math.ceil(len(widths) / MOST_DOTS)]
    some = f", {len(dots):,} of {len(widths):,} images" if len(dots) < len(widths) else ""
    with drawing(f"Width and height (pixels){some}", "Height of each image over its width") as made:
        alpha = min(1, max(0.05, 300 / len(dots)))
        made.axes.scatter(dots[:, 0], dots[:, 1], s=9, color=BLUE, alpha=alpha, linewidths=0)
        made.axes.set(xlabel="width", ylabel="height")
        made.axes.axis((0, 1.05 * max(widths), 0, 1.05 * max(heights)))
    with drawing("Width by height", "Images by aspect ratio") as bars:
        bars.axes.hist(ratios, bins=30, color=BLUE)
        bars.axes.set(xlabel="width by height", ylabel="images")
    values = {
        f"{name}, smallest to largest": "{} to {}, median {}".format(
            *(format(function(values), form) for function in (np.min, np.max, np.median))
        )
        for name, values, form in (
            ("width", widths, ",.0f"),
            ("height", heights, ",.0f"),
            ("width by height", ratios, ".2f"),
        )
    }
    return fragment(TEMPLATE, "sizes", facts(values), [made.markup, bars.markup])


def _groups(inspection: Inspection, groups: Sequence[Group]) -> Markup | None:
    if not groups:
        return None
    exact = sum(group.exact for group in groups)
    kinds = ((exact, "file", "copied as it is"), (len(groups) - exact, "picture", "saved again, resized or mirrored"))
    text = join([f"{count(number, noun)} {how}" for number, noun, how in kinds if number]) + "."
    if len(groups) > MOST_CARDS:
        text += f" The first {MOST_CARDS} are shown; inspection.json has all."
    return fragment(TEMPLATE, "cards", text, [_card(inspection, group) for group in groups[:MOST_CARDS]])


def _card(inspection: Inspection, group: Group) -> Card:
    photos = []
    for index in group.members[:MOST_PHOTOS]:
        path, label, split = inspection.entries[index]
        name = shown(inspection.classes[label])
        caption = f"{name}, {split}" if split else name
        photos.append(Photo(thumbnail(path), caption, caption, inspection.shown_path(path)))
    names = list(dict.fromkeys(shown(inspection.classes[inspection.entries[index].label]) for index in group.members))
    text = f"The same {'file' if group.exact else 'picture'}, {len(group.members)} times."
    return Card(join(names[:3]) + (" ..." if len(names) > 3 else ""), text, photos)


def _gallery(inspection: Inspection, indices: Sequence[int], text: str) -> Markup | None:
    if not indices:
        return None
    if len(indices) > MOST_CARDS:
        text += f" The first {MOST_CARDS} of {len(indices):,} are shown; inspection.json has all."
    photos = []
    for index in indices[:MOST_CARDS]:
        (path, label, _), look = inspection.entries[index], inspection.look(index)
        name = shown(inspection.classes[label])
        caption = f"{name}, {look.width} x {look.height}"
        photos.append(Photo(thumbnail(path), name, caption, inspection.shown_path(path)))
    return fragment(TEMPLATE, "gallery", text, photos)


def _unusable(inspection: Inspection) -> Markup | None:
    if not inspection.unusable:
        return None
    rows = [(inspection.shown_path(entry.path), reason) for entry, reason in inspection.unusable]
    return fragment(TEMPLATE, "unusable", len(rows), rows[:MOST_ROWS])


def _next(inspection: Inspection) -> Markup:
    words = ["python", "-m", "dogbreed.train", f"data.root={inspection.root}"]
    command = shlex.join([*words, f"data.labels={inspection.labels}"] if inspection.labels else words)
    return fragment(TEMPLATE, "following", command)
