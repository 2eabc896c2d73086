"""Tiles of Winograd's F(4x4, 3x3): to the 36 points at which they are multiplied, and back, with what follows.

In C, where a compiler and AVX2 are there: tile by tile in registers, with a third of the multiplications. In torch
otherwise, and in bfloat16: for all tiles as two products with small matrices.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from dogbreed.core import compiled

TILE, REACH = 4, 6  # pixels of a tile's side: of outputs, of the inputs they need
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity; winograd_tiles.c has the same
SOURCE = Path(__file__).with_name("winograd_tiles.c")
FLAGS = ("-O3", "-mavx2", "-ffp-contract=off")  # no contraction: the same numbers from every compiler
LANES = 8  # channels that the C file takes at once
APART = 16  # numbers by which planes of points are shifted, or many lie in one set of the processor's nearest cache


def _powers(count: int) -> Tensor:
    """Return powers 0 to count - 1 of the points, one row per point; the last row is the point at infinity."""
    rows = [[point**power for power in range(count)] for point in POINTS]
    return torch.tensor([*rows, [0.0] * (count - 1) + [1.0]], dtype=torch.float64)


# Of both dimensions at once: kernel [36, 9], input [36, 36] and output [16, 36]. The input's is the transposed inverse.
KERNEL = torch.kron(_powers(3), _powers(3))
INPUT = torch.kron(torch.linalg.inv(_powers(REACH)).T.contiguous(), torch.linalg.inv(_powers(REACH)).T.contiguous())
OUTPUT = torch.kron(_powers(TILE).T.contiguous(), _powers(TILE).T.contiguous())


class Rows(NamedTuple):
    """Some rows of tiles: `high` from the first, `across` tiles in each."""

    first: int
    high: int
    across: int


class Finish(NamedTuple):
    """What follows a convolution: its bias [K], and whether a ReLU and a maximum over 2x2."""

    bias: Tensor
    relu: bool
    pool: bool


def to_points(images: Tensor, rows: Rows, matrix: Tensor) -> Tensor:
    """Return tiles at their points, [36, tiles, C], of images [N, H, W, C] that are zero outside."""
    library = _library() if _fits(images) else None
    if library is None:
        return _to_points_in_torch(images, rows, matrix)
    count, height, width, channels = images.shape
    tiles = count * rows.high * rows.across
    plane = tiles * channels + APART
    points = images.new_empty(REACH**2 * plane)
    strides = (ctypes.c_int64 * 3)(*images.stride()[:3])
    zeros = images.new_zeros(channels)
    library.to_points(
        images.data_ptr(), strides, count, height, width, channels, *rows, zeros.data_ptr(), points.data_ptr(), plane
    )
    return points.as_strided((REACH**2, tiles, channels), (plane, channels, 1))


def from_points(points: Tensor, outputs: Tensor, rows: Rows, matrix: Tensor, finish: Finish) -> None:
    """Write the outputs of these rows of tiles, from [36, tiles, K] to [N, H, W, K]: whole tiles, or pooled ones."""
    library = _library() if _fits(points) and outputs.is_contiguous() else None
    if library is None:
        _from_points_in_torch(points, outputs, rows, matrix, finish)
        return
    bias, relu, pool = finish
    pointers = points.data_ptr(), points.stride(0), bias.data_ptr()
    library.from_points(*pointers, *outputs.shape, *rows, relu, pool, outputs.data_ptr())


def way() -> str:
    """Return which of the two computes float32: they round differently."""
    return "torch" if _library() is None else "C"


def _to_points_in_torch(images: Tensor, rows: Rows, matrix: Tensor) -> Tensor:
    count, _, width, channels = images.shape
    top, tall = TILE * rows.first - 1, TILE * rows.high + 2
    inner = images[:, max(top, 0) : top + tall]
    above = max(-top, 0)
    window = pad(inner, (0, 0, 1, TILE * rows.across + 1 - width, above, tall - above - inner.shape[1]))
    image, row, column, _ = window.stride()
    tiles = window.as_strided(
        (REACH, REACH, count, rows.high, rows.across, channels), (row, column, image, TILE * row, TILE * column, 1)
    )
    return torch.mm(matrix, tiles.reshape(REACH**2, -1)).view(REACH**2, -1, channels)


def _from_points_in_torch(points: Tensor, outputs: Tensor, rows: Rows, matrix: Tensor, finish: Finish) -> None:
    count, kernels = outputs.shape[0], outputs.shape[3]
    part = torch.mm(matrix, points.reshape(REACH**2, -1)).view(TILE, TILE, count, rows.high, rows.across, kernels)
    if finish.pool:
        part = torch.maximum(part[0::2], part[1::2])
        part = torch.maximum(part[:, 0::2], part[:, 1::2])
    part = part.add_(finish.bias)
    part = part.relu_() if finish.relu else part
    side = len(part)
    target = outputs[:, side * rows.first : side * (rows.first + rows.high)].unflatten(2, (rows.across, side))
    target.unflatten(1, (rows.high, side)).copy_(part.permute(2, 3, 0, 4, 1, 5))


def _fits(numbers: Tensor) -> bool:
    """Return whether the C file takes them."""
    return (
        numbers.dtype == torch.float32
        and numbers.device.type == "cpu"
        and numbers.stride(-1) == 1
        and numbers.shape[-1] % LANES == 0
    )


@cache
def _library() -> ctypes.CDLL | None:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):  # AVX2 or AVX512; ARM has others
        return None
    library = compiled.load(SOURCE, FLAGS)
    if library is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.to_points.argtypes = [pointer, pointer, *[number] * 7, pointer, pointer, number]
        library.from_points.argtypes = [pointer, number, pointer, *[number] * 9, pointer]
        library.to_points.restype = library.from_points.restype = None
    return library
