"""``densepath slides``: what is known of each slide, and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from densepath.core.csv_files import write_rows
from densepath.core.errors import UserError, counted, one_line
from densepath.core.files import check_writable, refuse_replacing
from densepath.core.paths import AnyPath, as_path
from densepath.core.single_values import take_single_values
from densepath.core.streams import say, write_result
from densepath.core.system import with_progress
from densepath.sources.listing import Passed
from densepath.sources.slides.borders import report_borders
from densepath.sources.slides.failures import reason_of
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import MppTable, spacing_text
from densepath.sources.slides.slide import NO_MPP, Slide

COLUMNS = ("slide", "vendor", "width", "height", "levels", "mpp", "codec", "reader", "associated", "problem")


def open_slides(paths: Sequence[str], mpp: MppTable | None = None) -> Iterator[tuple[str, Slide | UserError]]:
    """Open slides one after the other; a slide that cannot be opened gives its error.

    Args:
        paths: of the slides.
        mpp: µm per pixel that the user gives.
    """
    for path in paths:
        given = (mpp.given(path), mpp.default) if mpp else ()
        try:
            yield path, open_slide(path, *given)
        except UserError as error:
            yield path, error


@take_single_values
def list_slides(
    *,
    data: AnyPath,
    out: str | Path | None = None,
    mpp_table: AnyPath | None = None,
    default_mpp: float | None = None,
    exclude: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """List slides: vendor, size, levels, µm per pixel, codec, the library that reads them, and what is wrong with them.

    Nothing of a slide's label, macro or text is shown or stored, as these may name the patient.

    Args:
        data: a folder of slides, a text list of files, a glob, or a slide.
        out: a CSV file for the table.
        mpp_table: a CSV file with the columns wsi,mpp: µm per pixel that override those of the slides.
        default_mpp: µm per pixel of slides that have none.
        exclude: patterns of slides to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.

    Returns:
        A row for each slide, with the columns of the table; values that are unknown are empty.

    Raises:
        UserError: no slide is found, or none can be read.
    """
    data, mpp_table = as_path(data), as_path(mpp_table)
    passed, mpp = Passed(), MppTable(mpp_table, default_mpp)
    paths = find_slides(data, exclude, passed)
    if out is not None:
        refuse_replacing(out, data, mpp_table, *paths)
        check_writable(out)
    rows, corners = [], {}
    for path, slide in with_progress(open_slides(paths, mpp), len(paths), "opening slides"):
        name = one_line(os.path.relpath(path, data) if os.path.isdir(data) else path)
        if isinstance(slide, Slide):
            corners[name] = slide.file.scan_corner
        rows.append(_row(slide) if isinstance(slide, Slide) else {"problem": reason_of(slide)})
        rows[-1] = {column: {"slide": name, **rows[-1]}.get(column, "") for column in COLUMNS}
    readable = any(row["reader"] for row in rows)
    if out is not None and readable:
        write_rows(Path(out), COLUMNS, rows)
    _print(rows)
    wrong = [row for row in rows if row["problem"]]
    for row in wrong:
        write_result(f"{row['slide']}: {row['problem']}")
    if unknown := mpp.unknown(paths):
        write_result(unknown)
    report_borders(corners)
    say(f"densepath: {counted(len(rows), 'slide')}, {len(wrong)} with problems{passed.also()}")
    if not readable:
        raise UserError(f"none of {counted(len(rows), 'slide')} can be read ({rows[0]['slide']}: {rows[0]['problem']})")
    return rows


def _row(slide: Slide) -> dict[str, Any]:
    """The facts of a slide that can be opened."""
    height, width = slide.size
    problems = list(slide.file.problems)
    try:
        problems += slide.file.check() or filter(None, [slide.end_problem()])
    except UserError as error:  # it is damaged, or a package is missing
        problems.append(reason_of(error))
    problems += [NO_MPP] * (slide.spacing is None)
    return {
        "vendor": slide.vendor,
        "width": width,
        "height": height,
        "levels": " ".join(f"{sum(level.downsample) / 2:.6g}" for level in slide.levels),
        "mpp": "" if slide.spacing is None else spacing_text(slide.spacing),
        "codec": slide.levels[0].codec,
        "reader": slide.file.reader,
        "associated": " ".join(sorted(slide.associated)),
        "problem": "; ".join(problems),
    }


def _print(rows: Sequence[dict[str, Any]]) -> None:
    """The table on stdout, without the problems, which have a line each."""
    shown = [{"mpp": "µm/px"}.get(column, column) for column in COLUMNS[:-1]]
    lines = [shown, *([str(row[column]) for column in COLUMNS[:-1]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        words = (word.ljust(width) for word, width in zip(line, widths, strict=True))
        write_result("  ".join(words).rstrip())
