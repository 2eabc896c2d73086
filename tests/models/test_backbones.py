"""Networks: which part is which, weights from every kind of file, what is frozen and stays so, and every refusal."""

import math
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.models import list_models
from torchvision.ops import StochasticDepth

from dogbreed.core.errors import DogbreedError
from dogbreed.data.images import Preprocessing
from dogbreed.models import backbones, model_folder
from dogbreed.models.backbones import changing_names, create, freeze, head_name, preprocessing_of, set_mode
from dogbreed.models.weights import load_backbone, read_state

SQUEEZENET_FILE = "squeezenet1_1-b8a52dc0.pth"  # as torchvision publishes them
VGG16_FILE = "vgg16-397923af.pth"

# Name: head, a layer of the last stage, the last layer in front of it, the first layer.
PARTS = {
    "alexnet": ("classifier.6", "features.6", "features.3", "features.0"),
    "convnext_tiny": ("classifier.2", "features.7.0.block.0", "features.6.1", "features.0.0"),
    "densenet121": (
        "classifier",
        "features.denseblock4.denselayer1.conv1",
        "features.transition3.conv",
        "features.conv0",
    ),
    "efficientnet_b0": ("classifier.1", "features.7.0.block.0.0", "features.6.3.block.3.0", "features.0.0"),
    "googlenet": ("fc", "inception5a.branch1.conv", "inception4e.branch4.1.conv", "conv1.conv"),
    "inception_v3": ("fc", "Mixed_7a.branch3x3_1.conv", "Mixed_6e.branch_pool.conv", "Conv2d_1a_3x3.conv"),
    "maxvit_t": ("classifier.5", "blocks.3.layers.0.layers.MBconv.layers.conv_a.0", "blocks.2", "stem.0.0"),
    "mnasnet0_5": ("classifier.1", "layers.13.0.layers.0", "layers.12.2.layers.6", "layers.0"),
    "mobilenet_v2": ("classifier.1", "features.17.conv.0.0", "features.16.conv.2", "features.0.0"),
    "mobilenet_v3_small": ("classifier.3", "features.11.block.0.0", "features.10.block.3.0", "features.0.0"),
    "regnet_y_400mf": ("fc", "trunk_output.block4.block4-0.proj.0", "trunk_output.block3", "stem.0"),
    "resnet18": ("fc", "layer4.0.conv1", "layer3.1.conv2", "conv1"),
    "resnext50_32x4d": ("fc", "layer4.0.conv1", "layer3.5.conv3", "conv1"),
    "shufflenet_v2_x0_5": ("fc", "stage4.0.branch1.0", "stage3.7.branch2.5", "conv1.0"),
    "squeezenet1_1": ("classifier.1", "features.9.squeeze", "features.7.expand3x3", "features.0"),
    "swin_t": ("head", "features.7.0.attn.qkv", "features.6.reduction", "features.0.0"),
    "vgg16": ("classifier.6", "features.24", "features.21", "features.0"),
    "vgg11_bn": ("classifier.6", "features.22", "features.18", "features.0"),
    "vit_b_16": ("heads.head", "encoder.layers.encoder_layer_11.mlp.0", "encoder.layers.encoder_layer_10", "conv_proj"),
    "wide_resnet50_2": ("fc", "layer4.0.conv1", "layer3.5.conv3", "conv1"),
}


