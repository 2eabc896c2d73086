"""`DogImages`: which images, in which order, seen in which way; and what it says of folders in disorder."""

import math
import os
import queue
import shutil
import signal
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from PIL import Image

from dogbreed.core.errors import DogbreedError
from dogbreed.data import datasets
from dogbreed.data.datamodule import DogImages
from dogbreed.data.datasets import Batch, FeatureBatch, ImageLoader, SplitFiles
from dogbreed.data.images import WHOLE, BadImage, Preprocessing, View, load
from dogbreed.data.layout import find_splits
from dogbreed.data.samplers import EvaluationBatches, TrainBatches, keyed

SMALL = Preprocessing(size=24, resize_size=28)


def dogs(root, **changes) -> DogImages:
    """Set up, with small inputs, in this process."""
    arguments = {"preprocessing": SMALL, "num_workers": 0, "batch_size": 5, "quiet": True} | changes
    data = DogImages(root, **arguments)
    data.setup()
    return data


def epoch_of(data: DogImages, epoch: int = 0) -> Batch:
    """A whole epoch of training batches as one."""
    loader = data.train_dataloader()
    loader.batch_sampler.set_epoch(epoch)
    return Batch(*map(torch.cat, zip(*loader, strict=True)))


def same(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# What there is


def test_classes_labels_and_splits(dog_tree):
    data = dogs(dog_tree)
    assert data.classes == ["Amber_hound", "Blue_spitz", "Green-eyed_setter", "Red_terrier"]
    assert {split: len(samples) for split, samples in data.samples.items()} == {"train": 24, "valid": 12, "test": 12}
    for split, samples in data.samples.items():
        for path, label in zip(samples.paths, samples.labels, strict=True):
            assert path.parent.parent == dog_tree / split
            assert path.parent.name.partition(".")[2] == data.classes[label]
    assert data.skipped == []


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("001.Affenpinscher", "Affenpinscher"),
        ("Poodle", "Poodle"),
        ("7.", "7."),
        ("2.5.x", "2.5.x"),
        ("1.5", "1.5"),
        ("2.75", "2.75"),
        ("007.Élan", "Élan"),
    ],
)
def test_class_names_have_no_number_in_front(tmp_path, write_tree, folder, name):
    write_tree(tmp_path, breeds=[folder, "Zz"], counts={"train": 1, "valid": 1, "test": 1})
    assert dogs(tmp_path).classes == [name, "Zz"]


def test_every_image_once_an_epoch(dog_tree):
    data = dogs(dog_tree, batch_size=7)
    batches = list(data.train_dataloader())
    assert [len(batch.labels) for batch in batches] == [7, 7, 7, 3]
    assert len(data.train_dataloader()) == 4
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(24))
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == data.samples["train"].labels[indices].tolist()
    assert batches[0].inputs.shape == (7, 3, 24, 24)
    assert batches[0].inputs.dtype == torch.float32


def test_evaluation_goes_through_in_order(dog_tree):
    data = dogs(dog_tree)
    for split, loader in (("valid", data.val_dataloader()), ("test", data.test_dataloader())):
        batch = Batch(*map(torch.cat, zip(*loader, strict=True)))
        assert batch.indices.tolist() == list(range(12))
        expected = torch.stack([load(path, SMALL) for path in data.samples[split].paths])
        assert torch.equal(batch.inputs, expected), "neither mirrored nor cropped"


def test_hidden_files_and_folders_are_no_classes(tmp_path, write_tree):
    write_tree(tmp_path)
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "__MACOSX").mkdir()
    (tmp_path / "valid" / "001.Amber_hound" / ".DS_Store").write_bytes(b"x")
    data = dogs(tmp_path)
    assert len(data.classes) == 4
    assert data.skipped == []


# Order and views


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
@pytest.mark.slow
def test_order_and_views_do_not_depend_on_batches_or_workers(dog_tree, augment):
    alone = epoch_of(dogs(dog_tree, augment=augment, batch_size=1), epoch=3)
    for batch_size, workers in ((5, 0), (512, 0), (5, 2)):
        assert same(
            epoch_of(dogs(dog_tree, augment=augment, batch_size=batch_size, num_workers=workers), epoch=3), alone
        )


