"""The split: both parts together are the network, bit by bit, and nothing random or changing is in the first."""

import copy
import random
from operator import ne

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from dogbreed.models.backbones import create, freeze, set_mode
from dogbreed.models.cut import CutNetwork, NoPrefix, checksum, cut, fingerprint

FAST = [
    # Network, side, trainable, last operation of the prefix, its shape
    ("squeezenet1_1", 64, "head", "cat_7", (512, 3, 3)),  # dropout follows
    ("shufflenet_v2_x0_5", 64, "block", "view_23", (96, 4, 4)),
    ("resnet18", 64, "block", "layer3.1.relu", (256, 4, 4)),
]
SLOW = [
    ("mobilenet_v3_small", 64, "head", "classifier.1", (1024,)),
    ("resnet18", 64, "head", "flatten", (512,)),
    ("squeezenet1_1", 64, "block", "features.8", (256, 3, 3)),
    ("vgg11", 32, "head", "classifier.1", (4096,)),
    ("vgg16", 32, "head", "classifier.1", (4096,)),
    ("vgg16", 32, "block", "features.23", (512, 2, 2)),
    ("resnet50", 64, "block", "layer3.5.relu", (1024, 4, 4)),
    ("efficientnet_b0", 64, "head", "flatten", (1280,)),
    ("efficientnet_b0", 64, "block", "add_8", (192, 2, 2)),
    ("densenet121", 64, "head", "flatten", (1024,)),
    ("convnext_tiny", 64, "head", "classifier.1", (768,)),
    ("convnext_tiny", 64, "block", "features.6.1", (768, 2, 2)),
    ("vit_b_16", 224, "head", "getitem_29", (768,)),
    ("swin_t", 64, "head", "flatten", (768,)),
    ("swin_t", 64, "block", "features.6.reduction", (2, 2, 768)),
]


def frozen(backbone: str, trainable: str) -> nn.Module:
    network = create(backbone, 4, weights="none")
    with torch.no_grad():  # so that batch norm does something
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1, generator=torch.Generator().manual_seed(1))
    freeze(network, backbone, trainable)
    return network.to(memory_format=torch.channels_last)


def parts_equal_whole(network: nn.Module, parts: CutNetwork, size: int, atol: float = 0.0) -> None:
    """In both modes, from features that were computed in evaluation mode, as the cache does."""
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))
    images = images.contiguous(memory_format=torch.channels_last)
    set_mode(network, training=False)
    with torch.no_grad():
        features = parts.prefix(images)
    assert features.shape[1:] == parts.shape
    for training in (False, True):
        set_mode(network, training)
        buffers = {name: value.clone() for name, value in network.named_buffers()}
        torch.manual_seed(3)
        whole = network(images)
        with torch.no_grad():
            for name, value in network.named_buffers():
                value.copy_(buffers[name])
        torch.manual_seed(3)
        loaded = features.contiguous()  # as it comes from the disk
        torch.testing.assert_close(parts.tail(loaded.clone(), training), whole, rtol=0, atol=atol)
        if training and any(isinstance(module, nn.Dropout) and module.p for module in network.modules()):
            assert not torch.equal(parts.tail(features.clone(), False), whole), "the modes differ"


def check(backbone, size, trainable, last_node, shape):
    network = frozen(backbone, trainable)
    parts = cut(network, size)
    assert (parts.last_node, parts.shape) == (last_node, shape)
    assert 0 < parts.before < parts.total
    # Attention takes another way through torch in training than in evaluation, which rounds differently.
    parts_equal_whole(network, parts, size, atol=2e-6 if backbone.startswith("vit") else 0.0)


@pytest.mark.parametrize(("backbone", "size", "trainable", "last_node", "shape"), FAST)
@pytest.mark.slow
def test_parts_equal_the_whole(backbone, size, trainable, last_node, shape):
    check(backbone, size, trainable, last_node, shape)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size", "trainable", "last_node", "shape"), SLOW)
def test_parts_equal_the_whole_in_large_networks(backbone, size, trainable, last_node, shape):
    check(backbone, size, trainable, last_node, shape)


def test_parameters_are_shared():
    network = frozen("squeezenet1_1", "head")
    parts = cut(network, 64)
    images = torch.randn(2, 3, 64, 64)
    features = parts.prefix(images).detach()
    before = network.eval()(images)
    parts.tail(features, False).square().sum().backward()
    head = network.classifier[1]
    assert head.weight.grad is not None
    with torch.no_grad():
        head.weight -= 0.1 * head.weight.grad
        head.bias += 0.5
    after = network(images)
    assert not torch.allclose(before, after)
    assert torch.equal(parts.tail(features, False), after)
    assert not list(parts.tail.parameters()), "the network owns them"


@pytest.mark.slow
def test_gradients_are_those_of_the_whole():
    network = frozen("mobilenet_v3_small", "block")
    parts = cut(network, 64)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    set_mode(network, training=True)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}

    def gradients(logits: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(F.cross_entropy(logits, labels), list(trained.values())))

    torch.manual_seed(1)
    whole = gradients(network(images))
    with torch.no_grad():
        features = parts.prefix(images)
    torch.manual_seed(1)
    tail = gradients(parts.tail(features, True))
    assert len(trained) > 2
    assert all(torch.equal(one, two) for one, two in zip(whole, tail, strict=True))