def random_state(network: nn.Module, seed: int = 1) -> dict[str, torch.Tensor]:
    """Values for every name of a network's state_dict, statistics of batch norm included."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(value.shape, generator=generator) * 0.05
    return state


def same_values(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def squeezenet() -> dict[str, torch.Tensor]:
    """A state_dict as torchvision publishes it, of 1,000 classes."""
    return random_state(torchvision.models.squeezenet1_1())


# Parts


def trainable_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def test_the_published_recipe_trains_544_901_numbers():
    network = backbones.skeleton("vgg16", 133)
    freeze(network, "vgg16", "head")
    assert trainable_count(network) == 4096 * 133 + 133 == 544_901
    freeze(network, "vgg16", "block")
    assert trainable_count(network) == 544_901 + 3 * (512 * 512 * 9 + 512), "the last three convolutions"
    freeze(network, "vgg16", "all")
    assert trainable_count(network) == 138_357_544 - 4096 * 1000 - 1000 + 544_901, "torchvision's count, another head"


def parts_are(network, backbone, head, inside, before, stem):
    def trains(name: str) -> set[bool]:
        return {parameter.requires_grad for parameter in network.get_submodule(name).parameters()}

    freeze(network, backbone, "block")
    assert trains(head) == trains(inside) == {True}
    assert trains(before) == trains(stem) == {False}
    freeze(network, backbone, "head")
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert trained == {f"{head}.{name}" for name, _ in network.get_submodule(head).named_parameters()}
    freeze(network, backbone, "all")
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("backbone", PARTS)
@pytest.mark.slow
def test_freezing(backbone):
    parts_are(backbones.skeleton(backbone, 7), backbone, *PARTS[backbone])


# Those that cannot be built without values are left to the smallest of their family, above.
LIGHT = [name for name in list_models(module=torchvision.models) if not name.startswith(("regnet", "swin"))]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", LIGHT)
def test_every_network_has_a_head_and_a_last_stage(backbone):
    network = backbones.skeleton(backbone, 7)
    head = network.get_submodule(head_name(network))
    assert 7 in (getattr(head, "out_features", None), getattr(head, "out_channels", None))
    order = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    freeze(network, backbone, "block")
    trained = [index for index, name in enumerate(order) if network.get_submodule(name).weight.requires_grad]
    *stage, last = trained
    assert head_name(network) == order[last] == order[-1]
    assert stage == list(range(stage[0], stage[0] + len(stage))), "in one piece; VGG's hidden linear layers follow it"
    assert 1 <= len(stage) < len(order) / 2 <= stage[-1]


def test_freezing_again_starts_from_nothing():
    network = backbones.skeleton("resnet18", 3)
    freeze(network, "resnet18", "all")
    freeze(network, "resnet18", "head")
    assert trainable_count(network) == 512 * 3 + 3
    with pytest.raises(DogbreedError, match=r"model\.trainable=tail is unknown; it is one of head, block, all"):
        freeze(network, "resnet18", "tail")


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("vgg-16", "vgg16"),
        ("ResNet50", "resnet50"),
        ("mobilenet2", "mobilenet_v2"),
        ("efficientnet_lit0", "efficientnet_lite0"),
    ],
)
def test_an_unknown_network_is_refused_with_the_nearest(name, nearest):
    with pytest.raises(DogbreedError) as refused:
        create(name, 3, weights="none")
    assert str(refused.value) == (
        f"model.backbone={name} is no classification network of torchvision; did you mean {nearest}?"
    )


def test_a_network_like_no_other_is_refused_with_the_list():
    with pytest.raises(DogbreedError, match=r"it has \d+, such as resnet50 and vgg16"):
        create("xyz", 3, weights="none")


# From torchvision's documentation of the weights.
@pytest.mark.parametrize(
    ("backbone", "size", "shorter", "interpolation", "mean"),
    [
        ("vgg16", 224, 256, "bilinear", (0.485, 0.456, 0.406)),
        ("mobilenet_v2", 224, 232, "bilinear", (0.485, 0.456, 0.406)),
        ("inception_v3", 299, 342, "bilinear", (0.485, 0.456, 0.406)),
        ("swin_t", 224, 232, "bicubic", (0.485, 0.456, 0.406)),
        ("efficientnet_v2_l", 480, 480, "bicubic", (0.5, 0.5, 0.5)),
    ],
)
def test_preprocessing_comes_with_the_weights(backbone, size, shorter, interpolation, mean):
    whole = preprocessing_of(backbone)
    assert (whole.size, whole.resize_size, whole.interpolation, whole.mean) == (size, shorter, interpolation, mean)
    assert whole.resize == "squash"
    half = preprocessing_of(backbone, resize="crop", size=112)
    assert (half.size, half.resize) == (112, "crop")
    assert half.resize_size == pytest.approx(shorter * 112 / size, abs=0.51)


# Weights


def save_as(kind: str, state: dict[str, torch.Tensor], folder: Path) -> Path:
    if kind == "safetensors":
        save_file(state, folder / "weights.safetensors")
        return folder / "weights.safetensors"
    file = folder / "weights.pth"
    content = {"nested": {"state_dict": state, "epoch": 3}, "model": {"model": state}}.get(kind, state)
    if kind == "prefixed":
        content = {f"module.{name}": value for name, value in state.items()}
    torch.save(content, file, _use_new_zipfile_serialization=kind != "legacy")
    return file


@pytest.mark.parametrize("kind", ["zip", "legacy", "nested", "model", "prefixed", "safetensors"])
def test_weights_from_any_kind_of_file(tmp_path, squeezenet, kind):
    file = save_as(kind, squeezenet, tmp_path)
    kept = create("squeezenet1_1", 1000, weights=str(file))
    assert same_values(kept.state_dict(), squeezenet)

    other = create("squeezenet1_1", 5, weights=str(file)).state_dict()
    body = {name: value for name, value in squeezenet.items() if not name.startswith("classifier.1.")}
    assert same_values({name: value for name, value in other.items() if name in body}, body)
    assert other["classifier.1.weight"].shape == (5, 512, 1, 1)
    assert 0 < other["classifier.1.weight"].std() < 1
    assert all(value.isfinite().all() for value in other.values())


def test_a_file_without_a_head_fits(tmp_path, squeezenet):
    body = {name: value for name, value in squeezenet.items() if not name.startswith("classifier.1.")}
    torch.save(body, tmp_path / "body.pth")
    network = create("squeezenet1_1", 5, weights=str(tmp_path / "body.pth"))
    assert torch.equal(network.features[0].weight, squeezenet["features.0.weight"])


@pytest.mark.parametrize("head", ["classifier.1.1", "head", "projection.0"])
def test_a_head_of_another_build_and_what_is_no_tensor_are_left_out(tmp_path, squeezenet, head):
    state = {name.replace("classifier.1", head): value for name, value in squeezenet.items()}
    torch.save({**state, "epoch": 3, "_extra_state": None}, tmp_path / "other.pth")
    network = create("squeezenet1_1", 5, weights=str(tmp_path / "other.pth"))
    assert torch.equal(network.features[0].weight, squeezenet["features.0.weight"])


def test_whole_numbers_are_no_weights(tmp_path, squeezenet):
    torch.save({name: value.to(torch.int8) for name, value in squeezenet.items()}, tmp_path / "int8.pth")
    with pytest.raises(DogbreedError, match=r"do not fit squeezenet1_1: features.0.weight and .* quantised to whole"):
        create("squeezenet1_1", 5, weights=str(tmp_path / "int8.pth"))


def test_folders_of_weights(tmp_path, squeezenet):
    with pytest.raises(DogbreedError, match=r"The folder .* holds no model\.safetensors; give the file of the weights"):
        read_state(tmp_path)
    torch.save(squeezenet, tmp_path / "pytorch_model.bin")
    assert same_values(read_state(tmp_path), squeezenet)


def test_imagenet_takes_torchvisions_file(cache_dir, no_network, squeezenet):
    folder = cache_dir / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(squeezenet, folder / SQUEEZENET_FILE, _use_new_zipfile_serialization=False)
    network = create("squeezenet1_1", 1000, weights="imagenet").eval()
    theirs = torchvision.models.squeezenet1_1().eval()
    theirs.load_state_dict(squeezenet)
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(network(images), theirs(images))


def test_other_published_weights_by_their_name(cache_dir, no_network, squeezenet):
    folder = cache_dir / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(squeezenet, folder / SQUEEZENET_FILE)
    named = create("squeezenet1_1", 1000, weights="IMAGENET1K_V1").state_dict()
    assert same_values(named, create("squeezenet1_1", 1000, weights="imagenet").state_dict())
    with pytest.raises(DogbreedError, match=r"from https://download\.pytorch\.org/models/mobilenet_v2-b0353104\.pth"):
        create("mobilenet_v2", 5, weights="IMAGENET1K_V1")  # the file of these weights, not of the default ones
    with pytest.raises(DogbreedError) as refused:
        create("mobilenet_v2", 5, weights="IMAGENET1K_V3")
    assert str(refused.value) == (
        "model.weights=IMAGENET1K_V3 is neither a file nor published for mobilenet_v2; "
        "known are IMAGENET1K_V1, IMAGENET1K_V2."
    )


# From torchvision's documentation of the weights.
@pytest.mark.parametrize(
    ("backbone", "weights", "size", "shorter", "interpolation"),
    [
        ("mobilenet_v2", "IMAGENET1K_V1", 224, 256, "bilinear"),
        ("mobilenet_v2", "IMAGENET1K_V2", 224, 232, "bilinear"),
        ("regnet_y_16gf", "IMAGENET1K_SWAG_LINEAR_V1", 224, 224, "bicubic"),
        ("regnet_y_16gf", "IMAGENET1K_SWAG_E2E_V1", 384, 384, "bicubic"),
    ],
)
def test_other_published_weights_bring_their_own_input(backbone, weights, size, shorter, interpolation):
    record = preprocessing_of(backbone, weights=weights)
    assert (record.size, record.resize_size, record.interpolation) == (size, shorter, interpolation)


def test_without_network_the_ways_out_are_named(cache_dir, no_network):
    with pytest.raises(DogbreedError) as caught:
        create("squeezenet1_1", 5, weights="imagenet")
    sentence = str(caught.value)
    file = cache_dir / "torch" / "hub" / "checkpoints" / SQUEEZENET_FILE
    assert "model.weights=none" in sentence
    assert "model.weights=PATH" in sentence
    assert str(file) in sentence
    assert list(file.parent.iterdir()) == [], "nothing half-written"


@pytest.mark.slow
def test_densenets_old_names(tmp_path):
    state = random_state(backbones.skeleton("densenet121", 1000))
    old = {}
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            for part in ("norm", "conv"):
                name = name.replace(f".{part}1.", f".{part}.1.").replace(f".{part}2.", f".{part}.2.")
            old[name] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    loaded = create("densenet121", 1000, weights=str(tmp_path / "old.pth")).state_dict()
    assert all(loaded.pop(name) == 0 for name in state if name.endswith("num_batches_tracked"))
    assert same_values(loaded, {name: state[name] for name in loaded})


def test_auxiliary_classifiers_are_left_out(tmp_path):
    with_them = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    state = random_state(with_them)
    torch.save(state, tmp_path / "googlenet.pth")
    network = create("googlenet", 1000, weights=str(tmp_path / "googlenet.pth")).eval()
    with_them.load_state_dict(state)
    with_them.transform_input = True  # as torchvision builds it for its published weights
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(network(images), with_them.eval()(images))


@pytest.fixture(scope="module")
def published_vgg16(tmp_path_factory) -> Path:
    """A file in the layout of torchvision's VGG16: 1,000 classes, saved before torch 1.6."""
    home = tmp_path_factory.mktemp("torch")
    file = home / "hub" / "checkpoints" / VGG16_FILE
    file.parent.mkdir(parents=True)
    network = backbones.skeleton("vgg16", 1000).to_empty(device="cpu")
    for name, value in network.named_parameters():
        fan_in = value[0].numel() if value.dim() > 1 else 1.0
        value.data.normal_(0, (2 / fan_in) ** 0.5 if name.endswith("weight") else 0.01)
    torch.save(network.state_dict(), file, _use_new_zipfile_serialization=False)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["path", "imagenet"])
