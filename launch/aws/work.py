"""What a training computes, counted in forward passes of its network: frozen part, steps, stages, folds and refit."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from launch.aws.networks import Network, network


class Passes(NamedTuple):
    """What one training computes. Work is counted in forward passes of the whole network, in float32.

    Attributes:
        shared: Work for features, which are computed once however many trainings use them.
        whole: Work in each training: a step counts as its multiply-adds forward and backward say.
        head: Images from features to the loss, in each training.
        shared_images: Images that are decoded for features.
        whole_images: Images that are decoded in each training.
        features_gb: Size of the features.
    """

    shared: float
    whole: float
    head: float
    shared_images: float
    whole_images: float
    features_gb: float

    def work(self, trainings: int = 1) -> float:
        """Return the passes of so many trainings that share their features."""
        return self.shared + trainings * self.whole

    def decoded(self, trainings: int = 1) -> float:
        """Return the images that are read and decoded for them."""
        return self.shared_images + trainings * self.whole_images


def network_of(config: Mapping[str, Any]) -> Network:
    """Return the figures of a configuration's network."""
    return network(str(config["model"]["backbone"]), config["data"]["size"])


def measured_as(config: Mapping[str, Any]) -> str:
    """Return the name under which a rehearsal keeps how fast a configuration's network is."""
    return f"{config['model']['backbone']} {config['data']['size'] or ''}".rstrip()


def passes(config: Mapping[str, Any], counts: Mapping[str, int]) -> Passes:
    """Return what one training computes, a first stage with the head alone included.

    Args:
        config: A composed configuration.
        counts: Images by split.
    """
    data, model, first = config["data"], config["model"], config["head_stage"]
    epochs = 1 if model["trainable"] == "head" and model["optimizer"] == "lbfgs" else config["trainer"]["max_epochs"]
    main = _stage(config, counts, model["trainable"], "none" if data["transforms"] else data["augment"], epochs)
    if not first["epochs"] or model["trainable"] == "head":
        return main
    stage = _stage(config, counts, "head", first["augment"], 1 if first["optimizer"] == "lbfgs" else first["epochs"])
    return Passes(*(one + other for one, other in zip(stage, main, strict=True)))


def _stage(config: Mapping[str, Any], counts: Mapping[str, int], trainable: str, augment: str, epochs: int) -> Passes:
    """Return what a stage takes; of an image's views only those are computed that are shown."""
    train, valid, test = (counts[split] for split in ("train", "valid", "test"))
    figures, folds = network_of(config), config["data"]["folds"] or 0
    again = 1 + bool(config["refit"]) + folds if trainable == "head" else 1
    steps, forward = epochs * train * again, epochs * valid * again + valid + test
    views = {"none": 1, "flip": 2, "crop": config["cache"]["views"]}[augment]
    # Each epoch shows an image in one of them, drawn anew.
    shown = views if folds else views * (1 - (1 - 1 / views) ** epochs)
    computed = round(shown * (train + valid * bool(folds or config["refit"])) + valid + test)
    everything = figures.step(trainable) * steps + forward
    if not _caches(config, trainable, figures, computed):
        return Passes(0, everything, 0, 0, steps + forward, 0)
    frozen, size = figures.frozen(trainable), _features_gb(config, trainable, figures, computed)
    return Passes(frozen * computed, everything - frozen * (steps + forward), steps + forward, computed, 0, size)


def _caches(config: Mapping[str, Any], trainable: str, figures: Network, images: int) -> bool:
    """Return whether features are computed once: something is frozen, the same in each epoch, and not too large."""
    cache, anew = config["cache"], trainable == config["model"]["trainable"] and config["data"]["transforms"]
    if cache["mode"] == "off" or trainable == "all" or anew:
        return False
    return bool(_features_gb(config, trainable, figures, images) <= cache["max_gb"])


def _features_gb(config: Mapping[str, Any], trainable: str, figures: Network, images: int) -> float:
    half = config["cache"]["precision"] in ("bfloat16", "float16")
    return float(figures.features_gb(trainable) * images / (1 + half))
