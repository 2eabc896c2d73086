"""Networks of timm: cut exactly, with keys that stay the same, and refused by name where there is none."""

import re
import subprocess
import sys

import pytest
import torch
from models.test_cut import parts_equal_whole
from support import runs
from support.fits import fit
from support.forks import Forked, program
from torch import nn

from dogbreed.core.errors import DogbreedError
from dogbreed.models.backbones import changing_names, create, freeze, head_name, last_stage, preprocessing_of, set_mode
from dogbreed.models.classifier import DogBreedClassifier
from dogbreed.models.cut import cut, fingerprint
from dogbreed.models.gradcam import explain_top_k, heat_maps

pytest.importorskip("timm", reason="backbones timm/NAME need timm: pip install 'dogbreed[timm]'")

# The smallest of their kind, with the side of an input of few tokens: 2 x 2, and 7 x 7 where it is a convolution's.
NETWORKS = {
    "timm/vit_small_patch14_dinov2.lvd142m": 28,
    "timm/vit_xsmall_patch16_clip_224": 32,
    "timm/vit_base_patch32_siglip_256": 64,
    "timm/swin_tiny_patch4_window7_224": 64,
    "timm/eva02_tiny_patch14_224": 28,
    "timm/convnextv2_atto": 64,
    "timm/tf_efficientnet_lite0": 64,
}
KEYS = """
import sys
from dogbreed.models.backbones import create, freeze
from dogbreed.models.cut import cut, fingerprint
for name, size in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    network = create(name, 4, weights="none", size=int(size))
    freeze(network, name, "head")
    print(fingerprint(cut(network, int(size)).prefix))
"""


def frozen(backbone: str, trainable: str = "head") -> nn.Module:
    network = create(backbone, 4, weights="none", size=NETWORKS[backbone])
    freeze(network, backbone, trainable)
    return network


@pytest.fixture(scope="module")
def keys_elsewhere() -> dict[str, str]:
    """The key of each network in another process."""
    arguments = [str(part) for pair in NETWORKS.items() for part in pair]
    printed = runs.finish(Forked(program, [KEYS, *arguments], runs.environment())).split()
    assert len(set(printed)) == len(NETWORKS)
    return dict(zip(NETWORKS, printed, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS)
def test_the_cut_is_exact_and_deep(backbone, keys_elsewhere):
    network, size = frozen(backbone), NETWORKS[backbone]
    parts = cut(network, size)
    parts_equal_whole(network, parts, size, atol=2e-6)
    behind = [node for node in parts.tail.graph(True).graph.nodes if node.op == "call_module"]
    trained = {id(parameter) for parameter in network.get_submodule(head_name(network)).parameters()}
    in_tail = {id(p) for node in behind for p in parts.tail.graph(True).get_submodule(node.target).parameters()}
    if "siglip" in backbone:  # its pooling has queries of its own, which are there once for the batch
        assert trained < in_tail
    else:
        assert in_tail == trained, "everything with weights lies in front of the cut, but for the head"
    assert not [name for name in vars(network) if name.startswith("_tensor_constant")], "nothing is left on the network"
    assert fingerprint(cut(network, size).prefix) == fingerprint(parts.prefix), "however often it was traced"
    assert fingerprint(parts.prefix) == keys_elsewhere[backbone]


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS)
def test_with_and_without_the_cache_it_is_the_same_run(backbone, tmp_path):
    preprocessing = preprocessing_of(backbone, size=NETWORKS[backbone]).to_dict()
    one, other = (
        fit(
            DogBreedClassifier(2, backbone=backbone, weights="none", preprocessing=preprocessing, lr=0.01),
            runs.photographs(2, 4, 2, 2),
            tmp_path,
            mode,
            epochs=2,
            batch_size=3,
        )
        for mode in ("require", "off")
    )
    assert (one.cache, other.cache) == ("built", "off")
    assert one.steps == pytest.approx(other.steps, rel=0, abs=1e-5)
    assert one.validations == pytest.approx(other.validations, rel=0, abs=1e-5)
    assert torch.equal(one.logits.argmax(1), other.logits.argmax(1))
    assert max(one.steps) - min(one.steps) > 1e-3, "it does not learn, so it shows nothing"