def test_vgg16_as_published(published_vgg16, monkeypatch, no_network, weights):
    monkeypatch.setenv("TORCH_HOME", str(published_vgg16.parents[2]))
    setting = "imagenet" if weights == "imagenet" else str(published_vgg16)
    state = torch.load(published_vgg16, weights_only=True)
    with torch.device("meta"):
        theirs = torchvision.models.vgg16()
    theirs.load_state_dict(state, assign=True)
    theirs.eval()
    images = torch.randn(2, 3, 224, 224)
    with torch.inference_mode():
        expected = theirs(images)
        hidden = theirs.classifier[:6](theirs.avgpool(theirs.features(images)).flatten(1))
        if weights == "path":
            assert torch.equal(create("vgg16", 1000, weights=setting).eval()(images), expected)
        ours = create("vgg16", 133, weights=setting).eval()
        head = ours.classifier[6]
        assert torch.equal(ours(images), nn.functional.linear(hidden, head.weight, head.bias))
    assert expected.std() > 0.01


# Files that are refused


def test_a_missing_file(tmp_path):
    with pytest.raises(DogbreedError, match=r"missing\.pth does not exist; model.weights is imagenet, none, or a path"):
        create("squeezenet1_1", 5, weights=str(tmp_path / "missing.pth"))


