"""Winograd's convolutions against torch's own, alone and in whole networks."""

import pytest
import torch
import torchvision
from torch import nn

from dogbreed.models import winograd, winograd_tiles
from dogbreed.models.folding import ImageByImage
from dogbreed.models.winograd import LinearByRows, PackedLinear, WinogradConv2d, accelerate, pays, substituted


def off(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error."""
    return float((result.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(params=["C", "torch"])
def way(request, monkeypatch):
    """Both ways in which tiles are brought to their points."""
    if request.param == "torch":
        monkeypatch.setattr(winograd_tiles, "_library", lambda: None)
    elif winograd_tiles.way() != "C":
        pytest.skip("no C compiler, or a processor without AVX2")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("size", [(2, 3), (4, 4), (5, 9), (14, 14), (31, 18)])
@pytest.mark.parametrize(("relu", "pool"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("count", [1, 3])
def test_against_torch(size, relu, pool, count, monkeypatch):
    monkeypatch.setattr(winograd, "PART_BYTES", 100_000)  # several parts
    generator = torch.Generator().manual_seed(0)
    direct = nn.Conv2d(16, 24, 3, padding=1)
    images = torch.randn(count, 16, *size, generator=generator)
    steps = [direct] + [nn.ReLU()] * relu + [nn.MaxPool2d(2)] * pool
    with torch.inference_mode():
        expected = nn.Sequential(*steps).double()(images.double())
        direct.float()
        for layout in (torch.contiguous_format, torch.channels_last):
            result = WinogradConv2d(direct, torch.float32, relu=relu, pool=pool)(
                images.contiguous(memory_format=layout)
            )
            assert result.shape == expected.shape
            assert off(result, expected) < 3e-6
        half = WinogradConv2d(direct, torch.bfloat16, relu=relu, pool=pool)(images)
        assert half.dtype == torch.bfloat16
        assert off(half, expected) < 0.03


@pytest.mark.parametrize(("name", "size"), [("vgg11_bn", 40), ("vgg11", 64), ("resnet18", 64)])
@pytest.mark.slow
def test_whole_networks(name, size):
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, weights=None, num_classes=7)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # statistics that would show a wrong fusion
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.5, 1.5)
    network.eval()
    assert pays(network) is name.startswith("vgg")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    fast, half = accelerate(network), accelerate(network, torch.bfloat16)
    assert sum(isinstance(module, WinogradConv2d) for module in fast.modules()) >= 6
    assert any(isinstance(module, PackedLinear | nn.Linear) for module in half.modules())
    assert isinstance(fast, ImageByImage)
    assert (fast.between is not None) is name.startswith("vgg"), "groups of images share large kernels"
    images = torch.randn(winograd.GROUP + 1, 3, size, size)
    with torch.inference_mode():
        expected = network(images)
        assert off(fast(images), expected) < 1e-5
        assert off(half(images), expected) < 0.1
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x0_5", "resnet34", "alexnet"])
@pytest.mark.slow
def test_where_it_does_not_pay(name):
    assert not pays(torchvision.models.get_model(name, weights=None).eval())


@pytest.mark.slow
def test_threads_change_nothing():
    network = torchvision.models.vgg11(weights=None, num_classes=7).eval()
    fast = accelerate(network)
    images = torch.randn(5, 3, 64, 64)
    before = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            expected = fast(images)
            torch.set_num_threads(3)
            assert off(fast(images), expected) < 1e-5
            assert off(fast(images[:1]), expected[:1]) < 1e-5
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_a_processor_that_cannot_pack_linear_layers_computes_them_plainly(monkeypatch):
    def refuse(weight: torch.Tensor, batch: int) -> torch.Tensor:
        raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", refuse, raising=False)
    network = torchvision.models.vgg11(weights=None, num_classes=7).eval()
    half = accelerate(network, torch.bfloat16)
    linear = [module for module in half.modules() if isinstance(module, nn.Linear)]
    assert [module.weight.dtype for module in linear] == [torch.bfloat16] * 3
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert off(half(images), network(images)) < 0.1


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_by_rows(count, bias, monkeypatch) -> None:
    monkeypatch.setattr(winograd, "ROWS", 16)
    direct, inputs = nn.Linear(30, 50, bias=bias), torch.randn(count, 30)
    with torch.inference_mode():
        assert off(LinearByRows(direct)(inputs), direct(inputs)) < 1e-6


def test_features_of_the_two_ways_have_keys_of_their_own(monkeypatch) -> None:
    names = []
    for library in (None, object()):
        monkeypatch.setattr(winograd_tiles, "_library", lambda library=library: library)
        names.append(winograd.name())
    assert names[0] != names[1]


def test_what_the_c_file_does_not_take_is_computed_in_torch() -> None:
    direct, images = nn.Conv2d(20, 20, 3, padding=1), torch.randn(2, 20, 9, 9)  # not in eights
    with torch.inference_mode():
        assert off(WinogradConv2d(direct, torch.float32)(images), direct(images)) < 3e-6


def test_a_network_computes_so_for_a_while() -> None:
    network = torchvision.models.vgg11(weights=None, num_classes=3).eval()
    layers, images = list(network.features), torch.randn(2, 3, 40, 40)
    expected = network.features(images).detach()
    with substituted(network):
        kinds = [type(layer) for layer in network.features]
        with torch.no_grad():
            assert off(network.features(images), expected) < 1e-5
    assert kinds.count(WinogradConv2d) == 7, "all but the first, which has three channels"
    assert list(network.features) == layers
    assert network.state_dict().keys() == torchvision.models.vgg11(weights=None).state_dict().keys()


def test_a_network_that_would_not_gain_stays_as_it_is() -> None:
    network = torchvision.models.resnet18(weights=None)
    with substituted(network):
        assert not any(isinstance(module, WinogradConv2d) for module in network.modules())
