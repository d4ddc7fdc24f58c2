"""A real browser for tests: Chromium of the distribution, driven by Playwright or Selenium, whichever is installed."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_PATIENCE = 180  # seconds, for machines that do much else
_QUIET = "--disable-background-networking"  # the browser's own, such as updates
_KEYS = {"ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Tab": "\ue004", "Enter": "\ue007"}  # Selenium's


def _arguments() -> list[str]:
    return [_QUIET, *(["--no-sandbox"] if os.getuid() == 0 else [])]


class Browser(Protocol):
    """A page in a browser."""

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Show a file without a network."""

    def run(self, code: str) -> Any:
        """The value of an expression in JavaScript."""

    def press(self, key: str) -> None:
        """Press a key at what has the focus."""

    def point(self, x: float, y: float) -> None:
        """Move the mouse to a place of the window."""

    def dark(self) -> None:
        """Prefer dark colors."""

    def printed(self) -> bytes:
        """The page as a PDF."""

    def said(self) -> list[str]:
        """What the page wrote to the console, its errors and dialogs."""

    def wait(self, code: str) -> None:
        """Wait until an expression is true."""


class _Playwright:
    def __init__(self, engine: Any) -> None:
        self._browser = engine.chromium.launch(executable_path=CHROMIUM, args=_arguments())
        self._page = self._browser.new_context(offline=True).new_page()
        self._page.set_default_timeout(1000 * _PATIENCE)
        self._said: list[str] = []
        self._page.on("console", lambda message: self._said.append(message.text))
        self._page.on("pageerror", lambda error: self._said.append(str(error)))
        self._page.on("dialog", lambda dialog: (self._said.append(dialog.message), dialog.dismiss()))

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        self._page.set_viewport_size({"width": width, "height": height})
        self._page.goto(path.as_uri())

    def run(self, code: str) -> Any:
        return self._page.evaluate(code)

    def press(self, key: str) -> None:
        self._page.keyboard.press(key)

    def point(self, x: float, y: float) -> None:
        self._page.mouse.move(x, y, steps=5)

    def dark(self) -> None:
        self._page.emulate_media(color_scheme="dark")

    def printed(self) -> bytes:
        return bytes(self._page.pdf(format="A4"))

    def said(self) -> list[str]:
        return self._said

    def wait(self, code: str) -> None:
        # Its own wait_for_function needs eval, which the page forbids.
        end = time.monotonic() + _PATIENCE
        while not self.run(code):
            assert time.monotonic() < end, f"never true: {code}"
            self._page.wait_for_timeout(50)

    def close(self) -> None:
        self._browser.close()


class _Selenium:
    def __init__(self) -> None:
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        options.set_capability("unhandledPromptBehavior", "accept")
        for argument in ("--headless=new", *_arguments()):
            options.add_argument(argument)
        self._driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self._driver.set_page_load_timeout(_PATIENCE)
        self._driver.execute_cdp_cmd("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self._driver.get(path.as_uri())

    def run(self, code: str) -> Any:
        return self._driver.execute_script(f"return {code}")

    def press(self, key: str) -> None:
        self._driver.switch_to.active_element.send_keys(_KEYS[key])

    def point(self, x: float, y: float) -> None:
        for step in (3, 0):
            self._driver.execute_cdp_cmd("Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + step, "y": y})

    def dark(self) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark"}
        self._driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def printed(self) -> bytes:
        return base64.b64decode(self._driver.print_page())

    def said(self) -> list[str]:
        return [entry["message"] for entry in self._driver.get_log("browser")]

    def wait(self, code: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self._driver, _PATIENCE).until(lambda driver: self.run(code))

    def close(self) -> None:
        self._driver.quit()


@contextmanager
def _by_playwright() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = _Playwright(engine)
        yield browser
        browser.close()


@contextmanager
def _by_selenium() -> Iterator[Browser]:
    browser = _Selenium()
    yield browser
    browser.close()


def drivers() -> dict[str, Callable[[], Any]]:
    """What can drive the browser here, by name."""
    found: dict[str, Callable[[], Any]] = {}
    if CHROMIUM and find_spec("playwright"):
        found["playwright"] = _by_playwright
    if CHROMIUM and find_spec("selenium") and shutil.which("chromedriver"):
        found["selenium"] = _by_selenium
    return found
