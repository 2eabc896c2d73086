"""What the features of a run tell beyond its result: which labels look wrong, and what more images would bring.

Both are questions to many heads. They train side by side on the features that the run has left, each on images of its
own; of the frozen part only views are computed that the run did not need.
"""

import json
import math
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Indices, SplitFiles
from dogbreed.data.duplicates import read_pictures, same_pictures
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.imbalance import log_prior
from dogbreed.models.lbfgs import Solution
from dogbreed.report.study import (
    FEW,
    MOST_SUSPECTS,
    Correction,
    Label,
    Point,
    Spot,
    Study,
    Twins,
    correction,
    gains,
    suspects_of,
)
from dogbreed.training.build import build_cache, build_data, build_model, device_of, prepare_process, read_config
from dogbreed.training.image_map import image_map
from dogbreed.training.stacked_heads import Head, HeadTrainer, why_not_stacked
from dogbreed.training.stem import NotStackable

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the images of the other folds
ALIKE = 3  # nearest images whose labels are shown
TWINS = 0.8  # cosine of features, from which pictures are compared
MOST_PAIRS = 2000


def study(run: Path, *, folds: int = 5, seeds: int = 3, quiet: bool = False) -> Study:
    """Look at the labels and at the learning curve of a finished run.

    Args:
        run: Its folder.
        folds: Into which all images are divided, so that each is classified by heads that have not seen it.
        seeds: Heads that are trained on each selection of images; they differ in their images of a share, initial
            values, order and dropout.
        quiet: No progress.

    Raises:
        DogbreedError: It is no finished run, its images cannot be had, or more than its last layer trains.
    """
    metrics = _metrics(run)
    config = replace(read_config(None, [f"resume={run}"]), resume=None)
    prepare_process()
    if reason := why_not_stacked(config):
        raise _refused(reason)
    data = build_data(config, quiet=quiet)
    data.prepare_data()
    data.setup()
    model, device = build_model(config, data, None), device_of(config)
    if c := metrics.get("lbfgs_c"):
        model.solution = Solution(c, metrics.get("lbfgs_temperature", 1.0))
    pooled, fold_of = data.with_folds(folds, list(data.samples))
    with float32_as(config.cache.precision, device):
        build_cache(config, quiet=quiet).attach(model, pooled, device)
        try:
            heads = _Heads(config, model, pooled, fold_of, metrics, seeds)
        except NotStackable as error:
            raise _refused(str(error)) from error
        return _study(run, data, heads, metrics)


def _study(run: Path, data: DogImages, heads: "_Heads", metrics: dict[str, Any]) -> Study:
    answers = {share: heads.answers(share) for share in SHARES}
    files, now = heads.files, answers[SHARES[-1]]
    probabilities = now.probabilities.numpy()
    splits = [split for split in data.samples for _ in data.samples[split].paths]
    shown = [data.shown_path(path) for path in files.paths]
    labels = [
        Label(path, data.classes[label], split, data.classes[row.argmax()], float(row[label]), float(row.max()))
        for path, label, split, row in zip(shown, files.labels, splits, probabilities, strict=True)
    ]
    order = np.argsort([label.probability for label in labels], kind="stable")
    ranked = [labels[row] for row in order]
    places = {path: row for row, path in enumerate(shown)}
    suspects = np.array([places[label.path] for label in suspects_of(ranked)], dtype=np.int64)
    inputs = normalize(heads.trainer.inputs("train")[0].float()).cpu()
    few = min(SHARES, key=lambda share: abs(share - FEW))
    classes, chance = gains(data.classes, files.labels, answers[few].correct.mean(0), now.correct.mean(0))
    interval = metrics.get("test_acc_ci95")
    split = "test" if "test" in data.samples else "valid"
    changed, corrections = heads.corrections(np.flatnonzero(np.array(splits) == split))
    train = len(data.samples["train"])
    return Study(
        run,
        Path(data.root),
        ranked,
        list({point.images: point for point in map(heads.point, answers.values())}.values()),
        classes,
        chance,
        alike={shown[row]: [data.classes[files.labels[near]] for near in nearest(inputs, row)] for row in suspects},
        twins=[
            Twins(shown[one], labels[one].label, shown[other], labels[other].label)
            for one, other in twins(files, inputs)
        ],
        corrections=corrections,
        corrected=changed,
        held=split,
        tested=(metrics["test_acc"], *interval) if interval else None,
        refit=(train, train + len(data.samples["valid"])),
        spots=_spots(labels, image_map(inputs, heads.seed)),
    )


