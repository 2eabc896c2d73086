"""C that is compiled when it is used: made once, made anew where it must not be trusted, done without otherwise."""

import shutil

import pytest

from dogbreed.core import compiled

pytestmark = pytest.mark.skipif(shutil.which(compiled.COMPILER) is None, reason="no C compiler")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where libraries are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dogbreed" / "compiled"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "answer.c"
    file.write_text("int answer(void) { return ANSWER; }")
    return file


def test_a_library_is_made_once_per_content_and_flags(source, kept):
    assert compiled.load(source, ["-DANSWER=42"]).answer() == 42
    (library,) = kept.iterdir()
    before = library.stat().st_mtime_ns
    assert compiled.load(source, ["-DANSWER=42"]).answer() == 42
    assert library.stat().st_mtime_ns == before
    assert compiled.load(source, ["-DANSWER=7"]).answer() == 7
    source.write_text("int answer(void) { return -ANSWER; }")
    assert compiled.load(source, ["-DANSWER=7"]).answer() == -7
    assert len(list(kept.iterdir())) == 3, "and nothing half-made"


def test_a_folder_that_others_write_to_is_not_used(source, kept):
    kept.mkdir(parents=True)
    kept.chmod(0o777)
    assert compiled.load(source, ["-DANSWER=42"]).answer() == 42
    assert not list(kept.iterdir())


def test_without_a_library(source, kept, monkeypatch):
    assert compiled.load(source, []) is None, "it does not compile"
    assert compiled.load(source.with_name("none.c"), []) is None
    monkeypatch.setenv("PATH", "")
    assert compiled.load(source, ["-DANSWER=42"]) is None, "no compiler"
    assert not list(kept.iterdir())
