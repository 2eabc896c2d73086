"""Networks of one's own: passed from Python, or built from an import path that somebody has named."""

import sys

import pytest
import torch
from support import runs
from support.fits import fit
from torch import Tensor, nn

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing
from dogbreed.inference.predictor import Predictor
from dogbreed.models import own_networks
from dogbreed.models.backbones import create
from dogbreed.models.classifier import DogBreedClassifier

PATH = "my_networks:small"
SOURCE = f"""
from {__name__} import Small

nothing = dict


def small():
    network = Small()
    network.fc = network._modules.pop("fc")
    return network


def broken():
    raise ValueError("no such file")
"""
SIZE = 64


class Small(nn.Module):
    """Two linear layers; the one that is defined last is not the one that runs last."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2))
        self.fc = nn.Linear(16, 10)
        self.dropout = nn.Dropout(0.2)
        self.neck = nn.Linear(32, 16)

    def forward(self, images: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.dropout(self.neck(self.body(images).flatten(1)).relu()))
        return outputs


def classifier(**changes) -> DogBreedClassifier:
    arguments = {"network": Small(), "head": "fc", "preprocessing": Preprocessing(size=SIZE).to_dict(), "lr": 0.01}
    return DogBreedClassifier(4, **(arguments | changes))


@pytest.mark.slow
def test_it_trains_on_cached_features_and_its_checkpoint_is_read_into_it_again(dog_tree, tmp_path):
    untouched = Small().state_dict()
    cached, plain = classifier(), classifier()
    with_cache = fit(cached, dog_tree, tmp_path, "require", epochs=3, batch_size=8, saves=True)
    without = fit(plain, dog_tree, tmp_path, "off", epochs=3, batch_size=8)
    assert (with_cache.cache, without.cache) == ("built", "off")
    assert with_cache.steps == pytest.approx(without.steps, abs=1e-5)
    assert len(set(without.steps)) == len(without.steps)
    trained = {name for name, value in cached.network.state_dict().items() if not name.startswith("fc.")}
    assert trained == {name for name in untouched if not name.startswith("fc.")}
    assert all(torch.equal(cached.network.state_dict()[name], untouched[name]) for name in trained), "all but the head"

    file = with_cache.trainer.checkpoint_callback.best_model_path
    loaded = DogBreedClassifier.load_from_checkpoint(file, network=Small())
    images = torch.rand(2, 3, SIZE, SIZE)
    assert torch.equal(loaded.eval()(images), cached.eval()(images))
    with pytest.raises(
        DogbreedError, match=r"own/Small is a network of your own code.*load_from_checkpoint\(PATH, net"
    ):
        DogBreedClassifier.load_from_checkpoint(file)


def test_the_head():
    assert classifier().network.fc.out_features == 4
    last = classifier(head=None).network
    assert (last.neck.out_features, last.fc.out_features) == (4, 10), "the one that is defined last"
    seeds = [classifier(seed=seed).network.fc.weight for seed in (0, 0, 1)]
    assert torch.equal(seeds[0], seeds[1])
    assert not torch.equal(seeds[0], seeds[2])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"head": "body.0"}, "Small has no linear layer head='body.0'; its linear layers are fc, neck."),
        (
            {"network": nn.Conv2d(3, 4, 3), "head": None},
            "Conv2d has no linear layer that could become the head; end it with a torch.nn.Linear.",
        ),
        ({"network": None, "weights": "none"}, "head='fc' names a layer of a network of your own: pass network= too."),
        (
            {"trainable": "block"},
            "model.trainable=block needs a network of torchvision or timm; yours takes head or all.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, sentence):
    with pytest.raises(DogbreedError) as refused:
        classifier(**changes)
    assert str(refused.value) == sentence


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module `my_networks` on the path; what this process allows is put back."""
    (tmp_path / "my_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(own_networks, "_ALLOWED", set())
    yield
    sys.modules.pop("my_networks", None)


@pytest.mark.slow
def test_from_a_setting_to_an_answer(module, tmp_path, monkeypatch):
    settings = [f"model.backbone={PATH}", "model.weights=none", "cache.mode=require"]
    runs.train_in(tmp_path / "run", *settings)
    runs.train_in(tmp_path / "run", *settings, "trainer.max_epochs=3", "resume=auto")
    image = next((runs.photographs() / "test").rglob("*.jpg"))
    answer = Predictor(tmp_path / "run" / "model").predict(image)

    own_networks._ALLOWED.clear()  # as in another process
    sys.modules.pop("my_networks")
    with pytest.raises(DogbreedError, match=f"allow it with DOGBREED_NETWORKS={PATH}, its folder on PYTHONPATH"):
        Predictor(tmp_path / "run" / "model")
    assert "my_networks" not in sys.modules, "nothing was imported"
    monkeypatch.setenv("DOGBREED_NETWORKS", f"other:Net,{PATH}")
    assert Predictor(tmp_path / "run" / "model").predict(image) == answer


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("my_networks:smal", r"cannot be built \(AttributeError: module 'my_networks' has no attribute 'smal'\)"),
        (
            "my_netwroks:Small",
            r"cannot be built \(ModuleNotFoundError: No module named 'my_netwroks'\); it is MODULE:CALL",
        ),
        ("my_networks:broken", r"cannot be built \(ValueError: no such file\)"),
        ("my_networks:nothing", "model.backbone=my_networks:nothing returns dict, not a torch.nn.Module."),
    ],
)
def test_paths_that_lead_to_no_network(module, path, sentence):
    with pytest.raises(DogbreedError, match=sentence):
        create(path, 3, weights="none")


def test_nothing_is_published_for_it(module):
    with pytest.raises(DogbreedError, match=r"Nothing is published for my_networks:small: give model\.weights=none"):
        create(PATH, 3)
