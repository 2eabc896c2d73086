"""Drawings, by what their SVG says."""

import re

import pytest

from dogbreed.metrics.calibration import wilson_interval
from dogbreed.metrics.classification import Bin
from dogbreed.report.plots import reliability_diagram

POINT = r"([\d.]+) ([\d.]+)"


def test_each_dot_of_a_reliability_diagram_has_its_number_of_images_and_its_interval() -> None:
    colour, bins = "#123456", [Bin(0.3, 0.25, 4), Bin(0.9, 0.8, 1234), Bin(0.95, 1.0, 1000)]
    svg = str(reliability_diagram("As it is served", bins, colour))
    dots = [(float(x), float(y)) for x, y in re.findall(rf'<use x="([\d.]+)" y="([\d.]+)" style="fill: {colour}"', svg)]
    lines = re.findall(rf'd="M {POINT}  L {POINT}  "[^>]*stroke: {colour}', svg)
    numbers = re.findall(r'x="([\d.]+)" y="([\d.]+)"[^>]*>([\d,]+)</text>', svg)
    radii = [float(radius) for radius in re.findall(r'<path id="\w+" d="M 0 ([\d.]+)  C', svg)]
    (_, low), (_, high), _ = dots
    scale = (low - high) / (bins[1].accuracy - bins[0].accuracy)  # the axis goes up, the page's goes down
    assert len(dots) == len(lines) == len(radii) == 3
    for one, (x, y), radius, line in zip(bins, dots, radii, lines, strict=True):
        left, begin, right, end = map(float, line)
        assert left == right == pytest.approx(x, abs=0.01)
        ends = [one.accuracy + (y - at) / scale for at in (begin, end)]
        assert ends == pytest.approx(wilson_interval(round(one.accuracy * one.images), one.images), abs=1e-3)
        ((at, top),) = [(float(at), float(top)) for at, top, text in numbers if text == f"{one.images:,}"]
        assert at == pytest.approx(x, abs=1)
        assert top < min(y - radius, end), "above the dot and its line"