def test_weights_of_another_network(tmp_path, squeezenet):
    torch.save(squeezenet, tmp_path / "other.pth")
    with pytest.raises(DogbreedError, match=r"do not fit resnet18: conv1.weight and .*missing; features.0.weight and"):
        create("resnet18", 5, weights=str(tmp_path / "other.pth"))
    with pytest.raises(DogbreedError, match=r"do not fit squeezenet1_0: .*features.0.weight and \d+ more of another"):
        create("squeezenet1_0", 5, weights=str(tmp_path / "other.pth"))


def test_weights_of_a_run(tmp_path):
    """Its folder and its model/ stand for them; a head of another size is new, and another network is named."""
    network = create("squeezenet1_1", 5, weights="none", seed=3)
    model_folder.save(
        tmp_path / "model", model_folder.Exported(network, "squeezenet1_1", list("abcde"), Preprocessing())
    )
    for run in (tmp_path, tmp_path / "model"):
        assert same_values(create("squeezenet1_1", 5, weights=str(run)).state_dict(), network.state_dict())
        wider = create("squeezenet1_1", 6, weights=str(run))
        assert torch.equal(wider.features[0].weight, network.features[0].weight)
        with pytest.raises(DogbreedError, match=r"do not fit resnet18: .* a run with model\.backbone=squeezenet1_1\.$"):
            create("resnet18", 5, weights=str(run))


