"""``densepath report``: run folders as a page for a browser."""

from __future__ import annotations

import math
import time
import webbrowser
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from densepath.analysis.short_names import short_names
from densepath.core.errors import UserError, first_few, one_line
from densepath.core.files import check_writable, refuse_replacing
from densepath.core.paths import AnyPath, as_texts
from densepath.core.result import Result
from densepath.core.single_values import take_single_values
from densepath.core.streams import say
from densepath.report.answers import CLASSIFIER, MIL, PROBE
from densepath.report.blocks import Block, Note, Section
from densepath.report.comparison import MOST_CURVES, comparable, compare_runs
from densepath.report.detection import DETECTION
from densepath.report.paper_table import table_sections
from densepath.report.pretraining import PRETRAINING
from densepath.report.render import write_page
from densepath.report.runs import MOST, ROWS, Kind, Run, find_results, is_table, read_run
from densepath.report.segmentation import SEGMENTATION
from densepath.report.slides import OUTPUTS

_KINDS = (PROBE, PRETRAINING, DETECTION, SEGMENTATION, CLASSIFIER, MIL, *OUTPUTS)
_PICTURES = {1: 60, 4: 24, 10: 9}  # number of runs -> pictures of each; none of more runs
_OPEN = 3  # runs whose sections are open at first
_MOST_SHOWN = 40  # runs with a section of their own
_FEW_ROWS = 400  # measurements of each of many runs


@take_single_values
def write_report(
    runs: Sequence[AnyPath],
    *,
    out: str | Path = "report.html",
    open: bool = False,
    watch: bool = False,
    every: float = 10.0,
    title: str | None = None,
    note: str | None = None,
) -> Result:
    """Write runs as one HTML file that needs no network: what was trained, how it went, and what came out.

    Takes the folders of pretrain, detect, classify, segment, mil, predict, tile, cells and benchmark, and the scores of
    probe (a .json file). Several runs are also compared: their curves, scores and options, and over seeds by paired
    tests.

    Args:
        runs: run folders, which may still be in progress, or folders that contain some.
        out: the HTML file, which is replaced.
        open: open it in a browser.
        watch: write the page again while the runs continue; it reloads itself. Ends with the last run, or with Ctrl-C.
        every: seconds between two pages with ``watch``.
        title: the title of the page; default: the name of the run, or the number of results.
        note: a text to print below it.

    Returns:
        ``out``, with the numbers of "runs" and of those that are "left_out".

    Raises:
        UserError: there is no run, or none can be read; or the file is not an HTML file.
    """
    given, out = [Path(run) for run in as_texts(runs)], Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report cannot be written to {out}; use a file name that ends in .html")
    if not given:
        raise UserError("no run is given; name run folders")
    if not 0 < every < math.inf:
        raise UserError(f"every is {every:g}; give a number of seconds above 0")
    for path in given:
        refuse_replacing(out, path)
    check_writable(out)
    opened, said = False, set[str]()
    while True:
        (name, subtitle, sections), counts, running = _read(given, said)
        try:
            write_page(out, title or name, note or subtitle, sections, reload=every if watch and running else None)
        except UserError as error:  # such as a full disk
            if not opened or not running:
                raise
            _say(str(error), said)
        if open and not opened:
            webbrowser.open(out.resolve().as_uri())
        opened = True
        if not (watch and running):
            return Result(out, counts, {"report": out})
        time.sleep(every)


def _say(line: str, said: set[str]) -> None:
    """Print a line once."""
    if line not in said:
        said.add(line)
        say(f"densepath: {one_line(line)}")


