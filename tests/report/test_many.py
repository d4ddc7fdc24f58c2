"""Many runs, large runs, and pages that are written again and again."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.core.locks import sole_writer
from densepath.report import values, verb
from densepath.report.blocks import Note, Table
from densepath.report.comparison import _differences, comparable, compare_runs
from densepath.report.measurements import averaged, read_measurements
from densepath.report.runs import Run, Score, read_run, read_sessions
from densepath.report.scored_on import scored_on, with_whole_paths
from densepath.report.verb import write_report
from densepath.runs.metrics import read_metrics
from tests.report.conftest import Make
from tests.report.test_report import Page, page_of

pytest.importorskip("plotly")


def test_a_page_says_what_it_leaves_out(make_pretraining: Make, tmp_path: Path) -> None:
    for number in range(44):
        make_pretraining(f"runs/{number:02}", rows=3, config={"seed": number})
    (tmp_path / "runs" / "44").mkdir()
    page = page_of(tmp_path / "runs")
    assert "The first 40 of 44 runs have a page below" in page.text
    assert "more than 10 results has no pictures" in page.text
    assert "The curves of the first 16 of 44 runs." in page.text
    ranking = next(k for k, row in enumerate(page.rows) if row[:2] == ["run", "state"])
    assert len({row[0] for row in page.rows[ranking + 1 : ranking + 45]}) == 44  # the table has all


def test_each_run_is_asked_for_its_curves_once_while_runs_are_read(
    make_pretraining: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking all runs before each one took a minute for 1,000 runs."""
    runs = [make_pretraining(f"runs/{number:02}", rows=2) for number in range(20)]
    curves, asked = Run.curves.fget, []
    monkeypatch.setattr(Run, "curves", property(lambda run: asked.append(run) or curves(run)))
    found, _ = verb._read_each(runs, [])
    assert len(found) == len(asked) == len(runs)


def test_damaged_folders_take_no_pictures_from_the_others(make_pretraining: Make, tmp_path: Path) -> None:
    make_pretraining("runs/good")
    for number in range(11):
        (tmp_path / "runs" / f"{number}").mkdir()
        (tmp_path / "runs" / f"{number}" / "config.yaml").write_text("method: [")
    assert [each for each in page_of(tmp_path / "runs").of("img") if each.get("alt")]


def test_a_run_that_is_named_twice_is_shown_once(make_pretraining: Make, tmp_path: Path) -> None:
    run = make_pretraining()
    (tmp_path / "link").symlink_to(run)
    assert (
        write_report([run, tmp_path / "link", tmp_path / "x" / ".." / "run"], out=tmp_path / "page.html")["runs"] == 1
    )


@pytest.mark.parametrize("name", ["slides.csv", "run.json", "table.json"])
def test_tables_of_the_user_do_not_hide_the_runs_beside_them(make_pretraining: Make, tmp_path: Path, name: str) -> None:
    runs = [make_pretraining(f"runs/{seed}", config={"seed": seed}) for seed in range(2)]
    for folder in (tmp_path / "runs", runs[0]):
        (folder / name).write_text("[1]")
    assert write_report([tmp_path / "runs"], out=tmp_path / "page.html").items() >= {"runs": 2, "left_out": 0}.items()


def test_up_to_three_runs_are_open_and_more_are_folded(make_pretraining: Make, tmp_path: Path) -> None:
    runs = [str(make_pretraining(name, config={"method": name})) for name in ("moco", "concl", "mae", "dirl")]
    for count, folded in ((3, 0), (4, 4)):
        write_report(runs[:count], out=tmp_path / "page.html")
        assert (tmp_path / "page.html").read_text().count('<details class="section level2"') == folded


