"""Classes of unequal size: weights in the loss, and logits without the training set's prior."""

import torch
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.models.backbones import head_name


def balance_loss(criterion: nn.CrossEntropyLoss, counts: Tensor) -> None:
    """Weigh each class by 1 / its number of images [classes] in a loss, with a mean weight of 1."""
    weights = 1 / counts.clamp(min=1).float()
    # Not among the checkpoint's values: they follow from the data.
    criterion.register_buffer("weight", weights * (len(weights) / weights.sum()), persistent=False)


def check_bias(network: nn.Module) -> None:
    """Refuse a network whose logits cannot be shifted by the bias of its last layer.

    Raises:
        DogbreedError: Its last layer is no linear one with a bias.
    """
    head = network.get_submodule(head_name(network))
    if not isinstance(head, nn.Linear) or head.bias is None:
        raise DogbreedError(
            f"model.prior=uniform changes the bias of a linear last layer, and {head_name(network)} of this network is "
            f"none ({type(head).__name__}); use model.class_weights=balanced."
        )


def subtract_log_prior(network: nn.Module, counts: Tensor) -> None:
    """Subtract the log share of each class from its logit, by the bias of the last layer.

    What was trained on classes of unequal size then answers as if all were equally frequent.

    Args:
        network: With a linear last layer.
        counts: Training images of each class, [classes].
    """
    head = network.get_submodule(head_name(network))
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        head.bias.sub_(log_prior(counts).to(head.bias))


def log_prior(counts: Tensor) -> Tensor:
    """Return the log share of each class [classes] from its number of training images [classes]."""
    shares = counts.clamp(min=1).double()
    return (shares / shares.sum()).log()