@pytest.mark.slow
def test_nothing_is_touched():
    network = frozen("mobilenet_v3_small", "block")
    set_mode(network, training=True)
    modes = {name: module.training for name, module in network.named_modules()}
    values = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), np.random.get_state()[2]
    cut(network, 64)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1].tolist(), np.random.get_state()[2]) == states[2:]
    assert {name: module.training for name, module in network.named_modules()} == modes
    assert all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    network.eval()
    cut(network, 64)
    assert not network.training


MPS = torch.Generator()  # in the place of that of a Mac's GPU


class MpsNoise(nn.Module):
    def forward(self, x):
        return x + torch.rand(4, 1, 1, generator=MPS)


def test_the_generator_of_mps_is_watched_and_put_back(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", MPS.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", MPS.set_state)
    before = MPS.get_state()
    assert cut(Net(opaque(MpsNoise)), 8).last_node == "first"
    assert torch.equal(MPS.get_state(), before)


# What must never be computed once


class Net(nn.Module):
    """A frozen convolution, something in the middle, a frozen convolution, a head that trains."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.middle = middle
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 2)
        self.first.requires_grad_(False)
        self.middle.requires_grad_(False)
        self.second.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(F.relu(self.middle(self.first(x))))
        return self.head(x.mean((2, 3)))


class TorchNoise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


class PythonNoise(nn.Module):
    def forward(self, x):
        return x * random.random()


class NumpyNoise(nn.Module):
    def forward(self, x):
        return x * float(np.random.rand())


class ConstantNoise(nn.Module):
    def forward(self, x):
        return x + torch.rand(4, 1, 1)


class OwnGenerator(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x):
        return x + torch.rand(4, 1, 1, generator=self.generator)


class Neighbours(nn.Module):
    def forward(self, x):
        return x - x.mean(0, keepdim=True)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return x * (1 + 0 * self.seen)


class UnevenCounter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen = self.seen + 1
        return x * self.seen


def opaque(kind: type[nn.Module]) -> nn.Module:
    """As a module that fx does not look into, as it does not into those of torch.nn."""
    return type(kind.__name__, (kind,), {"__module__": "torch.nn.custom"})()


CHANGING = (TorchNoise, PythonNoise, NumpyNoise, ConstantNoise, OwnGenerator, Neighbours, Counter, UnevenCounter)


@pytest.mark.parametrize("kind", CHANGING)
def test_custom_modules_that_change_are_never_in_the_prefix(kind):
    parts = cut(Net(opaque(kind)), 8)
    assert parts.last_node == "first"


@pytest.mark.parametrize("kind", CHANGING)
def test_nor_are_those_that_fx_looks_into(kind):
    try:
        parts = cut(Net(kind()), 8)
    except NoPrefix:
        return
    assert parts.last_node == "first"
    network = Net(kind())
    assert cut(network, 8).last_node == "first"


@pytest.mark.parametrize("kind", [PythonNoise, NumpyNoise, ConstantNoise, OwnGenerator, Counter, UnevenCounter])
def test_what_happens_while_it_is_traced_is_not_lost_behind_the_cut(kind):
    """Tracing would turn one draw into a constant of the tail."""

    class Late(Net):
        def forward(self, x):
            x = self.second(self.first(x))
            return self.head(self.middle(x).mean((2, 3)))

    network = Late(kind())
    state = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(NoPrefix, match="while it is traced"):
        cut(network, 8)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("middle", "last_node"),
    [
        (nn.Dropout(0.5), "first"),
        (nn.Dropout2d(0.5), "first"),
        (nn.Dropout(0.0), "mean"),
        (nn.BatchNorm2d(4, affine=False), "first"),  # in training: nothing of it is frozen
        (nn.BatchNorm2d(4), "mean"),  # frozen, so it keeps its statistics
        (nn.BatchNorm2d(4, track_running_stats=False), "first"),
        (StochasticDepth(0.5, "row"), "first"),
        (StochasticDepth(0.5, "batch"), "first"),
        (StochasticDepth(0.0, "row"), "mean"),
        (nn.RReLU(), "first"),
        (nn.GELU(), "mean"),
    ],
    ids=repr,
)
def test_modules_that_change(middle, last_node):
    network = Net(middle)
    set_mode(network, training=True)
    parts = cut(network, 8)
    assert parts.last_node == last_node
    if not isinstance(middle, StochasticDepth):  # it draws anew for the tail's own batch
        parts_equal_whole(network, parts, 8)


def test_a_shortcut_over_the_cut_moves_it_forward():
    class Shortcut(Net):
        def forward(self, x):
            x = F.relu(self.first(x))
            y = F.relu(self.second(x))
            return self.head((y + x[..., 1:-1, 1:-1]).mean((2, 3)) + x.mean((2, 3)))

    network = Shortcut(nn.Identity())
    network.second.requires_grad_(True)
    parts = cut(network, 8)
    assert parts.last_node == "relu"
    parts_equal_whole(network, parts, 8)


def test_an_operation_in_place_behind_the_cut_leaves_the_features_alone():
    class InPlace(Net):
        def forward(self, x):
            return self.head(F.dropout(self.second(self.first(x)), training=self.training).relu_().mean((2, 3)))

    network = InPlace(nn.Identity())
    parts = cut(network, 8)
    assert parts.last_node == "second"
    parts_equal_whole(network, parts, 8)


# Networks without a prefix


def test_everything_trains():
    with pytest.raises(NoPrefix, match=r"every layer trains, so nothing can be computed once"):
        cut(frozen("squeezenet1_1", "all"), 64)


def test_control_flow_that_depends_on_the_images():
    class Branch(Net):
        def forward(self, x):
            x = self.first(x)
            if x.sum() > 0:
                x = -x
            return self.head(x.mean((2, 3)))

    network = Branch(nn.Identity())
    network.train()
    with pytest.raises(NoPrefix, match=r"torch\.fx cannot trace it \(.*control flow"):
        cut(network, 8)
    assert network.training


def test_inputs_that_are_too_small():
    with pytest.raises(NoPrefix, match="does not run on inputs of 8 x 8 pixels"):
        cut(frozen("squeezenet1_1", "head"), 8)


def test_a_frozen_part_that_asks_for_its_mode():
    class Moody(Net):
        def forward(self, x):
            x = self.second(self.first(x))
            if self.training:
                x = x * 2
            return self.head(F.relu(x).mean((2, 3)))

    with pytest.raises(NoPrefix, match="computes something else in training than in evaluation"):
        cut(Moody(nn.Identity()), 8)


# The fingerprint


def body(network: nn.Module) -> tuple[str, int]:
    prefix = cut(network, 8).prefix
    return fingerprint(prefix), checksum(prefix)


def changed(change) -> bool:
    torch.manual_seed(0)
    network = Net(nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.MaxPool2d(2, 1)))
    other = copy.deepcopy(network)
    change(other)
    assert body(network) == body(network)
    by_fingerprint, by_checksum = map(ne, body(other), body(network))
    assert by_fingerprint == by_checksum
    return by_fingerprint


def one_weight(network):
    with torch.no_grad():
        value = network.first.weight[0, 0, 0, 0]
        network.first.weight[0, 0, 0, 0] = torch.nextafter(value, torch.tensor(9.0))


CHANGES = {
    "one weight in its last bit": one_weight,
    "a bias": lambda n: n.second.bias.data.add_(1e-4),
    "a running mean": lambda n: n.middle[1].running_mean.add_(1e-4),
    "eps": lambda n: setattr(n.middle[1], "eps", 1e-3),
    "stride": lambda n: setattr(n.second, "stride", (2, 2)),
    "the kernel of a pooling": lambda n: setattr(n.middle[2], "kernel_size", 3),
    "an operation": lambda n: n.middle.__setitem__(2, nn.AvgPool2d(2, 1)),
    "a type": lambda n: n.middle.__setitem__(2, nn.LPPool2d(2, 2, 1)),
    "one layer less": lambda n: n.middle.__delitem__(2),
}
NO_CHANGES = {
    "nothing": lambda n: None,
    "the head": lambda n: n.head.weight.data.zero_(),
    "the size of the head": lambda n: setattr(n, "head", nn.Linear(4, 9)),
    "the mode": lambda n: n.eval(),
    "where channels lie in memory": lambda n: n.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.slow
def test_the_fingerprint_changes_with(change):
    assert changed(CHANGES[change])


@pytest.mark.parametrize("change", NO_CHANGES)
@pytest.mark.slow
def test_the_fingerprint_does_not_change_with(change):
    assert not changed(NO_CHANGES[change])


def test_the_fingerprint_knows_numbers_in_the_code_and_buffers_that_are_not_saved():
    class Scaled(Net):
        factor = 2.0

        def __init__(self):
            super().__init__(nn.Identity())
            self.register_buffer("mean", torch.zeros(4, 1, 1), persistent=False)

        def forward(self, x):
            return self.head((self.first(x) * self.factor - self.mean).mean((2, 3)))

    torch.manual_seed(0)
    network = Scaled()
    seen = {body(network)}
    network.mean += 1
    seen.add(body(network))
    network.factor = 3.0
    seen.add(body(network))
    assert len(seen) == 3


def test_the_fingerprint_knows_settings_that_repr_leaves_out():
    class Attention(Net):
        def forward(self, x):
            x = self.first(x).flatten(2).transpose(1, 2)
            return self.head(self.middle(x, x, x, need_weights=False)[0].mean(1))

    torch.manual_seed(0)
    network = Attention(nn.MultiheadAttention(4, 2, batch_first=True))
    other = Attention(nn.MultiheadAttention(4, 4, batch_first=True))
    other.load_state_dict(network.state_dict())
    assert body(network) == body(copy.deepcopy(network))
    assert body(network) != body(other)
