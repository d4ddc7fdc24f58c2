"""``densepath report``: run folders as a page for a browser."""

from __future__ import annotations

import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from densepath.analysis.short_names import short_names
from densepath.core.errors import UserError, first_few, one_line
from densepath.core.files import refuse_replacing
from densepath.core.result import Result
from densepath.core.streams import say
from densepath.report.answers import CLASSIFIER, MIL, PROBE
from densepath.report.blocks import Block, Note, Section
from densepath.report.comparison import compare_runs
from densepath.report.detection import DETECTION
from densepath.report.paper_table import RECORD, table_sections
from densepath.report.pretraining import PRETRAINING
from densepath.report.render import write_page
from densepath.report.runs import Kind, Run, find_results, read_run
from densepath.report.segmentation import SEGMENTATION
from densepath.report.slides import OUTPUT

_KINDS = (PROBE, PRETRAINING, DETECTION, SEGMENTATION, CLASSIFIER, MIL, OUTPUT)
_PICTURES = {1: 60, 4: 24, 10: 9}  # number of runs -> pictures of each; none of more runs
_MOST_SHOWN = 40  # runs with a section of their own


def write_report(
    runs: Sequence[str],
    *,
    out: str | Path = "report.html",
    open: bool = False,
    watch: bool = False,
    every: float = 10.0,
) -> Result:
    """Write runs as one HTML file that needs no network: what was trained, how it went, and what came out.

    Takes the folders of pretrain, detect, classify, segment, mil, predict, tile and benchmark, and the scores of probe
    (a .json file). Several runs are also compared: their curves, scores and options, and over seeds by paired tests.

    Args:
        runs: run folders, which may still be in progress, or folders that contain some.
        out: the HTML file, which is replaced.
        open: open it in a browser.
        watch: write the page again while the runs continue; it reloads itself. Ends with the last run, or with Ctrl-C.
        every: seconds between two pages with ``watch``.

    Returns:
        ``out``, with the numbers of "runs" and of those that are "left_out".

    Raises:
        UserError: there is no run, or none can be read; or the file is not an HTML file.
    """
    given, out = [Path(run) for run in ([runs] if isinstance(runs, str) else runs)], Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report cannot be written to {out}; use a file name that ends in .html")
    if not given:
        raise UserError("no run is given; name run folders")
    if every <= 0:
        raise UserError(f"every is {every:g}; give a number of seconds above 0")
    for path in given:
        refuse_replacing(out, path)
    opened = False
    while True:
        counts, running = _write(given, out, every if watch else None)
        if open and not opened:
            webbrowser.open(out.resolve().as_uri())
            opened = True
        if not (watch and running):
            return Result(out, counts, {"report": out})
        time.sleep(every)


def _write(given: Sequence[Path], out: Path, every: float | None) -> tuple[dict[str, int], bool]:
    """Write the page once; returns the numbers of runs, and whether one of them is in progress."""
    paths, problems = [], []
    for path in given:
        try:
            paths += find_results(path)
        except UserError as error:
            problems.append(str(error))
    paths, missing = list(dict.fromkeys(paths)), len(problems)
    most = next((pictures for number, pictures in _PICTURES.items() if len(paths) <= number), 0)
    titles = short_names([str(path) for path in paths], "runs") if paths else []
    found: list[tuple[str, Kind, Run]] = []
    pages: list[tuple[str, str, list[Section]]] = []
    for title, path in zip(titles, paths, strict=True):
        try:
            if (path / RECORD).is_file():
                name, sections = table_sections(path, most)
                pages.append((name, "benchmark", sections))
                continue
            run = read_run(path)
            kind = next((kind for kind in _KINDS if kind.fits(run)), None)
            if kind is None:
                raise UserError(f"{path} is not a result of densepath")
            if len(found) < _MOST_SHOWN:
                pages.append((title, kind.name, kind.sections(run, most)))
            found.append((title, kind, run))
        except Exception as error:  # a damaged run must not cost the page of the others
            problems.append(str(error) if isinstance(error, UserError) else f"{path}: {type(error).__name__}: {error}")
    for problem in problems:
        say(f"densepath: left out: {one_line(problem)}")
    if not pages:
        raise UserError(f"there is nothing to report: {first_few(problems)}")
    running = any(run.state == "in progress" for _, _, run in found)
    sections = _arranged(pages, found, problems)
    title = pages[0][0] if len(pages) == 1 else f"{len(found) or len(pages)} results"
    subtitle = pages[0][1] if len(pages) == 1 else ", ".join(dict.fromkeys(kind for _, kind, _ in pages))
    write_page(out, title, subtitle, sections, reload=every if running else None)
    return {"runs": len(paths) + missing - len(problems), "left_out": len(problems)}, running


def _arranged(
    pages: Sequence[tuple[str, str, list[Section]]],
    found: Sequence[tuple[str, Kind, Run]],
    problems: Sequence[str],
) -> list[Section]:
    """The sections of a page: those of the only run, or a comparison and a folded section for each run."""
    left: list[Block] = [Note(problem, warning=True) for problem in problems]
    last = [Section("Left out", left)] if left else []
    if len(pages) == 1:
        return [*pages[0][2], *last]
    made = []
    for kind in dict.fromkeys(kind for _, kind, _ in found):
        own = {title: run for title, other, run in found if other is kind}
        if len(own) > 1:
            made.append(Section(f"{len(own)} runs: {kind.name}", parts=compare_runs(own)))
    folded = len(pages) > 1
    made += [Section(title, parts=parts, folded=folded, subtitle=kind) for title, kind, parts in pages]
    return [*made, *last]
