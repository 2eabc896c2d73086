"""Folders without splits, tables of labels, and classes that are not everywhere."""

import csv
import hashlib
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dogbreed.core.errors import DogbreedError
from dogbreed.data.datamodule import DogImages
from dogbreed.data.layout import SPLITS
from dogbreed.data.listing import list_data
from dogbreed.data.splits import folds_by_content, parse_shares, split_by_content

CLASSES = ("001.Beagle", "002.Collie", "010.Poodle")


def noise(seed: int) -> Image.Image:
    """A picture that is like no other: coarse noise, enlarged."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (6, 7, 3), dtype=np.uint8)).resize((42, 36), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`root/<class>/<number>.png`, 40 in each of three classes; not to be changed."""
    root = tmp_path_factory.mktemp("flat") / "dogs"
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(40):
            noise(100 * label + number).save(root / name / f"{number:02d}.png")
    return root


@pytest.fixture
def copy(flat: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(flat, tmp_path / "dogs"))


def images(root: Path, **arguments: object) -> DogImages:
    data = DogImages(root, quiet=True, num_workers=0, **arguments)
    data.setup()
    return data


def splits_of(data: DogImages) -> dict[str, str]:
    """The split of each image by the digest of its content."""
    return {digest: split for split, files in data.samples.items() for digest in files.digests}


def contents(data: DogImages) -> dict[str, tuple[list[Path], list[int]]]:
    return {split: (files.paths, files.labels.tolist()) for split, files in data.samples.items()}


# No split at all


def test_images_without_a_split_are_split_by_their_content(flat):
    data = images(flat)
    assert data.classes == ["Beagle", "Collie", "Poodle"]
    counts = {split: len(files) for split, files in data.samples.items()}
    assert sum(counts.values()) == 120
    assert 85 <= counts["train"] <= 107
    assert min(counts["valid"], counts["test"]) >= 4
    numbers = f"{counts['train']} to train, {counts['valid']} to validate, {counts['test']} to test"
    assert f"120 images split by content (data.split=0.8,0.1,0.1) into {numbers}" in data.warnings[0]
    for number in (int(digest[:13], 16) / 16**13 for digest, split in splits_of(data).items() if split == "test"):
        assert number >= 0.9


def test_an_image_stays_on_its_side_when_others_come_and_files_are_renamed(flat, copy):
    before = splits_of(images(flat))
    for number, path in enumerate(sorted((copy / CLASSES[0]).iterdir())):
        path.rename(path.with_name(f"z{100 - number}.png"))
    for seed in range(1000, 1030):
        noise(seed).save(copy / CLASSES[1] / f"{seed}.png")
    (copy / "Newcomer").mkdir()
    noise(2000).save(copy / "Newcomer" / "1.png")
    (copy / CLASSES[2] / "00.png").unlink()
    after = splits_of(images(copy))
    assert len(after) == 120 + 31 - 1
    assert {digest: after[digest] for digest in before if digest in after}.items() <= before.items()


def test_a_split_is_repeated_from_its_table(flat, tmp_path):
    data = images(flat, split="0.5,0.3,0.2")
    table = tmp_path / "split.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *data.own_split[::-1]])
    again = images(flat, labels=table)
    assert again.classes == data.classes
    assert contents(again) == contents(data)
    assert again.own_split == []


