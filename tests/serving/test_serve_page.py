"""The page in a real browser: every way in, a bad file, the keyboard alone, a phone; nothing from elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.browser import PHONE
from support.exports import NAMES, export_tiny
from support.serving import serving

from dogbreed.inference.predictor import Predictor
from dogbreed.models.neighbours import build

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    run = export_tiny(tmp_path_factory.mktemp("run") / "model").parent  # which stands for its model
    with serving(run, "--max-body", "1") as running:
        yield running


@pytest.fixture
def page(server, browser):
    browser.open(server.address)
    yield browser
    # The browser itself notes that a picture was refused.
    said = [line for line in browser.errors if "/explain?top_k=5 - Failed to load resource" not in line]
    assert said == [], "nothing is said in the console"
    assert browser.outside == [], "nothing is asked of anybody else"


def test_it_asks_for_a_breed_where_they_are_dogs(browser, tmp_path):
    with serving(export_tiny(tmp_path / "dogs", ["Afghan_hound", "Beagle", "Boxer"])) as running:
        browser.open(running.address)
        wait(browser, "document.getElementById('model').textContent.includes('3 breeds')")
        assert browser.driver.title == "Which breed is this dog?"
        assert browser.driver.find_element("tag name", "h1").text == "Which breed is this dog?"


@pytest.mark.parametrize(("least", "words"), [(0.999, ""), (0.0, "Not sure: 4 classes are possible.")])
def test_the_set_in_words(browser, photo, tmp_path, least, words):
    with serving(export_tiny(tmp_path / "model", least=least)) as running:
        browser.open(running.address)
        assert not browser.driver.find_element("id", "set").is_displayed()
        browser.driver.find_element("id", "file").send_keys(str(photo))
        answer(browser)
        assert browser.driver.find_element("id", "set").text == words
        assert browser.errors == []


def test_what_is_unlike_in_words(browser, photo, tmp_path):
    unlike = replace(build([torch.rand(9, 512)]), threshold=1.1)  # above every cosine
    with serving(export_tiny(tmp_path / "model", least=0.0, neighbours=unlike)) as running:
        browser.open(running.address)
        browser.driver.find_element("id", "file").send_keys(str(photo))
        answer(browser)
        words = "This is unlike the photographs that the model was trained on."
        assert browser.driver.find_element("id", "set").text == words


def test_similar_training_images(server, browser, photo, tmp_path):
    drawn = torch.rand(9, 512, generator=torch.Generator().manual_seed(0))
    index = build([drawn]).with_names([f"train/<b>{row}</b>.jpg" for row in range(9)], torch.arange(9) % len(NAMES))
    with serving(export_tiny(tmp_path / "model", neighbours=index)) as running:
        browser.open(running.address, theme="dark", width=PHONE, height=800)
        assert not browser.driver.find_element("id", "similar").is_displayed()
        browser.driver.find_element("id", "file").send_keys(str(photo))
        answer(browser)
        shown = [item.text.splitlines() for item in browser.driver.find_elements("css selector", "#alike li")]
        expected = Predictor(tmp_path / "model").predict(photo, similar=5).similar
        assert shown == [[f"{one.label.replace('_', ' ')} {one.cosine:.2f}", one.path] for one in expected]
        assert browser.too_wide() == browser.poor_contrast() == browser.errors == browser.outside == []


def test_the_classes_of_a_set_by_name(browser, photo, tmp_path):
    second, third = (score.probability for score in Predictor(export_tiny(tmp_path / "plain")).predict(photo).top[1:3])
    with serving(export_tiny(tmp_path / "model", least=(second + third) / 2)) as running:
        browser.open(running.address)
        browser.driver.find_element("id", "file").send_keys(str(photo))
        names = answer(browser)
        assert browser.driver.find_element("id", "set").text == f"One of: {names[0]}, {names[1]}"


@pytest.fixture(scope="module")
def photo(dog_tree: Path) -> Path:
    return min(dog_tree.glob("test/*/*.jpg"))


def wait(page, script: str):
    """The value of a script as soon as it is one."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(page.driver, 20).until(lambda driver: driver.execute_script(f"return {script}"))


def answer(page) -> list[str]:
    """Classes as they are shown."""
    wait(page, "!document.getElementById('choices').hidden")
    return page.driver.execute_script("return [...document.querySelectorAll('.choice .name')].map(e => e.textContent)")


def heat(page) -> int:
    """How many pixels of the map are painted."""
    return page.driver.execute_script(
        "const c = document.getElementById('heat'); const d = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
        "return d.data.filter((v, i) => i % 4 === 3 && v > 0).length"
    )


def test_choosing_a_file(page, photo):
    page.driver.find_element("id", "file").send_keys(str(photo))
    names = answer(page)
    assert sorted(names) == sorted(name.replace("_", " ") for name in NAMES)
    assert page.driver.title == "What is on this photograph?"
    assert page.driver.find_element("id", "model").text.startswith("squeezenet1_1 · 4 classes")
    assert page.driver.find_element("id", "status").text.startswith(names[0])
    wait(page, "document.getElementById('shown').naturalWidth")
    assert heat(page) > 1000
    lit = "!document.getElementById('heat').classList.contains('off')"
    assert not page.driver.execute_script(f"return {lit}"), "the photograph first"
    page.driver.find_element("id", "lit").click()
    assert wait(page, lit)
    widths = [
        float(bar.get_attribute("style").split("width:")[1].strip(" %;"))
        for bar in page.driver.find_elements("css selector", ".bar i")
    ]
    assert widths == sorted(widths, reverse=True)
    assert sum(widths) == pytest.approx(100, abs=0.1)


