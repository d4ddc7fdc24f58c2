"""Which number rows or tasks sweep, and the plots against it."""

from dataclasses import replace
from pathlib import Path

import pytest

from densepath.benchmark.config import load_table
from densepath.benchmark.grid import make_grid
from densepath.benchmark.identity import ImageSet
from densepath.benchmark.labelled_sets import LabelledSet
from densepath.benchmark.results import Entry, Results
from densepath.benchmark.sweeps import axis_of, draw_sweeps, sweeps_of


def test_the_swept_option_is_the_number_with_most_values() -> None:
    weights = [{"weight": w, "warmup": 0.2, "stage": 4} for w in (0.1, 0.3, 1.0)]
    other = {"weight": 1.0, "warmup": 0.0, "stage": 4}
    assert axis_of([*weights, other]) == ("weight", {0: 0.1, 1: 0.3, 2: 1.0})
    assert axis_of([{"schedule": s} for s in ("0.5x", "1x", "2x")]) == ("schedule", {0: 0.5, 1: 1.0, 2: 2.0})
    assert axis_of([{"lr": [rate]} for rate in (1e-4, 1e-3, 1e-2)]) == ("lr", {0: 1e-4, 1: 1e-3, 2: 1e-2})
    assert axis_of([{"lr": [rate, 1.0]} for rate in (1e-4, 1e-3, 1e-2)]) is None
    assert axis_of([{"detector": d} for d in ("a", "b", "c")]) is None
    assert axis_of([{"weight": 0.1}, {"weight": 0.2}]) is None  # two points
    assert axis_of([{"on": on, "weight": 1} for on in (True, False, True)]) is None


@pytest.mark.parametrize(
    ("name", "axes", "points"),
    [
        ("table4_weight", {"concept weight"}, [0.1, 0.3, 0.5, 0.7, 0.9, 1.0]),
        ("conv_mim_figure4", {"mask ratio"}, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]),
        ("table3", {"schedule", "max steps"}, [0.5, 1, 2, 3, 5]),
    ],
)
def test_the_sweeps_of_the_papers_are_found_and_drawn(name, axes, points, tmp_path) -> None:
    table = load_table(name)
    entries = {}
    for row in table.rows:
        for task in table.tasks:
            for k, metric in enumerate(task.metrics):
                numbers = row.paper.get(task.name, [None] * len(task.metrics))
                entries[row.name, task.name, metric] = Entry(row, task, metric, {0: 50.0, 1: 51.0}, None, numbers[k])
    results = Results(table, entries, (), 1, 1)
    panels = list(sweeps_of(results))
    assert {panel.axis for panel in panels} == axes
    assert [x for x, _ in next(iter(panels[0].lines.values()))] == points
    assert draw_sweeps(results, tmp_path / "sweeps.png") and (tmp_path / "sweeps.png").stat().st_size > 10_000
    for entry in entries.values():
        entry.values.clear()
    assert draw_sweeps(results, tmp_path / "none.png") is None and not (tmp_path / "none.png").exists()


def test_a_panel_has_ticks_at_its_values_and_lines_that_are_known(monkeypatch, tmp_path) -> None:
    """While a table is computed: only what has scores is drawn; a sweep of three decades has a logarithmic axis."""
    table = load_table("dirl_small")
    rows = [replace(table.rows[0], name=name) for name in ("done", "waiting")]
    rates = (1e-4, 1e-3, 1e-1)
    tasks = [replace(table.tasks[0], name=f"t{rate:g}", options={"lr": [rate]}) for rate in rates]
    entries = {
        (row.name, task.name, "macro_auc"): Entry(
            row, task, "macro_auc", {0: 60.0 + n} if row.name == "done" else {}, None, None
        )
        for row in rows
        for n, task in enumerate(tasks)
    }
    drawn = []
    monkeypatch.setattr("densepath.benchmark.sweeps.save", lambda figure, path: drawn.append(figure))
    draw_sweeps(Results(replace(table, rows=rows, tasks=tasks), entries, (), 1, 1), tmp_path / "s.png")
    (axes,) = drawn[0].axes
    assert axes.get_xscale() == "log" and tuple(axes.get_xticks()) == rates
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.0001", "0.001", "0.1"]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["done"]


def test_a_task_without_the_swept_option_has_its_default_and_no_two_lines_look_alike(monkeypatch, tmp_path) -> None:
    table = load_table("few_labels")
    options = [{"fraction": 0.1}, {"fraction": 0.25, "lr": 0.01}, {"lr": 0.01}]
    tasks = [replace(table.tasks[0], name=f"t{k}", options={"lr": 0.01, **own}) for k, own in enumerate(options)]
    rows = [replace(table.rows[0], name=f"row {k}") for k in range(12)]
    entries = {
        (row.name, task.name, "box_ap"): Entry(row, task, "box_ap", {0: 10.0 * n}, None, None)
        for n, row in enumerate(rows)
        for task in tasks
    }
    results = Results(replace(table, rows=tuple(rows), tasks=tuple(tasks), baseline="row 0"), entries, (), 1, 1)
    (panel,) = sweeps_of(results)
    assert panel.axis == "fraction" and [x for x, _ in panel.lines["row 0"]] == [0.1, 0.25, 1.0]
    drawn = []
    monkeypatch.setattr("densepath.benchmark.sweeps.save", lambda figure, path: drawn.append(figure))
    draw_sweeps(results, tmp_path / "s.png")
    handles = drawn[0].legends[0].get_lines()
    assert len({(line.get_color(), line.get_marker()) for line in handles}) == 12


def test_tables_without_a_sweep_have_no_plot() -> None:
    table = load_table("glas_probe")
    names = ("a", "b")
    images = ImageSet("nowhere", "digest", names, names)
    grid = make_grid(table, {"glas": LabelledSet("glas", images, images, "glas")}, images, {}, Path("nowhere"))
    rows, tasks = ({part.name: part for part in parts} for parts in (table.rows, table.tasks))
    keys = {(row, task, metric) for row, task, _ in grid.places for metric in tasks[task].metrics}
    entries = {key: Entry(rows[key[0]], tasks[key[1]], key[2], {0: 1.0}, None, None) for key in sorted(keys)}
    assert list(sweeps_of(Results(table, entries, (), 1, 1))) == []
