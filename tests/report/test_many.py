"""Many runs, large runs, and pages that are written again and again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from densepath.core.errors import UserError
from densepath.core.locks import sole_writer
from densepath.report import verb
from densepath.report.runs import averaged, read_run
from densepath.report.verb import write_report
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


def test_measurements_are_averaged_in_bounded_numbers() -> None:
    rows = [{"step": float(k), "loss": float(k % 2)} | ({"probe": 7.0} if k == 50 else {}) for k in range(1001)]
    found = averaged(rows, 100)
    assert len(found) <= 104 and averaged(rows, 1001) is rows
    assert {name: value for row in found for name, value in row.items()} == {"step": 1000.0, "loss": 0.0, "probe": 7.0}
    assert np.mean([row["loss"] for row in found[:90]]) == pytest.approx(0.5, abs=0.05)
    nan = averaged([{"step": 1.0, "loss": float("nan")}] * 30, 10)
    assert all(np.isnan(row["loss"]) for row in nan)  # a run that diverged still shows it


def test_large_files_of_measurements_are_refused(make_pretraining: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densepath.report.runs._LARGEST", 100)
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
        monkeypatch.setattr(verb, "read_run", lambda path: (path == gone and shutil.rmtree(gone), read(path))[1])

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
