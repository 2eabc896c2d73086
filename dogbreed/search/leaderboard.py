"""`search.backbones=[...]`: which backbone is the best for these images, on features that are computed once for each.

Every backbone gets heads of several learning rates, side by side, and classifiers in closed form; the two best are
also put together. What is chosen is chosen on valid.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dogbreed.cache.callback import Built
from dogbreed.config.settings import Config
from dogbreed.core.errors import DogbreedError, Interrupted
from dogbreed.core.files import discarded_if_empty, write_json
from dogbreed.data.datamodule import DogImages
from dogbreed.data.images import load
from dogbreed.metrics.calibration import wilson_interval
from dogbreed.metrics.paired import mcnemar
from dogbreed.metrics.predictions import PREFIX, Predictions
from dogbreed.models import backbones, lbfgs, timm_networks, winograd
from dogbreed.models.arithmetic import float32_as
from dogbreed.models.baselines import baselines
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.report import environment, leaderboard_page
from dogbreed.report.leaderboard import Leaderboard, Row
from dogbreed.search.space import check_epochs
from dogbreed.training.build import (
    build_cache,
    build_data,
    build_model,
    device_of,
    prepare_process,
    read_config,
    run_folder,
    say,
)
from dogbreed.training.preflight import check_settings
from dogbreed.training.stacked_heads import Head, HeadTrainer, why_not_stacked
from dogbreed.training.stem import NotStackable

RATES = (1 / 3, 1.0, 3.0)  # times model.lr
TIMED = 10  # images that pass one by one
RATE = "rate.json"  # in a feature store: how fast it was computed, and on which machine

Logits = dict[str, Tensor]  # [N, classes] by split


class _Entry(NamedTuple):
    """A row with what an ensemble needs of it."""

    row: Row
    logits: Logits
    data: DogImages


def leaderboard(config: Config | Mapping[str, Any] | None = None, overrides: Sequence[str] = ()) -> Leaderboard:
    """Compare the backbones of `search.backbones`; write `leaderboard.json` and `leaderboard.html`.

    Args:
        config: A composed configuration; None composes it from `overrides`.
        overrides: As on the command line.

    Raises:
        DogbreedError: Something a person can put right, or no backbone could take part.
    """
    started = time.monotonic()
    config = read_config(config, overrides)
    prepare_process()
    chosen = _backbones(config)
    check_epochs(config)
    if reason := why_not_stacked(config):
        raise DogbreedError(f"search.backbones compares heads on cached features, which cannot be here: {reason}.")
    folder = run_folder(config, None)
    with discarded_if_empty(folder, made=not config.output_dir):
        board = _compare(config, chosen, started)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "leaderboard.json", board.to_json())
        leaderboard_page.write(folder / "leaderboard.html", board)
    files = f"{board.seconds:.0f} s; wrote {folder}/leaderboard.html and leaderboard.json"
    _say(config, "\n".join(["", *board.table(), "", board.winner(), board.verdict(), files]))
    return board


def _backbones(config: Config) -> list[tuple[str, str]]:
    """Return names and weights.

    Raises:
        DogbreedError: It is no list of them.
    """
    chosen, entries = [], config.search.backbones
    for entry in entries if isinstance(entries, list) else [None]:
        pair = {entry: config.model.weights} if isinstance(entry, str) else entry
        if not isinstance(pair, dict) or len(pair) != 1 or not all(isinstance(value, str) for value in pair.values()):
            raise DogbreedError(
                "search.backbones is a list of names, or of {NAME: WEIGHTS}, such as "
                f"[resnet18,{{mobilenet_v2: my.pth}}], not {entries!r}."
            )
        chosen += list(pair.items())
    if not chosen:
        raise DogbreedError("search.backbones is empty; name a backbone, such as [resnet18].")
    chosen = list(dict.fromkeys(chosen))  # twice the same would be an ensemble of one
    for name, _ in chosen:
        if not timm_networks.is_timm(name):  # which may not be installed
            backbones.check_name(name)
    return chosen


def _compare(config: Config, chosen: Sequence[tuple[str, str]], started: float) -> Leaderboard:
    device, entries, failed = device_of(config), list[_Entry](), dict[str, str]()
    for backbone, weights in chosen:
        own = replace(config, model=replace(config.model, backbone=backbone, weights=weights))
        _say(config, f"{backbone}:")
        try:
            check_settings(own)
            data = build_data(own, quiet=config.progress == "none" or bool(entries))
            data.prepare_data()
            data.setup()
            with float32_as(config.cache.precision, device):
                entries.append(_entry(own, data, device))
        except Interrupted:  # the person stops all of them
            raise
        except (DogbreedError, NotStackable) as error:
            failed[backbone] = str(error)
            _say(config, f"{backbone} cannot take part: {error}")
    if not entries:
        raise DogbreedError(f"No backbone could take part; {chosen[0][0]}: {failed[chosen[0][0]]}")
    ensemble, gain = _ensemble(entries) if len(entries) > 1 else (None, None)
    rows = sorted((entry.row for entry in entries), key=lambda row: -row.figures["val_acc"])
    images = {split: len(files) for split, files in entries[0].data.samples.items()}
    seconds = time.monotonic() - started
    return Leaderboard(str(entries[0].data.root), images, str(device), rows, ensemble, gain, failed, seconds)


def _entry(config: Config, data: DogImages, device: torch.device) -> _Entry:
    """Train the heads of one backbone, and measure it.

    Raises:
        NotStackable: Its last layer cannot be trained apart.
        DogbreedError: It cannot be built.
    """
    model, cache, settings = build_model(config, data, None), build_cache(config, quiet=False), config.model
    cache.mode = "require"
    cache.attach(model, data, device)
    assert cache.store is not None
    rate = _rate(cache.built, cache.store)
    trainer = HeadTrainer(model, data)
    heads = [Head(settings.lr * rate, settings.weight_decay, settings.label_smoothing) for rate in RATES]
    trainer.train(heads, batch_size=config.data.batch_size, epochs=config.trainer["max_epochs"])
    head = min(heads, key=lambda head: head.best["val_loss"])
    features = {split: trainer.inputs(split) for split in data.samples}
    assert head.weight is not None
    assert head.bias is not None
    logits = {split: torch.addmm(head.bias, own, head.weight.T).cpu() for split, (own, _) in features.items()}
    size, images = data.preprocessing.size, data.samples["valid"].paths[:TIMED]
    row = Row(
        settings.backbone,
        _figures(logits, data),
        megabytes=sum(value.nbytes for value in model.network.state_dict().values()) / 1e6,
        multiply_adds=multiply_adds(model.network, size),
        milliseconds=_milliseconds(model.network, torch.stack([load(path, data.preprocessing) for path in images])),
        images_per_second=rate,
        rate_remembered=rate is not None and not cache.built.rows,
        weights=settings.weights,
        size=size,
        lr=head.lr,
        baselines=_baselines(model, trainer, features, data),
    )
    return _Entry(row, logits, data)


def _rate(built: Built, store: Path) -> float | None:
    """Return images per second of the features, as they were computed now, or before on the same machine.

    Of several times that which computed most is remembered, beside the features of the same network and versions.
    """
    here, file = {**environment.machine(), "threads": torch.get_num_threads()}, store / RATE
    try:
        kept = json.loads(file.read_bytes())
        remembered = int(kept["rows"]), float(kept["images_per_second"])
        before = remembered if kept["machine"] == here else None
    except (OSError, ValueError, LookupError, TypeError):  # there is none, or it is damaged
        before = None
    if not built.rows:
        return before and before[1]
    rate = built.rows / built.seconds
    if before is None or built.rows >= before[0]:
        with suppress(DogbreedError):  # a cache that may only be read serves as well
            write_json(file, {"rows": built.rows, "images_per_second": rate, "machine": here})
    return rate


def _baselines(
    model: DogBreedClassifier, trainer: HeadTrainer, features: Mapping[str, tuple[Tensor, Tensor]], data: DogImages
) -> dict[str, dict[str, Any]]:
    """Return the figures of classifiers in closed form, and of a logistic regression, by name."""
    solved = backbones.fresh_head(trainer.stem.head, 0).to(model.device)
    lbfgs.solve(solved, features["train"], features["valid"], nn.CrossEntropyLoss(), model.eval_criterion, None)
    on_cpu = {split: (own.cpu(), labels.cpu()) for split, (own, labels) in features.items()}
    classifiers = baselines(on_cpu["train"], on_cpu["valid"], len(data.classes)) | {"lbfgs": solved.cpu()}
    on_cpu.pop("train")
    figures = {}
    with torch.no_grad():
        for name, classify in classifiers.items():
            scores = {split: classify(own) for split, (own, _) in on_cpu.items()}
            found = _figures(scores, data)
            figures[name] = {key: value for key, value in found.items() if name == "lbfgs" or "loss" not in key}
    return figures


def _figures(logits: Logits, data: DogImages) -> dict[str, Any]:
    """Return accuracy with its interval, and loss, of valid and test, under the names of `metrics.json`."""
    figures: dict[str, Any] = {}
    for split in ("valid", "test"):
        if split not in logits:
            continue
        files, name = data.samples[split], PREFIX[split]
        made = Predictions(split, logits[split], torch.from_numpy(files.labels), files.paths)
        correct = int((made.predicted == made.labels).sum())
        figures |= {
            f"{name}_acc": correct / len(made),
            f"{name}_acc_ci95": list(wilson_interval(correct, len(made))),
            f"{name}_loss": float(made.losses.mean()),
        }
    return figures


def _ensemble(entries: Sequence[_Entry]) -> tuple[Row, dict[str, Any]]:
    """Return the mean of the probabilities of the two with the lowest loss on valid, and its gain over the better."""
    data = entries[0].data
    one, two = sorted(entries, key=lambda entry: entry.row.figures["val_loss"])[:2]
    logits = {
        split: torch.stack([entry.logits[split].double().softmax(1) for entry in (one, two)]).mean(0).log()
        for split in one.logits
    }
    rows = one.row, two.row
    row = Row(
        " + ".join(row.name for row in rows),
        _figures(logits, data),
        megabytes=sum(row.megabytes for row in rows),
        multiply_adds=sum(row.multiply_adds for row in rows),
        milliseconds=sum(row.milliseconds for row in rows),
    )
    better = max((one, two), key=lambda entry: entry.row.figures["val_acc"])
    split = "test" if row.split == "test" else "valid"
    labels = torch.from_numpy(data.samples[split].labels)
    ours, theirs = (own[split].argmax(1) == labels for own in (logits, better.logits))
    alone = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    gain = {"member": better.row.name, "only_ensemble": alone[0], "only_member": alone[1], "p": mcnemar(*alone)}
    return row, gain


def multiply_adds(network: nn.Module, size: int) -> int:
    """Return the multiply-adds of one image: those of convolutions and matrix products."""
    network.eval()
    device = next(network.parameters()).device
    # A gradient is asked for, and attention spelt out, so that no fused kernel passes by uncounted.
    image = torch.zeros(1, 3, size, size, device=device, requires_grad=True)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(image)
    return int(counter.get_total_flops()) // 2


def _milliseconds(network: nn.Module, images: Tensor) -> float:
    """Return the least time of one image through the network as `Predictor` runs it, from its pixels to its logits."""
    device = next(network.parameters()).device
    network.eval()
    if device.type == "cpu" and winograd.pays(network):
        network = winograd.accelerate(network)
    times = []
    with torch.inference_mode():
        for image in [images[:1], images[:1], *images.split(1)]:  # the first two warm up
            started = time.perf_counter()
            network(image.to(device).contiguous(memory_format=torch.channels_last)).float().cpu()
            times.append(time.perf_counter() - started)
    return 1000 * min(times[2:])  # the others tell of what else the machine does


def _say(config: Config, text: str) -> None:
    if config.progress != "none":
        say(text)
