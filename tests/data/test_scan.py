"""Looking at files: what is wrong with them, and not looking twice."""

import hashlib
import io
import os
import re
import sqlite3
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest
from PIL import Image

from dogbreed.core.progress import track
from dogbreed.data import decoding, scan
from dogbreed.data.layout import list_images
from dogbreed.data.scan import ScannedFile


def _jpeg(colour: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((48, 40), 60 + colour).convert("RGB").save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "001.Cream_spitz"
    folder.mkdir()
    for number in range(4):
        (folder / f"dog_{number}.jpg").write_bytes(_jpeg(number))
    return folder


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the files that were read and checked."""
    names: list[str] = []
    look = scan._look

    def counted(path, *more):
        names.append(path.name)
        return look(path, *more)

    monkeypatch.setattr(scan, "_look", counted)
    return names


def test_order_and_digests(folder):
    files = list_images(folder)[::-1] + list_images(folder)[:1]
    found = scan.scan(files, memory=None, workers=3)
    assert [entry.path for entry in found] == files
    assert [entry.digest for entry in found] == [
        hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest() for path in files
    ]
    assert [entry.reason for entry in found] == [None] * 5
    assert list(scan.scan([], memory=None)) == []


def test_what_cannot_be_used_says_why(folder):
    whole = _jpeg()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.txt").write_text("good dog")
    (folder / "nowhere.jpg").symlink_to(folder / "gone")
    os.mkfifo(folder / "pipe.jpg")
    found = {entry.path.name: entry for entry in scan.scan(list_images(folder), memory=None)}
    assert found["empty.jpg"].reason == "empty file"
    assert found["half.jpg"].reason
    assert found["notes.txt"].reason
    assert found["nowhere.jpg"] == ScannedFile(folder / "nowhere.jpg", "", "cannot be read: No such file or directory")
    assert found["pipe.jpg"].reason == "not a regular file"
    assert [name for name, entry in found.items() if entry.reason is None] == [f"dog_{i}.jpg" for i in range(4)]


def test_files_that_may_not_be_read_are_not_remembered(folder, tmp_path, monkeypatch):
    files, memory = list_images(folder), tmp_path / "memory.sqlite"
    with monkeypatch.context() as locked:
        locked.setattr(Path, "read_bytes", lambda path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        found = scan.scan(files, memory=memory)
    assert {entry.reason for entry in found} == {"cannot be read: Permission denied"}
    assert {entry.reason for entry in scan.scan(files, memory=memory)} == {None}


def test_only_changed_files_are_read_again(folder, tmp_path, reads):
    (folder / "bad.jpg").write_bytes(b"no image")
    files, memory = list_images(folder), tmp_path / "deep" / "memory.sqlite"
    first = list(scan.scan(files, memory=memory))
    assert len(reads) == 5
    reads.clear()
    assert list(scan.scan(files, memory=memory)) == first
    assert reads == []

    (folder / "dog_1.jpg").write_bytes(_jpeg(9))
    os.utime(folder / "dog_1.jpg", ns=(1, 1))
    again = scan.scan(files, memory=memory)
    assert reads == ["dog_1.jpg"]
    changed = [old.path.name for old, new in zip(first, again, strict=True) if old != new]
    assert changed == ["dog_1.jpg"]


def test_a_file_in_anothers_place_is_read_though_size_and_time_are_the_same(folder, tmp_path, reads):
    files, memory = list_images(folder)[:2], tmp_path / "memory.sqlite"
    for file, content in zip(files, (b"one", b"two"), strict=True):
        file.write_bytes(content)
        os.utime(file, ns=(1, 1))
    one, two = scan.scan(files, memory=memory)
    for source, target in ((files[0], folder / "kept"), (files[1], files[0]), (folder / "kept", files[1])):
        source.rename(target)
    assert [entry.digest for entry in scan.scan(files, memory=memory)] == [two.digest, one.digest]


def test_how_many_pixels_are_too_many_is_not_remembered(folder, tmp_path):
    files, memory = list_images(folder), tmp_path / "memory.sqlite"
    for limit, reason in ((479, "too many pixels (48 x 40), more than data.max_pixels=479"), (48 * 40, None)):
        assert {entry.reason for entry in scan.scan(files, memory=memory, max_pixels=limit)} == {reason}


def test_memory_holds_whatever_the_path_is_called(folder, tmp_path, reads, monkeypatch):
    memory = tmp_path / "memory.sqlite"
    scan.scan(list_images(folder), memory=memory)
    reads.clear()
    monkeypatch.chdir(folder.parent)
    relative = list_images(Path(folder.name))
    assert [entry.path for entry in scan.scan(relative, memory=memory)] == relative
    assert reads == []


def test_another_check_asks_again(folder, tmp_path, reads, monkeypatch):
    memory = tmp_path / "memory.sqlite"
    scan.scan(list_images(folder), memory=memory)
    reads.clear()
    monkeypatch.setattr(scan, "CHECK_VERSION", "next")
    scan.scan(list_images(folder), memory=memory)
    assert len(reads) == 4


def remembered(memory: Path) -> set[str]:
    """The names of the files in a memory."""
    with closing(sqlite3.connect(memory)) as connection:
        return {Path(os.fsdecode(path)).name for (path,) in connection.execute("SELECT path FROM files")}


def alter(memory: Path, statement: str) -> None:
    with closing(sqlite3.connect(memory)) as connection, connection:
        connection.execute(statement)


@pytest.mark.parametrize(
    "damage",
    [
        lambda memory: memory.write_bytes(b""),
        lambda memory: memory.write_bytes(b'{"check": "2", "files": {}}' * 99),  # of another kind
        lambda memory: memory.write_bytes(memory.read_bytes()[:5000]),
        lambda memory: memory.write_bytes(memory.read_bytes()[:100] + b"\xff" * (memory.stat().st_size - 100)),
        lambda memory: alter(memory, "DROP TABLE files"),
        lambda memory: alter(memory, "ALTER TABLE files RENAME COLUMN digest TO hash"),
        lambda memory: alter(memory, "UPDATE files SET digest = 'text'"),
        lambda memory: alter(memory, "UPDATE files SET digest = x'00', reason = 7"),
        lambda memory: alter(memory, "UPDATE files SET size = 'large'"),
    ],
)
def test_damaged_memory_is_made_anew(folder, tmp_path, reads, damage):
    files, memory = list_images(folder), tmp_path / "memory.sqlite"
    scan.scan(files, memory=memory)
    reads.clear()
    damage(memory)
    assert [entry.reason for entry in scan.scan(files, memory=memory)] == [None] * 4
    assert len(reads) == 4
    scan.scan(files, memory=memory)
    assert len(reads) == 4


def test_memory_forgets_files_that_vanished_and_keeps_other_folders(folder, tmp_path):
    memory, other = tmp_path / "memory.sqlite", tmp_path / "other.jpg"
    other.write_bytes(_jpeg())
    scan.scan([*list_images(folder), other], memory=memory)
    (folder / "dog_0.jpg").unlink()
    (folder / "new.jpg").write_bytes(_jpeg(5))
    scan.scan(list_images(folder), memory=memory)
    assert remembered(memory) == {"dog_1.jpg", "dog_2.jpg", "dog_3.jpg", "new.jpg", "other.jpg"}


def test_concurrent_scans_leave_a_whole_memory(folder, tmp_path):
    memory, files = tmp_path / "memory.sqlite", list_images(folder)
    threads = [threading.Thread(target=scan.scan, args=(files,), kwargs={"memory": memory}) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(remembered(memory)) == 4
    assert sorted(os.listdir(tmp_path)) == ["001.Cream_spitz", "memory.sqlite"]


def test_a_memory_that_cannot_be_written_does_not_matter(folder, tmp_path):
    (tmp_path / "file").write_text("")
    found = scan.scan(list_images(folder), memory=tmp_path / "file" / "memory.sqlite")
    assert [entry.reason for entry in found] == [None] * 4


def test_what_was_seen_before_an_interruption_is_kept(folder, tmp_path, monkeypatch):
    def interrupted(data, **limits):
        if data == (folder / "dog_3.jpg").read_bytes():
            raise KeyboardInterrupt

    memory = tmp_path / "memory.sqlite"
    monkeypatch.setattr(decoding, "check", interrupted)
    # One worker goes through the files in their order.
    with pytest.raises(KeyboardInterrupt):
        scan.scan(list_images(folder), memory=memory, workers=1)
    assert remembered(memory) == {"dog_0.jpg", "dog_1.jpg", "dog_2.jpg"}


def test_a_memory_that_another_process_holds_is_neither_waited_for_nor_thrown_away(folder, tmp_path, monkeypatch):
    memory = tmp_path / "memory.sqlite"
    monkeypatch.setattr(scan, "_SECONDS", 0.01)
    scan.scan(list_images(folder), memory=memory)
    (folder / "new.jpg").write_bytes(_jpeg(5))
    with closing(sqlite3.connect(memory, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        assert [entry.reason for entry in scan.scan(list_images(folder), memory=memory)] == [None] * 5
    assert remembered(memory) == {f"dog_{number}.jpg" for number in range(4)}


def test_names_that_are_no_text_are_remembered(folder, tmp_path, reads):
    odd = folder / os.fsdecode(b"\xff.jpg")
    odd.write_bytes(_jpeg())
    for _ in range(2):
        found = scan.scan([odd], memory=tmp_path / "memory.sqlite")
        assert (found[0].path, found[0].reason) == (odd, None)
    assert len(reads) == 1


def test_files_are_in_the_order_of_their_paths(tmp_path):
    names = ["a/b.jpg", "a-b/c.jpg", "a.jpg", "a/B.jpg", "ab.jpg", "a/b/c.jpg2", "ä.jpg", "a b.jpg", "A.jpg"]
    for name in names:
        with suppress(FileExistsError, NotADirectoryError):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"x")
    files = list_images(tmp_path)
    assert files == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) >= 8


def test_list_images_leaves_out_what_systems_leave_behind(tmp_path):
    for name in ("b.jpg", "a.JPG", "sub/c.png", "read.me", "Thumbs.db", "desktop.ini", ".DS_Store", "._b.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    for name in ("__MACOSX", ".hidden"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "d.jpg").write_bytes(b"x")
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == [
        "a.JPG",
        "b.jpg",
        "read.me",
        "sub/c.png",
    ]


def test_progress_only_for_real_work(folder, monkeypatch, capsys):
    scan.scan(list_images(folder), memory=None)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(scan, "SHOW_PROGRESS_ABOVE", 3)
    scan.scan(list_images(folder), memory=None)
    assert "4 of 4 images" in capsys.readouterr().err
    scan.scan(list_images(folder), memory=None, quiet=True)
    assert capsys.readouterr().err == ""


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("unit", "shown"), [("bytes", "2 MB of 2 MB"), ("images", "2,000,000 of 2,000,000 images")])
def test_progress_counts(monkeypatch, terminal, unit, shown):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setenv("TERM", "xterm")
    with track(2_000_000, "Fetching", unit, done=1_000_000) as progress:
        for _ in range(1000):
            progress.advance(1000)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "Fetching" in text
    assert shown in text
    assert terminal or text.count("\n") == 2, "one line per quarter"


def test_progress_without_a_total_and_after_an_error(capsys):
    with track(None, "Fetching", "bytes") as progress:
        progress.advance(5_000)
    assert "Fetching: 5 kB, " in capsys.readouterr().err
    with suppress(OSError), track(10, "Fetching") as progress:
        progress.advance()
        raise OSError("gone")
    assert capsys.readouterr().err == "", "nothing was finished"
