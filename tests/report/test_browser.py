"""A page in a real browser: Chromium of the distribution, driven by Playwright; skipped where one is missing."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from densepath.report.verb import write_report
from tests.report.conftest import Make

pytest.importorskip("plotly")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
_PATIENCE = 180_000  # ms, for machines that do much else
EVIL = "<script>alert(1)<script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sandbox = ["--no-sandbox"] if os.getuid() == 0 else []
    with playwright.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield opened
        opened.close()


@pytest.fixture
def page_file(make_pretraining: Make, make_detector: Make, tmp_path: Path) -> Path:
    run = make_pretraining(EVIL, config={"backbone": EVIL})
    sheet = io.BytesIO()
    Image.fromarray(np.full((6 * 16, 16, 3), 99, np.uint8)).save(sheet, "JPEG")
    np.savez(
        run / "pictures" / "features.npz",
        features=np.eye(6, 8, dtype=np.float16),
        names=np.array([f"{EVIL}{k}" for k in range(6)]),
        thumbnails=np.frombuffer(sheet.getvalue(), np.uint8),
    )
    detector = make_detector([[(0, 0, 10), (20, 20, 10)]], [[(0, 0, 10, 0.9), (25, 0, 8, 0.7)]])
    out = tmp_path / "page.html"
    write_report([str(run), str(detector)], out=out)
    return out


def test_a_page_works_without_errors(browser: Any, page_file: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 800}, offline=True)
    context.set_default_timeout(_PATIENCE)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.goto(page_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # a phone shows its whole width
    page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")

    slider = page.locator("figure.slider input")
    assert slider.input_value() == "1"
    slider.press("ArrowLeft")  # by keyboard
    assert page.locator("figure.slider output").inner_text() == "step 10"
    assert page.locator("figure.slider img:not([hidden])").count() == 1

    counts = page.locator("figure.detections > label output")
    assert counts.inner_text() == "0.50: 1 correct, 1 false, 1 missed"
    threshold = page.locator("figure.detections input")
    for value, text in (("0.8", "0.80: 1 correct, 0 false, 1 missed"), ("0.95", "0.95: 0 correct, 0 false, 2 missed")):
        threshold.fill(value)
        assert counts.inner_text() == text

    plot = page.locator("figure.embedding .plot")
    plot.scroll_into_view_if_needed()
    page.wait_for_selector("figure.embedding .point")
    place = page.locator("figure.embedding .point").nth(2).bounding_box()
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2, steps=5)
    page.wait_for_selector("#tip:not([hidden])")
    assert page.locator("#tip p").inner_text().startswith(EVIL)
    assert (page.locator("#tip img").get_attribute("src") or "").startswith("data:image/webp")

    heads = page.locator("tr.sort button")
    colors = [page.evaluate("getComputedStyle(document.body).backgroundColor")]
    page.emulate_media(color_scheme="dark")
    colors.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert colors[0] != colors[1] and heads.count() == 0
    assert page.evaluate("document.querySelectorAll('img[src=x]').length") == 0
    assert said == []
    context.close()


def test_a_table_is_sorted_by_a_column(browser: Any, make_pretraining: Make, tmp_path: Path) -> None:
    for name, level in (("a", 0.5), ("b", 1.5), ("c", 1.0)):
        make_pretraining(name, level=level)
    write_report([str(tmp_path)], out=tmp_path / "page.html")
    page = browser.new_page()
    page.set_default_timeout(_PATIENCE)
    page.goto((tmp_path / "page.html").as_uri())
    first = "[...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[0].textContent)"
    assert page.evaluate(first) == ["b", "c", "a"]
    page.locator("tr.sort button", has_text="loss").first.click()
    page.locator("tr.sort button", has_text="loss").first.click()
    assert page.evaluate(first) == ["a", "c", "b"]
    page.close()