def test_order_and_views_depend_on_seed_and_epoch_alone(dog_tree):
    torch.manual_seed(1)
    one = epoch_of(dogs(dog_tree, seed=1), epoch=2)
    torch.manual_seed(2)
    np.random.seed(2)
    assert same(epoch_of(dogs(dog_tree, seed=1), epoch=2), one)
    assert not torch.equal(epoch_of(dogs(dog_tree, seed=1), epoch=3).indices, one.indices)
    assert not torch.equal(epoch_of(dogs(dog_tree, seed=2), epoch=2).indices, one.indices)


def test_the_loaders_leave_the_random_state_alone(dog_tree):
    data = dogs(dog_tree)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_mirrored_image_is_mirrored_pixel_by_pixel(dog_tree):
    data = dogs(dog_tree, augment="flip")
    seen = {True: 0, False: 0}
    for epoch in range(3):
        batch = epoch_of(data, epoch)
        for image, index in zip(batch.inputs, batch.indices, strict=True):
            upright = load(data.samples["train"].paths[index], SMALL)
            mirrored = torch.stack([upright[..., 23 - column] for column in range(24)], dim=-1)
            assert not torch.equal(upright, mirrored)
            as_it_is, turned = torch.equal(image, upright), torch.equal(image, mirrored)
            assert as_it_is != turned
            seen[turned] += 1
    assert min(seen.values()) > 20, "about half of 72"


def test_crops_are_fixed_for_each_image(dog_tree):
    data = dogs(dog_tree, augment="crop", views=3)
    views = data.samples["train"].views
    assert [len(view) for view in views] == [24, 24, 24]
    everything = {view.key for column in views for view in column}
    assert len(everything) == 72, "all differ"
    again = dogs(dog_tree, augment="crop", views=3, batch_size=1).samples["train"].views
    assert [list(view) for view in again] == [list(view) for view in views]
    fewer = dogs(dog_tree, augment="crop", views=2).samples["train"].views
    assert [list(view) for view in fewer] == [list(view) for view in views[:2]], "more views add to them"
    assert not {v.key for c in dogs(dog_tree, augment="crop", views=3, seed=1).samples["train"].views for v in c} & (
        everything
    )
    assert data.samples["valid"].views == [[WHOLE] * 12]
    used = set()
    for epoch in range(6):
        batch = epoch_of(data, epoch)
        for image, index in zip(batch.inputs, batch.indices.tolist(), strict=True):
            path = data.samples["train"].paths[index]
            matching = [n for n in range(3) if torch.equal(image, load(path, SMALL, views[n][index]))]
            assert len(matching) == 1
            used.add(matching[0])
    assert used == {0, 1, 2}


