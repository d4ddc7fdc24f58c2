"""The same numbers in Markdown, CSV and JSON, and the plot."""

import csv
import io
import json
import math
from dataclasses import replace

import pytest
from PIL import Image

from densepath.benchmark.config import load_table
from densepath.benchmark.curves import draw_budgets
from densepath.benchmark.results import Entry, Results
from densepath.benchmark.statistics import Comparison, compare
from densepath.benchmark.tables import to_csv, to_markdown, to_record

SCORES = {
    ("random", "probe", "mean_iou"): {0: 50.0, 1: 52.0},
    ("random", "probe", "dice"): {0: 60.0},
    ("random", "detect", "box_ap50"): {},
    ("MoCo", "probe", "mean_iou"): {0: 55.0, 1: 60.0},
    ("MoCo", "probe", "dice"): {0: 71.25},
    ("MoCo", "detect", "box_ap50"): {0: 12.0},
}
MOCO = [("MoCo", "probe"), ("MoCo", "detect")]
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
    assert "7 of 9 runs are done" in text
    assert "share one pre-training (seed 0): the spread is that of the transfer only, but each seed draws other" in text
    assert "weights for random." in text and "No random numbers" not in text


def test_rows_of_one_run_for_all_seeds_are_named(results):
    row, *others = results.config.rows
    config = replace(results.config, rows=(replace(row, weights="sam_vit_b", sam={"prompt": "box"}), *others))
    text = to_markdown(replace(results, config=config), [], None)
    assert "No random numbers are drawn for random: one run serves all seeds, without spread." in text
    assert "that of the transfer only." in text


def test_a_name_of_several_lines_is_in_one_line_of_markdown(results):
    """As YAML's block texts (name: |) end in a line feed."""
    rows = {row.name: replace(row, name=f"{row.name} |\nlong\n") for row in results.rows()}
    entries = {(rows[name].name, *key): replace(e, row=rows[name]) for (name, *key), e in results.entries.items()}
    config = replace(results.config, rows=tuple(rows.values()))
    text = to_markdown(replace(results, config=config, entries=entries), [], None)
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    assert [line.split(" | ")[0] for line in lines] == ["| random \\| long", "| MoCo \\| long"]


def test_json_holds_the_numbers(results):
    record = json.loads(to_record(results, ["<b>", "a note"]))
    (part,) = record["parts"]
    assert part["columns"] == ["probe mean IoU", "probe Dice", "box AP50"] and part["published"]
    assert part["rows"] == BODY
    assert record["baseline"] == "random" and {"<b>", "a note"} < set(record["notes"])


def test_a_small_p_is_named_by_its_limit(results):
    key = ("MoCo", "probe", "mean_iou")
    results.entries[key] = replace(results.entries[key], comparison=Comparison(2, 6.5, 1e-5, None))
    assert "+6.5 (p < 0.001)" in to_markdown(results, [], None)
    assert json.loads(to_record(results, []))["parts"][0]["rows"][1][3] == "+6.5 (p < 0.001)"


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
    assert len(json.loads(to_record(results, []))["parts"][0]["rows"][0]) == 2 + 2 * 3


def test_the_names_of_untrained_rows_lie_on_their_lines(results, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("densepath.benchmark.curves.save", lambda figure, path: shown.append(figure) or path)
    draw_budgets(results, {}, tmp_path / "curves.png")
    curves = {entry.row.curve for entry in results.entries.values() if entry.row.curve and entry.mean_std}
    texts = [{text.get_text(): text.get_ha() for text in axes.texts} for axes in shown[0].axes]
    assert curves and all(named.keys() <= curves for named in texts) and any(named.keys() == curves for named in texts)
    assert all(len(named) < 2 or {"left", "right"} == set(named.values()) for named in texts)


def test_each_task_stands_at_its_own_length_of_pre_training(results, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr("densepath.benchmark.curves.save", lambda figure, path: shown.append(figure) or path)
    draw_budgets(results, dict(zip(MOCO, (600, 70), strict=True)), tmp_path / "curves.png")
    places = [
        {x for line in axes.lines if line.get_marker() == "o" for x in line.get_xdata()} for axes in shown[0].axes
    ]
    assert places == [{600}, {70}]


def test_the_plot_has_a_panel_for_each_task_with_scores(results, tmp_path):
    assert draw_budgets(results, dict.fromkeys(MOCO, 600), tmp_path / "curves.png") == tmp_path / "curves.png"
    two = Image.open(tmp_path / "curves.png").width
    for key in [key for key in results.entries if key[1] == "detect"]:
        del results.entries[key]
    draw_budgets(results, dict.fromkeys(MOCO, 600), tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").width < 0.6 * two
    results.entries.clear()
    assert draw_budgets(results, {}, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()
