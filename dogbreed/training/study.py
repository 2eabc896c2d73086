"""What the features of a run tell beyond its result: which labels look wrong, and what more images would bring.

Both are questions to many heads. They train side by side on the features that the run has left, each on images of its
own; of the frozen part only views are computed that the run did not need.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.data.datasets import Indices
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.imbalance import log_prior
from dogbreed.models.lbfgs import Solution
from dogbreed.report.study import Label, Point, Study
from dogbreed.training.build import build_cache, build_data, build_model, device_of, prepare_process, read_config
from dogbreed.training.stacked_heads import Head, HeadTrainer, NotStackable, why_not_stacked

SHARES = (0.1, 0.2, 0.4, 0.7, 1.0)  # of the images of the other folds


def study(run: Path, *, folds: int = 5, quiet: bool = False) -> Study:
    """Look at the labels and at the learning curve of a finished run.

    Args:
        run: Its folder.
        folds: Into which all images are divided, so that each is classified by heads that have not seen it.
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
    splits = list(data.samples)
    pooled, fold_of = data.with_folds(folds, splits)
    split_of = [split for split in splits for _ in data.samples[split].paths]
    with float32_as(config.cache.precision, device):
        build_cache(config, quiet=quiet).attach(model, pooled, device)
        try:
            heads = _Heads(config, HeadTrainer(model, pooled), pooled.samples["train"].labels, metrics)
        except NotStackable as error:
            raise _refused(str(error)) from error
        curve, logits = heads.curve(fold_of)
    probabilities = (logits.double() / metrics.get("temperature", 1.0)).softmax(1).numpy()
    labels = [
        Label(
            data.shown_path(path),
            data.classes[label],
            split,
            data.classes[row.argmax()],
            float(row[label]),
            float(row.max()),
        )
        for path, label, split, row in zip(
            pooled.samples["train"].paths, heads.labels, split_of, probabilities, strict=True
        )
    ]
    return Study(run, Path(data.root), sorted(labels, key=lambda label: label.probability), curve)


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


class _Heads:
    """Heads with the settings of a run, each on images of its own.

    Args:
        config: Of the run.
        trainer: On the features of all images.
        labels: Of all images.
        metrics: Of the run, for its number of epochs.
    """

    def __init__(self, config: Config, trainer: HeadTrainer, labels: Indices, metrics: dict[str, Any]) -> None:
        self.labels = labels
        self._config, self._trainer, self._seed = config, trainer, config.seed or 0
        self._best, self._last = int(metrics["best_epoch"]), int(metrics["epochs"])

    def _train(self, rows: Sequence[Indices], longer: float) -> list[Head]:
        """Return heads trained on these images, so many times longer than was best in the run."""
        settings, best = self._config.model, math.ceil(self._best * longer)
        plain = (settings.lr, settings.weight_decay, settings.label_smoothing)
        heads = [Head(*plain, rows=own, valid_rows=own[:1], seed=self._seed, epochs=best) for own in rows]
        last = max(best, math.ceil(self._last * longer))  # over which the learning rate's schedule is spread
        self._trainer.train(heads, batch_size=self._config.data.batch_size, epochs=last)
        return heads

    def _logits(self, head: Head, rows: Indices) -> Tensor:
        assert head.rows is not None
        logits = self._trainer.valid_logits(replace(head, valid_rows=rows)).cpu()
        if self._config.model.prior == "uniform":
            logits = logits - log_prior(torch.from_numpy(self.labels[head.rows]).bincount(minlength=logits.shape[1]))
        return logits

    def curve(self, fold_of: Indices) -> tuple[list[Point], Tensor]:
        """Return accuracies by number of images, and the logits [images, classes] of the heads on the most.

        Each image is classified by a head that was trained on a share of the other folds, with as many steps as on all.
        """
        labels, size, points = torch.from_numpy(self.labels), self._config.data.batch_size, {}
        logits = torch.empty(len(labels), self._trainer.stem.head.out_features)
        folds = [np.flatnonzero(fold_of == fold) for fold in range(int(fold_of.max()) + 1)]
        others = [np.flatnonzero(fold_of != fold) for fold in range(len(folds))]
        for share in SHARES:
            drawn = [rows[draw_images(self.labels[rows], share, self._seed)] for rows in others]
            images = round(sum(map(len, drawn)) / len(folds))
            solved = self._config.model.optimizer == "lbfgs"
            fewer = math.ceil(images / size) / math.ceil(len(labels) * (1 - 1 / len(folds)) / size)
            for head, rows in zip(self._train(drawn, 1 if solved else 1 / fewer), folds, strict=True):
                logits[torch.from_numpy(rows)] = self._logits(head, rows).float()
            right = (logits.argmax(1) == labels).double()
            accuracies = [float(right[torch.from_numpy(rows)].mean()) for rows in folds]
            points[images] = Point(images, accuracies, float(right.mean()))
        return [points[images] for images in sorted(points)], logits


def draw_images(labels: Indices, share: float, seed: int) -> Indices:
    """Return positions of a share of each class, one image at least, ascending; they are a part of a larger share's."""
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = []
    for label in np.unique(labels):
        own = order[labels[order] == label]
        chosen.append(own[: max(1, round(share * len(own)))])
    return np.sort(np.concatenate(chosen))