@pytest.mark.parametrize(
    ("backbone", "stage"),
    [
        ("timm/eva02_tiny_patch14_224", "blocks.11."),
        ("timm/convnextv2_atto", "stages.3."),
        ("timm/tf_efficientnet_lite0", "blocks.6."),
    ],
)
def test_the_last_stage_trains_and_no_other(backbone, stage):
    network = frozen(backbone, "block")
    head = head_name(network)
    stages = {name.rpartition(stage)[1] for name in last_stage(network, backbone) if name.startswith(stage[:4])}
    assert stages == {stage} or stages == {stage, ""}
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {f"{head}.weight", f"{head}.bias"} < trained
    assert any(name.startswith(stage) for name in trained)
    earlier = stage.replace(stage.split(".")[1], str(int(stage.split(".")[1]) - 1))
    assert not [name for name in trained if name.startswith(earlier)]
    assert trained <= changing_names(network)


@pytest.mark.slow
def test_behind_a_frozen_part_the_last_stage_is_cut_too():
    network = frozen("timm/tf_efficientnet_lite0", "block")
    parts = cut(network, 64)
    parts_equal_whole(network, parts, 64, atol=1e-6)


def test_depth_is_dropped_where_something_trains():
    import timm

    network = timm.create_model("convnextv2_atto", num_classes=4, drop_path_rate=0.5)
    for trainable, active in (("head", False), ("all", True)):
        freeze(network, "timm/convnextv2_atto", trainable)
        set_mode(network, training=True)
        paths = [module for module in network.modules() if type(module).__name__ == "DropPath"]
        assert paths
        assert any(path.training for path in paths) is active


def test_the_input_is_that_of_the_weights():
    expected = preprocessing_of("timm/vit_small_patch14_dinov2.lvd142m")
    assert (expected.size, expected.interpolation, expected.mean) == (518, "bicubic", (0.485, 0.456, 0.406))
    assert preprocessing_of("timm/vit_small_patch14_dinov2.lvd142m", size=224).size == 224
    clip = preprocessing_of("timm/vit_xsmall_patch16_clip_224")
    assert (clip.size, clip.resize_size) == (224, 248)  # timm's share of 0.9 that the crop takes


@pytest.mark.parametrize(
    ("backbone", "sentence"),
    [
        ("timm/convnextv2_ato", "no classification network of timm; did you mean timm/convnextv2_atto"),
        ("timm/resnet18.nope", "no classification network of timm"),
        ("timm/", "no classification network of timm"),
    ],
)
def test_unknown_names(backbone, sentence):
    with pytest.raises(DogbreedError, match=sentence):
        create(backbone, 4, weights="none")


def test_heat_maps_where_there_is_a_map():
    inputs, classes = torch.rand(1, 3, 64, 64), torch.tensor([1])
    maps = heat_maps(frozen("timm/convnextv2_atto"), "timm/convnextv2_atto", inputs, classes)
    assert maps is not None
    assert maps.shape == (1, 2, 2)
    inputs = torch.rand(1, 3, 28, 28)
    assert heat_maps(frozen("timm/eva02_tiny_patch14_224"), "timm/eva02_tiny_patch14_224", inputs, classes) is None


@pytest.mark.parametrize("backbone", ["timm/eva02_tiny_patch14_224", "timm/swin_tiny_patch4_window7_224"])
@pytest.mark.slow
def test_tokens_get_an_answer_without_a_map(backbone):
    network = frozen(backbone)
    inputs = torch.rand(1, 3, NETWORKS[backbone], NETWORKS[backbone])
    answer, maps = explain_top_k(network, backbone, inputs, 2)
    assert maps is None
    with torch.no_grad():
        torch.testing.assert_close(answer, network.eval()(inputs))


@pytest.mark.slow
def test_without_a_connection_the_ways_out_are_named(tmp_path):
    code = "from dogbreed.models.backbones import create; create('timm/convnextv2_atto', 4)"
    offline = runs.environment(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    assert re.search(
        r"DogbreedError: The weights of timm/convnextv2_atto could not be downloaded \(.+\); give a file with "
        r"model\.weights=PATH, or train without pretrained weights with model\.weights=none\.\n$",
        failed.stderr,
    )
