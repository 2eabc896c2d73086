"""Several runs side by side: the settings that differ, the metrics, and a paired test over the same images."""

import csv
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dogbreed.core.errors import DogbreedError
from dogbreed.core.text import count, duration, join
from dogbreed.metrics.paired import holm, mcnemar

METRICS, CONFIG, PREDICTIONS = "metrics.json", "config.yaml", "predictions.csv"
OF_ONE_RUN = ("output_dir", "overwrite", "resume", "mode", "job", "sagemaker")  # say nothing about the result
ALPHA = 0.05
MOST_COLUMNS = 4  # runs up to which each is a column of the table; more are rows
MOST_SETTINGS = 8  # on a terminal
# Key in metrics.json, heading, and how many digits of percent (None: as it is).
FIGURES = (
    ("test_acc", "test accuracy", 1),
    ("test_loss", "test loss", None),
    ("test_balanced_acc", "balanced accuracy", 1),
    ("test_ece", "calibration error", None),
    ("val_acc", "validation accuracy", 1),
    ("val_loss", "validation loss", None),
    ("train_acc", "training accuracy", 1),
    ("epochs", "epochs", None),
    ("seconds", "time", None),
)


class Answer(NamedTuple):
    """What a run predicted for an image; the last two are None in files of older versions.

    Attributes:
        label: The image's class.
        predicted: The class that it was given.
        probability: Of the image's class.
        loss: In nats, without the temperature.
    """

    label: str
    predicted: str
    probability: float | None
    loss: float | None

    @property
    def correct(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class RunFolder:
    """What a run or an evaluation has left in its folder.

    Attributes:
        name: What sets it apart from the others.
        folder: Where it lies.
        metrics: As in `metrics.json`.
        settings: The configuration by dotted key; of an evaluation, what was evaluated.
        answers: By image; empty where no test images were evaluated.
    """

    name: str
    folder: Path
    metrics: Mapping[str, Any]
    settings: Mapping[str, Any]
    answers: Mapping[str, Answer]

    @property
    def images(self) -> frozenset[tuple[str, str]]:
        """The images that were measured, with their classes."""
        return frozenset((path, answer.label) for path, answer in self.answers.items())

    @property
    def correct(self) -> int:
        return sum(answer.correct for answer in self.answers.values())


class PairedTest(NamedTuple):
    """A run against the best one.

    Attributes:
        run: The run that is not the best.
        only_best: Images that the best alone classifies correctly.
        only_run: Images that this run alone classifies correctly.
        p_value: Of McNemar's exact test.
        corrected: The same by Holm's method, for the number of tests.
    """

    run: RunFolder
    only_best: int
    only_run: int
    p_value: float
    corrected: float


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: Sequence[RunFolder]

    @cached_property
    def differing(self) -> list[str]:
        """The keys of settings in which runs that have them differ."""
        keys = dict.fromkeys(key for run in self.runs for key in run.settings)
        by_key = {key: [run.settings[key] for run in self.runs if key in run.settings] for key in keys}
        return [key for key, values in by_key.items() if any(value != values[0] for value in values)]

    @cached_property
    def tested(self) -> list[RunFolder]:
        """The runs that are tested: those measured on the same images, the best first."""
        sets = Counter(run.images for run in self.runs if run.answers)
        images, number = sets.most_common(1)[0] if sets else (frozenset(), 0)
        same = [run for run in self.runs if run.answers and run.images == images] if number > 1 else []
        return sorted(same, key=lambda run: (-run.correct, run.metrics.get("test_loss") or 0.0))

    @cached_property
    def untested(self) -> list[tuple[RunFolder, str]]:
        """The other runs, each with the reason."""
        reasons = []
        for run in self.runs:
            if not run.answers:
                untested = f"it has no {PREDICTIONS}" if "test_acc" in run.metrics else "it was not tested"
                reasons.append((run, untested))
            elif run not in self.tested:
                other = self.tested[0] if self.tested else next(r for r in self.runs if r.answers)
                shared = len(run.images & other.images)
                of_others = f"{shared:,} of its {count(len(run.images), 'image')} are also those of {other.name}"
                if run is not other:
                    reasons.append((run, f"it was measured on other images: {of_others}"))
        return reasons

    @cached_property
    def tests(self) -> list[PairedTest]:
        """Each tested run against the best of them."""
        if not self.tested:
            return []
        best, *others = self.tested
        pairs = []
        for run in others:
            both = [(best.answers[path].correct, run.answers[path].correct) for path in best.answers]
            pairs.append((both.count((True, False)), both.count((False, True))))
        p_values = [mcnemar(*pair) for pair in pairs]
        rows = zip(others, pairs, p_values, holm(p_values), strict=True)
        return [PairedTest(run, *pair, p_value, corrected) for run, pair, p_value, corrected in rows]

    @cached_property
    def disagreements(self) -> list[str]:
        """The images that the tested runs classify differently, those first that only some classify correctly."""
        if not self.tested:
            return []

        def order(path: str) -> tuple[bool, float]:
            answers = [run.answers[path] for run in self.tested]
            known = [answer.probability or 0.0 for answer in answers]
            return len({answer.correct for answer in answers}) == 1, min(known) - max(known)

        paths = self.tested[0].answers
        differ = [path for path in paths if len({run.answers[path].predicted for run in self.tested}) > 1]
        return sorted(differ, key=order)

    @property
    def conclusions(self) -> list[str]:
        """What the tests say, a sentence each, and why runs were not tested."""
        sentences = []
        for test in self.tests:
            best, total = self.tested[0], len(self.tested[0].answers)
            corrected = f", {test.corrected:.2g} corrected for {len(self.tests)} tests" if len(self.tests) > 1 else ""
            conclusion = "chance alone can explain the difference"
            if test.corrected < ALPHA:
                conclusion = "more than chance explains"
            elif best.correct == test.run.correct:
                conclusion = "equally good on these images"
            sentences.append(
                f"{best.name} against {test.run.name}: {best.correct:,} and {test.run.correct:,} of "
                f"{count(total, 'image')} correct, {test.only_best:,} by {best.name} alone and {test.only_run:,} by "
                f"{test.run.name} alone; {conclusion} (exact McNemar test, p = {test.p_value:.2g}{corrected})."
            )
        return [*sentences, *(f"No test of {run.name}: {reason}." for run, reason in self.untested)]

    def table(self, most_settings: int | None = None) -> list[list[str]]:
        """Return the settings that differ and the figures, with a heading in front; many runs are rows, few columns."""
        keys = self.differing[:most_settings]
        figures = [figure for figure in FIGURES if any(run.metrics.get(figure[0]) is not None for run in self.runs)]
        rows = [["", *keys, *(heading for _, heading, _ in figures)]]
        for run in self.runs:
            settings = [_shown(run.settings[key]) if key in run.settings else "" for key in keys]
            rows.append([run.name, *settings, *(_figure(run.metrics.get(key), key, d) for key, _, d in figures)])
        return [list(row) for row in zip(*rows, strict=True)] if len(self.runs) <= MOST_COLUMNS else rows

    def lines(self) -> list[str]:
        """Return the table and the conclusions as a terminal shows them."""
        table = self.table(MOST_SETTINGS)
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
        if len(self.differing) > MOST_SETTINGS:
            lines.append(f"{len(self.differing) - MOST_SETTINGS} more settings differ; the page and --json have all.")
        lines = [*(line.rstrip() for line in lines), "", *self.conclusions]
        if self.tested:
            total = count(len(self.tested[0].answers), "image")
            lines.append(f"The runs disagree on {len(self.disagreements):,} of {total}.")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "runs": [
                {
                    "name": run.name,
                    "folder": str(run.folder),
                    "settings": {key: run.settings[key] for key in self.differing if key in run.settings},
                    "metrics": dict(run.metrics),
                }
                for run in self.runs
            ],
            "best": self.tested[0].name if self.tested else None,
            "images": len(self.tested[0].answers) if self.tested else 0,
            "tests": [{**test._asdict(), "run": test.run.name} for test in self.tests],
            "untested": {run.name: reason for run, reason in self.untested},
            "disagreements": [
                {
                    "path": path,
                    "label": self.tested[0].answers[path].label,
                    "answers": {
                        run.name: {
                            "predicted": run.answers[path].predicted,
                            "probability": run.answers[path].probability,
                            "loss": run.answers[path].loss,
                        }
                        for run in self.tested
                    },
                }
                for path in self.disagreements
            ],
        }


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Read runs and put them side by side.

    Args:
        paths: Folders of runs or evaluations, what lies in them (`model/`, a checkpoint), or a folder of such folders.

    Raises:
        DogbreedError: Fewer than two runs, or a run that has not finished.
    """
    folders = list(dict.fromkeys(folder.resolve() for path in paths for folder in _find(Path(path).expanduser())))
    if len(folders) < 2:
        raise DogbreedError("A comparison takes two different runs or more: python -m dogbreed.compare RUN RUN")
    common = Path(os.path.commonpath([folder.parent for folder in folders]))
    if any(folder.name.isdigit() for folder in folders):  # those of a sweep: its name tells more than a number
        common = common.parent
    return Comparison([_read(folder, folder.relative_to(common).as_posix()) for folder in folders])


def _find(path: Path) -> list[Path]:
    """Return the folders of the runs that a path stands for."""
    folder = path.parent if path.is_file() else path
    run = folder.parent if folder.name in ("model", "checkpoints") else folder
    if (run / METRICS).is_file():
        return [run]
    inside = [file.parent for file in run.glob(f"*/{METRICS}")]
    if not inside:
        raise DogbreedError(f"{path} is no finished run: it has no {METRICS}; give the folders of two runs or more.")
    return sorted(inside, key=lambda run: (len(run.name), run.name))  # 2 comes before 10


def _read(folder: Path, name: str) -> RunFolder:
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        if not isinstance(metrics, dict):
            raise ValueError(f"{METRICS} holds no metrics")
        if (folder / CONFIG).is_file():
            config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
            if not isinstance(config, dict):
                raise ValueError(f"{CONFIG} holds no settings")
            settings = _flat({key: value for key, value in config.items() if key not in OF_ONE_RUN})
        else:  # an evaluation, which of older versions does not say
            own = {"model": "model", "root": "data.root", "split": "split"}
            settings = {key: metrics[metric] for metric, key in own.items() if metric in metrics}
        return RunFolder(name, folder, metrics, settings, _answers(folder / PREDICTIONS))
    except KeyError as error:
        raise DogbreedError(f"{folder} cannot be read as a run: {PREDICTIONS} has no column {error}.") from error
    except (OSError, ValueError, AttributeError, csv.Error, yaml.YAMLError) as error:
        raise DogbreedError(f"{folder} cannot be read as a run: {' '.join(str(error).split())}.") from error


def _answers(file: Path) -> dict[str, Answer]:
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as stream:
        return {
            row["path"]: Answer(
                row["label"],
                row["predicted"],
                *(float(row[name]) if row.get(name) else None for name in ("true_probability", "loss")),
            )
            for row in csv.DictReader(stream)
        }


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= _flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return flat


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _figure(value: Any, key: str, digits: int | None) -> str:
    if value is None:
        return ""
    if key == "seconds":
        return duration(value)
    if digits is not None:
        return f"{100 * value:.{digits}f} %"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def answers_in_words(comparison: Comparison, path: str) -> list[str]:
    """Return what the runs say of an image: "Boxer: A and B (right)", the class with the most runs first."""
    by_class: dict[str, list[str]] = {}
    for run in comparison.tested:
        answer = run.answers[path]
        sure = "" if answer.probability is None else f" ({100 * answer.probability:.0f} %)"
        by_class.setdefault(answer.predicted, []).append(run.name + sure)
    return [f"{name}: {join(names)}" for name, names in sorted(by_class.items(), key=lambda item: -len(item[1]))]