def test_measurements_are_averaged_in_bounded_numbers() -> None:
    values = np.array([(k, k % 2, 7.0 if k == 50 else np.finfo(float).max) for k in range(1001)], float)
    columns = ["step", "loss", "probe"]
    found = averaged(columns, values, 100)
    assert len(found) <= 104 and len(averaged(columns, values, 1001)) == 1001
    assert {name: value for row in found for name, value in row.items()} == {"step": 1000.0, "loss": 0.0, "probe": 7.0}
    assert np.mean([row["loss"] for row in found[:90] if "loss" in row]) == pytest.approx(0.5, abs=0.05)
    assert [row for row in found if "probe" in row] == [{"step": 50.0, "probe": 7.0}]  # at its own step
    steps = [row["step"] for row in found]
    assert steps == sorted(set(steps))
    nan = averaged(["step", "loss"], np.array([(k, np.nan if k == 29 else 1.0) for k in range(30)]), 10)
    assert np.isnan(nan[-1]["loss"]) and np.isnan(nan[-2]["loss"]) and nan[0]["loss"] == 1  # it was measured


@pytest.mark.parametrize("end", ["", "4,2.", "\n"])
def test_measurements_are_those_that_training_reads(tmp_path: Path, end: str) -> None:
    text = "step,loss,a,b,c\n1,0.5,,,\n2,nan,,1e-05,\n3,,-inf,,2.5\n" + end
    (path := tmp_path / "metrics.csv").write_text(text)
    rows = read_measurements(path, 100)
    assert repr(rows) == repr(read_metrics(path))  # NaN differs from itself
    path.write_text(text.replace("\n", "\r\n"))
    assert repr(read_measurements(path, 100)) == repr(rows)
    path.write_text("step,probe_dice,probe_train_images\n1,0.5,7\n")  # as version 0.1 wrote it
    assert read_measurements(path, 100) == [{"step": 1.0, "probe_dice": 50.0}]
    for damaged in ("step,loss\n1,2,3\n", "step,loss\n1\n", "step,loss\n1,x\n"):
        path.write_text(damaged)
        with pytest.raises(ValueError, match=r"^metrics\.csv "):
            read_measurements(path, 100)


