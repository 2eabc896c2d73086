"""The sections of a report that show photographs: what is mixed up, confident mistakes, copies across splits."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image

from dogbreed.data.duplicates import MOST_IMAGES, Pair
from dogbreed.data.images import BadImage, load
from dogbreed.data.layout import SPLITS
from dogbreed.metrics import classification
from dogbreed.metrics.classification import ConfusedPair
from dogbreed.metrics.predictions import Predictions
from dogbreed.models.gradcam import heat_maps
from dogbreed.report.inputs import ReportInputs
from dogbreed.report.page import Markup, count, joined, photo, table, tag, thumbnail

MOST_PAIRS = 9
MOST_MISTAKES = 12
MOST_DUPLICATES = 12
MOST_SKIPPED = 200

_TURBO = colormaps["turbo"](np.arange(256))[:, :3].astype(np.float32)  # colours by heat, [256, 3]
_SPLIT = {"test": "test", "valid": "validation", "train": "training"}


def mixed_up(run: ReportInputs) -> Markup | None:
    if run.predictions is None:
        return None
    pairs = classification.most_confused(run.predictions, MOST_PAIRS)
    if not pairs:
        return tag("p", "Nothing: every photograph was named rightly.")
    wrong = int((run.predictions.predicted != run.predictions.labels).sum())
    inside = sum(pair.forth + pair.back for pair in pairs)
    text = f"The pairs of breeds with the most mistakes between them: {inside} of all {wrong}."
    text += " Beside each photograph that was mistaken stands one of the breed it was taken for."
    return joined([tag("p", text), tag("div", *(_pair_card(run, run.predictions, p) for p in pairs), class_="cards")])


def _pair_card(run: ReportInputs, predictions: Predictions, pair: ConfusedPair) -> Markup:
    first, second = run.name(pair.first), run.name(pair.second)
    counts = f"{pair.forth} of {count(pair.first_total, 'photograph')} of {first} taken for {second}"
    counts += f", {pair.back} of {pair.second_total} the other way." if pair.back else "."
    here = (predictions.labels == pair.first) & (predictions.predicted == pair.second)
    sure = predictions.probabilities[:, pair.second].where(here, torch.tensor(-1.0, dtype=torch.float64))
    place = int(sure.argmax())
    mistaken = photo(
        thumbnail(predictions.paths[place]),
        f"A {first}",
        f"{first}, taken for {second} ({float(sure[place]):.0%} sure)",
    )
    example = _example(run, predictions, pair.second)
    beside = photo(thumbnail(example), f"A {second}", second) if example else tag("p", f"No photograph of {second}.")
    title = tag("h3", first, " and ", second)
    return tag("div", title, tag("p", counts), tag("div", mistaken, beside, class_="two"), class_="card")


def _example(run: ReportInputs, predictions: Predictions, label: int) -> Path | None:
    """A photograph of a breed: one that the model learnt from, else one that it named rightly, else any."""
    training = run.photos.get("train")
    if training is not None and predictions.split != "train":
        found = np.flatnonzero(training.labels == label)
        if len(found):
            return training.paths[int(found[0])]
    mine = predictions.labels == label
    if not mine.any():
        return None
    return predictions.paths[int(predictions.probabilities[:, label].where(mine, torch.tensor(-1.0).double()).argmax())]


def mistakes(run: ReportInputs) -> Markup | None:
    predictions = run.predictions
    if predictions is None:
        return None
    places = classification.most_confident_errors(predictions, MOST_MISTAKES)
    if not places:
        return tag("p", "None: every photograph was named rightly.")
    overlays, why_not = _overlays(run, predictions, places)
    text = "Wrong labels, second dogs in the picture and real look-alikes come first here. "
    text += why_not or (
        "The right picture of each shows where the network found what it said (Grad-CAM on the last feature map): "
        "red spoke for it, blue did not."
    )
    cards = []
    probabilities = predictions.probabilities
    for place in places:
        truth, said = int(predictions.labels[place]), int(predictions.predicted[place])
        images = [photo(thumbnail(predictions.paths[place]), f"A {run.name(truth)}")]
        if overlays.get(place) is not None:
            images.append(photo(overlays[place], f"Where it saw a {run.name(said)}"))
        facts_ = (
            f"{float(probabilities[place, said]):.1%} {run.name(said)}, "
            f"{float(probabilities[place, truth]):.1%} {run.name(truth)}"
        )
        cards.append(
            tag(
                "div",
                tag("h3", run.name(truth), tag("span", " taken for ", class_="muted"), run.name(said)),
                tag("div", *images, class_="two"),
                tag("figcaption", facts_, tag("br"), tag("code", run.shown_path(predictions.paths[place]))),
                class_="card",
            )
        )
    return joined([tag("p", text), tag("div", *cards, class_="cards")])


def _overlays(run: ReportInputs, predictions: Predictions, places: Sequence[int]) -> tuple[dict[int, Image.Image], str]:
    """The photographs with their heat maps, and why there are none where there are none."""
    if run.network is None:
        return {}, "There was no network at hand for heat maps."
    read: dict[int, torch.Tensor] = {}
    for place in places:
        try:
            read[place] = load(predictions.paths[place], run.preprocessing)
        except BadImage:  # it has gone since it was answered
            continue
    if not read:
        return {}, ""
    inputs = torch.stack(list(read.values()))
    maps = heat_maps(run.network, run.backbone, inputs, predictions.predicted[list(read)])
    if maps is None:
        return {}, f"There are no heat maps: {run.backbone} has no spatial feature map before its head."
    return {
        place: _overlay(image, heat, run, predictions.paths[place])
        for place, image, heat in zip(read, inputs, maps, strict=True)
    }, ""


def _overlay(image: torch.Tensor, heat: torch.Tensor, run: ReportInputs, path: Path) -> Image.Image:
    """A heat map over what the network got to see, in the photograph's own shape where that was squashed."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.preprocessing.mean, run.preprocessing.std))
    seen = (image * std + mean).clamp(0, 1)
    grown = torch.nn.functional.interpolate(heat[None, None], seen.shape[-2:], mode="bicubic")[0, 0].clamp(0, 1)
    colour = _TURBO[grown.mul(255).round().byte().numpy()]
    mixed = 0.5 * seen.mean(0)[..., None].numpy() + 0.5 * colour
    picture = Image.fromarray((255 * mixed).round().astype(np.uint8))
    small = thumbnail(path) if run.preprocessing.resize == "squash" else None
    return picture.resize(small.size) if small is not None else picture