def _spots(labels: Sequence[Label], drawn: tuple[Indices, NDArray[np.float64]] | None) -> list[Spot] | None:
    if drawn is None:
        return None
    return [Spot(labels[row], float(x), float(y)) for row, (x, y) in zip(*drawn, strict=True)]


def nearest(inputs: Tensor, row: int) -> list[int]:
    """Return the images whose features are the nearest to one's, by their cosine; `inputs` [N, D] have length one."""
    cosines = inputs @ inputs[row]
    cosines[row] = -1.0
    return [int(near) for near in cosines.topk(min(ALIKE, len(inputs) - 1)).indices]


def twins(files: SplitFiles, inputs: Tensor) -> list[tuple[int, int]]:
    """Return pairs of images with two labels that are the same picture, judged by `same_pictures`.

    Only those are compared whose features [N, D], of length one, are near each other.
    """
    labels, pairs = torch.from_numpy(files.labels), []
    for start in range(0, len(inputs), 1024):
        part = slice(start, start + 1024)
        close = (inputs[part] @ inputs.T > TWINS) & (labels[part, None] != labels)
        pairs += [(start + one, other) for one, other in close.nonzero().tolist() if start + one < other]
    pictures = read_pictures([files.paths[row] for pair in pairs[:MOST_PAIRS] for row in pair], quiet=True)
    if pictures is None:
        return []
    return [pair for pair, two in zip(pairs, pictures.split(2), strict=False) if same_pictures(two[:1], two[1:])]


def _refused(reason: str) -> DogbreedError:
    return DogbreedError(f"A study trains many heads on the features of a run, which cannot be here: {reason}.")


def _metrics(run: Path) -> dict[str, Any]:
    try:
        metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
        metrics["best_epoch"], metrics["epochs"]
        (run / "config.yaml").stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DogbreedError(f"{run} is no folder of a finished run; python -m dogbreed.train makes one.") from error
    return metrics


class _Answers(NamedTuple):
    """What heads say of images that they have not seen.

    Attributes:
        images: Number that a head was trained on, as the mean of all folds.
        correct: Whether an image's label is the most probable class, [seeds, images].
        probabilities: Of the classes, as the mean over seeds, [images, classes].
    """

    images: int
    correct: NDArray[np.bool_]
    probabilities: Tensor


