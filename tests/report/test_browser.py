"""A page in a real browser: Chromium of the distribution, by Playwright or Selenium; skipped where both are missing."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from densepath.report.answer_charts import confusion_chart
from densepath.report.blocks import Layers, Picture, Section
from densepath.report.embedded import encode_pixels
from densepath.report.render import write_page
from densepath.report.verb import write_report
from tests.report.browsers import CHROMIUM, Browser, drivers
from tests.report.conftest import Make

pytest.importorskip("plotly")
_MISSING = "Chromium" if CHROMIUM is None else "Playwright, or Selenium with chromedriver,"
_SKIPPED = pytest.param(None, marks=pytest.mark.skip(reason=f"{_MISSING} is not installed"), id="none")
EVIL = "<script>alert(1)<script><img src=x onerror=alert(2)>"


@pytest.fixture(scope="module", params=list(drivers()) or [_SKIPPED])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with drivers()[request.param]() as opened:
        yield opened


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


def text(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({selector!r}).textContent"))


def draw_all(browser: Browser) -> None:
    """Open what is folded and draw all charts, as for printing."""
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait(
        "[...document.querySelectorAll('figure.chart')].every((figure) => figure.querySelector('.modebar-btn'))"
    )


def set_input(browser: Browser, selector: str, value: str) -> None:
    browser.run(
        "((input) => { input.value = " + value + "; input.dispatchEvent(new Event('input')); })"
        f"(document.querySelector({selector!r}))"
    )


def test_a_page_works_without_errors(browser: Browser, page_file: Path) -> None:
    browser.open(page_file, 390, 800)
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")  # a phone shows its whole width
    browser.run("document.querySelectorAll('details').forEach((part) => { part.open = true; })")

    browser.run("document.querySelector('figure.slider input').focus()")
    assert text(browser, "figure.slider output") == "step 20"
    browser.press("ArrowLeft")
    assert text(browser, "figure.slider output") == "step 10"
    assert browser.run("document.querySelectorAll('figure.slider img:not([hidden])').length") == 1

    counts = "figure.detections > label output"
    for value, expected in (
        ("0.5", "0.50: 1 correct, 1 false, 1 missed"),
        ("0.8", "0.80: 1 correct, 0 false, 1 missed"),
        ("0.95", "0.95: 0 correct, 0 false, 2 missed"),
    ):
        set_input(browser, "figure.detections input", value)
        assert text(browser, counts) == expected

    browser.run("document.querySelector('figure.embedding').scrollIntoView({behavior: 'instant', block: 'center'})")
    browser.wait("document.querySelectorAll('figure.embedding .point').length == 6")
    x, y = browser.run(
        "((box) => [box.x + box.width / 2, box.y + box.height / 2])"
        "(document.querySelectorAll('figure.embedding .point')[2].getBoundingClientRect())"
    )
    browser.point(x, y)
    browser.wait("!document.querySelector('#tip').hidden")
    assert text(browser, "#tip p").startswith(EVIL)
    assert browser.run("document.querySelector('#tip img').src").startswith("data:image/webp")

    color = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(color)
    browser.dark()
    browser.wait(f"{color} != {light!r}")
    assert browser.run("document.querySelectorAll('img[src=x]').length") == 0
    assert browser.said() == []


def test_everything_is_reached_by_keyboard_in_order(browser: Browser, page_file: Path) -> None:
    browser.open(page_file)
    draw_all(browser)
    wanted = browser.run("document.querySelectorAll('summary, input, button:not(.modebar-btn)').length")
    reached, first = [], ""
    for _ in range(200):
        browser.press("Tab")
        if not first:  # the link is seen while it has the focus
            assert not str(browser.run("getComputedStyle(document.activeElement).left")).startswith("-")
        here = browser.run("document.activeElement.outerHTML.slice(0, 80)")
        first = first or here
        reached.append(browser.run("document.activeElement.tagName"))
        if len(reached) > 1 and (here == first or reached[-1] == "BODY"):
            break
    assert "Skip to the content" in first
    assert sum(tag in ("SUMMARY", "INPUT", "BUTTON") for tag in reached) == wanted


def test_layers_are_faded_one_by_one(browser: Browser, tmp_path: Path) -> None:
    picture = Picture(encode_pixels(np.full((8, 8, 3), 99, np.uint8), 8), "thumbnail")
    layers = Layers("slide", picture, {"tissue": picture, EVIL: picture})
    write_page(tmp_path / "page.html", "slide", "", [Section("Slides", [layers])])
    browser.open(tmp_path / "page.html")
    shown = (
        "[...document.querySelectorAll('.stack img:not(:first-child)')].map((image) => getComputedStyle(image).opacity)"
    )
    assert browser.run(shown) == ["1", "0"]
    set_input(browser, "figure.layers label:last-child input", "40")
    set_input(browser, "figure.layers label:first-child input", "0")
    assert browser.run(shown) == ["0", "0.4"]
    assert browser.said() == []


def test_paper_shows_what_is_folded_and_no_controls(browser: Browser, page_file: Path) -> None:
    browser.open(page_file)
    folded = "[...document.querySelectorAll('details')].filter((part) => !part.open).length"
    assert browser.run(folded) > 0
    assert browser.printed().startswith(b"%PDF")
    assert browser.run(folded) == 0
    assert browser.run("[...document.querySelectorAll('figure.chart')].every((figure) => figure.dataset.drawn)")
    assert browser.said() == []


def test_a_confusion_matrix_has_numbers(browser: Browser, tmp_path: Path) -> None:
    chart = confusion_chart(np.array([[3, 1], [0, 5]]), ("a", EVIL))
    write_page(tmp_path / "page.html", "classifier", "", [Section("Answers", [chart])])
    browser.open(tmp_path / "page.html")
    browser.wait("document.querySelectorAll('.heatmap-label').length == 4")
    shown = browser.run("[...document.querySelectorAll('.heatmap-label')].map((label) => label.textContent)")
    assert sorted(shown) == ["0%0", "100%5", "25%1", "75%3"]
    assert browser.said() == []


def test_a_table_is_sorted_by_a_column(browser: Browser, make_pretraining: Make, tmp_path: Path) -> None:
    for name, level in (("a", 0.5), ("b", 1.5), ("c", 1.0)):
        make_pretraining(name, level=level)
    write_report([str(tmp_path)], out=tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    first = "[...document.querySelector('table').tBodies[0].rows].map((row) => row.cells[0].textContent)"
    assert browser.run(first) == ["b", "c", "a"]
    browser.run("[...document.querySelectorAll('tr.sort button')].find((b) => b.textContent == 'loss').focus()")
    browser.press("Enter")
    browser.press("Enter")
    assert browser.run(first) == ["a", "c", "b"]
