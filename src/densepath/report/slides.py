"""Slides of a run: attention, heat maps, tissue and tiles as pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from densepath.core.csv_files import read_rows
from densepath.core.errors import UserError
from densepath.report.blocks import Block, Facts, Note, Section, Table
from densepath.report.common import ending, gallery, options, pictures_below
from densepath.report.paths import own_file
from densepath.report.runs import Kind, Run
from densepath.report.slide_layers import slide_layers
from densepath.report.volumes import MOST, volume_sliders
from densepath.transfer.segment.volume_slices import SUFFIX

_FOLDERS = {
    "attention": "Attention",
    "heat_maps": "Heat maps",
    "pictures": "Objects",
    "masks": "Tissue and tiles",
}
_OPTIONS = {"run": "network", "data": "images", "mpp": "µm per pixel", "size": "size of tiles (px)"}
_MOST_ROWS = 100
_SIDE = 900  # pixels
_LONG = re.compile(r"-?\d+\.\d{5,}(e[-+]\d+)?")


def slide_blocks(run: Run, most: int, folders: Mapping[str, str] = _FOLDERS) -> list[Block]:
    """The pictures of slides in a run, and those in its folders: name -> title."""
    if not most:
        return []
    layers, lines = slide_layers(run, max(1, most // 4))
    blocks: list[Block] = [*layers, *map(Note, lines)]
    for name, title in folders.items():
        if (run.path / name).is_dir():
            blocks += gallery(title, pictures_below(run.path / name), run.path, max(2, most // 2), _SIDE)
    return blocks


def _sections(run: Run, most: int) -> list[Section]:
    made = [Section("Summary", [Facts(options(run, _OPTIONS))])]
    volumes = sorted((run.path / "pictures").rglob(f"*{SUFFIX}"))[:MOST] if most else []
    sliders = [each for file in volumes for each in volume_sliders(file, run.path, file.stem)]
    if blocks := [*sliders, *slide_blocks(run, most)]:
        made.append(Section("Pictures", blocks))
    for name in ("slides.csv", "cells.csv", "predictions.csv", "objects.csv"):
        if (run.path / name).is_file():
            made.append(Section(name, [_table(run.path, name)], folded=True))
    return [*made, *ending(run)]


def _table(folder: Path, name: str) -> Table:
    try:
        rows = read_rows(own_file(folder, name), "make it again")
    except UserError as error:
        return Table(["problem"], [[str(error)]])
    columns = [str(name) for name in rows[0]] if rows else []
    shown = [[_rounded(row.get(name) or "") for name in columns] for row in rows[:_MOST_ROWS]]
    caption = f"The first {_MOST_ROWS} of {len(rows):,} rows" if len(rows) > _MOST_ROWS else ""
    return Table(columns, shown, caption=caption)


def _rounded(value: str) -> str:
    """A text; of a number with many decimals, five digits or the whole number."""
    if not _LONG.fullmatch(value):
        return value
    number = float(value)
    return f"{number:.0f}" if abs(number) >= 1e4 else f"{number:.5g}"


OUTPUTS = (
    Kind("predictions", lambda run: run.has("data", "run"), _sections),
    Kind("tiles", lambda run: run.has("data", "tissue"), _sections),
    Kind("cells", lambda run: run.has("data", "points"), _sections),
    Kind("output", lambda run: run.has("data"), _sections),
)
