"""What a probe found is used again for the very same network, and for no other."""

import json
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from dogbreed.cache.findings import FILE, KeyedCut, keyed_cut
from dogbreed.models.cut import NoPrefix, cut, fingerprint

SIZE = 16


class Convolutions(TorchFunctionMode):
    """Counts convolutions that are computed."""

    count = 0

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.count += function is torch.conv2d
        return function(*arguments, **(options or {}))


@fx.wrap  # whose code is not in a trace
def own_step(images):
    return images.relu()


class Small(nn.Module):
    """What each image's channels add up to depends on its neighbours, as much as `mix` says."""

    def __init__(self, own: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2)
        self.mix = nn.Parameter(torch.zeros(1))
        self.own, self.dropout = own, nn.Dropout(0.5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.mix.zero_()
        self.requires_grad_(False).head.requires_grad_(True)

    def forward(self, images):
        images = own_step(self.first(images)) if self.own else torch.relu(self.first(images))
        images = images + self.mix * images.mean(0, keepdim=True)
        return self.head(self.dropout(self.second(images).mean((2, 3))))


def again(folder: Path, network: nn.Module, size: int = SIZE) -> tuple[KeyedCut, int]:
    """Return the cut, whose finding its store keeps, and how many convolutions were computed for it."""
    with Convolutions() as convolutions:
        found = keyed_cut(folder, network, size, lambda parts: f"{fingerprint(parts.prefix)}-{size}")
    (folder / found.key).mkdir(exist_ok=True)
    found.keep(folder / found.key)
    return found, convolutions.count


def test_the_same_network_is_not_probed_again(tmp_path):
    first, probed = again(tmp_path, Small())
    second, none = again(tmp_path, Small())
    assert (probed, none) == (4, 0)
    assert (second.finding, second.key, second.parts.last_node) == (first.finding, first.key, "mean_1")
    expected, images = cut(Small(), SIZE), torch.randn(3, 3, SIZE, SIZE)
    torch.testing.assert_close(second.parts.prefix(images), expected.prefix(images), rtol=0, atol=0)
    assert second.parts[2:] == expected[2:]
    for training in (False, True):
        assert second.parts.tail.graph(training).code == expected.tail.graph(training).code


def test_other_values_are_probed_and_may_give_another_cut(tmp_path):
    again(tmp_path, Small())
    mixing = Small()
    with torch.no_grad():
        mixing.mix.fill_(0.5)
    found, probed = again(tmp_path, mixing)
    assert (probed, found.parts.last_node) == (4, "relu"), "behind it images depend on their neighbours"
    assert again(tmp_path, mixing)[1] == 0
    assert again(tmp_path, Small())[1] == 0


def test_other_settings_and_sizes_are_probed(tmp_path):
    again(tmp_path, Small())
    trains = Small()
    trains.second.requires_grad_(True)
    found, probed = again(tmp_path, trains)
    assert (probed, found.parts.last_node) == (4, "add")
    certain = Small()
    certain.dropout.p = 0.0
    assert again(tmp_path, certain)[1] == 4
    assert again(tmp_path, Small(), size=SIZE + 2)[1] == 4


def test_what_may_be_another_tomorrow_is_probed_each_time(tmp_path):
    hooked = Small()
    hooked.second.register_forward_hook(lambda module, images, output: output + torch.rand(1))
    for network, node in ((Small(own=True), "mean_1"), (hooked, "add")):
        for _ in range(2):
            found, probed = again(tmp_path, network)
            assert (probed, found.parts.last_node) == (4, node)
    assert not list(tmp_path.rglob(FILE))
    again(tmp_path, Small())
    assert again(tmp_path, hooked)[0].parts.last_node == "add", "the finding without the hook is not taken"


@pytest.mark.parametrize("content", ["", "[]", '{"structure": 1}', None])
def test_a_damaged_finding_is_none(content, tmp_path):
    found, _ = again(tmp_path, Small())
    file = tmp_path / found.key / FILE
    if content is None:
        noted = json.loads(file.read_text())
        content = json.dumps({**noted, "shape": None})
    file.write_text(content)
    assert again(tmp_path, Small())[1] == 4


def test_a_network_without_a_prefix_leaves_nothing(tmp_path):
    with pytest.raises(NoPrefix, match="every layer trains"):
        again(tmp_path, Small().requires_grad_(True))
    assert not list(tmp_path.iterdir())
