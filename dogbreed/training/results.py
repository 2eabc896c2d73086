"""After training: evaluate the best checkpoint, measure, export and report it."""

import math
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from dogbreed.cache.callback import FeatureCache
from dogbreed.config.resumed import HEAD_STAGE
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import remove, write_csv, write_json
from dogbreed.core.metric_lines import TEST_LINE, accuracy_line, folds_line
from dogbreed.core.text import count, size
from dogbreed.data.datamodule import TWO_LABELS, DogImages
from dogbreed.metrics import conformal
from dogbreed.metrics.calibration import choose_temperature
from dogbreed.metrics.classification import PREDICTIONS, chance, measure, prediction_rows
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.models.checkpoints import changed_state, drop_frozen
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.imbalance import subtract_log_prior
from dogbreed.monitor.callback import LiveRules
from dogbreed.monitor.history import History
from dogbreed.monitor.profiler import Profiling
from dogbreed.report import model_card, profile_report, training_report
from dogbreed.report.inputs import ReportInputs, head_sentence
from dogbreed.report.rendering import percent
from dogbreed.training.build import class_counts, say
from dogbreed.training.folds import cross_validate
from dogbreed.training.head_stage import HeadResult
from dogbreed.training.in_domain import index_images
from dogbreed.training.loggers import log_artifacts
from dogbreed.training.refit import refit


@dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
        config: The whole configuration.
        data: Set up.
        model: As it was last trained, until `finish` gives it the weights of the best epoch.
        trainer: Lightning's.
        cache: The features' callback.
        history: The epochs, and the run's folder.
        live_rules: What watched the training.
        profiling: None where the run is not profiled.
        started: `time.monotonic()` at the beginning.
        head: The stage before, where there was one.
    """

    config: Config
    data: DogImages
    model: DogBreedClassifier
    trainer: Trainer
    cache: FeatureCache
    history: History
    live_rules: LiveRules
    profiling: Profiling | None
    started: float
    head: HeadResult | None = None


def finish(run: Run) -> dict[str, Any]:
    """Evaluate, export and report a run that was trained.

    Returns:
        The metrics, as in `metrics.json`; none in processes other than the first.

    Raises:
        DogbreedError: No epoch finished, the disk is full, or a test image is gone; the model is exported before.
    """
    best = _load_best(run)
    splits, refitted, failure = _evaluate_all(run, int(best["epoch"]))
    if not run.trainer.is_global_zero:
        return {}
    temperature = choose_temperature(splits["valid"].logits, splits["valid"].labels)
    splits = {name: replace(predictions, temperature=temperature) for name, predictions in splits.items()}
    sets = conformal.calibrate(splits["valid"], run.config.abstain_above)
    metrics = {**_metrics(run, best, splits), **refitted, **_cross_validate(run, int(best["epoch"]))}
    if run.head:
        metrics |= run.head.figures(splits.get("test") or splits["valid"])
    folder, test = run.history.folder, splits.get("test")
    if test:
        metrics |= conformal.coverage(test, sets["least_probability"])
    inputs = _report_inputs(run, metrics, test or splits["valid"])
    caveats, leak, leak_metrics = training_report.caveats(inputs)
    metrics |= leak_metrics
    write_json(folder / "metrics.json", metrics)
    if test:
        write_csv(folder / "predictions.csv", PREDICTIONS, prediction_rows(test, run.data.classes, run.data.root))
    say("\n".join([*leak, test_line(test or splits["valid"], metrics["test_loss" if test else "val_loss"])]))
    model = run.model.float()  # trainer.precision=bf16-true, 16-true and 64-true trained it in another precision
    config = run.history.config
    index, no_index = index_images(run.config, model, run.data)
    model.export(
        folder / "model", temperature=temperature, conformal=sets, neighbours=index, config=config, metrics=metrics
    )
    drop_frozen(folder)
    _report(run, inputs)
    # What lies there from an earlier run would pass for this run's.
    made_here = (("profile", run.profiling), ("predictions.csv", test), (HEAD_STAGE, run.head))
    remove(folder / name for name, made in made_here if not made)
    noted = log_artifacts(run.trainer.loggers, folder, run.config.loggers or {})
    caveats = [*caveats, *([no_index] if no_index else []), *noted]
    say(_summary(run, metrics, test or splits["valid"], caveats))
    if failure:
        raise DogbreedError(
            f"The model is exported, but the test images could not be evaluated: {failure}"
        ) from failure
    return metrics


def finish_head(run: Run) -> None:
    """Evaluate the first of two stages, for comparison with the second."""
    best = _load_best(run)
    splits, _, _ = _evaluate_all(run, int(best["epoch"]))
    rows = prediction_rows(splits.get("test") or splits["valid"], run.data.classes, run.data.root)
    write_csv(run.history.folder / "predictions.csv", PREDICTIONS, rows)
    write_json(run.history.folder / "metrics.json", _metrics(run, best, splits))  # last: it says that all is there


def test_line(predictions: Predictions, loss: float) -> str:
    """Return the line of a split's loss and accuracy that tools read."""
    correct, total = int((predictions.predicted == predictions.labels).sum()), len(predictions)
    line = TEST_LINE.format(loss=loss, correct=correct, total=total, percent=100 * correct / total)
    return line.replace("Test", predictions.split.capitalize(), 1)  # a tool that looks for a test finds no other


