"""Cells in files of other software: QuPath's GeoJSON, JSON of HoVer-Net and TIAToolbox, tables of points."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from densepath.annotations.cells.geojson_cells import read_geojson
from densepath.annotations.cells.imported import PointsFile
from densepath.core.csv_files import find_column, open_lines, refuse_longer, refuse_other_encoding
from densepath.core.errors import UserError, counted, errors_as
from densepath.core.geojson import ENDINGS as GEOJSON
from densepath.core.json_files import load_json
from densepath.core.spelling import number_in

ENDINGS = {
    "geojson": GEOJSON,
    "hovernet": (".json", ".json.gz"),
    "csv": (".csv", ".tsv", ".parquet"),
}
READER = 3  # raised when files are read in another way: what was imported in the former one is read again
_SLIDE = ("slide", "image", "wsi", "slide_id", "image_id")  # columns
_PLACES = (  # columns in order of preference, and their unit
    ("centroid_x", "centroid_y", "px"),
    ("centroid_x_um", "centroid_y_um", "um"),
    ("x", "y", "px"),
    ("x_um", "y_um", "um"),
)
_NUMBERS = tuple(name for x, y, _ in _PLACES for name in (x, y))
_BOXES = (("width", "height"), ("w", "h"), ("x1", "y1"), ("x2", "y2"), ("xmin", "ymin"), ("xmax", "ymax"))
_CLASS, _SCORE = ("class", "type", "label", "classification"), ("score", "prob", "type_prob")


def read_points(path: Path, source: str) -> PointsFile:
    """The cells in a file of one slide or image.

    Args:
        path: the file.
        source: "geojson", "hovernet" or "csv".

    Raises:
        UserError: it cannot be read, or is not such a file.
    """
    if source == "csv":
        ((_, found),) = read_tables(path, by_slide=False)
        return found
    found = read_geojson(path) if source == "geojson" else _read_hovernet(path)
    if not np.isfinite(found.points).all():
        raise UserError(f"{path} has cells whose coordinates are NaN or Inf; export it again")
    return found


def _read_hovernet(path: Path) -> PointsFile:
    """JSON of HoVer-Net (``nuc``, ``mag``) and of TIAToolbox: nuclei by number, each with ``centroid`` and ``type``.
    JSON of CellViT has a list ``cells`` of them, and the names of the types.

    Their coordinates are indices of pixels, whose centers are half a pixel further.
    """
    content = load_json(path, "JSON of HoVer-Net, TIAToolbox or CellViT")
    listed = content.get("cells", content.get("nuc", content)) if isinstance(content, dict) else None
    nuclei = list(listed.values()) if isinstance(listed, dict) else listed
    if not isinstance(nuclei, list) or not all(isinstance(n, dict) and "centroid" in n for n in nuclei):
        raise UserError(
            f"{path} is not JSON of HoVer-Net, TIAToolbox or CellViT: nuclei with a centroid; export it again"
        )
    try:
        points = np.array([each["centroid"][:2] for each in nuclei], np.float64).reshape(len(nuclei), 2) + 0.5
        kinds = [each.get("type") for each in nuclei]
    except (TypeError, ValueError, KeyError) as error:
        raise UserError(f"{path} has nuclei whose centroid is not two numbers; export it again") from error
    names = _names_of_types(content.get("type_map"))
    classes = [None if kind is None else _type_name(kind, names) for kind in kinds]
    return PointsFile(points, classes, _magnification(content.get("mag"), path) if "nuc" in content else "px")


def _magnification(mag: Any, path: Path) -> str | float:
    """The magnification at which pixels are counted; "px" where a file states none. Raises UserError."""
    try:
        unit: str | float = float(str(mag).lower().removesuffix("x")) if mag else "px"
    except ValueError:
        unit = math.nan
    if isinstance(unit, float) and not 0 < unit < math.inf:
        raise UserError(f"{path} has the magnification {mag!r}, which is not a number such as 40; correct it")
    return unit


def _names_of_types(type_map: Any) -> dict[int, str]:
    """The names of the types by their numbers: CellViT writes them as name -> number, or as number -> name."""
    names: dict[int, str] = {}
    for key, value in type_map.items() if isinstance(type_map, dict) else ():
        code, name = (key, value) if key.isdecimal() else (value, key)
        if str(code).isdecimal():
            names[int(code)] = str(name)
    return names


def _type_name(kind: Any, names: Mapping[int, str]) -> str:
    if isinstance(kind, float) and kind.is_integer():
        kind = int(kind)
    if isinstance(kind, int) and kind in names:
        return names[kind]
    return f"type {kind:d}" if isinstance(kind, int) else f"type {kind}" if isinstance(kind, float) else str(kind)


def read_tables(path: Path, by_slide: bool = True) -> list[tuple[str, PointsFile]]:
    """The cells in a table (CSV, TSV, Parquet) with columns x, y in pixels of level 0, or x_um, y_um.

    Columns centroid_x, centroid_y, or these with _um, come before them: in tables of boxes, x, y are corners.

    Args:
        path: the table. Columns named class and slide are used, others are ignored.
        by_slide: whether to divide it by its column slide.

    Returns:
        Names of slides, "" if none is named, and their cells.

    Raises:
        UserError: it cannot be read, lacks columns, has boxes without centers, or only some of its rows name a slide.
    """
    columns = _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)
    across, down, unit = _places_in(columns, path)
    try:
        places = [[number_in(n) if isinstance(n, str) else n for n in columns[name]] for name in (across, down)]
        points = np.array(places, np.float64).T.reshape(-1, 2)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has coordinates that are not numbers ({error}); correct them") from error
    if not np.isfinite(points).all():
        raise UserError(f"{path} has rows without coordinates; remove them")
    named = _column(columns, _CLASS)
    classes = [None] * len(points) if named is None else [str(c) if c not in (None, "") else None for c in named]
    slides = ["" if slide is None else str(slide) for slide in (_column(columns, _SLIDE) if by_slide else None) or ()]
    if not any(slides):
        return [("", PointsFile(points, classes, unit))]
    if not all(slides):
        lacking = counted(slides.count(""), "row names", "rows name")
        raise UserError(f"{path}: {lacking} no slide, the others do; fill in the column, or remove these rows")
    rows: dict[str, list[int]] = {}
    for row, slide in enumerate(slides):
        rows.setdefault(slide, []).append(row)
    return [(slide, PointsFile(points[own], [classes[k] for k in own], unit)) for slide, own in rows.items()]


def _places_in(columns: Mapping[str, Sequence[Any]], path: Path) -> tuple[str, str, str]:
    """The columns of x and y, and their unit. Raises UserError if there are none, or only corners of boxes."""
    found = next((place for place in _PLACES if {*place[:2]} <= columns.keys()), None)
    if found is None:
        shown = ", ".join(list(columns)[:8]) or "none"
        raise UserError(f"{path} has the columns {shown}; name them x, y (pixels of level 0) or x_um, y_um")
    box = next((sides for sides in _BOXES if {*sides} <= columns.keys()), None)
    if box and not found[0].startswith("centroid"):
        raise UserError(
            f"{path} has boxes (columns {', '.join(box)}), so that {found[0]}, {found[1]} are corners, not centers of "
            f"cells; add the columns centroid_x, centroid_y, or remove {', '.join(box)} if they are centers"
        )
    return found


def _column(columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> Sequence[Any] | None:
    return next((columns[name] for name in names if name in columns), None)


def _csv(path: Path) -> dict[str, list[Any]]:
    try:
        with open_lines(path) as rows:
            header = [name.strip().lower() for name in next(rows, [])]
            body = []
            for row in filter(None, rows):
                refuse_longer(row, len(header), path, rows.line_num)
                if len(row) < len(header):
                    raise UserError(f"line {rows.line_num} of {path} has fewer fields than its header; save it again")
                body.append(row)
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); give a table of points") from error
    for name in (*_NUMBERS, *_CLASS, *_SLIDE):
        find_column(header, [name], path)
    columns = {name: [row[place].strip() for row in body] for place, name in enumerate(header)}
    refuse_other_encoding((text for name in (*_CLASS, *_SLIDE) for text in columns.get(name, ())), str(path))
    if rows.delimiter == ";":  # because numbers have commas
        columns |= {name: [text.replace(",", ".") for text in columns[name]] for name in _NUMBERS if name in columns}
    return columns


def _parquet(path: Path) -> dict[str, list[Any]]:
    try:
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise UserError('tables as Parquet need pyarrow; pip install "densepath[embed]"') from error
    with errors_as(lambda _: UserError(f"{path} cannot be read as Parquet; save it again")):
        table = read_table(path)
        return {name.lower(): table[name].to_pylist() for name in table.column_names}
