"""The page of avrec.report.page in a real headless Chromium, driven over its DevTools pipe: no package is needed."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ["background-networking", "component-update", "gpu", "sync"]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--no-first-run",
    "--remote-debugging-pipe",
    *(f"--disable-{it}" for it in QUIET),
]
KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")


class Browser:
    """One tab.

    Attributes:
        requests: addresses of all that was asked for since the page was opened.
        complaints: since then, console messages, uncaught errors, dialogs and what the browser logged itself.
    """

    def __init__(self, profile: Path) -> None:
        # It reads file descriptor 3 and writes 4.
        to_read, self.pipe_in = os.pipe()
        self.pipe_out, to_write = os.pipe()
        shell = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash"]
        nowhere = "--host-resolver-rules=MAP * ~NOTFOUND"
        command = [*shell, str(CHROMIUM), *FLAGS, nowhere, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL)
        os.close(to_read)
        os.close(to_write)
        self.left, self.number, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        targets = self.send("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask for something and wait for the answer."""
        number = self._ask(method, **params)
        while (answer := self._receive()).get("id") != number:
            if "method" in answer:
                self._note(answer["method"], answer["params"])
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _ask(self, method: str, **params: Any) -> int:
        self.number += 1
        session = {"sessionId": self.session} if self.session else {}
        message = {"id": self.number, "method": method, "params": params, **session}
        os.write(self.pipe_in, json.dumps(message).encode() + b"\0")
        return self.number

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.left:
            assert select.select([self.pipe_out], [], [], 30)[0], "Chromium is silent"
            got = os.read(self.pipe_out, 1 << 20)
            assert got, "Chromium has gone"
            self.left += got
        message, _, self.left = self.left.partition(b"\0")
        return json.loads(message)

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(json.dumps(params))
        elif method == "Page.javascriptDialogOpening":
            self.complaints.append(params["message"])
            self._ask("Page.handleJavaScriptDialog", accept=True)

    def open(self, path: Path, width: int = 1280, scheme: str = "light") -> None:
        """Load a file, on a phone where the width is one's, and wait for all of it."""
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url="about:blank")
        self.requests, self.complaints = [], []
        self.send("Page.navigate", url=path.as_uri())
        self.until(f"location.href === {json.dumps(path.as_uri())} && document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """What an expression gives in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + 15
        while not self.run(script):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.02)

    def mouse(self, x: float, y: float, *kinds: str) -> None:
        """Move there, or press and release there."""
        for kind in kinds:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, element: str) -> None:
        """Click the middle of what an expression gives."""
        script = "(e => { e.scrollIntoView({block: 'center'}); return {...e.getBoundingClientRect().toJSON()} })"
        box = self.run(f"{script}({element})")
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.mouse(x, y, "mousePressed", "mouseReleased")

    def press(self, key: str) -> None:
        """A key, by the name that scripts see."""
        pressed = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.send("Input.dispatchKeyEvent", type="keyDown", **pressed, **({"text": "\r"} if key == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **pressed)

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self.pipe_in)
        os.close(self.pipe_out)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


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
    browser.mouse(*at, "mouseMoved")
    browser.until("!tip.hidden")
    assert browser.run("tip.querySelector('span').textContent") == material.titles[5]
    assert browser.run("tip.querySelector('small').textContent") == "other"
    assert browser.run("getComputedStyle(tip.querySelector('.mini')).backgroundImage").startswith(
        'url("data:image/jpeg'
    )
    assert browser.run("tip.querySelector('.mini').offsetHeight") > 30
    browser.mouse(5, 5, "mouseMoved")
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