def test_large_files_of_measurements_are_refused(make_pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.report.measurements._LARGEST", 100)
    with pytest.raises(UserError, match="is larger than"):
        read_run(make_pretraining())


class Watch:
    """A run in progress that is watched; what happens between two pages is given."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = run
        self.steps: list[Callable[[], object]] = []
        monkeypatch.setattr("densepath.report.verb.time.sleep", lambda seconds: self.steps.pop(0)())
        self.holder = sole_writer(run)
        self.holder.__enter__()

    def end(self) -> None:
        self.holder.__exit__(None, None, None)


def test_a_folder_that_is_deleted_while_it_is_read_does_not_end_the_watch(
    make_pretraining: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = Watch(make_pretraining("a"), monkeypatch)
    gone, read = make_pretraining("b"), verb.read_run

    def deleted() -> None:
        monkeypatch.setattr(verb, "read_run", lambda path, most: (path == gone and shutil.rmtree(gone), read(path))[1])

    watch.steps += [deleted, lambda: None, watch.end]
    write_report([str(watch.run), str(gone)], out=tmp_path / "page.html", watch=True)
    page = Page(tmp_path / "page.html")
    assert "Left out" in page.text and str(gone) in page.text
    printed = capsys.readouterr()
    lines = [line for line in (printed.out + printed.err).splitlines() if "left out" in line]
    assert lines and len(lines) == len(set(lines))  # each problem is printed once


def test_a_full_disk_is_said_once_and_the_watch_goes_on(
    make_pretraining: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watch, write = Watch(make_pretraining(), monkeypatch), verb.write_page
    out = tmp_path / "page.html"

    def full(*given: object, **options: object) -> Path:
        raise UserError(f"{out} cannot be written (No space left on device); free disk space or use another path")

    watch.steps += [
        lambda: monkeypatch.setattr(verb, "write_page", full),
        lambda: None,
        lambda: (monkeypatch.setattr(verb, "write_page", write), watch.end()),
    ]
    write_report([str(watch.run)], out=out, watch=True)
    printed = capsys.readouterr()
    assert (printed.out + printed.err).count("No space left on device") == 1
    assert Page(out).of("body")[0] == {}  # the last page was written after all
    monkeypatch.setattr(verb, "write_page", full)
    with pytest.raises(UserError, match="No space left"):
        write_report([str(watch.run)], out=out)


def test_ctrl_c_ends_the_watch_and_leaves_the_page(
    make_pretraining: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watch(make_pretraining(), monkeypatch)

    def pressed() -> None:
        raise KeyboardInterrupt

    watch.steps += [pressed]
    with pytest.raises(KeyboardInterrupt):
        write_report([str(watch.run)], out=tmp_path / "page.html", watch=True)
    watch.end()
    assert "concl" in Page(tmp_path / "page.html").text
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


def test_only_runs_with_something_in_common_are_compared(make_pretraining: Make, tmp_path: Path) -> None:
    make_pretraining("a", config={"method": "concl", "data": "tiles"})
    make_pretraining("b", config={"method": "mae", "data": "scans"})
    make_pretraining("c", config={"method": "dirl", "data": "slides"})
    make_pretraining("d", config={"method": "mae", "data": "tiles"})  # as a in its images, and as b in its method
    for name in ("tiles", "cells"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("data: slides\ntissue: auto\n")
    runs = {name: read_run(tmp_path / name) for name in "cdba"}
    assert [list(group) for group in comparable(runs)] == [["d", "b", "a"]]
    write_report([str(tmp_path)], out=tmp_path / "page.html")
    text = Page(tmp_path / "page.html").text
    assert "3 runs: pre-training" in text and "2 runs" not in text


def test_losses_of_different_methods_do_not_sort_runs(make_pretraining: Make, tmp_path: Path) -> None:
    for name, level, method in (("a", 1.0, "moco"), ("b", 0.5, "concl")):
        run = make_pretraining(name, level=level, config={"method": method})
        table = (run / "metrics.csv").read_text().replace("probe_dice", "other")
        (run / "metrics.csv").write_text(table)
    runs = {name: read_run(tmp_path / name) for name in "ab"}
    table = compare_runs(runs)[0].blocks[0]
    assert isinstance(table, Table) and [row[0] for row in table.rows] == ["a", "b"]
    assert "different methods" in table.caption
    for options, order in (({}, ["b", "a"]), ({"detector": "retinanet"}, ["a", "b"]), ({"loss": "focal"}, ["a", "b"])):
        runs["a"] = replace(runs["a"], config={**runs["b"].config, **options})
        table = compare_runs(runs)[0].blocks[0]
        assert isinstance(table, Table) and [row[0] for row in table.rows] == order


def test_options_that_differ_in_their_last_digits_differ(tmp_path: Path) -> None:
    names = [f"slide_{number:03}" for number in range(60)]
    options = [{"lr": 0.12345678, "exclude": [*names, "a"], "x": True, "epochs": 1}]
    options += [{"lr": 0.12345679, "exclude": [*names, "b"], "x": "true", "epochs": 1.0}]
    table = _differences({f"{number}": Run(tmp_path, config) for number, config in enumerate(options)})
    assert isinstance(table, Table) and [row[0] for row in table.rows] == ["lr", "exclude", "x"]
    assert all(row[1] != row[2] for row in table.rows)


@pytest.mark.parametrize(("value", "text"), [(1834.2, "1,834"), (1234567.8, "1,234,568"), (0.00001234, "1.23e-05")])
def test_large_numbers_have_no_powers(value: float, text: str) -> None:
    assert values.number(value, 3) == text


def test_a_page_has_the_title_and_the_note_that_are_given(make_pretraining: Make, tmp_path: Path) -> None:
    write_report([str(make_pretraining())], out=tmp_path / "page.html", title="A <b>", note="For you & me")
    text = Page(tmp_path / "page.html").text
    assert "A <b>" in text and "For you & me" in text


def _tables(runs: dict[str, Run]) -> list[tuple[list[str], str]]:
    """The runs and the caption of each table of scores."""
    tables = [block for block in compare_runs(runs)[0].blocks if isinstance(block, Table)]
    return [([row[0] for row in each.rows], each.caption) for each in tables if each.columns[0] == "run"]


_CLASSIFY = {"data": "D", "labels": "l.csv", "freeze": True}
_MIL = {"data": "F", "table": "t.csv", "target": "MSI", "folds": 5, "model": "abmil"}


@pytest.mark.parametrize(
    "first, changed, same",
    [
        (_CLASSIFY, {"data": "E"}, False),
        (_CLASSIFY, {"data": "./x/../D", "seed": 1}, True),
        (_CLASSIFY, {"labels": "other.csv"}, False),
        (_CLASSIFY, {"target": "grade"}, False),
        ({**_CLASSIFY, "test_data": "T"}, {"data": "E", "fraction": 0.1}, True),  # tested on the same images
        (_CLASSIFY, {"test_data": "T"}, False),
        ({**_CLASSIFY, "labels": "folders"}, {"data": "E"}, False),
        (_MIL, {"data": "F of another extractor", "model": "clam"}, True),
        (_MIL, {"table": "other.csv"}, False),
        (_MIL, {"target": "grade"}, False),
        ({**_MIL, "table": "folders"}, {"data": "G"}, False),
        ({"labels": "l.csv", "data": None, "features": "a.h5"}, {"features": "b.h5"}, True),
        ({"data": "D", "detector": "retinanet", "test_size": 9}, {"data": "E"}, False),
        ({"data": "D", "method": "moco", "probe_data": "P"}, {"data": "E"}, True),
        ({"data": "D", "labels": "auto", "folds": 5, "regions": ["a=1"]}, {"regions": ["a=1+2"]}, False),
        ({"data": "D", "method": "moco"}, {"data": "E"}, True),  # without scores of these
        (_CLASSIFY, {"uncertain": "ignore", "targets": [], "target": None}, True),  # an earlier version had no such
        (_CLASSIFY, {"uncertain": "zeros"}, False),
        ({"data": "D", "labels": "auto"}, {"background": 0, "regions": [], "ignore": []}, True),
        ({"data": "D", "labels": "auto"}, {"background": None}, False),
        (_MIL, {"task": "classification", "classes": []}, True),
        (_MIL, {"task": "regression"}, False),
        (_MIL, {"grouping": "averaged"}, True),
        (_MIL, {"grouping": "single"}, False),  # of slides
        (_MIL, {"splits": "split"}, False),  # an official test
        (_MIL, {"splits": "other_run/splits.json"}, True),
        (_MIL, {"splits": "gone/folds"}, True),  # a folder that is no longer there
        ({"data": "D", "labels": "auto", "folds": None}, {"official": True}, True),
        ({"data": "D", "labels": "auto", "folds": None}, {"official": False}, False),
    ],
)
def test_runs_are_ranked_among_those_of_the_same_data_labels_and_targets(
    first: dict[str, object], changed: dict[str, object], same: bool, tmp_path: Path
) -> None:
    configs = {"a": first, "b": {**first, **changed}, "c": {**first, "seed": 7}}
    levels = {"a": 60.0, "b": 70.0, "c": 80.0}
    curve = [{"step": 1.0, "validation_loss": 1.0}]
    runs = {k: Run(tmp_path / k, each, curve, scores={"macro_auc": Score(levels[k])}) for k, each in configs.items()}
    scores, curves, _ = compare_runs(runs)
    found, notes = _tables(runs), [block.text for block in (*scores.blocks, *curves.blocks) if isinstance(block, Note)]
    assert [names for names, _ in found] == ([["c", "b", "a"]] if same else [["c", "a"], ["b"]])
    assert all("Sorted by macro AUC" in caption for _, caption in found)
    if same:
        assert notes == []
    else:
        assert "cannot be compared" in notes[0] and "differ in what they measure" in notes[1]
        assert len({caption for _, caption in found}) == 2


def test_relative_paths_of_data_start_where_a_run_was_started(tmp_path: Path) -> None:
    scores = {"macro_auc": Score(50.0)}
    runs = {k: Run(tmp_path / k, _CLASSIFY, scores=scores, sessions=[{"folder": f"/{k}"}]) for k in "ab"}
    assert len(_tables(runs)) == 2
    runs["c"] = Run(tmp_path / "c", {**_CLASSIFY, "data": "/a/D", "labels": "/a/l.csv"}, scores=scores)
    assert [names for names, _ in _tables(runs)] == [["a", "c"], ["b"]]


def test_the_record_of_a_run_is_that_of_its_first_training_where_it_has_none(tmp_path: Path) -> None:
    (run := tmp_path / "run" / "seed_0" / "fold_1").mkdir(parents=True)
    assert read_sessions(tmp_path / "run") == []
    for other in ("probe", "tiles/a"):  # of other runs
        (tmp_path / "run" / other).mkdir(parents=True)
        (tmp_path / "run" / other / "sessions.yaml").write_text("- folder: /other\n")
    assert read_sessions(tmp_path / "run") == []
    (run / "sessions.yaml").write_text("- folder: /later\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sessions.yaml").write_text("- folder: /secret\n")
    (run.parent / "fold_0").symlink_to(tmp_path / "out")  # leads out of the run
    assert read_sessions(tmp_path / "run") == [{"folder": "/later"}]
    (tmp_path / "run" / "sessions.yaml").write_text("- folder: /own\n")
    assert read_sessions(tmp_path / "run") == [{"folder": "/own"}]


def test_seeds_of_one_relative_path_in_two_folders_are_not_taken_together(tmp_path: Path) -> None:
    runs = {}
    for method in ("concl", "moco"):
        for seed, (data, folder) in enumerate((("D", "/a"), ("/a/D", "/b"), ("D", "/b"), ("../b/D", "/a"))):
            config = {"data": data, "method": method, "seed": seed}
            rows = [{"step": 10.0, "probe_mean_iou": 50.0 + 10 * seed}]
            sessions = [{"folder": folder}]
            runs[f"{method}{seed}"] = Run(tmp_path, config, rows, state="complete", sessions=sessions)
    scores, *_, options = compare_runs(runs)
    (test,) = [each for each in scores.blocks if isinstance(each, Table) and each.columns[0] == "runs"]
    assert [row[:3] for row in test.rows] == [
        [f"data {data}, method {method}", "2", mean]
        for method in ("concl", "moco")
        for data, mean in (("/a/D", "55.00 ± 7.07"), ("/b/D", "75.00 ± 7.07"))
    ]
    (table,) = options.blocks
    assert isinstance(table, Table) and table.rows[0] == ["data", *["/a/D", "/a/D", "/b/D", "/b/D"] * 2]
    assert [len(comparable({name: runs[name] for name in ("concl0", other)})) for other in ("moco1", "moco2")] == [1, 0]


def test_links_to_the_same_data_are_followed(tmp_path: Path) -> None:
    (tmp_path / "D").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "D")
    configs = [{**_CLASSIFY, "data": str(tmp_path / name)} for name in ("D", "link")]
    runs = {f"{k}": Run(tmp_path, each, scores={"macro_auc": Score(50.0)}) for k, each in enumerate(configs)}
    assert len(_tables(runs)) == 1


def test_runs_that_have_not_ended_have_no_paired_tests(tmp_path: Path) -> None:
    runs = {}
    for number, (method, seed) in enumerate((method, seed) for method in ("concl", "moco") for seed in range(3)):
        config = {"data": "D", "method": method, "seed": seed}
        state, step, level = ("in progress", 5.0, 1.0) if number == 5 else ("complete", 100.0, 50.0 + number)
        rows = [{"step": step, "probe_mean_iou": level}]
        runs[f"{method}{seed}"] = Run(tmp_path, config, rows, state=state)
    blocks = compare_runs(runs)[0].blocks
    (test,) = [each for each in blocks if isinstance(each, Table) and each.columns[0] == "runs"]
    assert [row[1:] for row in test.rows] == [["3", "51.00 ± 1.00", "–"], ["2", "53.50 ± 0.71", "+3.00"]]
    assert any(isinstance(each, Note) and "have not ended: moco2" in each.text for each in blocks)


def test_a_run_that_is_begun_again_is_left_out_of_paired_tests(tmp_path: Path) -> None:
    """Its group has one run that has ended, of the same seed."""
    runs = {}
    for method, seed, state in (("concl", 0, ""), ("concl", 1, ""), ("moco", 0, ""), ("moco", 0, "in progress")):
        config = {"data": "D", "method": method, "seed": seed}
        runs[f"{method}{seed}{state}"] = Run(tmp_path, config, [{"probe_mean_iou": 1.0}], state=state or "complete")
    blocks = compare_runs(runs)[0].blocks
    assert [each for each in blocks if isinstance(each, Table) and each.columns[0] == "runs"]
    assert any(isinstance(each, Note) and "have not ended: moco0in progress" in each.text for each in blocks)


def test_without_paired_tests_no_run_is_left_out_of_them(tmp_path: Path) -> None:
    for several, losses in ((False, False), (True, True)):  # one seed each; losses of different methods
        runs = {}
        for method, seed in ((m, s) for m in ("concl", "moco", "byol") for s in range(1 + several)):
            rows = [{"step": 5.0, "loss" if losses else "probe_mean_iou": 1.0}]
            state = "in progress" if method == "byol" else "complete"
            runs[f"{method}{seed}"] = Run(tmp_path, {"data": "D", "method": method, "seed": seed}, rows, state=state)
        assert not [each for each in compare_runs(runs)[0].blocks if "paired" in getattr(each, "text", "")]


def test_scores_that_are_undefined_count_in_no_mean_and_no_test(tmp_path: Path) -> None:
    """A seed whose score is NaN is as one without the score, and the number of seeds is that of the means."""
    runs = {}
    for number, (lr, seed) in enumerate((lr, seed) for lr in (0.1, 0.2) for seed in range(3)):
        auc = math.nan if number == 1 else 50.0 + number**2
        scores = {"macro_auc": Score(auc)} | ({} if number == 5 else {"accuracy": Score(50.0 + number)})
        runs[f"{number}"] = Run(tmp_path, {**_CLASSIFY, "lr": lr, "seed": seed}, scores=scores)
    (test,) = [b for b in compare_runs(runs)[0].blocks if isinstance(b, Table) and b.columns[0] == "runs"]
    assert [row[1:4] for row in test.rows] == [
        ["2–3", "52.00 ± 2.83", "–"],
        ["2–3", "66.67 ± 8.02", "+15.00 (p 0.24)"],
    ]
    assert [row[4] for row in test.rows] == ["51.00 ± 1.00", "53.50 ± 0.71"]


def test_runs_on_other_data_have_paired_tests_of_their_own(tmp_path: Path) -> None:
    runs = {}
    for data, level in (("D", 60.0), ("E", 80.0)):
        for number, (lr, seed) in enumerate((lr, seed) for lr in (0.1, 0.2) for seed in range(2)):
            config = {**_CLASSIFY, "data": data, "lr": lr, "seed": seed}
            runs[f"{data}{number}"] = Run(tmp_path, config, scores={"macro_auc": Score(level + number)})
    tests = [b for b in compare_runs(runs)[0].blocks if isinstance(b, Table) and b.columns[0] == "runs"]
    assert [[row[3] for row in each.rows] for each in tests] == [["–", "+2.00"]] * 2


def test_files_of_splits_are_told_apart_by_where_runs_were_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may also be a column of the table or another name, which means the same everywhere."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.json").touch()
        (tmp_path / folder / "fold").mkdir()  # without splits
    (tmp_path / "b" / "part").touch()
    config = {"table": str(tmp_path / "t.csv"), "slide_table": "st.csv"}
    found = [
        with_whole_paths({**config, "splits": splits}, [{"folder": str(tmp_path / folder)}])
        for folder in ("a", "b")
        for splits in ("s.json", "fold", "part")
    ]
    assert [each["splits"] for each in found[:3]] == [f"{tmp_path}/a/s.json", "fold", "part"]
    assert [each["splits"] for each in found[3:]] == [f"{tmp_path}/b/s.json", "fold", "part"]
    assert [each["slide_table"] for each in found[::3]] == [f"{tmp_path}/a/st.csv", f"{tmp_path}/b/st.csv"]
    monkeypatch.chdir(tmp_path / "a")  # not where the run was started
    (tmp_path / "a" / "fold" / "splits_0.csv").touch()
    run = Run(tmp_path, {**config, "splits": "fold"}, sessions=[{"folder": str(tmp_path / "b")}])
    assert scored_on(run)["splits"] == "fold"
