"""The browser of the page tests sees what it is there to see: a clean page is clean, a bad one is not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.browser import Browser

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ margin: 0; background: white }}
@media (prefers-color-scheme: dark) {{ body {{ background: black }} }}</style></head>
<body>{}</body></html>"""


def page(folder: Path, body: str) -> Path:
    file = folder / "page.html"
    file.write_text(PAGE.format(body), encoding="utf-8")
    return file


def test_a_clean_page_is_clean(browser: Browser, tmp_path):
    browser.open(page(tmp_path, "<p>Nothing but text</p>"))
    assert (browser.errors, browser.outside, browser.broken_pictures(), browser.too_wide()) == ([], [], [], [])
    assert len(browser.requests) == 1


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("<script>console.error('a fault')</script>", "a fault"),
        ("<script>throw new Error('not caught')</script>", "not caught"),
    ],
)
def test_errors_are_seen(body, said, browser: Browser, tmp_path):
    browser.open(page(tmp_path, body))
    assert any(said in error for error in browser.errors)


def test_requests_to_elsewhere_are_seen(browser: Browser, tmp_path):
    browser.open(page(tmp_path, "<img src='http://example.org/a.png' alt='afar'><img src='b.png' alt='beside'>"))
    assert [url.rpartition("/")[2] for url in browser.outside] == ["a.png", "b.png"]
    assert browser.broken_pictures() == ["afar", "beside"]


def test_what_does_not_fit_is_seen(browser: Browser, tmp_path):
    browser.open(page(tmp_path, "<div class='broad' style='width: 600px'>wide</div>"), width=390)
    assert browser.too_wide() == ["DIV.broad"]
    browser.size(1200)
    assert browser.too_wide() == []


def test_texts_that_are_hard_to_read_are_seen(browser: Browser, tmp_path):
    body = "<p style='color: #767676'>just enough</p><p style='color: #787878'>too pale</p>"
    browser.open(page(tmp_path, body))
    assert browser.poor_contrast() == ["P: too pale"]
    browser.theme("dark")
    assert browser.poor_contrast() == []


def test_themes_and_screenshots(browser: Browser, tmp_path):
    browser.open(page(tmp_path, "<p style='height: 2000px'></p>"), theme="dark", width=500, height=300)
    dark = np.asarray(Image.open(browser.screenshot(tmp_path / "dark.png")).convert("L"))
    assert dark.shape == (300, 500)
    assert dark.max() == 0
    browser.theme("light")
    whole = np.asarray(Image.open(browser.screenshot(tmp_path / "whole.png", whole=True)).convert("L"))
    assert whole.shape[0] >= 2000
    assert whole.min() == 255
