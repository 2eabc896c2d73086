"""The index of training images: its similarity against cosines by hand, its threshold, its size."""

import numpy as np
import pytest
import torch
from torch import nn

from dogbreed.models.neighbours import MOST, MOST_BYTES, HeadInput, build


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


@pytest.mark.parametrize("features", [300, 80])
def test_the_nearest_by_name_are_those_of_scikit_learn(features: int) -> None:
    from sklearn.neighbors import NearestNeighbors

    train, valid = rows(400, 0, features), rows(50, 1, features)
    names = [f"train/{row % 7:03d}.Ünï_{row % 7}/{row}.jpg" for row in range(399)] + ["train/\udcff.jpg"]
    index = build(train.split(64)).with_names(names, torch.arange(400) % 7)
    assert index is not None
    distances, nearest = NearestNeighbors(n_neighbors=8, metric="cosine").fit(train).kneighbors(valid)
    # Of 80 features the projection keeps all, so that 8 bits remain as the only loss.
    tolerance = 0.03 if features > 96 else 0.01
    for row, far, order in zip(index.matches(valid, 8), distances, nearest, strict=True):
        true = {names[position]: 1 - distance for position, distance in zip(order, far, strict=True)}
        assert [one.cosine for one in row] == pytest.approx(1 - far, abs=tolerance)
        assert row[0].path in true
        assert all(one.path in true or one.cosine < 1 - far[-1] + tolerance for one in row)
        assert all(names.index(one.path) % 7 == one.label for one in row)


def test_of_equal_images_the_first_comes_first() -> None:
    row = rows(1, 0)
    index = build([row.expand(9, -1)]).with_names([f"{number}.jpg" for number in range(9)], torch.zeros(9))
    assert index is not None
    assert [one.path for one in index.matches(row, 9)[0]] == [f"{number}.jpg" for number in range(9)]


def test_without_names_none_is_named() -> None:
    index = build([rows(1, 0)])
    assert not index.names_images
    assert index.matches(rows(2, 0), 3) == [[], []]


def test_names_within_the_bound_of_the_index_and_none_beyond() -> None:
    features = torch.rand(120, 4096, generator=torch.Generator().manual_seed(0))
    index = build([features, *[features[:1].expand(9_880, -1)]])
    drawn = np.random.default_rng(0)
    uuids = [f"train/{row % 120:03d}.A_breed/{drawn.bytes(16).hex()}.jpg" for row in range(10_000)]
    named = index.with_names(uuids, torch.zeros(10_000))
    assert named is not None
    stored = (named.points, named.steps, named.basis, named.labels, named.names)
    assert sum(value.nbytes for value in stored if value is not None) <= 10_000 * MOST_BYTES == 2_000_000
    hashes = [drawn.bytes(32).hex() for _ in range(10_000)]
    assert index.with_names(hashes, torch.zeros(10_000)) is None


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