def test_a_table_repeats_whatever_class_folders_are_called(copy, tmp_path):
    for path, name in zip(sorted(copy.iterdir()), ("a;b", "c|d ", 'comma, "e"'), strict=True):
        path.rename(path.with_name(name))
    data = images(copy)
    with (tmp_path / "split.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *data.own_split])
    assert list_data(copy, tmp_path / "split.csv").classes == data.classes == ["a;b", 'comma, "e"', "c|d "]


def test_the_same_picture_stays_on_one_side(copy):
    before = images(copy)
    tested = before.samples["test"].paths[0]
    for number in range(12):  # one alone might fall on the right side by chance
        with Image.open(tested) as image:
            changed = ImageOps.mirror(image) if number % 2 else image.resize((84 + number, 72))
            changed.save(copy / CLASSES[number % 3] / f"copy-{number}.jpg", quality=90)
    with_copies = images(copy)
    sides = {
        split for split, files in with_copies.samples.items() for path in files.paths
        if path == tested or path.name.startswith("copy")
    }  # fmt: skip
    assert len(sides) == 1


def test_without_a_share_to_test_there_is_no_test_split(flat):
    data = images(flat, split=[0.7, 0.3, 0])
    assert set(data.samples) == {"train", "valid"}
    assert any("No test images" in warning for warning in data.warnings)


def test_a_competition_as_it_is_unpacked(tmp_path):
    """Its train/ and test/ are no classes, and the labels lie beside them."""
    for folder in ("train", "test"):
        (tmp_path / folder).mkdir()
        for number in range(3):
            noise(number).save(tmp_path / folder / f"{number}.png")
    with pytest.raises(DogbreedError, match=r"holds test/ and train/ with .*data\.root=\S+train .*labels=FILE\.csv\."):
        images(tmp_path)
    for name in ("labels.csv", "sample_submission.csv"):
        (tmp_path / name).write_text("id,breed\n")
    with pytest.raises(DogbreedError, match=rf"data\.labels={re.escape(str(tmp_path / 'labels.csv'))}\."):
        images(tmp_path)


def test_every_class_keeps_an_image_to_train_and_small_ones_are_named(copy):
    for path in sorted((copy / CLASSES[0]).iterdir())[1:]:
        path.unlink()
    data = images(copy, split=[0.001, 0.5, 0.499])  # next to none is a training image by its content
    assert set(data.samples["train"].labels.tolist()) == {0, 1, 2}
    assert any(warning.startswith("No photograph to validate Beagle") for warning in data.warnings)
    assert any(warning.startswith("No photograph to test Beagle") for warning in data.warnings)


def test_an_empty_split_gets_an_image_and_too_few_are_refused():
    digests = [f"{number:x}".ljust(32, "0") for number in (1, 2, 3)]  # all below 0.8
    assert sorted(split_by_content(digests, [0, 0, 0], [0, 1, 2], (0.8, 0.1, 0.1)).tolist()) == [0, 1, 2]
    for labels, groups in (([0, 0, 1], [0, 1, 2]), ([0, 0, 0], [0, 0, 2])):
        with pytest.raises(DogbreedError, match="3 images are too few to be split"):
            split_by_content(digests, labels, groups, (0.8, 0.1, 0.1))


@pytest.mark.parametrize("split", ["0.8,0.2", "0.8,0.1,0.2", "a,b,c", [0.8, -0.1, 0.3], 3, [1, 0, 0], None])
def test_shares_that_are_none(split):
    with pytest.raises(DogbreedError, match=r"data\.split=.*: give the shares of train, valid and test"):
        parse_shares(split)


def digests_of(count: int) -> list[str]:
    return [hashlib.blake2b(str(number).encode(), digest_size=16).hexdigest() for number in range(count)]


def test_folds_have_equal_shares_of_every_class_and_of_every_split():
    digests, labels = digests_of(6000), [number % 3 for number in range(6000)]
    folds = folds_by_content(digests, labels, range(6000), 5)
    assert folds[:3000] == folds_by_content(digests[:3000], labels[:3000], range(3000), 5), "others were added"
    for label in range(3):  # 400 +- 18
        assert Counter(folds[label::3]).keys() == set(range(5))
        assert all(abs(count - 400) < 5 * 18 for count in Counter(folds[label::3]).values())
    splits = split_by_content(digests, labels, range(6000), (0.8, 0.1, 0.1))
    of_test = Counter(fold for fold, split in zip(folds, splits, strict=True) if split == 2)
    assert all(abs(of_test[fold] - 120) < 5 * 10 for fold in range(5)), "the two do not depend on each other"


@given(st.lists(st.integers(0, 3), min_size=6, max_size=30), st.integers(2, 6), st.data())
def test_no_fold_is_empty_none_holds_a_class_and_twins_stay_together(labels, folds, data):
    count = len(labels)
    groups = [data.draw(st.integers(0, number)) if number % 4 == 3 else number for number in range(count)]
    groups = [groups[group] if groups[group] < group else group for group in groups]
    own = folds_by_content(digests_of(count), labels, groups, folds)
    pictures = len(set(groups))
    assert set(own) == set(range(folds)) if pictures >= 2 * folds else set(own) <= set(range(folds))
    assert len(set(zip(groups, own, strict=True))) == pictures
    for label in set(labels):
        of_label = {group for group, other in zip(groups, labels, strict=True) if other == label}
        mixed = any(group in of_label and other != label for group, other in zip(groups, labels, strict=True))
        if len(of_label) > 1 and not mixed:
            assert len({fold for fold, other in zip(own, labels, strict=True) if other == label}) > 1


def test_a_folder_around_the_classes_and_one_around_the_splits(copy, tmp_path, dog_tree):
    assert images(tmp_path).classes == ["Beagle", "Collie", "Poodle"]
    (tmp_path / "others").mkdir()
    noise(1).save(tmp_path / "others" / "1.png")
    shutil.copytree(dog_tree, tmp_path / "split")
    with pytest.raises(DogbreedError, match=rf"but {tmp_path}/split has: give data.root={tmp_path}/split"):
        images(tmp_path)


def test_a_folder_around_the_classes_of_each_split_and_a_stray_image_in_one(dog_tree, tmp_path):
    for split in SPLITS:
        shutil.copytree(dog_tree / split, tmp_path / split / split)
    noise(1).save(tmp_path / "train" / "overview.png")
    assert {split: [path.name for path in files.paths] for split, files in images(tmp_path).samples.items()} == {
        split: [path.name for path in files.paths] for split, files in images(dog_tree).samples.items()
    }


def test_images_without_class_folders(tmp_path):
    noise(1).save(tmp_path / "1.png")
    with pytest.raises(DogbreedError, match=r"has images, but no class folders; give their labels with"):
        images(tmp_path)


@pytest.mark.parametrize(
    ("photographs", "way_out"),
    [("Images/001.Beagle/1.png", r"/Images\."), ("images/1.png", r"/images and their labels with data\.labels=FILE")],
)
def test_annotations_beside_the_photographs_are_no_classes(tmp_path, photographs, way_out):
    """Two data sets of dogs unpack so; a model of `Images` and `Annotation` would be right every time."""
    for path in (photographs, "Annotation/001.Beagle/1", "lists/train_list.mat"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text("")
    noise(1).save(tmp_path / photographs)
    with pytest.raises(DogbreedError, match=r"one alone has photographs: give data\.root=.*" + way_out):
        images(tmp_path)


def test_linked_folders_within_a_class(copy, tmp_path):
    (tmp_path / "more" / "deep").mkdir(parents=True)
    noise(5000).save(tmp_path / "more" / "deep" / "1.png")
    (copy / CLASSES[0] / "linked").symlink_to(tmp_path / "more")
    (copy / CLASSES[0] / "linked again").symlink_to(tmp_path / "more")
    (copy / CLASSES[0] / "around").symlink_to(copy)
    (tmp_path / "more" / "deep" / "back").symlink_to(tmp_path / "more")
    labels = np.concatenate([files.labels for files in images(copy).samples.values()])
    assert Counter(labels.tolist()) == {0: 41, 1: 40, 2: 40}


# A table of labels


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images in one folder; not to be changed."""
    root = tmp_path_factory.mktemp("loose")
    for number in range(12):
        noise(number).save(root / f"im{number:02d}.jpg")
    return root


def table_of(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    (folder / "labels.csv").write_text(text, encoding=encoding)
    return folder / "labels.csv"


def rows(template: str = "im{:02d}.jpg,{}", splits: str = "") -> str:
    labels = ("cat", "dog", "L\u00f6wchen")
    return "".join(template.format(number, labels[number % 3]) + splits + "\n" for number in range(12))


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path,label\n" + rows(), "utf-8"),
        ("id,breed\n" + rows("im{:02d},{}"), "utf-8"),  # Kaggle's
        ("\n".join(["Image;Class;notes", *rows("im{:02d}.jpg;{};x").splitlines(), ""]), "utf-8-sig"),
        ("number\tfile\tlabel\r\n" + rows("1\tim{:02d}.jpg\t{}").replace("\n", "\r\n"), "utf-8"),
        ("label,path,split\n" + "".join(f"{line.split(',')[1]},{line.split(',')[0]},\n" for line in rows().split()),
         "utf-8"),
        ("path,label\n" + rows() + rows(), "utf-8"),
    ],
)  # fmt: skip
def test_labels_from_a_table(loose, tmp_path, text, encoding):
    data = images(loose, labels=table_of(tmp_path, text, encoding), split=[0.4, 0.3, 0.3])
    assert data.classes == ["L\u00f6wchen", "cat", "dog"]
    for files in data.samples.values():
        for path, label in zip(files.paths, files.labels.tolist(), strict=True):
            assert data.classes[label] == ("cat", "dog", "L\u00f6wchen")[int(path.stem[2:]) % 3]
    assert sum(len(files) for files in data.samples.values()) == 12


@pytest.mark.parametrize("title", ["Split", "subset", "set", "Partition"])
def test_a_table_with_splits_and_its_relative_address(loose, tmp_path, title):
    root = Path(shutil.copytree(loose, tmp_path / "loose"))
    lines = rows().split()
    splits = ["train"] * 6 + ["VAL"] * 3 + ["eval"] * 3
    table_of(root, f"path,label,{title}\n" + "".join(f"{a},{b}\n" for a, b in zip(lines, splits, strict=True)))
    data = images(root, labels="labels.csv")
    assert {split: len(files) for split, files in data.samples.items()} == {"train": 6, "valid": 3, "test": 3}
    assert data.samples["valid"].paths == [root / f"im{number:02d}.jpg" for number in (8, 6, 7)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,label\n" + rows() + "gone.jpg,cat\nalso.jpg,cat\n", r"line 14: gone\.jpg does not exist \(1 more"),
        ("path,label\nim00.jpg,\n", r"line 2: im00\.jpg has no label; fill it in, or remove the line"),
        ("path,label\n,cat\n", "line 2: no image is named"),
        ("path,label\n\nim00.jpg,cat\nim00.jpg,dog\n", r"im00\.jpg two labels, cat in line 3 and dog in line 4"),
        ("path,label,split\nim00.jpg,cat,train\nim00.jpg,cat,test\n", "two splits, train in line 2 and test in line 3"),
        ("path,label,split\nim00.jpg,cat,train\nim01.jpg,cat,\n", "line 3: the split '' is unknown"),
        ("path,label,split\nim00.jpg,cat,holdout\n", "line 2: the split 'holdout' is unknown; it is one of train,"),
        ("path,label,split\nim00.jpg,cat,train\n", "has no row of the split valid"),
        ("path,label\nim00.jpg,cat;dog\n", r"line 2: im00\.jpg has several labels, cat;dog; .*multi-label.*out of sco"),
        ("path,label\nim00.jpg,cat|dog\n", "multi-label"),
        ("path,cat,dog\nim00.jpg,1,0\nim01.jpg,1,1\n", "a column of 0 and 1 for each of 2 labels; .*multi-label"),
        ("path,kind\nim00.jpg,cat\n", r"no column for the class: name one of its columns \(path, kind\) label"),
        ("picture,label\nim00.jpg,cat\n", r"no column for the image: name one of its columns \(picture, label\) path"),
        ("path,label\nim00.jpg,cat,more\n", "line 2, has 3 cells where its header has 2"),
        ("path,label,label\nim00.jpg,cat,dog\n", "several columns label that differ; remove all but one"),
        ("path,label\nIM00.PNG,cat\n", r"IM00\.PNG does not exist; there is .*im00\.jpg: write im00\.jpg\."),
        ("PK\3\4\0\0workbook", "is not plain text; save it as CSV in UTF-8"),
        ("path,label\n", "has no rows below its header"),
        ("", "no column for the image"),
    ],
)  # fmt: skip
def test_tables_that_do_not_fit(loose, tmp_path, text, sentence):
    with pytest.raises(DogbreedError, match=sentence):
        images(loose, labels=table_of(tmp_path, text))


def test_a_table_that_is_missing_or_not_utf8_or_relative_to_another_folder(loose, tmp_path):
    with pytest.raises(DogbreedError, match=r"data\.labels=.*nowhere\.csv cannot be read: No such file"):
        images(loose, labels=tmp_path / "nowhere.csv")
    with pytest.raises(DogbreedError, match=r"name is not UTF-8, L\\udcf6wchen; save the table as UTF-8"):
        images(loose, labels=table_of(tmp_path, "path,label\n" + rows(), "latin-1"))
    root = Path(shutil.copytree(loose, tmp_path / "above" / "loose"))
    table = table_of(tmp_path, "id,breed\n" + rows("im{:02d},{}"))
    sentence = rf"there is {root}/im00\.jpg: write loose/im00\.jpg, or give data\.root={root}"
    with pytest.raises(DogbreedError, match=sentence):
        images(root.parent, labels=table)
    table = table_of(tmp_path, "id,breed\n" + rows("loose/im{:02d}.jpg,{}"))
    with pytest.raises(DogbreedError, match=rf"relative to data\.root={root}; give data\.root={root.parent}\."):
        images(root, labels=table)
    assert len(list_data(root.parent, table).entries) == 12


# Classes that are not in every split


def test_classes_that_are_not_everywhere_may_be_dropped(tmp_path, write_tree):
    write_tree(tmp_path)
    shutil.rmtree(tmp_path / "test" / "002.Blue_spitz")
    shutil.rmtree(tmp_path / "train" / "003.Green-eyed_setter")
    with pytest.raises(DogbreedError, match=r"every class needs .*; data\.class_mismatch=drop leaves such classes out"):
        images(tmp_path)
    data = images(tmp_path, class_mismatch="drop")
    assert data.classes == ["Amber_hound", "Red_terrier"]
    assert data.warnings[0] == (
        "Left out 2 classes not in every split (data.class_mismatch=drop): 002.Blue_spitz, 003.Green-eyed_setter."
    )
    for files in data.samples.values():
        assert {path.parent.name[4:] for path in files.paths} == set(data.classes)


def test_a_class_of_a_table_needs_training_images(loose, tmp_path):
    lines = [f"{line},{'train' if number % 3 else 'test'}" for number, line in enumerate(rows().split())]
    lines[1] = lines[1].replace("train", "valid")
    table = table_of(tmp_path, "path,label,split\n" + "\n".join(lines))
    with pytest.raises(DogbreedError, match=r"cat is in .*labels\.csv but not in its training rows"):
        images(loose, labels=table)
    with pytest.raises(DogbreedError, match=r"test holds no readable image"):
        images(loose, labels=table, class_mismatch="drop")


# What people have in place of train/, valid/ and test/, and in place of a plain table


@pytest.mark.parametrize(
    "names",
    [
        ("training", "validation", "testing"),
        ("0_train", "1_val", "2_test"),
        ("train_set", "val_set", "test_set"),
        ("Images (train)", "Images (dev)", "Images (eval)"),
        ("train ", "valid", "test"),
    ],
)
def test_splits_by_any_name(dog_tree, tmp_path, names):
    for split, name in zip(SPLITS, names, strict=True):
        (tmp_path / name).symlink_to(dog_tree / split)
    (tmp_path / "train_backup").symlink_to(dog_tree / "train")
    found = images(tmp_path)
    assert {split: len(files) for split, files in found.samples.items()} == {
        split: len(files) for split, files in images(dog_tree).samples.items()
    }


def test_only_train_and_test_says_which_of_the_two_can_be_split(dog_tree, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).symlink_to(dog_tree / split)
    with pytest.raises(DogbreedError, match=rf"no folder valid/; .*: data\.root={tmp_path}/train is split by data"):
        images(tmp_path)


@pytest.mark.parametrize("beside", ["README.md", "labels.csv", "LICENSE"])
def test_a_file_beside_the_folder_with_the_splits_makes_no_classes_of_them(dog_tree, tmp_path, beside):
    (tmp_path / "images").symlink_to(dog_tree)
    (tmp_path / beside).write_text("x")
    assert images(tmp_path).classes == images(dog_tree).classes


def test_classes_that_nobody_wants_are_named(copy):
    (copy / "001.Beagle").rename(copy / "poodle_")
    assert any("count as 2: Poodle, poodle_." in warning for warning in images(copy).warnings)
    for name in ("002.Collie", "poodle_"):
        shutil.rmtree(copy / name)
    assert any("There is one class alone, Poodle" in warning for warning in images(copy).warnings)


@pytest.mark.parametrize(
    "content",
    [
        lambda text: text.replace(",", "|").encode(),
        lambda text: text.encode("utf-16"),
        lambda text: ("sep=;\n" + text.replace(",", ";")).encode(),
        lambda text: ("\r\n\r\n" + text.replace("\n", "\r\n")).encode(),
        lambda text: text.replace("\n", ",,\n").replace(",,", "", 1).encode(),
        lambda text: text.replace("path,label", "Image Name,Category").encode(),
        lambda text: text.replace("path,label", "filepath,class_name").encode(),
    ],
    ids=["bars", "utf-16", "excel", "empty lines", "commas behind", "other names", "more names"],
)
@pytest.mark.slow
def test_tables_as_programs_write_them(flat, tmp_path, content):
    rows = [f"{path.relative_to(flat)},{path.parent.name}\n" for path in sorted(flat.glob("*/*.png"))]
    (tmp_path / "labels.csv").write_bytes(content("path,label\n" + "".join(rows)))
    assert contents(images(flat, labels=tmp_path / "labels.csv")) == contents(images(flat))


def test_a_list_of_columns_has_an_end(flat, tmp_path):
    (tmp_path / "labels.csv").write_text(",".join(f"column{number}" for number in range(500)) + "\n")
    with pytest.raises(
        DogbreedError, match=r"name one of its columns \(column0, .*, column7, \.\.\.\) path, file"
    ) as error:
        images(flat, labels=tmp_path / "labels.csv")
    assert len(str(error.value)) < 400