def _read(given: Sequence[Path], said: set[str]) -> tuple[tuple[str, str, list[Section]], dict[str, int], bool]:
    """The title, subtitle and sections of the page, the numbers of runs, and whether one of them is in progress."""
    results: dict[Path, Path] = {}  # where it is -> as it was named
    problems: list[str] = []
    for path in given:
        try:
            for found in find_results(path):
                results.setdefault(found.resolve(), found)
        except (UserError, OSError) as error:
            problems.append(str(error))
    missing, paths = len(problems), list(results.values())[:MOST]
    limits = [f"The first {MOST:,} of {len(results):,} results are shown."] if len(results) > MOST else []
    runs, tables = _read_each(paths, problems)
    most = next((pictures for number, pictures in _PICTURES.items() if len(runs) + len(tables) <= number), 0)
    pages: list[tuple[str, str, list[Section]]] = []
    compared: list[tuple[str, Kind, Run]] = []
    for table in tables:
        with _noted(table, problems):
            name, sections = table_sections(table, most)
            pages.append((name, "benchmark", sections))
    for title, kind, run in runs:
        with _noted(run.path, problems):
            if len(pages) < _MOST_SHOWN:
                pages.append((title, kind.name, kind.sections(run, most)))
            compared.append((title, kind, run))
    for problem in problems:
        _say(f"left out: {problem}", said)
    if not pages:
        raise UserError(f"there is nothing to report: {first_few(problems)}")
    if len(compared) > len(pages):
        limits.append(f"The first {len(pages)} of {len(compared):,} runs have a page below; tables and tests have all.")
    if not most:
        limits.append(f"A page of more than {max(_PICTURES)} results has no pictures: name fewer to see theirs.")
    running = any(run.state == "in progress" for _, _, run in compared)
    sections = _arranged(pages, compared, problems, limits)
    title = pages[0][0] if len(pages) == 1 else f"{len(compared) or len(pages)} results"
    subtitle = pages[0][1] if len(pages) == 1 else ", ".join(dict.fromkeys(kind for _, kind, _ in pages))
    counts = {"runs": len(paths) + missing - len(problems), "left_out": len(problems)}
    return (title, subtitle, sections), counts, running


def _read_each(paths: Sequence[Path], problems: list[str]) -> tuple[list[tuple[str, Kind, Run]], list[Path]]:
    """The runs with their titles and kinds, and the folders of tables; what cannot be read is added to ``problems``."""
    titles = short_names([str(path) for path in paths], "runs") if paths else []
    many = len(paths) > max(_PICTURES)
    runs: list[tuple[str, Kind, Run]] = []
    tables = [path for path in paths if is_table(path)]
    with_curves = Counter[str]()
    for title, path in zip(titles, paths, strict=True):
        if path in tables:
            continue
        with _noted(path, problems):
            run = read_run(path, _FEW_ROWS if many else ROWS)
            kind = next((kind for kind in _KINDS if kind.fits(run)), None)
            if kind is None:
                raise UserError(f"{path} is not a result of densepath")
            # The measurements of thousands of runs do not fit into memory.
            if with_curves[kind.name] >= MOST_CURVES and len(runs) >= _MOST_SHOWN:
                run = replace(run, rows=[run.last] * bool(run.rows), trainings={})
            runs.append((title, kind, run))
            with_curves[kind.name] += bool(run.curves)
    return runs, tables


@contextmanager
def _noted(path: Path, problems: list[str]) -> Iterator[None]:
    """Add an error to ``problems``: a damaged run must not cost the page of the others."""
    try:
        yield
    except Exception as error:
        problems.append(str(error) if isinstance(error, UserError) else f"{path}: {type(error).__name__}: {error}")


def _arranged(
    pages: Sequence[tuple[str, str, list[Section]]],
    found: Sequence[tuple[str, Kind, Run]],
    problems: Sequence[str],
    limits: Sequence[str],
) -> list[Section]:
    """The sections of a page: those of the only run, or a comparison and a section for each run; many are folded."""
    left: list[Block] = [Note(problem, warning=True) for problem in problems]
    last = [Section("Left out", left)] if left else []
    made = [Section("What is shown", [Note(" ".join(limits))])] if limits else []
    if len(pages) == 1:
        return [*made, *pages[0][2], *last]
    for kind in dict.fromkeys(kind for _, kind, _ in found):
        if kind not in OUTPUTS:
            for own in comparable({title: run for title, other, run in found if other is kind}):
                made.append(Section(f"{len(own)} runs: {kind.name}", parts=compare_runs(own)))
    folded = len(pages) > _OPEN
    made += [Section(title, parts=parts, folded=folded, subtitle=kind) for title, kind, parts in pages]
    return [*made, *last]
