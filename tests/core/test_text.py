import pytest

from dogbreed.core.text import count, duration, join, size


def test_count():
    assert count(1, "image") == "1 image"
    assert count(0, "image") == "0 images"
    assert count(1000, "class") == "1,000 classes"
    assert count(2, "batch") == "2 batches"
    assert count(2, "epoch") == "2 epochs"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (999, "999 B"),
        (999.6, "1 kB"),
        (1000, "1 kB"),
        (6_291_456, "6.29 MB"),
        (1.126e9, "1.13 GB"),
        (2.5e12, "2.5e+03 GB"),
    ],
)
def test_size(number, text):
    assert size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0025, "2.5 ms"),
        (0.25, "250 ms"),
        (9.46, "9.5 s"),
        (99.4, "99 s"),
        (150, "2.5 min"),
        (5940, "99 min"),
        (6000, "1 h 40 min"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_join():
    assert [join(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]
    assert join(["a", "b"], "or") == "a or b"
