"""Where a network looked."""

import pytest
import torch
from captum.attr import LayerGradCam

from dogbreed.models import backbones
from dogbreed.models.gradcam import heat_maps


@pytest.mark.parametrize(
    "backbone",
    [
        "mobilenet_v2",
        "resnet18",
        "squeezenet1_1",
        "efficientnet_b0",
        "convnext_tiny",
        "densenet121",
        "shufflenet_v2_x0_5",
    ],
)
@pytest.mark.slow
def test_heat_maps(backbone):
    network = backbones.create(backbone, 3, weights="none")
    network.requires_grad_(False).train()
    modes = [module.training for module in network.modules()]
    inputs = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # as after an evaluation
        maps = heat_maps(network, backbone, inputs, torch.tensor([0, 2]))
    assert maps is not None
    assert maps.shape[0] == 2
    assert min(maps.shape[1:]) >= 2
    assert 0 <= maps.min() <= maps.max() <= 1
    assert modes == [module.training for module in network.modules()]
    assert not any(parameter.grad is not None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18", "densenet121", "convnext_tiny"])
@pytest.mark.slow
def test_heat_maps_equal_those_of_captum(backbone):
    """captum does not know of frozen networks (it differentiates from the input on), but of Grad-CAM."""
    network = backbones.create(backbone, 3, weights="none").eval()
    inputs = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([2, 0])
    maps = heat_maps(network, backbone, inputs, classes)
    layer = network.get_submodule(backbones.last_stage(network, backbone)[-1])
    theirs = LayerGradCam(network, layer).attribute(inputs, target=classes, relu_attributions=True)[:, 0].detach()
    assert maps is not None
    assert theirs.max() > 0
    torch.testing.assert_close(maps, theirs / theirs.amax((1, 2), keepdim=True).clamp(min=1e-12), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backbone", ["vit_b_32", "swin_t"])
def test_networks_without_a_feature_map(backbone):
    network = torch.nn.Linear(1, 1)  # it is not even looked at
    assert heat_maps(network, backbone, torch.zeros(1, 3, 8, 8), torch.tensor([0])) is None


def test_the_map_is_warm_where_the_evidence_is():
    """A network whose only evidence for class 1 is bright red: the map has to follow a red patch."""
    network = backbones.create("resnet18", 2, weights="none")
    network.layer4 = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8, stride=8, bias=False), torch.nn.ReLU())
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3"):
        setattr(network, name, torch.nn.Identity())
    network.fc = torch.nn.Linear(4, 2)
    with torch.no_grad():
        network.layer4[0].weight.zero_()
        network.layer4[0].weight[:, 0] = 1  # red
        network.fc.weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    image = torch.zeros(1, 3, 64, 64)
    image[:, 0, 40:48, 16:24] = 1
    maps = heat_maps(network, "resnet18", image, torch.tensor([1]))
    assert maps is not None
    assert divmod(int(maps[0].argmax()), 8) == (5, 2)
    against = heat_maps(network, "resnet18", image, torch.tensor([0]))
    assert against is not None
    assert against.max() == 0  # nothing spoke for it
