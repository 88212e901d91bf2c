"""The page in a real browser: clicks, images, the schedule, downloads, errors in words."""

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import RANGE, Running, gated, model_of, running, untrained, untrained_decoder
from support import wait_until
from told_words import MAX_TOKENS, WIDTH, told_words

from sfd.generation.images import ImageGenerator
from sfd.models.conditions import ClassCondition, Condition, NoCondition
from sfd.models.text_condition import TextCondition
from sfd.pictures import PHASE_COLOURS
from sfd.serving.options import ServerOptions

selenium = pytest.importorskip("selenium", reason="selenium is not installed")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service as Driver  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, CHROMEDRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM.exists() and CHROMEDRIVER.exists()), reason="chromium and chromedriver are not installed in /usr/bin"
)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)
EVIL = "<img src=x onerror=\"document.title='broken'\">"
OPTIONS = ServerOptions("sfd-test", max_images=4, max_queue=8)


class Browser:
    """One browser window, and what its page did: requests and console messages."""

    def __init__(self, folder: Path) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in [*FLAGS.split(), f"--user-data-dir={folder / 'profile'}"]:
            options.add_argument(flag)
        self.downloads = folder / "downloads"
        self.downloads.mkdir()
        options.add_experimental_option("prefs", {"download.default_directory": str(self.downloads)})
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options, Driver(str(CHROMEDRIVER)))

    def open(self, server: Running) -> None:
        self.driver.get(server.url)
        wait_until(lambda: bool(self.all("svg.curves")) or self.one("#entry").is_displayed(), 60)

    def one(self, selector: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements(By.CSS_SELECTOR, selector))

    def text(self, selector: str) -> str:
        return str(self.one(selector).text)

    def write(self, selector: str, text: str) -> None:
        self.one(selector).clear()
        self.one(selector).send_keys(text)

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def generate(self, count: int = 4) -> None:
        self.write("#count", str(count))
        self.click("#generate")

    def wait_for(self, selector: str, text: str) -> None:
        wait_until(lambda: text in self.text(selector), 60)

    def sources(self) -> list[str]:
        """The images' content, as data URLs, in the order of their seeds."""
        # From the page's own variable: its policy lets nobody fetch, not even what it has made itself.
        script = """
            const done = arguments[0];
            const read = ({ blob }) => new Promise((resolve) => {
              const reader = new FileReader();
              reader.onload = () => resolve(reader.result);
              reader.readAsDataURL(blob);
            });
            Promise.all([...made].sort((a, b) => (a.seed < b.seed ? -1 : 1)).map(read)).then(done);"""
        return list(self.driver.execute_async_script(script))

    def downloaded(self, name: str) -> bytes:
        wait_until((self.downloads / name).exists, 60)
        return (self.downloads / name).read_bytes()

    def requested(self) -> set[str]:
        """Addresses that were asked for since the last look."""
        messages = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        return {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.driver.quit()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """Two classes, one with markup in its name, and a free tau."""
    model = untrained(["lying", EVIL], RANGE, {"schedule": {"kind": "offset", "tau": 0.2}})
    with running(model, OPTIONS) as made:
        yield made


def test_four_images_of_a_class_and_seed_appear_and_are_those_of_the_server(browser: Browser, server: Running) -> None:
    browser.open(server)
    assert browser.text("#name") == "sfd-test" and "version 1" in browser.text("#version")
    assert "same class, seed and settings" in browser.text("#nothing")
    browser.all("[name=class]")[1].click()
    browser.write("#seed", str(2**62))
    browser.generate(4)
    browser.wait_for("#status", "4 done")
    wait_until(lambda: browser.driver.execute_script("return [...document.images].every((i) => i.complete)"), 60)
    sizes = browser.driver.execute_script("return [...document.images].map((image) => image.naturalWidth)")
    assert sizes == [16] * 4
    assert browser.one("#grid img").value_of_css_property("image-rendering") == "pixelated"
    expected = server.ask("/generate", {"class": 1, "seed": 2**62, "count": 4, "format": "json"}).json["images"]
    assert browser.sources() == ["data:image/png;base64," + image["png"] for image in expected]
    assert browser.all("#grid img")[3].get_attribute("alt") == f"class {EVIL}, seed {2**62 + 3}"
    assert browser.complaints() == []


@pytest.mark.parametrize("condition", [ClassCondition(("only",)), NoCondition()], ids=["one class", "none"])
def test_where_there_is_no_class_to_choose_the_page_asks_for_none(browser: Browser, condition: Condition) -> None:
    images = ImageGenerator(model_of(condition, {"tau": 0.3}), untrained_decoder())
    plain = replace(untrained(sample={"guidance": {"kind": "none"}}), images=images)
    with running(plain, OPTIONS) as server:
        browser.open(server)
        assert not browser.one("#classes").is_displayed() and not browser.one("#many").is_displayed()
        assert "The same seed and settings" in browser.text("#nothing")
        browser.generate(2)
        browser.wait_for("#status", "2 done")
        expected = server.ask("/generate", {"count": 2, "format": "json"}).json["images"]
        assert browser.sources() == ["data:image/png;base64," + image["png"] for image in expected]
        assert browser.all("#grid img")[1].get_attribute("alt") == "seed 1"


def test_names_are_shown_as_text_whatever_markup_they_hold(browser: Browser, server: Running) -> None:
    browser.open(server)
    assert [chip.text for chip in browser.all("#chips label")] == ["lying", EVIL]
    assert browser.driver.title.startswith("sfd-test") and browser.all("#chips img") == []


def test_the_phases_are_drawn_in_the_pictures_colours_and_follow_tau(browser: Browser, server: Running) -> None:
    browser.open(server)
    bands = browser.all("svg.curves rect")
    assert [band.get_attribute("fill") for band in bands] == list(PHASE_COLOURS.values())
    assert all(float(band.get_attribute("width")) > 0 for band in bands)
    for name in PHASE_COLOURS:
        assert name in browser.text("#legend") and name in browser.one("svg.curves").get_attribute("aria-label")
    assert "0.17 – 0.83" in browser.text("#legend"), "tau 0.2, as registered"
    browser.one("#tau").send_keys(Keys.END)
    assert browser.text("#tau-value") == "0.50"
    browser.wait_for("#legend", "0.33 – 0.67")
    browser.generate(1)
    browser.wait_for("#status", "1 done")
    expected = server.ask("/generate", {"class": 0, "tau": 0.5, "format": "json"}).json["images"][0]["png"]
    assert browser.sources() == ["data:image/png;base64," + expected]


def test_one_image_is_saved_by_a_click_and_all_of_them_as_a_zip_file(browser: Browser, server: Running) -> None:
    browser.open(server)
    browser.generate(3)
    browser.wait_for("#status", "3 done")
    browser.all("#grid a")[1].click()
    expected = server.ask("/generate", {"class": 0, "seed": 1}).content
    assert browser.downloaded("lying-1.png") == expected
    browser.click("#all")
    with zipfile.ZipFile(io.BytesIO(browser.downloaded("sfd-test.zip"))) as archive:
        assert archive.testzip() is None and archive.namelist() == ["lying-0.png", "lying-1.png", "lying-2.png"]
        assert archive.read("lying-1.png") == expected
        assert Image.open(io.BytesIO(archive.read("lying-2.png"))).size == (16, 16)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("#seed", "-1", "whole number"),
        ("#count", "65", "between 1 and 64"),
        ("#steps", "201", "at most 200"),
        ("#texture", "0.5", "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_told_in_words_and_mended_by_the_next_try(
    browser: Browser, server: Running, field: str, value: str, words: str
) -> None:
    browser.open(server)
    before = browser.one(field).get_attribute("value")
    browser.write("#count", "1")
    browser.write(field, value)
    browser.click("#generate")
    browser.wait_for("#wrong", words)
    assert browser.one("#wrong").get_attribute("role") == "alert"
    browser.write(field, before)
    browser.generate(1)
    browser.wait_for("#status", "1 done")
    assert browser.text("#wrong") == "" and len(browser.all("#grid li")) == 1


def test_the_keyboard_is_enough_and_every_field_has_a_label(browser: Browser, server: Running) -> None:
    browser.open(server)
    browser.write("#count", "1")
    browser.one("[name=class]").send_keys(Keys.ARROW_DOWN)
    assert browser.all("[name=class]")[1].is_selected()
    browser.one("#seed").send_keys(Keys.ENTER)
    browser.wait_for("#status", "1 done")
    nameless = "return [...document.querySelectorAll('#ask input, #ask select')].filter((f) => !f.labels.length && !f.ariaLabel).length"
    assert browser.driver.execute_script(nameless) == 0
    assert browser.one("#status").get_attribute("role") == "status"


@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_sticks_out_of_the_window(browser: Browser, server: Running, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.open(server)
    browser.generate(3)
    browser.wait_for("#status", "3 done")
    assert browser.driver.execute_script("return document.documentElement.scrollWidth") <= width
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_busy_server_is_waited_for_and_stop_frees_what_still_waits(browser: Browser) -> None:
    model, gate = gated(untrained())
    with running(model, ServerOptions("sfd-test", batch_size=1, max_images=1, max_queue=1)) as server:
        browser.open(server)
        browser.generate(3)
        browser.wait_for("#status", "the server is busy, trying again in")
        gate.open.set()
        browser.wait_for("#status", "3 done")
        assert len(browser.sources()) == 3
        gate.open.clear()
        browser.generate(4)
        wait_until(lambda: server.queued() == 1, 60)
        browser.click("#stop")
        browser.wait_for("#status", "stopped after 0")
        wait_until(lambda: server.queued() == 0, 60)
        gate.open.set()
        assert browser.one("#generate").is_enabled() and browser.text("#wrong") == ""


def test_a_server_that_is_gone_is_told_in_words(browser: Browser) -> None:
    with running(untrained()) as server:
        browser.open(server)
    browser.generate(1)
    browser.wait_for("#wrong", "The server does not answer.")


def test_the_token_is_asked_for_and_forgotten_by_a_reload(browser: Browser) -> None:
    with running(untrained(), token="s3cret") as server:
        browser.open(server)
        assert not browser.one("#ask").is_displayed()
        browser.write("#token", "wrong" + Keys.ENTER)
        browser.wait_for("#notice", "not the server's token")
        browser.write("#token", "s3cret" + Keys.ENTER)
        wait_until(lambda: bool(browser.all("svg.curves")), 60)
        browser.generate(2)
        browser.wait_for("#status", "2 done")
        assert (
            browser.driver.execute_script("return localStorage.length + sessionStorage.length + document.cookie.length")
            == 0
        )
        browser.open(server)
        assert browser.one("#entry").is_displayed() and not browser.one("#ask").is_displayed()


def test_of_a_thousand_classes_one_is_found_by_a_part_of_its_name(browser: Browser) -> None:
    with running(untrained([f"class {number}" for number in range(1000)])) as server:
        browser.open(server)
        assert len(browser.all("#list option")) == 1000
        browser.write("#filter", "s 737")
        assert [option.text for option in browser.all("#list option")] == ["class 737"]
        browser.generate(1)
        browser.wait_for("#status", "1 done")
        assert browser.one("#grid img").get_attribute("alt") == "class class 737, seed 0"
        browser.write("#filter", "no such class")
        browser.click("#generate")
        browser.wait_for("#wrong", "No class has this name.")


@pytest.fixture(scope="module")
def reader() -> Iterator[Running]:
    """A model that is told words, one of whose captions holds markup."""
    condition = TextCondition(WIDTH, MAX_TOKENS, examples=("a red bar", EVIL))
    with running(told_words(condition=condition), OPTIONS) as made:
        yield made


def test_the_prompt_box_offers_captions_and_draws_what_is_written(browser: Browser, reader: Running) -> None:
    browser.complaints()  # those of the tests before, some of which provoke them
    browser.open(reader)
    assert browser.one("#prompt").get_attribute("value") == "a red bar"
    browser.click("#examples-field summary")
    assert [example.text for example in browser.all("#examples button")] == ["a red bar", EVIL]
    browser.all("#examples button")[1].click()
    assert browser.one("#prompt").get_attribute("value") == EVIL
    browser.write("#prompt", "a blue bar")
    browser.write("#negative", "tall")
    browser.generate(2)
    browser.wait_for("#status", "2 done")
    asked = {"prompt": "a blue bar", "negative_prompt": "tall", "count": 2, "format": "json"}
    expected = reader.ask("/generate", asked).json["images"]
    assert browser.sources() == ["data:image/png;base64," + image["png"] for image in expected]
    assert browser.all("#grid img")[1].get_attribute("alt") == "a blue bar, seed 1"
    assert not browser.one("#looks").is_displayed(), "nobody asked where words look"
    browser.write("#prompt", "one two three four five six")
    browser.generate(1)
    browser.wait_for("#wrong", "the model reads 5: the end had no effect")
    assert browser.complaints() == []


def test_a_word_that_is_pointed_at_or_clicked_shows_where_it_looks_on_every_image(
    browser: Browser, reader: Running
) -> None:
    def shown() -> list[str]:
        return [str(heat.get_attribute("src")) for heat in browser.all("#grid .heat img")]

    browser.open(reader)
    browser.write("#prompt", "red <b>bar</b>")
    browser.click("#attention")
    browser.generate(2)
    browser.wait_for("#status", "2 done")
    asked = {"prompt": "red <b>bar</b>", "count": 2, "format": "json", "attention": True}
    expected = reader.ask("/generate", asked).json["images"]
    maps = [["data:image/png;base64," + image["attention"][n]["png"] for image in expected] for n in range(2)]
    assert browser.sources() == ["data:image/png;base64," + image["png"] for image in expected]
    words = browser.all("#looks-words button")
    assert [word.text for word in words] == ["red", "<b>bar</b>"] and shown() == []
    ActionChains(browser.driver).move_to_element(words[0]).perform()
    assert shown() == maps[0]
    share = expected[1]["attention"][0]["share"]
    assert browser.all("#grid p")[1].text == f"seed 1 · {100 * share:.1f} %"
    ActionChains(browser.driver).move_to_element(browser.one("h1")).perform()
    assert shown() == [] and browser.all("#grid p")[1].text == "seed 1"
    words[1].click()
    browser.driver.execute_script("document.activeElement.blur()")
    ActionChains(browser.driver).move_to_element(browser.one("h1")).perform()
    assert shown() == maps[1] and words[1].get_attribute("aria-pressed") == "true"
    browser.driver.execute_script("arguments[0].focus()", words[0])
    assert shown() == maps[0], "the keyboard is enough"
    words[1].click()
    browser.driver.execute_script("document.activeElement.blur()")
    ActionChains(browser.driver).move_to_element(browser.one("h1")).perform()
    assert shown() == [] and words[1].get_attribute("aria-pressed") == "false"
    browser.click("#attention")
    browser.generate(1)
    browser.wait_for("#status", "1 done")
    assert not browser.one("#looks").is_displayed() and browser.all("#looks-words button") == []
    assert browser.complaints() == []


def test_where_words_look_is_offered_by_models_with_cross_attention_alone(browser: Browser, server: Running) -> None:
    browser.open(server)
    assert not browser.one("#attention-field").is_displayed()
    with running(told_words(text_attention="in_context"), OPTIONS) as in_context:
        browser.open(in_context)
        assert browser.one("#prompt").is_displayed() and not browser.one("#attention-field").is_displayed()
        browser.generate(1)
        browser.wait_for("#status", "1 done")


def test_no_other_host_was_asked_for_anything(browser: Browser, server: Running) -> None:
    browser.requested()
    browser.open(server)
    browser.generate(2)
    browser.wait_for("#status", "2 done")
    asked = browser.requested()
    assert f"{server.url}/generate" in asked
    assert {url for url in asked if not url.startswith((server.url, "data:", "blob:" + server.url))} == set()