def photographs(run: ReportInputs, duplicates: Sequence[Pair]) -> Markup:
    parts = []
    if run.skipped:
        parts.append(tag("p", f"{count(len(run.skipped), 'file')} could not be used."))
        rows = [(tag("code", run.shown_path(skip.path)), skip.reason) for skip in run.skipped[:MOST_SKIPPED]]
        listed = table(("File", "Why"), rows, "Skipped files")
        parts.append(tag("details", tag("summary", "Which, and why"), listed, open="" if len(rows) <= 10 else None))
        if len(run.skipped) > MOST_SKIPPED:
            parts.append(tag("p", f"Only the first {MOST_SKIPPED} are listed."))
    else:
        parts.append(tag("p", "Every file could be read; none was left out."))
    splits = [split for split in SPLITS if split in run.photos]
    if len(splits) < 2:
        parts.append(tag("p", "There was no other split beside it in which copies could be looked for."))
        return joined(parts)
    if sum(len(run.photos[split]) for split in splits) > MOST_IMAGES:
        parts.append(tag("p", f"Over {MOST_IMAGES:,} photographs: only copies of files were looked for."))
    if not duplicates:
        parts.append(tag("p", "No photograph lies in two splits, neither as the same file nor as a like picture."))
        return joined(parts)
    exact = sum(pair.exact for pair in duplicates)
    disagree = sum(_labels(run, pair)[0] != _labels(run, pair)[1] for pair in duplicates)
    text = f"{count(len(duplicates), 'photograph')} found in two splits: {exact} as the very same file, "
    text += f"{len(duplicates) - exact} as the same picture saved again, resized or mirrored."
    if disagree:
        text += f" {disagree} of them under two different breeds, so one of the two labels is wrong."
    if len(duplicates) > MOST_DUPLICATES:
        text += f" The first {MOST_DUPLICATES} are shown."
    parts.append(tag("p", text))
    parts.append(tag("div", *(_duplicate_card(run, p) for p in duplicates[:MOST_DUPLICATES]), class_="cards"))
    return joined(parts)


def _labels(run: ReportInputs, pair: Pair) -> tuple[int, int]:
    one, other = run.photos[pair.split], run.photos[pair.other_split]
    return int(one.labels[pair.index]), int(other.labels[pair.other_index])


def _duplicate_card(run: ReportInputs, pair: Pair) -> Markup:
    figures = []
    for split, index, label in zip(
        (pair.split, pair.other_split), (pair.index, pair.other_index), _labels(run, pair), strict=True
    ):
        path = run.photos[split].paths[index]
        note = joined([run.name(label), tag("br"), tag("code", run.shown_path(path))])
        figures.append(photo(thumbnail(path), f"A {run.name(label)}, {_SPLIT[split]} split", note))
    title = f"{_SPLIT[pair.split].capitalize()} and {_SPLIT[pair.other_split]}, "
    title += "the same file" if pair.exact else "the same picture"
    return tag("div", tag("h3", title), tag("div", *figures, class_="two"), class_="card")
