"""Batch norms within convolutions: the same answers from fewer operations, and nothing folded that must not be."""

import pytest
import torch
import torchvision
from torch import nn

from dogbreed.models.folding import ImageByImage, counterpart, fold


def shaken(network: nn.Module) -> nn.Module:
    """The network with statistics that would show a wrong fusion."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d) and module.track_running_stats:
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                if module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0, 0.2)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def assert_alike(network: nn.Module, folded: nn.Module, size: int = 64) -> None:
    images = torch.randn(3, 3, size, size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, answer = network(images), folded(images)
    assert float((answer - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("name", "left"),
    [("mobilenet_v2", 0), ("resnet18", 0), ("densenet121", 62)],  # DenseNet's norms are mostly before convolutions
)
@pytest.mark.slow
def test_whole_networks(name, left):
    torch.manual_seed(0)
    network = shaken(torchvision.models.get_model(name, weights=None, num_classes=7))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded = fold(network)
    assert isinstance(folded, ImageByImage)
    assert norms(folded) == left
    assert_alike(network, folded)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    head = "classifier.1" if name == "mobilenet_v2" else "fc" if name == "resnet18" else "classifier"
    assert counterpart(folded, head) is network.get_submodule(head), "it is shared, so that features can be taken there"


def test_convolution_with_bias_and_norm_without_weights():
    network = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.ReLU()))
    folded = fold(network)
    assert norms(folded) == 0
    assert_alike(network, folded, 8)


class WithActivation(nn.BatchNorm2d):
    """As timm's: what follows is part of it."""

    def forward(self, inputs):
        return super().forward(inputs).relu()


class Twice(nn.Module):
    """One convolution with two norms."""

    def __init__(self):
        super().__init__()
        self.convolution, self.one, self.other = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images):
        return self.other(self.convolution(self.one(self.convolution(images))))


class ByValue(nn.Module):
    """Which torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, images):
        return self.body(images) if images.mean() > 100 else self.body(images) + 1


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), WithActivation(4)),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        Twice(),
        ByValue(),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    ],
    ids=["norm-behind-relu", "norm-with-activation", "norm-of-the-batch", "used-twice", "by-value", "no-norm"],
)
def test_what_cannot_be_folded_stays(network):
    assert fold(shaken(network)) is network