def _load_best(run: Run) -> Mapping[str, float]:
    """Give the model the weights of the best epoch; return the row of that epoch."""
    if run.history.chosen is None:
        raise DogbreedError(
            "No epoch finished, so there is nothing to evaluate; give trainer.max_epochs, "
            "trainer.max_steps or trainer.max_time room for one."
        )
    file, best = run.history.chosen
    trainer = run.trainer
    if trainer.num_nodes == 1:
        state = changed_state(file)
    else:  # it lies on the first machine's disk, which others may not see
        state = trainer.strategy.broadcast(changed_state(file) if trainer.is_global_zero else {})
    run.model.network.load_state_dict(state, strict=False)
    if run.config.model.prior == "uniform":
        subtract_log_prior(run.model.network, class_counts(run.data))
    return best


def _evaluate_all(run: Run, epochs: int) -> tuple[dict[str, Predictions], dict[str, int], Exception | None]:
    """Return what the models predict for valid and, where wanted, test; of a refit; why test could not be evaluated."""
    splits, refitted = {"valid": _evaluate(run, "valid")}, {}
    if run.config.refit:  # only now, since nothing can be measured on valid afterwards
        refitted = _refit(run, epochs)
    if run.config.test and "test" in run.data.samples and run.config.trainer["limit_test_batches"] != 0:
        try:
            splits["test"] = _evaluate(run, "test")
        except (DogbreedError, OSError, RuntimeError) as error:  # such as a photograph that is gone
            return splits, refitted, error
    return splits, refitted, None


def _refit(run: Run, epochs: int) -> dict[str, int]:
    """Replace the model's head by one that was trained on valid too, on which nothing is measured from here on."""
    images = refit(run.config, run.model, run.data, epochs, quiet=not run.trainer.is_global_zero)
    if run.config.model.prior == "uniform":
        subtract_log_prior(run.model.network, class_counts(run.data.with_valid_in_train()))
    return {"refit_epochs": epochs, "refit_images": images}


def _cross_validate(run: Run, epochs: int) -> dict[str, Any]:
    """Return what `data.folds` adds to the metrics."""
    if not run.config.data.folds:
        return {}
    return cross_validate(run.config, run.model, run.data, epochs, run.trainer.strategy.root_device, quiet=False)


def _evaluate(run: Run, split: str) -> Predictions:
    """Return what the model predicts for valid or test."""
    run.model.predictions = None  # those of one split may not pass for the other's
    measure_split = run.trainer.validate if split == "valid" else run.trainer.test
    measure_split(run.model, datamodule=run.data, verbose=False)
    outputs = run.model.predictions
    assert outputs is not None
    paths = [run.data.samples[split].paths[index] for index in outputs.indices.tolist()]
    return Predictions(split, outputs.logits, outputs.labels, paths)


def _metrics(run: Run, best: Mapping[str, float], splits: Mapping[str, Predictions]) -> dict[str, Any]:
    measured, solution = measure(splits["valid"]), run.model.solution
    training_seconds = sum(row["seconds"] for row in run.history.rows)
    return {
        "train_loss": best["train_loss"],
        "train_acc": best["train_acc"] if math.isfinite(best["train_acc"]) else None,
        "val_loss": measured["val_loss"],
        "val_acc": measured["val_acc"],
        **(measure(splits["test"]) if "test" in splits else measured),
        "temperature": splits["valid"].temperature,
        "epochs": len(run.history.rows),
        "best_epoch": best["epoch"],
        "seconds": round(run.history.seconds_before + time.monotonic() - run.started, 3),
        "batch_size": run.data.batch_size,
        "images_seen": run.model.images_seen,
        "images_per_second": round(run.model.images_seen / max(training_seconds, 1e-9), 1),
        "images_skipped": len(run.data.skipped),
        "cache": run.cache.state,
        **_built(run.cache),
        "device": str(run.trainer.strategy.root_device),
        **({"lbfgs_c": solution.c, "lbfgs_temperature": solution.temperature} if solution else {}),
    }