def test_a_crop_shows_its_part(tmp_path, write_tree):
    write_tree(tmp_path)
    path = next(tmp_path.glob("train/*/*.jpg"))
    image = Image.open(path)
    width, height = image.size
    part = image.crop((round(width * 0.25), round(height * 0.1), round(width * 0.75), round(height * 0.6)))
    shown = load(path, SMALL, View(box=(0.25, 0.1, 0.5, 0.5)))
    expected = np.asarray(part.resize((24, 24), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    expected = (expected - np.array(SMALL.mean)) / np.array(SMALL.std)
    assert np.abs(shown.permute(1, 2, 0).numpy() - expected).max() < 0.03


class _Recorder(LightningModule):
    """Notes which batches Lightning hands out."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[int, list[int]] = {}

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).extend(batch.indices.tolist())
        return self.weight * 1.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_says_which_epoch_it_is(dog_tree, tmp_path):
    recorder, data = _Recorder(), DogImages(dog_tree, preprocessing=SMALL, num_workers=0, quiet=True)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(recorder, datamodule=data)
    assert recorder.seen == {epoch: keyed(0, "order", epoch).permutation(24).tolist() for epoch in range(3)}


# Features in place of images


def test_features_come_in_the_order_and_views_of_the_images(dog_tree):
    images, features = dogs(dog_tree), dogs(dog_tree)

    def reader(split):
        samples = features.samples[split]

        def read(indices, views):
            rows = [load(samples.paths[i], SMALL, samples.views[v][i]) for i, v in zip(indices, views, strict=True)]
            return torch.stack(rows)

        return read

    features.use_features({split: reader(split) for split in features.samples})
    for one, two in (
        (images.train_dataloader(), features.train_dataloader()),
        (images.val_dataloader(), features.val_dataloader()),
        (images.test_dataloader(), features.test_dataloader()),
    ):
        pairs = list(zip(one, two, strict=True))
        assert len(pairs) >= 3
        assert all(isinstance(a, Batch) and isinstance(b, FeatureBatch) and same(a, b) for a, b in pairs)


# Several devices

counts = st.integers(1, 60)
sizes = st.integers(1, 12)
worlds = st.integers(1, 6)


def files_of(count: int, views: int = 2) -> SplitFiles:
    return SplitFiles([None] * count, np.zeros(count, dtype=np.int64), [""] * count, [[WHOLE] * count] * views)


@given(counts, sizes, worlds, st.integers(0, 3))
@pytest.mark.slow
def test_training_takes_equal_steps_on_every_device(count, batch_size, world, epoch):
    ranks = []
    for rank in range(world):
        batches = TrainBatches(files_of(count), batch_size, 0, rank, world)
        batches.set_epoch(epoch)
        ranks.append(list(batches))
        assert len(batches) == len(ranks[-1])
    assert len({tuple(len(batch) for batch in batches) for batches in ranks}) == 1
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    places = [place for batches in ranks for batch in batches for place in batch]
    assert {index for index, _ in places} == set(range(count))
    assert len(places) == math.ceil(count / world) * world, "the last round is filled up, no more"
    assert len(set(places)) == count, "an image is seen in one way"


@given(counts, sizes, worlds)
def test_evaluation_takes_every_image_once_in_equal_steps(count, batch_size, world):
    if count < world:
        with pytest.raises(DogbreedError, match=f"use trainer.devices={count}"):
            EvaluationBatches(count, batch_size, 0, world)
        return
    ranks = [list(EvaluationBatches(count, batch_size, rank, world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {len(EvaluationBatches(count, batch_size, 0, world))}
    assert sorted(index for batches in ranks for batch in batches for index, _ in batch) == list(range(count))
    assert all(batch for batches in ranks for batch in batches), "nothing can be made of an empty batch"
    # With single images one device may have none left for the last step; then a step before has two.
    assert all(len(batch) <= max(batch_size, 2) for batches in ranks for batch in batches)


@pytest.mark.parametrize("world", [2, 3])
def test_devices_together_see_the_epoch_of_one(world):
    alone = [place for batch in TrainBatches(files_of(30), 30, 7) for place in batch]
    together = [[p for batch in TrainBatches(files_of(30), 4, 7, rank, world) for p in batch] for rank in range(world)]
    assert [place for step in zip(*together, strict=True) for place in step] == alone


def test_too_few_images_for_the_devices():
    with pytest.raises(DogbreedError) as error:
        EvaluationBatches(2, 4, 0, 3)
    assert str(error.value) == "2 images cannot be evaluated on 3 devices; use trainer.devices=2."
    batches = [[[*batch] for batch in EvaluationBatches(3, 4, rank, 3)] for rank in range(3)]
    assert batches == [[[(0, 0)]], [[(1, 0)]], [[(2, 0)]]]


# Folders that are not in order


def test_a_missing_folder(tmp_path):
    with pytest.raises(DogbreedError, match=r"nowhere does not exist; give data.root=FOLDER .* data=sample"):
        dogs(tmp_path / "nowhere")


def test_a_missing_split(tmp_path, write_tree):
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "valid")
    with pytest.raises(DogbreedError, match=r"has no folder valid/; it should hold train/, valid/ and test/"):
        dogs(tmp_path)


def test_an_empty_folder(tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
    with pytest.raises(DogbreedError, match="is empty: train/, valid/ and test/ should hold one folder per class"):
        dogs(tmp_path)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_class_in_some_splits_only(tmp_path, write_tree, split):
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / split / "002.Blue_spitz")
    with pytest.raises(DogbreedError, match=rf"002.Blue_spitz is in .* but not in .*{split}; every class needs"):
        dogs(tmp_path)
    shutil.rmtree(tmp_path / split / "003.Green-eyed_setter")
    with pytest.raises(DogbreedError, match=r"002\.Blue_spitz and 1 more are in"):
        dogs(tmp_path)


@pytest.mark.parametrize("name", ["002.blue_spitz", "002.Blue_spitz ", "002.Blue-spitz"])
def test_a_class_under_nearly_the_same_name_in_one_split(tmp_path, write_tree, name):
    write_tree(tmp_path)
    (tmp_path / "valid" / "002.Blue_spitz").rename(tmp_path / "valid" / name)
    with pytest.raises(DogbreedError) as error:
        dogs(tmp_path)
    assert "give both the same name" in str(error.value)
    assert f"{name!r} is in {tmp_path / 'valid'}" in str(error.value) or f"{name!r} in {tmp_path}" in str(error.value)


def test_two_classes_of_one_name(tmp_path, write_tree):
    write_tree(tmp_path, breeds=["001.Poodle", "002.Poodle"])
    with pytest.raises(DogbreedError, match="two classes that are both named Poodle"):
        dogs(tmp_path)


def test_a_split_without_a_readable_image(tmp_path, write_tree):
    write_tree(tmp_path)
    for path in tmp_path.glob("valid/*/*.jpg"):
        path.write_bytes(b"no image")
    with pytest.raises(DogbreedError, match="valid holds no readable image"):
        dogs(tmp_path)


def spoil(root):
    paths = sorted(root.glob("train/*/*.jpg"))
    truncated, empty = paths[3], paths[8]
    truncated.write_bytes(truncated.read_bytes()[:900])
    empty.write_bytes(b"")
    note = root / "train" / "001.Amber_hound" / "notes.txt"
    note.write_text("good boy")
    return {truncated: "truncated", empty: "empty file", note: "not an image"}


def test_bad_files_are_skipped_and_listed(tmp_path, write_tree):
    write_tree(tmp_path)
    bad = spoil(tmp_path)
    data = dogs(tmp_path)
    assert {skipped.path: skipped.reason for skipped in data.skipped} == bad
    assert len(data.samples["train"]) == 22
    assert not set(data.samples["train"].paths) & set(bad)
    assert len(data.samples["train"].views[0]) == len(data.samples["train"].digests) == 22
    assert sorted(epoch_of(data).indices.tolist()) == list(range(22))


def test_an_image_that_is_too_large_is_a_bad_file(tmp_path, write_tree):
    root = write_tree(tmp_path / "dogs")
    (large,) = list(root.glob("train/001*/*0.jpg"))
    Image.new("RGB", (200, 200)).save(large, "PNG")
    data = DogImages(root, max_pixels=200 * 200 - 1, quiet=True)
    data.setup()
    assert [(file.path, file.reason) for file in data.skipped] == [
        (large, "too many pixels (200 x 200), more than data.max_pixels=39999")
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_later_is_named_in_one_sentence(tmp_path, write_tree, workers):
    root = write_tree(tmp_path / "dogs")
    data = DogImages(root, num_workers=workers, quiet=True)
    data.setup()
    broken = data.samples["valid"].paths[0]
    broken.write_bytes(b"")
    with pytest.raises(BadImage) as error:
        list(data.val_dataloader())
    assert str(error.value) == f"{broken} cannot be used: empty file."


def test_a_class_name_that_cannot_travel(tmp_path, write_tree):
    root = write_tree(tmp_path / "dogs")
    for split in ("train", "valid", "test"):
        (root / split / "001.Amber_hound").rename(root / split / "001.Fris\udce9")
    with pytest.raises(DogbreedError, match=r"not UTF-8, 001\.Fris\\udce9; rename it"):
        DogImages(root, quiet=True).setup()


@pytest.mark.slow
def test_bad_files_can_be_an_error(tmp_path, write_tree):
    write_tree(tmp_path)
    first = min(spoil(tmp_path))
    with pytest.raises(DogbreedError) as caught:
        dogs(tmp_path, on_bad_image="error")
    assert f"3 of 49 files in {tmp_path} cannot be used, the first {first} (" in str(caught.value)
    assert "data.on_bad_image=skip" in str(caught.value)


@pytest.mark.slow
def test_a_class_may_lose_all_its_images_in_a_split(tmp_path, write_tree):
    """The labels of the others stay where they are."""
    write_tree(tmp_path)
    for path in tmp_path.glob("test/001*/*.jpg"):
        path.write_bytes(b"")
    data = dogs(tmp_path)
    assert len(data.classes) == 4
    assert set(data.samples["test"].labels.tolist()) == {1, 2, 3}


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ({"batch_size": 0}, "data.batch_size=0 is out of range; it is a whole number from 1"),
        ({"batch_size": -4}, "data.batch_size=-4 is out of range"),
        ({"batch_size": 2.5}, "data.batch_size=2.5 is out of range"),
        ({"batch_size": True}, "data.batch_size=True is out of range"),
        ({"augment": "mixup"}, "data.augment=mixup is unknown; it is one of none, flip, crop"),
        ({"on_bad_image": "ignore"}, "data.on_bad_image=ignore is unknown; it is one of skip, error"),
        ({"num_workers": -1}, "data.num_workers=-1 is out of range; it is auto or 0 to 1024"),
        ({"num_workers": 1_000_000}, "data.num_workers=1000000 is out of range"),
        ({"num_workers": "many"}, "data.num_workers=many is out of range"),
        ({"views": 0}, "cache.views=0 is out of range"),
        ({"max_pixels": 0}, "data.max_pixels=0 is out of range"),
        ({"source": "cats"}, "data.source=cats is unknown"),
        ({"resize": "stretch", "preprocessing": None}, "resize is 'stretch'; it must be squash or crop"),
    ],
)
def test_senseless_arguments(dog_tree, argument, sentence):
    with pytest.raises(DogbreedError, match=sentence):
        dogs(dog_tree, **argument)


@pytest.mark.slow
def test_real_photographs(dogs120):
    data = dogs(dogs120, num_workers=2, batch_size=64)
    assert len(data.classes) == 120
    assert all(not name[0].isdigit() for name in data.classes)
    assert [len(data.samples[split]) for split in ("train", "valid", "test")] == [1440, 360, 360]
    assert data.skipped == []
    batch = epoch_of(data)
    assert sorted(batch.indices.tolist()) == list(range(1440))
    # Photographs from ImageNet have its mean and deviation.
    assert batch.inputs.mean((0, 2, 3)).abs().max() < 0.3
    assert (batch.inputs.std((0, 2, 3)) - 1).abs().max() < 0.3


@pytest.mark.parametrize("names", [("val", "test"), ("validation", "eval"), ("dev", "TEST")])
def test_other_names_of_the_splits(tmp_path, write_tree, names):
    write_tree(tmp_path)
    for old, new in zip(("valid", "test"), names, strict=True):
        (tmp_path / old).rename(tmp_path / new)
    assert {split: len(files) for split, files in dogs(tmp_path).samples.items()} == {
        "train": 24, "valid": 12, "test": 12
    }  # fmt: skip
    (tmp_path / "valid").mkdir()
    with pytest.raises(DogbreedError, match="two folders for one split"):
        dogs(tmp_path)


def test_without_a_test_split_the_data_say_so(tmp_path, write_tree):
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "test")
    data = dogs(tmp_path)
    assert set(data.samples) == {"train", "valid"}
    assert any("No test images" in warning for warning in data.warnings)


@pytest.mark.parametrize("kind", ["zip", "gztar"])
def test_an_archive_and_a_folder_within_a_folder(tmp_path, write_tree, kind):
    write_tree(tmp_path / "around" / "dogs")
    (tmp_path / "around" / "@eaDir").mkdir()
    archive = shutil.make_archive(str(tmp_path / "dogs"), kind, tmp_path / "around")
    for root in (tmp_path / "around", archive, archive):
        assert len(dogs(root).samples["train"]) == 24
    assert dogs(archive).root.is_relative_to(f"{archive}.unpacked")
    (tmp_path / "notes.txt").write_text("no archive")
    with pytest.raises(DogbreedError, match=r"notes\.txt is a file and no archive"):
        dogs(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("address", "command"),
    [
        ("s3://bucket/dogs", "aws s3 sync s3://bucket/dogs data/dogs"),
        ("hf://datasets/me/dogs", "hf download me/dogs --repo-type dataset"),
        ("https://example.org/dogs.zip", "curl -L -o data/dogs.zip https://example.org/dogs.zip"),
    ],
)
def test_addresses_get_the_command_that_fetches_them(address, command):
    with pytest.raises(DogbreedError, match="is not on this machine") as error:
        dogs(address)
    assert command in str(error.value)


def test_composed_and_decomposed_names_are_one_class(tmp_path, write_tree):
    breeds = [unicodedata.normalize("NFC", "L\u00f6wchen"), "Zz"]
    write_tree(tmp_path, breeds=breeds)
    (tmp_path / "valid" / breeds[0]).rename(tmp_path / "valid" / unicodedata.normalize("NFD", breeds[0]))
    assert dogs(tmp_path).classes == breeds


def test_a_class_may_be_called_train(tmp_path, write_tree):
    write_tree(tmp_path, breeds=["bus", "train"])
    assert dogs(tmp_path).classes == ["bus", "train"]
    assert find_splits(tmp_path / "train") == {}


def test_classes_without_photographs_and_files_with_two_labels_are_named(tmp_path, write_tree):
    write_tree(tmp_path)
    for split in ("train", "valid", "test"):
        (tmp_path / split / "005.Zebra").mkdir()
    source = next(tmp_path.glob("train/001*/*.jpg"))
    shutil.copy(source, tmp_path / "test" / "002.Blue_spitz" / "again.jpg")
    warnings = dogs(tmp_path).warnings
    assert "No photograph to train Zebra." in warnings
    (twice,) = [warning for warning in warnings if "two labels" in warning]
    assert f"{source} (Amber_hound)" in twice
    assert "again.jpg (Blue_spitz)" in twice


# Workers


class _Killed(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        os._exit(1)  # as the kernel ends one where memory is short


@pytest.mark.parametrize("handler", [None, signal.SIG_DFL], ids=["first run", "after a run of Lightning's"])
def test_a_worker_that_is_killed_is_a_sentence(handler, monkeypatch):
    """At once, not when the others have been waited for; Lightning puts back handlers of before its run."""
    monkeypatch.setattr(datasets, "SECONDS_TO_ANSWER", 60)
    list(ImageLoader([1, 2], num_workers=1, batch_bytes=1))
    before = signal.getsignal(signal.SIGCHLD)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
    try:
        with pytest.raises(DogbreedError, match=r"was killed, or did not answer for 1 minute.*num_workers=0") as raised:
            list(ImageLoader(_Killed(), num_workers=1, batch_bytes=1))
    finally:
        signal.signal(signal.SIGCHLD, before)
    error = raised.value.__cause__
    assert error is not None
    assert not isinstance(error.__cause__, queue.Empty), "torch has waited for its whole patience"


def test_workers_are_the_cores_of_this_process_shared_among_devices(dog_tree, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(48)), raising=False)
    data, own = DogImages(dog_tree, quiet=True), DogImages(dog_tree, num_workers=3, quiet=True)
    workers = [(data.num_workers, own.num_workers)]
    for devices in (4, 64):
        data.trainer = own.trainer = Trainer(accelerator="cpu", devices=devices, strategy="ddp", logger=False)
        workers.append((data.num_workers, own.num_workers))
    assert workers == [(48, 3), (12, 3), (1, 3)]


def test_workers_go_where_the_shared_memory_has_no_room(capsys):
    loader = ImageLoader([1, 2], num_workers=2, batch_bytes=1 << 60, persistent_workers=True)
    assert loader.num_workers == 0
    assert capsys.readouterr().out.startswith("The shared memory (/dev/shm) has room for 0 of 2 workers; docker run")
    assert [int(batch) for batch in loader] == [1, 2]