class _Heads:
    """Heads with the settings of a run, each on images of its own.

    Args:
        config: Of the run.
        model: Uses features.
        pooled: All images, to train and to validate.
        fold_of: Of each image.
        metrics: Of the run, for its number of epochs and its temperature.
        seeds: Number of heads on each selection of images.
    """

    def __init__(
        self,
        config: Config,
        model: DogBreedClassifier,
        pooled: DogImages,
        fold_of: Indices,
        metrics: dict[str, Any],
        seeds: int,
    ) -> None:
        self.files, self.trainer = pooled.samples["train"], HeadTrainer(model, pooled)
        self._config, self._model, self._pooled = config, model, pooled
        self._folds = [np.flatnonzero(fold_of == fold) for fold in range(int(fold_of.max()) + 1)]
        self._others = [np.flatnonzero(fold_of != fold) for fold in range(len(self._folds))]
        self.seed = config.seed or 0
        self._seeds = [self.seed + number for number in range(seeds)]
        self._best, self._last = int(metrics["best_epoch"]), int(metrics["epochs"])
        self._temperature = metrics.get("temperature", 1.0)

    def _logits(self, trainer: HeadTrainer, parts: Sequence[tuple[Indices, Indices, int]]) -> list[Tensor]:
        """Return the logits of heads, each trained on the images of the first positions, for those of the second.

        Args:
            trainer: Of the heads.
            parts: Positions, and the seed.
        """
        settings, images = self._config.model, sum(len(rows) for rows, _, _ in parts) / len(parts)
        longer = self._longer(images)
        best = math.ceil(self._best * longer)
        plain = (settings.lr, settings.weight_decay, settings.label_smoothing)
        heads = [Head(*plain, rows=rows, valid_rows=held, seed=seed, epochs=best) for rows, held, seed in parts]
        last = max(best, math.ceil(self._last * longer))  # over which the learning rate's schedule is spread
        trainer.train(heads, batch_size=self._config.data.batch_size, epochs=last)
        logits = [trainer.valid_logits(head).cpu() for head in heads]
        if settings.prior == "uniform":
            labels = torch.from_numpy(trainer.data.samples["train"].labels)
            numbers = [labels[head.rows].bincount(minlength=logits[0].shape[1]) for head in heads]
            logits = [own - log_prior(number) for own, number in zip(logits, numbers, strict=True)]
        return logits

    def _longer(self, images: float) -> float:
        """Return how many times as many epochs give as many steps as the heads on all other folds take."""
        if self._config.model.optimizer == "lbfgs":
            return 1
        size, most = self._config.data.batch_size, len(self.files) * (1 - 1 / len(self._folds))
        return math.ceil(most / size) / math.ceil(images / size)

    def answers(self, share: float, among: Indices | None = None) -> _Answers:
        """Return the answers of heads on a share of the other folds, with as many steps as on all of them.

        Args:
            share: Of each class, one image at least.
            among: Positions of the images that take part; None takes all. Nothing is said of the others.
        """
        count = len(self.files)
        among = np.arange(count) if among is None else among
        folds, others = ([np.intersect1d(rows, among) for rows in all_] for all_ in (self._folds, self._others))
        correct = np.zeros((len(self._seeds), count), dtype=np.bool_)
        total = torch.zeros(count, self.trainer.stem.head.out_features, dtype=torch.float64)
        parts = [
            (rows[draw_images(self.files.labels[rows], share, seed)], held, seed)
            for seed in self._seeds
            for rows, held in zip(others, folds, strict=True)
        ]
        for logits, (_, held, seed) in zip(self._logits(self.trainer, parts), parts, strict=True):
            total[torch.from_numpy(held)] += (logits.double() / self._temperature).softmax(1)
            correct[seed - self.seed, held] = logits.argmax(1).numpy() == self.files.labels[held]
        images = sum(len(rows) for rows, _, _ in parts) / len(parts)
        return _Answers(round(images), correct, total / len(self._seeds))

    def point(self, answers: _Answers) -> Point:
        """Return a point of the learning curve."""
        by_image = answers.correct.mean(0)
        folds = [[float(seed[rows].mean()) for rows in self._folds] for seed in answers.correct]
        error = float(by_image.std(ddof=1) / math.sqrt(len(by_image)))
        return Point(answers.images, folds, answers.correct.mean(1).tolist(), float(by_image.mean()), error)

    def corrections(self, held: Indices) -> tuple[int, dict[str, Correction]]:
        """Return what it changes to drop the suspects, or to give them other labels, in the eyes of images held out.

        No head that judges labels here has seen those images, so that what it suggests cannot know of them.

        Args:
            held: Positions of the images held out.

        Returns:
            The number of suspects, and what came out.
        """
        rest = np.setdiff1d(np.arange(len(self.files)), held)
        answers = self.answers(SHARES[-1], rest)
        suggested, labels = answers.probabilities.argmax(1).numpy(), self.files.labels.copy()
        probability = answers.probabilities[torch.arange(len(labels)), torch.from_numpy(labels)].numpy()
        unlike = rest[suggested[rest] != labels[rest]]
        suspects = unlike[np.argsort(probability[unlike], kind="stable")][:MOST_SUSPECTS]
        if not len(suspects):
            return 0, {}
        labels[suspects] = suggested[suspects]
        relabelled = copy(self._pooled)
        relabelled.samples = {**self._pooled.samples, "train": replace(self.files, labels=labels)}
        before = self._right(held, rest, self.trainer)
        after = {
            "dropped": self._right(held, np.setdiff1d(rest, suspects), self.trainer),
            "relabelled": self._right(held, rest, HeadTrainer(self._model, relabelled)),
        }
        return len(suspects), {name: correction(before, right) for name, right in after.items()}

    def _right(self, held: Indices, rows: Indices, trainer: HeadTrainer) -> NDArray[np.bool_]:
        """Return whether heads trained on these images classify those held out as they are labelled, [seeds, held]."""
        logits = self._logits(trainer, [(rows, held, seed) for seed in self._seeds])
        return torch.stack(logits).argmax(2).numpy() == self.files.labels[held]


def draw_images(labels: Indices, share: float, seed: int) -> Indices:
    """Return positions of a share of each class, one image at least, ascending; they are a part of a larger share's."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        chosen.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(chosen))
