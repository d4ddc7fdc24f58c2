"""What is known of each slide that was tiled: its record, which makes ``tile`` resumable, and the tables of all."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.sources.tiles.identity import read_record, record_path
from densepath.sources.tiles.tile_files import SLIDES, read_shares, read_tiling, stored_text

COLUMNS = ("slide", "path", "mpp", "width", "height", "tiles", "tissue_mm2", "problem")
TILE_COLUMNS = ("slide", "x", "y", "x_um", "y_um", "tissue")
Table = Literal["csv", "parquet"]


def write_record(out: Path, row: Mapping[str, Any], identity: Sequence[Any]) -> None:
    """Write the record of a slide, which marks it as done.

    Args:
        out: the folder.
        row: the values of the table.
        identity: what the tiles were made of.

    Raises:
        UserError: it cannot be written.
    """
    with atomic_write(record_path(out, row["slide"])) as part:
        part.write_text(json.dumps({"identity": list(identity), **row}))


def recorded_slides(out: Path) -> list[str]:
    """The names of the slides that have a record in a folder."""
    folder = record_path(out, "").parent
    return [str(path.relative_to(folder)).removesuffix(".json") for path in sorted(folder.rglob("*.json"))]


def identities(out: Path) -> dict[str, list[Any]]:
    """What the results of all slides in a folder were made of, by the names of the slides."""
    return {name: record["identity"] for name in recorded_slides(out) if (record := read_record(out, name))}


def slides_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of slides as text."""
    text = io.StringIO()
    writer = csv.DictWriter(LineFeeds(text), COLUMNS, restval="", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def is_written(out: Path, table: str) -> bool:
    """Whether the tables are those of these slides."""
    try:
        return (out / SLIDES).read_bytes() == table.encode("utf-8", "surrogateescape")
    except OSError:
        return False


def write_slides_table(out: Path, table: str) -> None:
    """Write the table of slides; it comes last, and marks the folder as complete."""
    with atomic_write(out / SLIDES) as part:
        part.write_bytes(table.encode("utf-8", "surrogateescape"))


def write_tiles_table(path: Path, rows: Sequence[Mapping[str, Any]], tiles: Callable[[str], Path]) -> None:
    """Write a table of all tiles, a slide at a time.

    Args:
        path: a CSV or a Parquet file.
        rows: of the table of slides.
        tiles: the HDF5 file of a slide by its name.

    Raises:
        UserError: it cannot be written, or pyarrow is not installed.
    """
    blocks = (_columns(row["slide"], tiles(row["slide"])) for row in rows if row["tiles"])
    with atomic_write(path) as part:
        if path.suffix == ".csv":
            with part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                writer = csv.writer(LineFeeds(file))
                writer.writerow(TILE_COLUMNS)
                for name, values in blocks:
                    x, y, x_um, y_um, tissue = values
                    shares = ["" if math.isnan(share) else round(share, 4) for share in tissue.tolist()]
                    places = (x.tolist(), y.tolist(), x_um.round(3).tolist(), y_um.round(3).tolist())
                    writer.writerows(zip([name] * len(x), *places, shares, strict=True))
        else:
            _write_parquet(part, blocks)


def _columns(name: str, path: Path) -> tuple[str, list[Any]]:
    tiling = read_tiling(path, "")
    boxes, (x, y) = tiling.boxes_um(), tiling.corners.T
    return name, [x, y, boxes[:, 1], boxes[:, 0], read_shares(path)]


def _write_parquet(path: Path, blocks: Iterator[tuple[str, list[Any]]]) -> None:
    pa, writer_of = parquet_module()
    kinds = (pa.string(), pa.int64(), pa.int64(), pa.float64(), pa.float64(), pa.float32())
    schema = pa.schema(list(zip(TILE_COLUMNS, kinds, strict=True)))
    with writer_of(path, schema) as file:
        for name, values in blocks:
            text = stored_text(name)
            arrays = [[text] * len(values[0]), *values]
            file.write_table(pa.table([pa.array(a, k) for a, k in zip(arrays, kinds, strict=True)], schema))


def parquet_module() -> tuple[Any, Any]:
    """pyarrow, and its writer of Parquet. Raises UserError if it is not installed."""
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise UserError('a Parquet table needs pyarrow; pip install "densepath[embed]", or use --table csv') from error
    return pa, ParquetWriter
