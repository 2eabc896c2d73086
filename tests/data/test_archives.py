"""Archives: unpacked as they are, or one sentence for those that are damaged or hostile."""

import contextlib
import io
import os
import random
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.archives import dog_images, make_zip

from dogbreed.core.errors import DogbreedError
from dogbreed.data.archives import is_archive, locked, unpack
from dogbreed.data.listing import list_data
from dogbreed.data.locate import find_root

BODY = random.Random(3).randbytes(600_000)


def _tar(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def archive(tmp_path) -> Path:
    return tmp_path / "some.zip"


def test_unpack(archive, tmp_path):
    noise = {"__MACOSX/dogImages/._x": b"1", "dogImages/.DS_Store": b"2", "dogImages/train/._a.jpg": b"3", ".x": b"4"}
    archive.write_bytes(make_zip({"dogImages/": b"", "dogImages/train/": b""} | dog_images() | noise))
    (tmp_path / ".dogs.unpacking" / "train").mkdir(parents=True)
    (tmp_path / ".dogs.unpacking" / "train" / "left_by_a_killed_process").touch()
    (tmp_path / "dogs").mkdir()  # empty, as a mount point or an eager script leaves it
    unpack(archive, tmp_path / "dogs", quiet=True)
    found = {
        f"dogImages/{p.relative_to(tmp_path / 'dogs')}": p.read_bytes()
        for p in (tmp_path / "dogs").rglob("*")
        if p.is_file()
    }
    assert found == dog_images()
    assert not list((tmp_path / "dogs").rglob(".*"))
    assert sorted(os.listdir(tmp_path)) == ["dogs", "some.zip"]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "dogImages/../../evil.jpg", "/evil.jpg", "dogImages//evil.jpg", "dogImages\\..\\..\\evil"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_nothing_is_written_outside_the_folder(tmp_path, name, kind):
    archive = tmp_path / f"some.{kind}"
    archive.write_bytes((make_zip if kind == "zip" else _tar)(dog_images() | {name: b"evil"}))
    with contextlib.suppress(DogbreedError):
        unpack(archive, tmp_path / "deep" / "dogs", quiet=True)
    outside = [
        path for path in tmp_path.rglob("*") if path.is_file() and tmp_path / "deep" / "dogs" not in path.parents
    ]
    assert outside == [archive]


@pytest.mark.parametrize("mode", [stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o644])
def test_links_and_pipes_become_plain_files(archive, tmp_path, mode):
    archive.write_bytes(make_zip(dog_images() | {"dogImages/train/a.jpg": b"/etc/passwd"}, mode=mode))
    unpack(archive, tmp_path / "dogs", quiet=True)
    assert (tmp_path / "dogs" / "train" / "a.jpg").read_bytes() == b"/etc/passwd"
    assert not (tmp_path / "dogs" / "train" / "a.jpg").is_symlink()


def test_a_file_of_two_names_in_a_tar_file_and_no_link_out_of_it(tmp_path):
    archive = tmp_path / "some.tar"
    with tarfile.open(archive, "w") as packed:
        for name, kind, target in (
            ("dogs/a/1.jpg", tarfile.REGTYPE, ""),
            ("dogs/b/1.jpg", tarfile.LNKTYPE, "dogs/a/1.jpg"),
            ("dogs/b/2.jpg", tarfile.LNKTYPE, "/etc/passwd"),
            ("dogs/b/3.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("dogs/b/4.jpg", tarfile.LNKTYPE, "dogs/b/3.jpg"),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 0 if target else len(BODY)
            packed.addfile(info, io.BytesIO(BODY))
    unpack(archive, tmp_path / "dogs", quiet=True)
    assert files_below(tmp_path / "dogs") == {"a/1.jpg": BODY, "b/1.jpg": BODY}


def test_names_that_the_disk_does_not_take(archive, tmp_path):
    for name in ("dogImages/" + "x" * 300, "dogImages/train/000.Dog/Dog_0.jpg/x"):
        archive.write_bytes(make_zip(dog_images() | {name: b"1"}))
        with pytest.raises(
            DogbreedError, match=r"some\.zip holds a name that the disk does not take .* give the folder"
        ):
            unpack(archive, tmp_path / "dogs", quiet=True)
        assert os.listdir(tmp_path) == ["some.zip"]


def test_an_archive_in_an_archive(archive, tmp_path):
    archive.write_bytes(make_zip({"readme.txt": b"", "inner.zip": make_zip(dog_images(1, 2))}))
    inner = tmp_path / "some.zip.unpacked" / "inner.zip"
    with pytest.raises(DogbreedError, match=rf"but an archive; give data\.root={inner}\."):
        list_data(find_root(archive, quiet=True))
    assert len(list_data(find_root(f"file://{inner}", quiet=True)).entries) == 6


def test_tar_files_and_archives_without_a_top_folder(tmp_path):
    for number, (make, suffix) in enumerate(((_tar, "tar"), (_tar, "tar.gz"), (make_zip, "zip"))):
        archive = tmp_path / f"some.{suffix}"
        whole = {name.removeprefix("dogImages/"): data for name, data in dog_images().items()}
        archive.write_bytes(make(whole))
        assert is_archive(archive)
        unpack(archive, tmp_path / str(number), quiet=True)
        assert files_below(tmp_path / str(number)) == whole
    assert not is_archive(tmp_path / "0" / "train" / "000.Dog" / "Dog_0.jpg")
    archive.write_bytes(make_zip({"train/a/1.jpg": b"1"}))
    unpack(archive, tmp_path / "only train", quiet=True)
    assert files_below(tmp_path / "only train") == {"train/a/1.jpg": b"1"}, "a split is no wrapping"


def test_one_process_at_a_time(archive, tmp_path):
    archive.write_bytes(make_zip(dog_images()))
    with locked(tmp_path / ".dogs.unpacking"), pytest.raises(DogbreedError, match="Another process is at work"):
        unpack(archive, tmp_path / "dogs", quiet=True)
    unpack(archive, tmp_path / "dogs", quiet=True)


def test_bombs(archive, tmp_path):
    archive.write_bytes(make_zip({"dogImages/zeros": bytes(20_000_000)}))
    with pytest.raises(DogbreedError, match="which no photographs do"):
        unpack(archive, tmp_path / "dogs", quiet=True)


def test_damaged_archives(archive, tmp_path):
    whole = make_zip({"dogImages/a.jpg": BODY, "dogImages/b.jpg": BODY}, method=zipfile.ZIP_STORED)
    flipped = bytearray(whole)
    flipped[900_000] ^= 1
    for damaged in (b"", b"<html>Access denied</html>", whole[:-500], bytes(flipped)):
        archive.write_bytes(damaged)
        with pytest.raises(DogbreedError, match=r"some\.zip is damaged .* delete it"):
            unpack(archive, tmp_path / "dogs", quiet=True)
        assert os.listdir(tmp_path) == ["some.zip"]


def test_damage_anywhere_is_a_sentence_or_harmless(archive, tmp_path):
    whole, chance = make_zip(dog_images(1, 1)), random.Random(0)
    for number in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        archive.write_bytes(damaged)
        with contextlib.suppress(DogbreedError):
            unpack(archive, tmp_path / "in" / str(number), quiet=True)
    assert sorted(os.listdir(tmp_path)) == ["in", "some.zip"]
    assert not [name for name in os.listdir(tmp_path / "in") if not name.isdigit()]


def test_a_folder_with_files_is_left_alone(archive, tmp_path):
    archive.write_bytes(make_zip(dog_images()))
    (tmp_path / "dogs").mkdir()
    (tmp_path / "dogs" / "mine.txt").write_text("mine")
    with pytest.raises(DogbreedError, match="exists already"):
        unpack(archive, tmp_path / "dogs", quiet=True)
    assert os.listdir(tmp_path / "dogs") == ["mine.txt"]
    with pytest.raises(DogbreedError, match="missing"):
        unpack(tmp_path / "none.zip", tmp_path / "other", quiet=True)


def test_archives_that_are_encrypted_of_another_kind_or_written_on_windows(tmp_path):
    plain = tmp_path / "plain.zip"
    with zipfile.ZipFile(plain, "w") as packed:
        packed.writestr("dogs\\train\\Poodle\\1.jpg".replace("/", "\\"), b"x" * 20)
    unpack(plain, tmp_path / "unpacked", quiet=True)
    assert [path.relative_to(tmp_path / "unpacked").as_posix() for path in (tmp_path / "unpacked").rglob("*.jpg")] == [
        "train/Poodle/1.jpg"
    ]
    content = bytearray(plain.read_bytes())
    content[content.find(b"PK\x03\x04") + 6] |= 1
    content[content.find(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "secret.zip").write_bytes(content)
    with pytest.raises(DogbreedError, match=r"secret\.zip is encrypted: unpack it yourself"):
        unpack(tmp_path / "secret.zip", tmp_path / "secret", quiet=True)
    for name, start in (
        ("dogs.7z", b"7z\xbc\xaf'\x1c"),
        ("dogs.rar", b"Rar!"),
        ("half.zip", bytes(plain.read_bytes()[:40])),
    ):
        (tmp_path / name).write_bytes(start)
        with pytest.raises(DogbreedError, match=r"is damaged, or packed in a way that is not read here"):
            find_root(tmp_path / name)
