import os
import pwd
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from dogbreed.core.machine import ensure_home, workers_with_room


@pytest.mark.parametrize(
    ("free", "batch", "workers"), [(64, 36, 0), (64, 10, 0), (64, 5, 1), (64, 2, 5), (10_000, 36, 8), (0, 1, 0)]
)
def test_each_worker_has_room_for_three_batches_in_each_of_two_loaders(free, batch, workers, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(free << 20))
    assert workers_with_room(8, batch << 20, loaders=2) == workers


def test_an_account_without_a_home_gets_one(tmp_path, monkeypatch):
    def nobody(number):
        raise KeyError(number)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    for name in ("HOME", "USER"):
        monkeypatch.delenv(name, raising=False)
    ensure_home()
    home = tmp_path / f"home-{os.getuid()}"
    assert Path.home() == home
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_there_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    ensure_home()
    assert Path.home() == tmp_path
    assert list(tmp_path.iterdir()) == []