class _Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_in_it_is_not_run(tmp_path, kind):
    sentinel, file = tmp_path / "was-run", tmp_path / "evil.pth"
    content = {"features.0.weight": _Touch(sentinel)}
    if kind == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(DogbreedError, match=r"evil\.pth is a pickle that would run code.*state_dict"):
        create("squeezenet1_1", 5, weights=str(file))
    assert not sentinel.exists()
    pickle.loads(pickle.dumps(content))["features.0.weight"].close()  # noqa: S301
    assert sentinel.exists(), "the file would have done it"


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file(tmp_path, kind, share):
    state = {"a.weight": torch.randn(200, 100), "b.weight": torch.randn(50)}
    file = save_as(kind, state, tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DogbreedError, match="is not a readable weights file"):
        read_state(file)


@pytest.mark.parametrize("content", [{"a": 1}, [torch.ones(2)], torch.ones(2), {"state_dict": {"a": "b"}}])
def test_a_file_that_holds_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DogbreedError, match=r"other\.pth holds no state_dict"):
        read_state(tmp_path / "other.pth")


def test_a_photograph_is_no_weights_file(dog_tree):
    with pytest.raises(DogbreedError, match="is not a readable weights file"):
        read_state(next(dog_tree.rglob("*.jpg")))


# Random numbers


