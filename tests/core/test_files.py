import csv
import errno
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from dogbreed.core.errors import DogbreedError
from dogbreed.core.files import atomic_write, new_folder, remove, write_csv


def fail_while_writing(file, error):
    with atomic_write(file) as beside:
        beside.write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed")])
def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path, error):
    file = tmp_path / "a.json"
    file.write_text("before")
    with pytest.raises(DogbreedError, match=r"a\.json could not be written .*disk.*what was there before is kept"):
        fail_while_writing(file, error)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "before")]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path, error):
    with pytest.raises(type(error)):
        fail_while_writing(tmp_path / "a", error)
    assert not list(tmp_path.iterdir())


def test_tables_hold_every_name(tmp_path):
    write_csv(tmp_path / "t.csv", ["path", "n"], [["a,b\n", 1], ["\udcff", 2]])
    with (tmp_path / "t.csv").open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        assert list(csv.reader(file)) == [["path", "n"], ["a,b\n", "1"], ["\udcff", "2"]]


def test_folders_of_the_same_second_are_apart(tmp_path):
    together = Barrier(8)

    def choose(_):
        together.wait()
        return new_folder(tmp_path)

    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(choose, range(8)))
    assert len(set(folders)) == 8
    assert all(folder.is_dir() and folder.parent.parent == tmp_path for folder in folders)


def test_remove(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "c").write_text("")
    remove(tmp_path / name for name in ("a", "c", "absent"))
    assert not list(tmp_path.iterdir())
