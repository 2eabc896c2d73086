"""The same photograph in two splits, however it was saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import SplitFiles
from dogbreed.data.duplicates import find_duplicates, group_same, same_pictures
from dogbreed.data.synthetic import make_sample


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SplitFiles]:
    root = tmp_path_factory.mktemp("drawn") / "dogs"
    make_sample(root, classes=4, train=8, valid=3, test=3)
    images = DogImages(root, quiet=True)
    images.setup()
    return images.samples


CHANGES = {
    "saved again": lambda image: image,
    "smaller": lambda image: image.resize((image.width // 2, image.height // 2)),
    "squashed": lambda image: image.resize((224, 224)),
    "mirrored": ImageOps.mirror,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "grey": lambda image: image.convert("L"),
}


def with_planted(data: dict[str, SplitFiles], planted: Path) -> dict[str, SplitFiles]:
    test = data["test"]
    labels = np.append(test.labels, 0)
    return {**data, "test": SplitFiles([*test.paths, planted], labels, [*test.digests, "of another file"], [])}


@pytest.mark.parametrize("change", CHANGES)
def test_a_planted_copy_is_found(data, change, tmp_path):
    with Image.open(data["train"].paths[5]) as image:
        CHANGES[change](image).save(tmp_path / "planted.jpg", quality=60)
    (pair,) = find_duplicates(with_planted(data, tmp_path / "planted.jpg"))
    assert (pair.split, pair.index, pair.other_split, pair.other_index) == ("test", len(data["test"]), "train", 5)
    assert not pair.exact


def picture_of(bits: torch.Tensor) -> torch.Tensor:
    """A grey picture [1, 32, 36] with this difference hash [8, 8]; its rows, which the hash ignores, dominate."""
    across = torch.cat([torch.zeros(8, 1), (bits * 2.0 - 1).cumsum(1)], 1)
    patches = across + 100 * torch.arange(8.0)[:, None]
    return patches.repeat_interleave(4, 0).repeat_interleave(4, 1)[None]


@pytest.mark.parametrize(("different", "same"), [(0, True), (10, True), (11, False), (40, False)])
def test_ten_of_64_bits_may_differ(different, same):
    bits = torch.rand(64, generator=torch.Generator().manual_seed(1)) < 0.5
    flipped = bits.clone()
    flipped[:different] ^= True
    one, other = (picture_of(hashed.view(8, 8)) for hashed in (bits, flipped))
    assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1] > 0.99, "the hash alone decides"
    assert same_pictures(one, other) == ({0: 0} if same else {})


def test_the_very_file_is_found_by_its_digest(data, tmp_path):
    test, train = data["test"], data["train"]
    planted = SplitFiles(test.paths, test.labels, [train.digests[3], *test.digests[1:]], [])
    (pair,) = find_duplicates({**data, "test": planted})
    assert (pair.index, pair.other_split, pair.other_index, pair.exact) == (0, "train", 3, True)


def test_of_many_copies_the_first_is_named(data, tmp_path):
    """Every two of them are not compared: with 10,000 links to one photograph it would be for hours."""
    train, test = data["train"], data["test"]
    copies = SplitFiles(
        [*train.paths, *[train.paths[5]] * 300],
        np.append(train.labels, np.repeat(train.labels[5], 300)),
        [*train.digests, *[train.digests[5]] * 300],
        [],
    )
    with Image.open(train.paths[5]) as image:
        image.save(tmp_path / "again.jpg", quality=60)
    again = with_planted(data, tmp_path / "again.jpg")["test"]
    planted = SplitFiles(
        [*again.paths[:-1], train.paths[5], again.paths[-1]],
        np.append(again.labels, 0),
        [*again.digests[:-1], train.digests[5], again.digests[-1]],
        [],
    )
    pairs = find_duplicates({"train": copies, "test": planted})
    assert [(pair.index, pair.other_index, pair.exact) for pair in pairs] == [
        (len(test), 5, True),
        (len(test) + 1, 5, False),
    ]


@pytest.mark.slow
def test_groups_are_led_by_their_first():
    generator = torch.Generator().manual_seed(0)
    of = torch.randint(0, 40, (2500,), generator=generator)  # over two chunks
    photographs = torch.rand(40, 32, 36, generator=generator)[of] + torch.rand(2500, 32, 36, generator=generator) / 50
    mirrored = torch.rand(2500, generator=generator) < 0.3
    photographs = torch.where(mirrored[:, None, None], photographs.flip(-1), photographs)
    digests = [f"{index:032x}" for index in range(2500)]
    digests[2000] = digests[1]  # the same file: it counts as its first, whatever its picture
    expected = [of.tolist().index(of[index if index != 2000 else 1]) for index in range(2500)]
    assert group_same(digests, photographs).tolist() == expected


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.slow
def test_thousands_of_pictures_with_one_hash(same):
    """A fixed camera's are: each pair by itself would take a quarter of an hour and the list of pairs 200 MB."""
    noise = torch.rand(4000, 32, 1, generator=torch.Generator().manual_seed(0)) * (1 if same else 255)
    pictures = (noise + 100 * torch.arange(36.0)).expand(4000, 32, 36) if same else noise + torch.arange(36.0) / 2
    digests = [f"{index:032x}" for index in range(4000)]
    assert group_same(digests, pictures).tolist() == ([0] * 4000 if same else list(range(4000)))
    assert same_pictures(pictures[:1000], pictures[1000:]) == (dict.fromkeys(range(1000), 0) if same else {})


def test_different_photographs_are_no_copies(data):
    assert find_duplicates(data) == []


def test_files_without_anything_to_see(tmp_path):
    def samples(name: str) -> SplitFiles:
        plain = tmp_path / f"{name}.png"
        Image.new("RGB", (40, 30), "white").save(plain)
        broken = tmp_path / f"{name}.jpg"
        broken.write_bytes(b"no image")
        return SplitFiles([plain, broken, tmp_path / "missing.jpg"], np.zeros(3, dtype=np.int64), [], [])

    assert find_duplicates({"train": samples("one"), "test": samples("other")}) == []


def test_one_split_alone(data):
    assert find_duplicates({"test": data["test"]}) == []
    assert find_duplicates({}) == []


@pytest.mark.slow
def test_real_photographs(dogs120):
    images = DogImages(dogs120, quiet=True)
    images.setup()
    assert find_duplicates({split: images.samples[split] for split in ("valid", "test")}) == []