def test_the_seed_alone_decides(tmp_path, squeezenet):
    torch.save(squeezenet, tmp_path / "s.pth")
    for weights in ("none", str(tmp_path / "s.pth")):
        torch.manual_seed(11)
        one = create("squeezenet1_1", 5, weights=weights, seed=3).state_dict()
        torch.manual_seed(12)
        assert same_values(one, create("squeezenet1_1", 5, weights=weights, seed=3).state_dict())
        other = create("squeezenet1_1", 5, weights=weights, seed=4).state_dict()
        assert not torch.equal(one["classifier.1.weight"], other["classifier.1.weight"])


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "regnet_y_400mf"])
def test_the_global_random_state_is_left_alone(tmp_path, backbone):
    torch.save(random_state(backbones.skeleton(backbone, 9)), tmp_path / "s.pth")
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    create(backbone, 5, weights="none")
    create(backbone, 5, weights=str(tmp_path / "s.pth"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


# What changes in training


@pytest.mark.parametrize("trainable", ["head", "block", "all"])
def test_what_changes_in_a_step_is_what_may_change(trainable):
    network = create("shufflenet_v2_x0_5", 3, weights="none")
    freeze(network, "shufflenet_v2_x0_5", trainable)
    set_mode(network, training=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    nn.functional.cross_entropy(network(torch.randn(8, 3, 64, 64)), torch.arange(8) % 3).backward()
    # Biases in front of a batch norm have no gradient but for rounding.
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad += 1e-3
    optimizer.step()
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == changing_names(network)
    statistics = [name for name in changed if name.endswith("running_mean")]
    assert {"head": not statistics, "block": 0 < len(statistics) < 20, "all": len(statistics) > 40}[trainable]


def test_frozen_batch_norm_gives_what_it_gives_in_evaluation():
    network = create("shufflenet_v2_x0_5", 3, weights="none")
    network.load_state_dict(random_state(network))
    freeze(network, "shufflenet_v2_x0_5", "head")
    images = torch.randn(4, 3, 64, 64)
    set_mode(network, training=False)
    evaluated = network(images)
    set_mode(network, training=True)
    assert torch.equal(network(images), evaluated), "this network has no dropout"
    network.train()
    assert not torch.allclose(network(images), evaluated), "which is not so by itself"


@pytest.mark.parametrize(("trainable", "active"), [("head", []), ("block", ["features.7"]), ("all", None)])
def test_stochastic_depth_is_off_in_frozen_blocks_only(trainable, active):
    network = backbones.skeleton("efficientnet_b0", 3)
    freeze(network, "efficientnet_b0", trainable)
    set_mode(network, training=True)
    depths = {name: module for name, module in network.named_modules() if isinstance(module, StochasticDepth)}
    assert len(depths) == 16
    on = {name for name, module in depths.items() if module.training}
    assert on == {name for name in depths if active is None or name.startswith(tuple(active))}
    assert network.classifier[0].training, "dropout in front of the head stays"
    set_mode(network, training=False)
    assert not any(module.training for module in network.modules())


def test_batch_norm_stays_as_it_is_where_the_rest_trains():
    network = create("resnet18", 3, weights="none")
    freeze(network, "resnet18", "block", freeze_norm=True)
    trains = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {"layer4.0.conv1.weight", "layer4.1.conv2.weight", "fc.weight"} <= trains
    assert not any("bn" in name or "downsample.1" in name for name in trains)
    assert changing_names(network) == trains
    before = {name: value.clone() for name, value in network.state_dict().items()}
    set_mode(network, True)
    network(torch.rand(4, 3, 64, 64)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model._orig_mod.", "net.backbone."])
@pytest.mark.parametrize("under", [(), ("state_dict",), ("model_state_dict",), ("ema",), ("checkpoint", "state_dict")])
def test_weights_under_whatever_names_they_were_saved(tmp_path, prefix, under):
    saved = torchvision.models.squeezenet1_1(num_classes=7).state_dict()
    content = {f"{prefix}{name}": value for name, value in saved.items()}
    for key in reversed(under):
        content = {"epoch": 3, key: content}
    torch.save(content, tmp_path / "weights.pth")
    network = torchvision.models.squeezenet1_1(num_classes=3)
    load_backbone(network, "squeezenet1_1", "classifier.1", read_state(tmp_path / "weights.pth"), tmp_path)
    assert torch.equal(network.features[0].weight, saved["features.0.weight"])
    assert network.classifier[1].weight.shape[0] == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda value: value * math.nan, "not finite"),
        (lambda value: value.to("meta"), "sparse, complex or empty"),
        (lambda value: value.to_sparse(), "sparse, complex or empty"),
        (lambda value: value.to(torch.complex64), "sparse, complex or empty"),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, change, says):
    state = torchvision.models.squeezenet1_1(num_classes=3).state_dict()
    torch.save({**state, "features.0.bias": change(state["features.0.bias"])}, tmp_path / "weights.pth")
    with pytest.raises(DogbreedError, match=says):
        read_state(tmp_path / "weights.pth")


def test_safetensors_are_told_by_their_content_not_by_their_name(tmp_path):
    state = torchvision.models.squeezenet1_1(num_classes=3).state_dict()
    save_file(state, tmp_path / "a.pth")
    torch.save(state, tmp_path / "b.safetensors")
    for file in (tmp_path / "a.pth", tmp_path / "b.safetensors"):
        assert torch.equal(read_state(file)["features.0.bias"], state["features.0.bias"])
