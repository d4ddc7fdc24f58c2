"""Contrasts of a table: paired by seed, with the interval of the t distribution; tasks that agree about runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from densepath.benchmark.config import load_table
from densepath.benchmark.contrasts import contrast, contrast_lines
from densepath.benchmark.results import Entry, Results
from densepath.core.errors import UserError

CELLS = {
    "a": {0: 54.5, 1: 53.7, 2: 52.3},
    "b": {0: 50.1, 1: 49.7, 2: 51.1},
    "c": {0: 52.3, 1: 53.6, 2: 50.9},
    "d": {0: 52.6, 1: 55.8, 2: 51.6, 3: 40.0},
}


def test_an_interaction_is_paired_by_seed_and_has_the_interval_of_a_t_test():
    found = contrast(CELLS, ["d", "a"], ["c", "b"])
    sums = np.array([CELLS["d"][s] + CELLS["a"][s] - CELLS["c"][s] - CELLS["b"][s] for s in range(3)])
    expected = stats.ttest_1samp(sums, 0.0).confidence_interval(0.95)
    assert found is not None and found.n == 3
    assert found.mean == pytest.approx(sums.mean())
    assert found.mean - found.half_width == pytest.approx(expected.low)
    assert contrast(CELLS, ["d"], ["c", "missing"]) is None
    one = contrast({"a": {0: 2.0}, "b": {0: 0.5, 1: 3.0}}, ["a"], ["b"])
    assert one is not None and (one.n, one.mean, one.half_width) == (1, 1.5, None)
    # One run may serve all seeds: values without spread have no interval.
    same = contrast({"a": dict.fromkeys(range(3), 0.3), "b": dict.fromkeys(range(3), 0.1)}, ["a", "a"], ["b"])
    assert same is not None and (same.n, same.half_width) == (3, None)


def test_the_table_reports_its_contrasts_and_the_correlation_of_its_tasks(tmp_path):
    table = load_table(_table(tmp_path, ["a"]))
    scores = {("random", "p"): CELLS["a"], ("a", "p"): CELLS["b"], ("b", "p"): CELLS["c"]}
    scores |= {("random", "d"): CELLS["d"], ("a", "d"): CELLS["c"], ("b", "d"): CELLS["b"]}
    rows, tasks = {r.name: r for r in table.rows}, {t.name: t for t in table.tasks}
    entries = {
        (row, task, tasks[task].metrics[0]): Entry(rows[row], tasks[task], tasks[task].metrics[0], values, None, None)
        for (row, task), values in scores.items()
    }
    lines = contrast_lines(Results(table, entries, (), 4, 4))
    assert lines[0].startswith("gain (a - random): mean IoU -3.2 (95% interval ")
    assert lines[0].endswith("3 seeds).") and "box AP -1.1" in lines[0]
    # Runs of a row are not independent: their mean over the seeds that both tasks have is one point.
    means = [[np.mean([scores[row, task][s] for s in range(3)]) for row in ("random", "a", "b")] for task in "pd"]
    pearson, ranks = stats.pearsonr(*means).statistic, stats.spearmanr(*means).statistic
    assert lines[1] == (
        f"Correlation of mean IoU and box AP over 3 rows (means of 9 runs): {pearson:.2f}; of their ranks: {ranks:.2f}."
    )
    # Means of equal scores differ by rounding.
    equal = {name: {s: 0.1 for s in range(count)} for name, count in (("random", 1), ("a", 3), ("b", 2))}
    flat = {place: replace(e, values=equal[place[0]]) if place[1] == "d" else e for place, e in entries.items()}
    (line,) = contrast_lines(Results(table, flat, (), 4, 4))
    assert line.endswith("box AP +0.0 (one seed).")
    steady = {place: replace(e, values={0: 7.5, 1: 7.5}) if place[0] != "b" else e for place, e in entries.items()}
    assert contrast_lines(Results(table, steady, (), 4, 4))[0].endswith("+0.0 (2 seeds without spread: no interval).")


def test_a_contrast_of_a_row_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="the contrast 'gain' has 'z', which is not a row"):
        load_table(_table(tmp_path, ["z"]))


def test_every_row_of_why_concl_is_in_its_factors():
    table = load_table("why_concl")
    assert {task.verb for task in table.tasks} == {"probe", "detect"} and len(table.seeds) == 5
    concepts = {row.name.split(",")[0] for row in table.rows if row.recipe}
    assert concepts == {"K=1", "K=8", "K=8 shares"} and len(table.rows) == 1 + 3 * 5


def _table(folder: Path, plus: list[str]) -> Path:
    text = {
        "seeds": [0, 1, 2],
        "baseline": "random",
        "rows": [{"name": "random", "weights": "random"}]
        + [{"name": name, "recipe": "moco_v2_small"} for name in "ab"],
        "tasks": [
            {"name": "p", "verb": "probe", "data": "glas", "table": "GlaS", "metrics": ["mean_iou"]},
            {"name": "d", "verb": "detect", "data": "glas", "table": "GlaS", "metrics": ["box_ap"]},
        ],
        "contrasts": [{"name": "gain", "plus": plus, "minus": ["random"]}],
    }
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(text))
    return path
