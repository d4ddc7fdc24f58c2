"""``densepath data luna``: LUNA16, CT of lungs with nodules."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from densepath.core.csv_files import open_table, write_rows
from densepath.core.errors import UserError, counted, refuse
from densepath.core.spelling import decimal_in
from densepath.core.streams import say
from densepath.datasets.published import Published
from densepath.datasets.volumes.conversion import Case, Contents, Conversion, source_folder
from densepath.datasets.volumes.convert import convert
from densepath.datasets.volumes.folder import stem, volumes_in
from densepath.sources.listing import walk
from densepath.sources.volumes.metaimage import SUFFIXES
from densepath.sources.volumes.open_store import open_volumes
from densepath.sources.volumes.read import read_volume

LUNA = Published("LUNA16", "https://luna16.grand-challenge.org", "CC BY 4.0", {"CT": 888})
_LUNGS = "seg-lungs-LUNA16"
_LABELS = {3: "left lung", 4: "right lung", 5: "trachea"}
CANDIDATES = "candidates.csv"
# Tables as published -> the file in the store, and the column that is kept.
_TABLES = {
    "annotations.csv": ("nodules.csv", "diameter_mm"),
    "candidates_V2.csv": (CANDIDATES, "class"),
    "candidates.csv": (CANDIDATES, "class"),
}


def convert_luna(how: Conversion) -> Path:
    """Convert LUNA16 to a store, with lungs as labels, and nodules and candidates as tables.

    The source holds ``subset0`` to ``subset9`` with ``UID.mhd`` and ``UID.raw``, and perhaps ``seg-lungs-LUNA16``,
    ``annotations.csv`` and ``candidates_V2.csv``. These become ``nodules.csv`` and ``candidates.csv`` in the store,
    with places in mm in the RAS+ axes of its affine maps. The subset of a volume is its split: ``--exclude subset7
    subset8 subset9`` leaves some out of a pre-training. A scan is a patient.

    Returns:
        The folder of the store.

    Raises:
        UserError: there is no volume, one is there twice, or none can be read.

    Source: Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary
    nodules in computed tomography images: the LUNA16 challenge", 2017.
    """
    source = source_folder(how.source)
    subsets = sorted(path for path in source.glob("subset*") if path.is_dir())
    lungs = volumes_in(source / _LUNGS) if (source / _LUNGS).is_dir() else {}
    files = [(subset.name, Path(path)) for subset in subsets for path in walk(subset, SUFFIXES)]
    cases = [
        Case(
            stem(path),
            partial(read_volume, path, how.target),
            partial(read_volume, lungs[stem(path)], how.target) if stem(path) in lungs else None,
            patient=stem(path),
            split=subset,
            file=str(path),
            inputs=(path, *([lungs[stem(path)]] if stem(path) in lungs else [])),
        )
        for subset, path in files
    ]
    dest = convert(cases, Contents("luna", "CT", _LABELS), how)
    store = open_volumes(dest)
    names = {store.names(position) for position in range(len(store))}
    for made, _ in _TABLES.values():  # of an earlier conversion
        (dest / made).unlink(missing_ok=True)
    for table, (made, column) in _TABLES.items():
        if (source / table).is_file() and (table != "candidates.csv" or not (source / "candidates_V2.csv").is_file()):
            _write_places(source / table, dest / made, column, names)
    LUNA.report({"CT": len(cases)})
    return dest


def _write_places(table: Path, dest: Path, column: str, names: set[str]) -> None:
    """A table of places in world coordinates of DICOM (LPS), as one in RAS; only of volumes in the store."""
    rows = list(_places(table, column))
    kept = [row for row in rows if row["volume"] in names]
    write_rows(dest, ("volume", "x", "y", "z", column), kept)
    of = f" ({len(rows) - len(kept)} of other volumes)" if len(kept) < len(rows) else ""
    say(f"densepath: {dest.name}: {counted(len(kept), 'place')}{of}")


def _places(table: Path, column: str) -> Iterator[dict[str, Any]]:
    """The rows of a published table, as published or as a spreadsheet has saved it.

    Raises:
        UserError: it cannot be read, lacks a column, or a field that should be a number is none.
    """
    axes, kept = ("coordx", "coordy", "coordz"), column.lower()
    try:
        with open_table(table) as given:
            refuse(
                [name for name in ("seriesuid", *axes, kept) if name not in given.columns],
                f"{table} lacks columns",
                "restore it",
            )
            for line, row in given.rows():
                numbers = {name: decimal_in(row[name]) for name in (*axes, kept)}
                if wrong := [name for name, value in numbers.items() if math.isnan(value)]:
                    raise UserError(
                        f"line {line} of {table} has {row[wrong[0]]!r} as {wrong[0]}, which is not a number; restore it"
                    )
                x, y, z = (numbers[name] for name in axes)
                text = row[kept].replace(",", ".")
                yield {"volume": row["seriesuid"], "x": -x, "y": -y, "z": z, column: text}
    except (OSError, UnicodeError, csv.Error) as error:
        raise UserError(f"{table} cannot be read ({error}); restore it") from error