def test_several_photographs(page, photo, tmp_path):
    """The first is asked about at once, and the other when its button is pressed; both say their answer."""
    other = tmp_path / "other.jpg"
    other.write_bytes(photo.read_bytes())
    page.driver.find_element("id", "file").send_keys(f"{photo}\n{other}")
    (best, *_) = answer(page)
    first, second = page.driver.find_elements("css selector", "#files button")
    assert (first.text, second.text) == (f"{photo.name}: {best}", "other.jpg")
    second.click()
    assert wait(page, f"document.querySelector('#files [aria-current=true]').textContent === 'other.jpg: {best}'")
    page.driver.find_element("id", "file").send_keys(str(photo))
    assert wait(page, "document.querySelectorAll('#files button').length === 0")


DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (c) => c.charCodeAt(0));
const given = new DataTransfer();
given.items.add(new File([bytes], arguments[1], { type: arguments[2] }));
const place = arguments[3] === "paste" ? "clipboardData" : "dataTransfer";
const options = { bubbles: true, cancelable: true, [place]: given };
const make = (kind) => (kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
for (const kind of arguments[3] === "paste" ? ["paste"] : ["dragenter", "dragover", "drop"])
  document.getElementById("drop").dispatchEvent(make(kind));
"""


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_dropping_and_pasting(page, photo, way):
    from base64 import b64encode

    page.driver.execute_script(DROP, b64encode(photo.read_bytes()).decode(), "dog.jpg", "image/jpeg", way)
    assert len(answer(page)) == 4
    assert "over" not in page.driver.find_element("tag name", "body").get_attribute("class")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"this is no photograph", "cannot be used: not an image."), (bytes(1_500_000), "up to 1.0 MB are taken")],
)
def test_a_bad_file_is_a_sentence(page, photo, tmp_path, content, said):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(content)
    page.driver.find_element("id", "file").send_keys(str(bad))
    wait(page, "!document.getElementById('error').hidden")
    assert said in page.driver.find_element("id", "error").text
    assert not page.driver.find_element("id", "choices").is_displayed()
    page.driver.find_element("id", "file").send_keys(str(photo))
    assert len(answer(page)) == 4
    assert not page.driver.find_element("id", "error").is_displayed()


def test_a_picture_that_browsers_do_not_show(page, photo, tmp_path):
    with Image.open(photo) as opened:
        opened.save(tmp_path / "dog.tiff")
    page.driver.find_element("id", "file").send_keys(str(tmp_path / "dog.tiff"))
    assert len(answer(page)) == len(NAMES)
    wait(page, "document.getElementById('frame').hidden && !document.getElementById('note').hidden")
    assert "does not show this kind of picture" in page.driver.find_element("id", "note").text
    assert not page.driver.find_element("id", "switch").is_displayed(), "there is no map to switch off"
    page.driver.find_element("id", "file").send_keys(str(photo))
    wait(page, "!document.getElementById('switch').hidden")


def test_the_keyboard_alone(page, photo):
    from selenium.webdriver.common.keys import Keys

    page.driver.execute_script("document.getElementById('file').click = () => { window.asked = true }")
    page.driver.switch_to.active_element.send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("id") == "choose"
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert page.driver.execute_script("return window.asked"), "the button opens the choice of files"
    page.driver.find_element("id", "file").send_keys(str(photo))
    answer(page)
    page.driver.find_element("id", "choose").send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.get_attribute("name") == "choice"
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert page.driver.execute_script("return document.querySelector('input[name=choice]:checked').value") == "1"
    page.driver.switch_to.active_element.send_keys(Keys.TAB, Keys.SPACE)
    assert "off" in page.driver.find_element("id", "heat").get_attribute("class")


def test_labels_for_who_does_not_see(page):
    nameless = page.driver.execute_script(
        "return [...document.querySelectorAll('button, section, img:not([alt])')]"
        ".filter(e => !(e.textContent.trim() || e.getAttribute('aria-label'))).length"
    )
    assert nameless == 0
    assert page.driver.find_element("id", "status").get_attribute("aria-live") == "polite"
    assert page.driver.find_element("id", "error").get_attribute("role") == "alert"
    coarse, shown = page.driver.execute_script(
        "return [matchMedia('(pointer: coarse)').matches, "
        "['touch', 'mouse'].map(c => getComputedStyle(document.querySelector('.' + c)).display !== 'none')]"
    )
    assert shown == [coarse, not coarse], "nothing is dropped onto a phone"
    assert page.driver.find_element("id", "camera").get_attribute("capture") == "environment"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone(server, browser, tmp_path, theme):
    photo = tmp_path / "wide.jpg"
    Image.effect_noise((900, 400), 50).save(photo)
    browser.open(server.address, theme=theme, width=PHONE, height=800)
    browser.driver.find_element("id", "file").send_keys(str(photo))
    answer(browser)
    wait(browser, "document.getElementById('frame').style.width")
    assert browser.too_wide() == []
    assert browser.poor_contrast() == []
    assert browser.errors == []
    assert browser.outside == []
