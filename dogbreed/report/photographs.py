"""The sections of a report that show images: confused classes, confident errors, copies across splits."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from dogbreed.core.text import count
from dogbreed.data.duplicates import MOST_IMAGES, Pair
from dogbreed.data.images import BadImage, load
from dogbreed.data.layout import SPLITS
from dogbreed.metrics import classification
from dogbreed.metrics.classification import ConfusedPair
from dogbreed.metrics.predictions import Predictions
from dogbreed.models.gradcam import heat_maps
from dogbreed.report.inputs import SPLIT_NAMES, ReportInputs
from dogbreed.report.rendering import fragment, percent, thumbnail

TEMPLATE = "photographs.html.j2"
NO_ERRORS = "None: every image was classified correctly."
MOST_PAIRS = 9
MOST_ERRORS = 12
MOST_DUPLICATES = 12
MOST_SKIPPED = 200

_TURBO = colormaps["turbo"](np.arange(256))[:, :3].astype(np.float32)  # colours by heat, [256, 3]


class Photo(NamedTuple):
    """An image with its description and caption; `path` is set in type of its own."""

    image: Image.Image | None
    description: str
    caption: str = ""
    path: str = ""


class Card(NamedTuple):
    """A box with a heading, a sentence, images, and what stands below them."""

    title: str
    text: str
    photos: Sequence[Photo]
    path: str = ""


def confused_classes(run: ReportInputs, predictions: Predictions) -> Markup:
    """Make the section of the class pairs with the most errors."""
    pairs = classification.most_confused(predictions, MOST_PAIRS)
    if not pairs:
        return fragment(TEMPLATE, "cards", NO_ERRORS, [])
    wrong = int((predictions.predicted != predictions.labels).sum())
    inside = sum(pair.forth + pair.back for pair in pairs)
    text = (
        f"{'This pair holds' if len(pairs) == 1 else f'These {len(pairs)} pairs hold'} {inside} of all "
        f"{count(wrong, 'error')}. Beside each misclassified image stands one of the {run.noun} it was classified as."
    )
    return fragment(TEMPLATE, "cards", text, [_pair_card(run, predictions, pair) for pair in pairs])


def _pair_card(run: ReportInputs, predictions: Predictions, pair: ConfusedPair) -> Card:
    first, second = run.name(pair.first), run.name(pair.second)
    text = f"{pair.forth} of {count(pair.first_total, 'image')} of {first} classified as {second}"
    text += f", {pair.back} of {pair.second_total} the other way." if pair.back else "."
    here = (predictions.labels == pair.first) & (predictions.predicted == pair.second)
    index = int(predictions.confidence.where(here, torch.tensor(-1.0, dtype=torch.float64)).argmax())
    caption = f"{first}, classified as {second} ({percent(float(predictions.confidence[index]))})"
    photos = [Photo(thumbnail(predictions.paths[index]), first, caption)]
    example = _example(run, predictions, pair.second)
    if example:
        photos.append(Photo(thumbnail(example), second, second))
    else:
        text += f" There is no image of {second}."
    return Card(f"{first} and {second}", text, photos)


def _example(run: ReportInputs, predictions: Predictions, label: int) -> Path | None:
    """Return an image of a class: one of the training split, else one that was classified correctly, else any."""
    training = run.photos.get("train")
    if training is not None and predictions.split != "train":
        indices = np.flatnonzero(training.labels == label)
        if len(indices):
            return training.paths[int(indices[0])]
    mine = predictions.labels == label
    if not mine.any():
        return None
    probability = predictions.probability(label).where(mine, torch.tensor(-1.0, dtype=torch.float64))
    return predictions.paths[int(probability.argmax())]


def confident_errors(run: ReportInputs, predictions: Predictions) -> Markup:
    """Make the section of the misclassified images that were given the highest probability, with heat maps."""
    indices = classification.most_confident_errors(predictions, MOST_ERRORS)
    if not indices:
        return fragment(TEMPLATE, "cards", NO_ERRORS, [])
    overlays, why_not = _overlays(run, predictions, indices)
    text = "Wrong labels, several subjects in one image and real look-alikes come first here. "
    text += why_not or (
        f"The right image of each shows where the network saw the {run.noun} it predicted (Grad-CAM on the last "
        "feature map): red areas argued for it, blue areas did not."
    )
    cards = []
    for index in indices:
        truth, predicted = int(predictions.labels[index]), int(predictions.predicted[index])
        photos = [Photo(thumbnail(predictions.paths[index]), run.name(truth))]
        if index in overlays:
            photos.append(Photo(overlays[index], f"Where it saw {run.name(predicted)}"))
        probabilities = ", ".join(
            f"{percent(float(predictions.probability(label)[index]), 1)} {run.name(label)}"
            for label in (predicted, truth)
        )
        title = f"{run.name(truth)} classified as {run.name(predicted)}"
        cards.append(Card(title, probabilities, photos, run.shown_path(predictions.paths[index])))
    return fragment(TEMPLATE, "cards", text, cards)


def _overlays(
    run: ReportInputs, predictions: Predictions, indices: Sequence[int]
) -> tuple[dict[int, Image.Image], str]:
    """Return the images under their heat maps, and why there are none where there are none."""
    if run.network is None:
        return {}, "There are no heat maps: no network was given."
    read: dict[int, torch.Tensor] = {}
    for index in indices:
        try:
            read[index] = load(predictions.paths[index], run.preprocessing)
        except BadImage:  # it has gone since it was predicted
            continue
    if not read:
        return {}, ""
    inputs = torch.stack(list(read.values()))
    maps = heat_maps(run.network, run.backbone, inputs, predictions.predicted[list(read)])
    if maps is None:
        return {}, f"There are no heat maps: {run.backbone} has no spatial feature map before its head."
    return {
        index: _overlay(image, heat, run, predictions.paths[index])
        for index, image, heat in zip(read, inputs, maps, strict=True)
    }, ""


def _overlay(image: torch.Tensor, heat: torch.Tensor, run: ReportInputs, path: Path) -> Image.Image:
    """Return a heat map over what the network got to see, in the image's own shape where that was squashed."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.preprocessing.mean, run.preprocessing.std))
    seen = (image * std + mean).clamp(0, 1)
    grown = torch.nn.functional.interpolate(heat[None, None], seen.shape[-2:], mode="bicubic")[0, 0].clamp(0, 1)
    colour = _TURBO[grown.mul(255).round().byte().numpy()]
    mixed = 0.5 * seen.mean(0)[..., None].numpy() + 0.5 * colour
    picture = Image.fromarray((255 * mixed).round().astype(np.uint8))
    small = thumbnail(path) if run.preprocessing.resize == "squash" else None
    return picture.resize(small.size) if small is not None else picture


