"""The page of avrec.report.page in a real headless Chromium, driven by Playwright."""

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    "--host-resolver-rules=MAP * ~NOTFOUND",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


class Browser:
    """One tab.

    Attributes:
        requests: addresses requested since the page was opened.
        complaints: since then, console messages, uncaught errors, dialogs and failed requests.
    """

    def __init__(self, chromium: Any) -> None:
        self.chromium = chromium
        self.tab: Any = None
        self.requests: list[str] = []
        self.complaints: list[str] = []

    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> None:
        """Load a file, on a phone if the width is one's."""
        if self.tab:
            self.tab.context.close()
        size = {"width": width, "height": 800}
        phone = {"is_mobile": True, "has_touch": True} if width < 600 else {}
        self.tab = self.chromium.new_context(viewport=size, color_scheme=scheme, **phone).new_page()
        self.requests, self.complaints = [], []
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.complaints.append(str(request.failure)))
        self.tab.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.accept()))
        self.tab.goto(path.as_uri())

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        return self.tab.evaluate(script)

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        # wait_for_function evaluates strings in the page, which its content security policy forbids.
        end = time.monotonic() + 15
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            self.tab.wait_for_timeout(20)

    def click(self, element: str) -> None:
        """Click the middle of an expression's element."""
        self.tab.evaluate_handle(element).as_element().click()

    def press(self, key: str) -> None:
        """Press a key, by the name that scripts see."""
        self.tab.keyboard.press(key)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield Browser(chromium)
        chromium.close()


@pytest.fixture(scope="module")
def file(page, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def test_the_browser_tells_on_a_page_that_misbehaves(browser, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text("<img src=http://nowhere.invalid/a.png><script>alert(7); console.log('hello'); oops()</script>")
    browser.open(path)
    assert "http://nowhere.invalid/a.png" in browser.requests
    told = " ".join(browser.complaints)
    assert all(word in told for word in ("7", "hello", "oops is not defined", "ERR_"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 375])
def test_quiet_alone_and_as_wide_as_the_screen(browser, file, width, scheme):
    browser.open(file, width, scheme)
    for tab in range(browser.run("document.querySelectorAll('[role=tab]').length")):
        browser.run(f"document.querySelectorAll('[role=tab]')[{tab}].click()")
        assert browser.run("document.documentElement.scrollWidth") <= width
    red = browser.run("+getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]")
    assert red < 40 if scheme == "dark" else red > 230
    assert {url for url in browser.requests if not url.startswith("data:")} == {file.as_uri()}
    assert browser.complaints == []


def test_markup_in_a_title_is_text(browser, file, material):
    browser.open(file)
    assert browser.run("document.querySelectorAll('img, script, u, i:not([class]):not(.legend i)').length") == 2
    assert material.name in browser.run("document.querySelector('.run').textContent")
    titles = browser.run("[...document.querySelectorAll('.tile .title')].map(e => e.textContent)")
    assert set(titles) <= set(material.titles)
    assert browser.complaints == []


def test_hovering_the_map_shows_title_and_poster(browser, file, material):
    browser.open(file)
    browser.run("document.querySelector('#plane').scrollIntoView()")
    matrix = "document.querySelector('#plane svg').getScreenCTM()"
    place = f"new DOMPoint(...data.points[5].slice(0, 2)).matrixTransform({matrix})"
    at = browser.run(f"(p => [p.x, p.y])({place})")
    assert browser.run("tip.hidden")
    browser.tab.mouse.move(*at)
    browser.until("!tip.hidden")
    assert browser.run("tip.querySelector('span').textContent") == material.titles[5]
    assert browser.run("tip.querySelector('small').textContent") == "other"
    assert browser.run("getComputedStyle(tip.querySelector('.mini')).backgroundImage").startswith(
        'url("data:image/jpeg'
    )
    assert browser.run("tip.querySelector('.mini').offsetHeight") > 30
    browser.tab.mouse.move(5, 5)
    browser.until("tip.hidden")
    assert browser.complaints == []


def test_the_map_by_keyboard(browser, file, material):
    browser.open(file)
    browser.run("document.querySelector('#plane svg').focus()")
    seen = []
    for _ in range(len(material.items)):
        browser.press("ArrowRight")
        seen.append(browser.run("tip.hidden || tip.querySelector('span').textContent"))
    assert sorted(seen) == sorted(material.titles)
    browser.press("ArrowLeft")
    assert browser.run("tip.querySelector('span').textContent") == seen[-2]
    browser.press("Escape")
    assert browser.run("tip.hidden")
    browser.click("document.querySelector('.legend button')")
    browser.run("document.querySelector('#plane svg').focus()")
    browser.press("ArrowRight")
    group = browser.run("document.querySelector('.legend [aria-pressed=true] span').textContent")
    assert browser.run("tip.querySelector('small').textContent") == group
    assert browser.complaints == []


@pytest.mark.parametrize("section", ["results", "modalities", "gallery"])
def test_tabs_switch_by_mouse_and_keyboard(browser, file, section):
    browser.open(file, 375)
    shown = f"[...document.querySelectorAll('#{section} .panel')].findIndex(p => p.checkVisibility())"
    chosen = f"[...document.querySelectorAll('#{section} [role=tab]')].findIndex(t => t.ariaSelected === 'true')"
    focus = f"[...document.querySelectorAll('#{section} [role=tab]')].indexOf(document.activeElement)"
    assert browser.run(f"[{shown}, {chosen}]") == [0, 0]
    browser.click(f"document.querySelectorAll('#{section} [role=tab]')[2]")
    assert browser.run(f"[{shown}, {chosen}, {focus}]") == [2, 2, 2]
    browser.press("ArrowLeft")
    assert browser.run(f"[{shown}, {chosen}, {focus}]") == [1, 1, 1]
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    last = browser.run(f"document.querySelectorAll('#{section} .panel').length") - 1
    assert browser.run(f"[{shown}, {chosen}, {focus}]") == [min(3, last) if last > 2 else 0] * 3
    assert browser.complaints == []


@pytest.mark.parametrize("how", ["mouse", "keyboard"])
def test_the_player_plays(browser, file, material, how):
    browser.open(file)
    button = "[...document.querySelectorAll('.play')].find(b => b.checkVisibility())"
    if not browser.run(f"!!{button}"):
        tabs = "[...document.querySelectorAll('#gallery [role=tab]')]"
        browser.run(f"{tabs}.find(t => (t.click(), {button}))")
    assert not browser.run("audio.checkVisibility()")
    if how == "mouse":
        browser.click(button)
    else:
        browser.run(f"{button}.focus()")
        browser.press("Enter")
    browser.until("audio.currentTime > 0.1")
    assert browser.run("[audio.readyState >= 2, audio.error, audio.checkVisibility()]") == [True, None, True]
    assert 0.8 < browser.run("audio.duration") < 1.5
    assert browser.run("playing.textContent") == material.titles[0]
    assert browser.complaints == []
