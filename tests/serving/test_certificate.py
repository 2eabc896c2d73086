"""Comparing the ways from bytes to logits: what counts as a difference, and what is refused."""

import io
import json
import math

import pytest
from PIL import Image

from dogbreed.core.errors import DogbreedError
from dogbreed.data.edge_cases import drawn, edge_case_files
from dogbreed.data.images import BadImage, decode
from dogbreed.serving.certificate import Answer, compare, read, write

FILES = ["a.jpg", "b.jpg"]


def answers(*rows):
    return [Answer(row, "" if row else "truncated") for row in rows]


def test_the_largest_difference_and_where_it_is():
    found = compare(
        FILES,
        {
            "training": answers([1.0, 2.0], [3.0, 4.0]),
            "predictor": answers([1.0, 2.0], [3.0, 4.0]),
            "server": answers([1.0, 2.00003], [3.00005, 4.0]),
        },
    )
    assert found.differences["predictor"] == 0
    assert found.differences["server"] == pytest.approx(5e-5, abs=1e-12)
    assert found.worst["server"] == "b.jpg"
    assert found.largest == found.differences["server"]
    assert found.fault(1e-4) is None
    assert found.fault(4e-5) == "the logits of b.jpg differ by 5e-05 between training and server"


@pytest.mark.parametrize("other", [[math.nan, 2.0], [1.0], [1.0, 2.0, 3.0]])
def test_what_cannot_be_compared_is_no_agreement(other):
    found = compare(["a.jpg"], {"training": answers([1.0, 2.0]), "server": answers(other)})
    assert found.largest == math.inf
    assert "a.jpg" in found.fault(1e-4)


def test_all_have_to_refuse_the_same_files():
    both = {"training": answers(None, [1.0]), "server": answers(None, [1.0])}
    assert compare(FILES, both).fault(1e-4) is None
    one = {"training": answers(None, [1.0]), "server": answers([1.0], [1.0])}
    assert compare(FILES, one).fault(1e-4) == "training refuses a.jpg (truncated) and server answers it"
    other = {"training": answers([1.0], [1.0]), "server": answers(None, [1.0])}
    assert compare(FILES, other).fault(1e-4) == "server refuses a.jpg (truncated) and training answers it"


def test_files(tmp_path):
    file = tmp_path / "certificate.json"
    write(file, {"passed": True})
    assert read(file) == {"passed": True}
    for text in ("{", "[]", json.dumps({"passed": "yes"})):
        file.write_text(text)
        with pytest.raises(DogbreedError, match=r"python -m dogbreed\.certify makes one"):
            read(file)
    with pytest.raises(DogbreedError, match="no readable certificate"):
        read(tmp_path / "none.json")


@pytest.mark.slow
def test_odd_files_are_what_they_are_called():
    odd = edge_case_files(drawn())
    assert odd == edge_case_files(drawn()), "always the same"
    opened = {name: Image.open(io.BytesIO(data)) for name, data in odd.items()}
    assert {name: image.mode for name, image in opened.items()} == {
        "grey.jpg": "L",
        "cmyk.jpg": "CMYK",
        "progressive.jpg": "RGB",
        "rotated-by-exif.jpg": "RGB",
        "large.jpg": "RGB",
        "truncated.jpg": "RGB",
        "transparent.png": "RGBA",
        "palette.png": "P",
        "16-bit.png": "I;16",
        "animated.gif": "P",
        "alpha.webp": "RGBA",
    }
    assert opened["progressive.jpg"].info["progressive"]
    assert opened["rotated-by-exif.jpg"].size == opened["progressive.jpg"].size[::-1]
    assert opened["animated.gif"].n_frames == 2
    with pytest.raises(BadImage, match="truncated"):
        decode(odd["truncated.jpg"])
    upright, turned = decode(odd["progressive.jpg"]).float(), decode(odd["rotated-by-exif.jpg"]).float()
    assert (upright - turned).abs().mean() < 6, "the same picture"
