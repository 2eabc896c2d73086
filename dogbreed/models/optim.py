"""Optimizer, learning-rate schedule, and the settings of a training that are checked before it begins."""

import math
import re
from typing import Any

import torch
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.models.backbones import head_name

OPTIMIZERS = ("adam", "adamw", "sgd", "lbfgs")
SCHEDULES = ("constant", "cosine", "onecycle")


def parameter_groups(
    network: nn.Module, lr: float, backbone_lr: float | None, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Return the trainable parameters only: the head at `lr`, the backbone at its own rate (None: a tenth of `lr`).

    With a `layer_decay` below 1, that is the rate of the backbone's last layer, and each layer before has so much less.
    """
    head = list(network.get_submodule(head_name(network)).parameters())
    in_head = {id(parameter) for parameter in head}
    backbone: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and id(parameter) not in in_head:
            backbone.setdefault("" if layer_decay == 1 else _layer(name), []).append(parameter)
    groups: list[dict[str, Any]] = [{"params": head, "lr": lr, "weight_decay": weight_decay}]
    rate = lr / 10 if backbone_lr is None else backbone_lr
    for depth, parameters in enumerate(reversed(backbone.values())):  # as they are defined, which is as they run
        groups.append({"params": parameters, "lr": rate * layer_decay**depth, "weight_decay": weight_decay})
    return groups


def _layer(name: str) -> str:
    """Return which layer a parameter is in: its name up to the first number, as in `features.17` or `layer4`."""
    match = re.match(r"(?:[^.\d]+\.)*[^.]*\d[^.]*(?=\.)", name)
    return match[0] if match else name.rpartition(".")[0]


def make_optimizer(name: str, groups: list[dict[str, Any]], fused: bool = True) -> torch.optim.Optimizer:
    """Return the optimizer of that name over groups that carry `params`, `lr` and `weight_decay`."""
    if name == "lbfgs":  # the head is solved before (models/lbfgs.py); no step changes it
        return torch.optim.SGD([{**group, "lr": 0.0, "weight_decay": 0.0} for group in groups], lr=0.0)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=groups[0]["lr"], momentum=0.9, nesterov=True, fused=fused)
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    # One pass over the values instead of ten: a head of VGG16 takes 1 ms per step.
    return kind(groups, fused=fused)


def make_scheduler(
    name: str, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Return the learning rate's schedule over `steps` steps; None where it is constant."""
    if name == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    if name == "onecycle":
        peaks = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=steps)
    return None


def check_training(
    num_classes: int,
    lr: float,
    backbone_lr: float | None,
    weight_decay: float,
    label_smoothing: float,
    optimizer: str,
    schedule: str,
    layer_decay: float = 1.0,
    ema_decay: float | None = None,
) -> None:
    """Check how a model is to be trained.

    Raises:
        DogbreedError: An argument is unknown or out of range.
    """
    if num_classes < 2:
        raise DogbreedError(f"A classifier needs at least 2 classes; the data has {num_classes}.")
    _check_number("model.lr", lr, lr > 0, "more than 0")
    if backbone_lr is not None:
        _check_number("model.backbone_lr", backbone_lr, backbone_lr > 0, "more than 0")
    _check_number("model.weight_decay", weight_decay, weight_decay >= 0, "0 or more")
    _check_number("model.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "from 0 to below 1")
    _check_number("model.layer_decay", layer_decay, 0 < layer_decay <= 1, "above 0, and 1 at most")
    if ema_decay is not None:
        _check_number("model.ema_decay", ema_decay, 0 < ema_decay < 1, "above 0 and below 1, or null")
        if optimizer == "lbfgs":
            raise DogbreedError("model.optimizer=lbfgs takes no steps to average over; leave model.ema_decay out.")
    for key, value, allowed in (("optimizer", optimizer, OPTIMIZERS), ("schedule", schedule, SCHEDULES)):
        if value not in allowed:
            raise DogbreedError(f"model.{key}={value} is unknown; it is one of {', '.join(allowed)}.")


def _check_number(key: str, value: float, is_valid: bool, allowed: str) -> None:
    if not (is_valid and math.isfinite(value)):
        raise DogbreedError(f"{key}={value} is out of range; it is {allowed}.")
