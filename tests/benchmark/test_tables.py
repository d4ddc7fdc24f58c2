"""The same numbers in Markdown, CSV and HTML, and the plot."""

import csv
import io
import math
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from densepath.benchmark.config import load_table
from densepath.benchmark.curves import draw_budgets
from densepath.benchmark.results import Entry, Results
from densepath.benchmark.statistics import Comparison, compare
from densepath.benchmark.tables import to_csv, to_html, to_markdown

SCORES = {
    ("random", "probe", "mean_iou"): {0: 50.0, 1: 52.0},
    ("random", "probe", "dice"): {0: 60.0},
    ("random", "detect", "box_ap50"): {},
    ("MoCo", "probe", "mean_iou"): {0: 55.0, 1: 60.0},
    ("MoCo", "probe", "dice"): {0: 71.25},
    ("MoCo", "detect", "box_ap50"): {0: 12.0},
}
HEAD = ["weights", "seeds", *["probe mean IoU", "vs. random", "paper", "probe Dice", "vs. random", "paper"]]
HEAD += ["box AP50", "vs. random", "paper"]
# A paired t-test of differences 5 and 8: t = 6.5 / 1.5, and p = 1 - 2 atan(t) / pi = 0.144.
BODY = [
    ["random", "0–2", "51.0 ± 1.4", "—", "50.0", "60.0", "—", "—", "—", "—", "—"],
    ["MoCo", "1–2", "57.5 ± 3.5", "+6.5 (p 0.14)", "—", "71.2", "+11.2", "—", "12.0", "—", "12.5"],
]


@pytest.fixture
def results(table):
    config = load_table(table)
    rows, tasks = ({part.name: part for part in parts} for parts in (config.rows, config.tasks))
    entries = {}
    for (row, task, metric), values in SCORES.items():
        numbers = rows[row].paper.get(task)
        entries[row, task, metric] = Entry(
            rows[row],
            tasks[task],
            metric,
            values,
            compare(values, SCORES["random", task, metric]) if row == "MoCo" else None,
            numbers and numbers[tasks[task].metrics.index(metric)],
        )
    return Results(config, entries, ("a <machine>",), 9, 7)


def test_markdown_holds_the_numbers(results):
    text = to_markdown(results, ["a note"], "curves.png")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    entries = [[entry.strip() for entry in line.strip("|").split("|")] for line in lines]
    assert entries[0] == HEAD
    assert set("".join(entries[1])) <= set("-:")
    assert entries[2:] == BODY
    assert "# A table" in text and "## Tissue" in text and "- a note" in text and "](curves.png)" in text
    assert "7 of 9 runs are done" in text and "share one pre-training" in text


class PageTables(HTMLParser):
    """The texts of the tables in a page; tags must be properly nested."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.open, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_html_holds_the_numbers(results):
    page = PageTables(to_html(results, ["<b>", "a note"], None))
    assert page.rows[0] == ["", "", "probe mean IoU", "probe Dice", "box AP50"]
    assert page.rows[1] == ["weights", "seeds", *["here", "vs. random", "paper"] * 3]
    assert page.rows[2:] == BODY
    assert "a <machine>" in page.text and "<b>" in page.text


def test_html_escapes_a_small_p(results):
    key = ("MoCo", "probe", "mean_iou")
    results.entries[key] = replace(results.entries[key], comparison=Comparison(2, 6.5, 1e-5, None))
    assert "+6.5 (p &lt; 0.001)" in to_html(results, [], None)
    assert "+6.5 (p < 0.001)" in to_markdown(results, [], None)


def test_csv_has_all_digits_and_the_score_of_each_seed(results):
    lines = list(csv.DictReader(io.StringIO(to_csv(results))))
    assert len(lines) == 6
    line = next(line for line in lines if (line["row"], line["metric"]) == ("MoCo", "mean_iou"))
    assert (line["n"], line["pairs"], line["values"], line["paper"]) == ("2", "2", "0:55.0 1:60.0", "")
    assert float(line["difference"]) == 6.5
    assert float(line["p_t_test"]) == pytest.approx(1 - 2 * math.atan(6.5 / 1.5) / math.pi)
    assert line["p_signed_rank"] == ""
    empty = next(line for line in lines if (line["row"], line["metric"]) == ("random", "box_ap50"))
    assert (empty["n"], empty["mean"], empty["std"], empty["difference"]) == ("0", "", "", "")


def test_the_papers_column_is_left_out_if_the_paper_has_no_numbers(results):
    for key, entry in results.entries.items():
        results.entries[key] = Entry(entry.row, entry.task, entry.metric, entry.values, entry.comparison, None)
    assert "paper" not in to_markdown(results, [], None).split("\n- ")[0]
    assert len(PageTables(to_html(results, [], None)).rows[2]) == 2 + 2 * 3


def test_the_plot_has_a_panel_for_each_task_with_scores(results, tmp_path):
    assert draw_budgets(results, {"MoCo": 600}, tmp_path / "curves.png") == tmp_path / "curves.png"
    two = Image.open(tmp_path / "curves.png").width
    for key in [key for key in results.entries if key[1] == "detect"]:
        del results.entries[key]
    draw_budgets(results, {"MoCo": 600}, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width < 0.6 * two
    results.entries.clear()
    assert draw_budgets(results, {}, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
