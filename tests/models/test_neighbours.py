"""The index of training images: its similarity against cosines by hand, its threshold, its size."""

import numpy as np
import pytest
import torch
from torch import nn

from dogbreed.models.neighbours import MOST, HeadInput, build


def rows(count: int, seed: int, features: int = 300) -> torch.Tensor:
    """Features that differ in 20 directions mostly, none negative, as behind a ReLU."""
    directions = torch.randn(20, features, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(seed)
    noise = 0.1 * torch.randn(count, features, generator=generator)
    return (torch.randn(count, 20, generator=generator) @ directions + noise + 2).relu()


def test_it_is_the_cosine_to_the_five_nearest() -> None:
    train, kin, stranger = rows(400, 0), rows(50, 1), torch.rand(50, 300, generator=torch.Generator().manual_seed(2))
    index, both = build(train.split(64)), torch.cat([kin, stranger])
    units = [part.double().numpy() / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, both)]
    expected = np.sort(units[1] @ units[0].T, axis=1)[:, -5:].mean(1)
    found = np.array(index.similarity(both))
    assert np.abs(found - expected).max() < 0.03, "eight bits and 96 of 300 dimensions"
    alone = [index.similarity(row[None])[0] for row in both]
    assert found.tolist() == pytest.approx(alone, abs=1e-6)
    assert index.similarity(7 * both[:3]) == pytest.approx(found[:3].tolist(), abs=1e-6), "the length is no matter"


@pytest.mark.parametrize(("images", "refused"), [(99, 0), (198, 0), (199, 1), (1000, 9)])
def test_one_per_cent_of_valid_is_refused(images: int, refused: int) -> None:
    valid = rows(images, 3)
    index = build([rows(100, 0)]).calibrated(valid)
    assert index is not None
    assert index.images == images
    assert sum(similarity < index.threshold for similarity in index.similarity(valid)) == refused


def test_too_few_to_tell() -> None:
    assert build([rows(100, 0)]).calibrated(rows(98, 3)) is None


@pytest.mark.parametrize(("features", "dimensions"), [(4096, 96), (20_000, 20), (12, 12)])
def test_ten_thousand_images_take_two_megabytes(features: int, dimensions: int) -> None:
    index = build([torch.rand(120, features, generator=torch.Generator().manual_seed(0))])
    assert index.points.shape == (120, dimensions)
    assert index.basis.nbytes + 10_000 * index.points.nbytes / 120 + index.steps.nbytes <= 2_000_000
    assert MOST * index.points.nbytes / 120 <= 5_000_000


def test_few_images_and_equal_ones() -> None:
    row = rows(1, 0)
    assert build([row]).similarity(row) == pytest.approx([1], abs=0.01)
    assert build([row.expand(3, -1)]).similarity(row) == pytest.approx([1], abs=0.01)


def test_what_the_last_layer_is_given() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
    images, head = torch.rand(5, 3, 8, 8), HeadInput(network[2], network[2])
    network(images)
    assert torch.equal(head.take(), network[:2](images).mean((2, 3)))
    with pytest.raises(LookupError):
        head.take()  # of a pass that did not call it
    head.close()
    network(images)
    with pytest.raises(LookupError):
        head.take()