def _built(cache: FeatureCache) -> dict[str, float]:
    """Return what the features took that this run has computed, if any."""
    built = cache.built
    if not built.rows:
        return {}
    return {
        "features_computed": built.rows,
        "features_seconds": round(built.seconds, 3),
        "decoding_seconds": round(built.decoding, 3),  # of one processor
    }


def _report_inputs(run: Run, metrics: dict[str, Any], predictions: Predictions) -> ReportInputs:
    data = run.data
    return ReportInputs(
        class_names=data.classes,
        backbone=run.model.hparams["backbone"],
        preprocessing=run.model.preprocessing,
        root=data.root,
        photos=data.samples,
        predictions=predictions,
        metrics=metrics,
        history=run.history.rows,
        head_history=run.head.rows if run.head else (),
        skipped=data.skipped,
        config=run.history.config,
        network=run.model.network,
        findings=run.live_rules.all_findings(),
        doubts=[warning for warning in data.warnings if warning.startswith(TWO_LABELS)][:3],
    )


def _report(run: Run, inputs: ReportInputs) -> None:
    folder = run.history.folder
    training_report.write_safely(folder / "report.html", inputs)
    model_card.write_safely(folder / "model" / "README.md", inputs)
    if run.profiling:
        profile = run.profiling.result(inputs.findings, run.config.rules["step_outlier"])
        title = f"{inputs.backbone} on {inputs.root.resolve().name or inputs.root}"
        profile_report.write_safely(folder / "profile", profile, title, run.history.config)


def _summary(run: Run, metrics: Mapping[str, Any], predictions: Predictions, caveats: Sequence[str]) -> str:
    folder, skipped = run.history.folder, run.data.skipped
    classes, training = len(run.data.classes), torch.as_tensor(run.data.samples["train"].labels)
    guessing = percent(chance(predictions.labels, training, classes).accuracy, 1)
    features = {"built": ", features computed now", "hit": ", features found on disk"}.get(metrics["cache"], "")
    weights = f"the weights of epoch {metrics['best_epoch']} of {metrics['epochs']}"
    if refitted := "refit_epochs" in metrics and predictions.split == "test":
        weights = f"a head trained on train + valid ({metrics['refit_images']:,} images)"
    lines = [
        "",
        f"Learned to tell {count(classes, 'class')} apart from {count(len(training), 'image')}; guessing would get "
        f"{guessing}.",
        f"{accuracy_line(metrics, PREFIX[predictions.split], len(predictions), classes)},",
        f"with {weights}, in {metrics['seconds']:.0f} s on {metrics['device']}{features}.",
        *([head_sentence(metrics)] if "gain_acc" in metrics else []),
        *([f"{folds_line(metrics)}."] if "folds" in metrics else []),
        *caveats,
    ]
    if predictions.split == "valid":
        lines.append("No test images were evaluated, and by the validation images the epoch was chosen.")
    if "refit_epochs" in metrics:
        lines.append(
            f"model/ was trained on train + valid for {count(metrics['refit_epochs'], 'epoch')}, the number that was "
            f"best on valid; {'figures of valid' if refitted else 'these figures'} and checkpoints are of that before."
        )
    if skipped:
        lines.append(f"Skipped {len(skipped)} files that are no readable images: {folder / 'skipped.csv'}")
    if "SM_MODEL_DIR" in os.environ:  # a job's machine is gone when it ends: its entry point says where the results are
        return "\n".join(lines)
    lines += [
        "",
        f"{folder}/",
        "  report.html      what was reached, to look at",
        *(["  profile/         where the time went: profile/report.html"] if run.profiling else []),
        f"  model/           the model, to use and to deploy ({_size(folder / 'model')})",
        *(["  predictions.csv  the answer for every test image"] if predictions.split == "test" else []),
        *(["  split.csv        which image was on which side; data.labels repeats it"] if run.data.own_split else []),
        f"  metrics.json, metrics.csv, rules.json, config.yaml, checkpoints/ ({_size(folder / 'checkpoints')})",
        "",
        "Next: classify an image, open the report, serve the model",
        *(f"  {command}" for command in _next_commands(run)),
    ]
    return "\n".join(lines)


def _size(folder: Path) -> str:
    return size(sum(file.stat().st_size for file in folder.glob("*") if file.is_file()))


def _next_commands(run: Run) -> list[str]:
    """Return what a shell takes as it stands, with the interpreter that runs this."""
    python = Path(sys.executable)
    if shutil.which("python") == sys.executable:
        python = Path("python")
    elif python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    folder, samples = run.history.folder, run.data.samples
    image = (samples.get("test") or samples["valid"]).paths[0]
    commands = (
        ("dogbreed.predict", folder / "model", image),
        ("webbrowser", (folder / "report.html").resolve().as_uri()),
        ("dogbreed.serve", folder / "model"),
    )
    return [shlex.join([str(python), "-m", *map(str, command)]) for command in commands]