def images(run: ReportInputs) -> Markup:
    """Make the section of the files that were left out, and of the images that lie in several splits."""
    skipped = [(run.shown_path(skip.path), skip.reason) for skip in run.skipped]
    text, cards = _copies(run, run.duplicates)
    return fragment(TEMPLATE, "images", skipped, MOST_SKIPPED, text, cards)


def _copies(run: ReportInputs, duplicates: Sequence[Pair]) -> tuple[str, list[Card]]:
    splits = [split for split in SPLITS if split in run.photos]
    if len(splits) < 2:
        return "There was no other split in which copies could be looked for.", []
    text = ""
    if sum(len(run.photos[split]) for split in splits) > MOST_IMAGES:
        text = f"Over {MOST_IMAGES:,} images: only copies of files were looked for. "
    if not duplicates:
        return f"{text}No image lies in two splits, neither as the same file nor as a similar picture.", []
    exact = sum(pair.exact for pair in duplicates)
    disagree = sum(_labels(run, pair)[0] != _labels(run, pair)[1] for pair in duplicates)
    text += (
        f"{count(len(duplicates), 'image')} found in two splits: {exact} as the very same file, "
        f"{len(duplicates) - exact} as the same picture saved again, resized or mirrored."
    )
    if disagree:
        text += f" {disagree} of them under two different labels, so one of the two is wrong."
    if len(duplicates) > MOST_DUPLICATES:
        text += f" The first {MOST_DUPLICATES} are shown."
    return text, [_duplicate_card(run, pair) for pair in duplicates[:MOST_DUPLICATES]]


def _labels(run: ReportInputs, pair: Pair) -> tuple[int, int]:
    one, other = run.photos[pair.split], run.photos[pair.other_split]
    return int(one.labels[pair.index]), int(other.labels[pair.other_index])


def _duplicate_card(run: ReportInputs, pair: Pair) -> Card:
    photos = []
    for split, index, label in zip(
        (pair.split, pair.other_split), (pair.index, pair.other_index), _labels(run, pair), strict=True
    ):
        path = run.photos[split].paths[index]
        description = f"{run.name(label)}, {SPLIT_NAMES[split]} split"
        photos.append(Photo(thumbnail(path), description, run.name(label), run.shown_path(path)))
    title = f"{SPLIT_NAMES[pair.split].capitalize()} and {SPLIT_NAMES[pair.other_split]}"
    return Card(title, "The same file." if pair.exact else "The same picture.", photos)
