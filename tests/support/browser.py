"""Pages in a real browser: headless Chromium, driven through its own driver, with everything it complains of and asks
for written down.

A test that needs it is skipped where Chromium is not installed; under CI=true it fails there instead.
"""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

PLACES = (("chromium", "chromedriver"), ("chromium-browser", "chromedriver"), ("google-chrome", "chromedriver"))
PHONE = 390  # pixels of a phone's width; a page is shown there as on a phone
FLAGS = (
    "--headless=new",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--lang=en",
    # Whatever the browser itself or a page may want: no name but this machine's is ever looked up.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
)

# Texts whose contrast with what lies behind them is below 4.5, by WCAG 2: (lighter + 0.05) / (darker + 0.05).
CONTRAST = r"""
const numbers = colour => colour.match(/[\d.]+/g).map(Number);
const linear = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
const ground = element => {
  for (; element; element = element.parentElement) {
    const colour = numbers(getComputedStyle(element).backgroundColor);
    if (colour.length < 4 || colour[3] === 1) return colour;
  }
  return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
};
return [...document.body.querySelectorAll('*:not(svg *)')].filter(element => {
  if (![...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim())) return false;
  if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) return false;
  const one = light(numbers(getComputedStyle(element).color)), other = light(ground(element));
  return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05) < 4.5;
}).map(element => `${element.tagName}: ${element.textContent.trim().slice(0, 40)}`);
"""


class Browser:
    """A window of the browser.

    Attributes:
        driver: Selenium's, for everything that is not here: elements, keys, scripts.
        errors: What the console said as an error or a warning since the page was opened, and what a script threw.
        requests: Every address that was asked for since then, `data:` and `blob:` apart.
    """

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        self._errors: list[str] = []
        self._requests: list[str] = []

    def open(self, page: str | Path, *, theme: str = "light", width: int = 1200, height: int = 900) -> None:
        """Opens an address or a file, in a window of that size and with that preference of colours."""
        self.theme(theme)
        self.size(width, height)
        self._read_logs()
        self._errors.clear(), self._requests.clear()
        self.driver.get(page.resolve().as_uri() if isinstance(page, Path) else page)

    def theme(self, name: str) -> None:
        """`light` or `dark`, as the page's `prefers-color-scheme`."""
        assert name in ("light", "dark")
        feature = {"name": "prefers-color-scheme", "value": name}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def size(self, width: int, height: int = 900) -> None:
        """Of the page in its own pixels; up to `PHONE` as a phone shows it, by the page's viewport tag."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    @property
    def errors(self) -> list[str]:
        self._read_logs()
        return list(self._errors)

    @property
    def requests(self) -> list[str]:
        self._read_logs()
        return list(self._requests)

    @property
    def outside(self) -> list[str]:
        """What was asked for beyond the page's own server, or beyond the page's own file."""
        here = urlsplit(self.driver.current_url)
        if here.scheme == "file":
            return [url for url in self.requests if url.partition("#")[0] != self.driver.current_url.partition("#")[0]]
        return [url for url in self.requests if urlsplit(url)[:2] != here[:2]]

    def run(self, script: str, *arguments: Any) -> Any:
        """What `return ...` in JavaScript gives."""
        return self.driver.execute_script(script, *arguments)

    def broken_pictures(self) -> list[str]:
        """Descriptions of the pictures that are not shown."""
        # A picture below the window may not have been decoded yet; decode() waits for it.
        found: list[str] = self.driver.execute_async_script(
            "const done = arguments[arguments.length - 1];"
            "Promise.all([...document.images].map(image => image.decode().then(() => '', () => image.alt || '?')))"
            ".then(names => done(names.filter(name => name)));"
        )
        return found

    def too_wide(self) -> list[str]:
        """Elements that make the page itself scroll sideways; parts that scroll by themselves do not count."""
        found: list[str] = self.run(
            "const width = document.documentElement.clientWidth;"
            "if (document.documentElement.scrollWidth <= width) return [];"
            "return [...document.body.querySelectorAll('*')].filter(e => e.getBoundingClientRect().right > width + 1)"
            ".map(e => e.tagName + '.' + e.getAttribute('class'));"
        )
        return found

    def poor_contrast(self) -> list[str]:
        """Elements whose text is hard to read on its ground."""
        found: list[str] = self.run(CONTRAST)
        return found

    def screenshot(self, file: Path, *, whole: bool = False) -> Path:
        """Writes a PNG of the window, or of the whole page."""
        if whole:
            width, height = self.run("return [document.documentElement.clientWidth, document.body.scrollHeight]")
            clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
            taken = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
            file.write_bytes(base64.b64decode(taken["data"]))
        else:
            self.driver.save_screenshot(str(file))
        return file

    def _read_logs(self) -> None:
        self._errors += [
            f"{e['level']}: {e['message']}" for e in self.driver.get_log("browser") if e["level"] != "INFO"
        ]
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                url = message["params"].get("request", message["params"])["url"]
                if not url.startswith(("data:", "blob:", "about:")):
                    self._requests.append(url)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; they use `browser`."""
    found = [pair for pair in PLACES if all(shutil.which(name) for name in pair)]
    if not found:
        pytest.skip("no Chromium with its driver is installed (apt-get install chromium chromium-driver)")
    try:
        from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    except ImportError:
        pytest.skip("selenium is not installed (pip install -e '.[dev]')")
    binary, driver_binary = (shutil.which(name) for name in found[0])
    options = ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses to work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=ChromeService(driver_binary))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(60)
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """The browser, with an empty page, nothing recorded, a light theme and a window of 1200 x 900."""
    chromium.open("about:blank")
    chromium.driver.delete_all_cookies()
    yield chromium
    chromium.driver.get("about:blank")  # what the page still does does not count for the next test
