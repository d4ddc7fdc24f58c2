"""``densepath tile``: slides -> tiles with tissue, as rectangles in µm."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import repeat
from pathlib import Path
from typing import Any

from densepath.core.closing import command, say_end
from densepath.core.errors import UserError, counted, first_few, one_line
from densepath.core.geojson import ENDINGS as GEOJSON
from densepath.core.locks import shared_work
from densepath.core.output_names import names_below, output_names
from densepath.core.paths import AnyPath, as_path
from densepath.core.remains import remove_remains
from densepath.core.result import Result
from densepath.core.shared_work import LOCKS, Shard
from densepath.core.single_values import take_single_values
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.system import check_workers, usable_cores
from densepath.core.work_folder import work_folder
from densepath.sources.listing import Passed
from densepath.sources.slides.borders import report_borders
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.resolution import MppTable
from densepath.sources.tiles import coords as coord_files
from densepath.sources.tiles.named_files import NamedFiles
from densepath.sources.tiles.one_slide import Job
from densepath.sources.tiles.pictures import draw_contact_sheet
from densepath.sources.tiles.records import (
    Table,
    is_written,
    parquet_module,
    slides_table,
    write_slides_table,
    write_tiles_table,
)
from densepath.sources.tiles.tile_files import SLIDES, h5py_module
from densepath.sources.tiles.tissue import Holes, Pen

LOG, SHEET = "tile.log", "contact_sheet.png"
_FREE = ("data", "exclude")  # may change when the same command continues
_LATEST = ("default_mpp", "mpp_table")  # also these: slides that they are for are tiled again
_MPP, _SIZE = 0.5, 256
_MOST_WORKERS = 16


@take_single_values
def tile(
    *,
    data: AnyPath,
    out: str | Path,
    mpp: float | None = None,
    size: int | None = None,
    overlap: int = 0,
    tissue: str = "auto",
    min_tissue: float = 0.25,
    holes: Holes = "keep",
    pen: Pen = "drop",
    align: bool = False,
    coords: AnyPath | None = None,
    mpp_table: AnyPath | None = None,
    default_mpp: float | None = None,
    exclude: Sequence[str] = (),
    table: Table = "csv",
    shard: str | None = None,
    workers: int | None = None,
) -> Result:
    """Find the tissue of slides, and cover it with tiles of an exact size in µm.

    For each slide: its tiles as HDF5 that TRIDENT reads, outlines of the tissue for QuPath, and a picture of both. For
    all: slides.csv, a table of all tiles, and contact_sheet.png. A slide that cannot be tiled is reported and passed
    over. Any number of processes and machines may fill one folder; the same command continues after a stop.

    Args:
        data: a folder of slides, a text list of files, a glob, or a slide.
        out: the folder of the results.
        mpp: µm per pixel of a tile; by default 0.5, or as in ``coords``.
        size: side of a tile in pixels; by default 256, or as in ``coords``.
        overlap: pixels by which neighboring tiles overlap.
        tissue: "auto", or a folder with outlines of the tissue, NAME.geojson of QuPath for a slide NAME.
        min_tissue: the least share of tissue of a tile, from 0 to 1.
        holes: "keep" holes in the tissue that are larger than 0.02 mm², or "fill" them.
        pen: "drop" marks of a pen, or "keep" them as tissue.
        align: put tiles on the file's own tiles, which are then decoded once, even if up to a quarter of the tissue
            lies between them; by default only where that is at most 3%.
        coords: a folder with HDF5 files of TRIDENT, CLAM or STAMP, whose tiles are taken instead of finding tissue.
        mpp_table: a CSV file with the columns wsi,mpp: µm per pixel that override those of the slides.
        default_mpp: µm per pixel of slides that have none.
        exclude: patterns of slides to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a name.
        table: format of the table of all tiles.
        shard: this process's share of the slides: 2/8 is the second of eight. By default that of torchrun or srun, if
            one of them started it; other processes, such as those of job arrays, share by locks.
        workers: number of processes; 0 for none besides this one. By default one for each core.

    Returns:
        ``out``, with the numbers of "slides", "problems" and "tiles".

    Raises:
        UserError: there is no slide, ``out`` holds other results, or no slide can be tiled.
    """
    data, coords, mpp_table = as_path(data), as_path(coords), as_path(mpp_table)
    watch, passed, given_mpp = Stopwatch(), Passed(), MppTable(mpp_table, default_mpp)
    part = Shard.of(shard)
    h5py_module()
    if table == "parquet":
        parquet_module()
    slides = list(find_slides(data, exclude, passed))
    names = output_names([Path(name) for name in names_below(slides, data)])
    given = (
        NamedFiles(coords, coord_files.ENDINGS, "coords", "HDF5 files of tiles", names) if coords is not None else None
    )
    drawn = NamedFiles(tissue, GEOJSON, "tissue", "GeoJSON files", names) if tissue != "auto" else None
    if given and drawn:
        raise UserError("--coords gives the tiles, so that --tissue has no use; leave one of them out")
    mpp, size, overlap = _measures(mpp, size, overlap, given, names)
    if not 0 <= min_tissue <= 1:
        raise UserError(f"min_tissue is {min_tissue}; give a share from 0 to 1")
    check_workers(workers)
    options = {
        "data": str(data),
        "mpp": mpp,
        "size": size,
        "overlap": overlap,
        "tissue": tissue,
        "min_tissue": min_tissue,
        "holes": holes,
        "pen": pen,
        "align": align,
        "coords": coords if coords is None else str(coords),
        "default_mpp": default_mpp,
        "mpp_table": mpp_table if mpp_table is None else str(mpp_table),
        "exclude": list(exclude),
        "table": table,
    }
    out = Path(out)
    paths = dict(zip(names, slides, strict=True))
    job = Job(out, paths, mpp, size, overlap, min_tissue, given_mpp, drawn, given, holes, pen, align)
    folder = work_folder(out, options, log=LOG, free=_FREE, latest=_LATEST)
    with folder as write_added, job.together(default_mpp):
        job.work(
            data,
            SLIDES,
            items="slides",
            what="tiling",
            workers=lambda: min(usable_cores(), _MOST_WORKERS) if workers is None else workers,
            shard=part,
            also=passed.also(),
            lines=(given_mpp.unknown(slides), *(each.describe_unmatched() for each in (given, drawn) if each)),
            on_begin=write_added,
        )
        return _gather(job, names, table, part, watch)


def _measures(
    mpp: float | None, size: int | None, overlap: int, given: NamedFiles | None, names: Sequence[str]
) -> tuple[float, int, int]:
    """µm per pixel, side and overlap of the tiles: as asked for, or else as the first of given files says."""
    if given and (mpp is None or size is None):
        found = next(filter(None, map(_given_size, repeat(given), names)), None)
        if found is None:
            why = given.describe_unmatched() or "the files of --coords do not say the µm per pixel of their tiles"
            raise UserError(f"{why}; give --mpp and --size, and files that are named as the slides")
        mpp, size = found[0] if mpp is None else mpp, found[1] if size is None else size
        overlap = overlap or found[2]
    mpp, size = _MPP if mpp is None else mpp, _SIZE if size is None else size
    if not 0.01 <= mpp <= 100:
        raise UserError(f"mpp is {mpp}; give µm per pixel, such as 0.5")
    if size < 8:
        raise UserError(f"size is {size}; give the side of a tile in pixels, at least 8")
    if not 0 <= overlap < size:
        raise UserError(f"overlap is {overlap}; give a number of pixels from 0 to less than --size {size}")
    return mpp, size, overlap


def _given_size(given: NamedFiles, name: str) -> tuple[float, int, int] | None:
    """What the file of a slide says; None without one, or if it is damaged, which is reported with its slide."""
    with suppress(UserError):
        path = given.of(name)
        return coord_files.given_size(path) if path else None
    return None


def _gather(job: Job, names: Sequence[str], table: Table, part: Shard | None, watch: Stopwatch) -> Result:
    """Write the tables and the sheet of all slides, if all are done, and print the last lines."""
    rows = [row for name in names if (row := job.record(name))]
    if job.left_to_others(rows, "slides", part, "the tables"):
        return Result(job.out, _counts(rows))
    text = slides_table(rows)
    made = job.out / f"tiles.{table}"
    with shared_work(job.out / LOCKS / "tables", "tables"):
        if not (is_written(job.out, text) and made.exists() and (job.out / SHEET).exists()):
            remove_remains(job.out, shared=True)
            write_tiles_table(made, rows, job.tiles)
            draw_contact_sheet(job.out / SHEET, [(job.mask(row["slide"]), row["slide"], _shown(row)) for row in rows])
            write_slides_table(job.out, text)
    counts = _counts(rows)
    if not counts["tiles"]:
        first = rows[0]
        example = f"{one_line(first['slide'])}: {first['problem']}"
        raise UserError(f"none of {counted(len(rows), 'slide')} could be tiled ({example}); see {job.out / SLIDES}")
    off = [row for row in rows if row["tiles"] and row["aligned"] not in ("yes", "")]
    if job.align and off:
        shown = first_few([f"{one_line(row['slide'])}: {row['aligned']}" for row in off], 2)
        say(f"densepath: the tiles of {counted(len(off), 'slide')} are not on the file's own tiles ({shown})")
    report_borders({row["slide"]: row.get("scan_corner", (0, 0)) for row in rows})
    problems = f", {counts['problems']} with problems" if counts["problems"] else ""
    files = {"slides": job.out / SLIDES, "tiles": made, "pictures": job.out / SHEET}
    following = (
        command("pretrain", "--config", "concl_small", "--data", job.out, "--out", Path(f"{job.out}_run")),
        command("embed", "--data", job.out, "--weights", "WEIGHTS", "--out", Path(f"{job.out}_features")),
        command("cells", "--data", job.out, "--out", Path(f"{job.out}_cells")),
    )
    of = counted(counts["slides"], "slide")
    say_end(watch, f"{counted(counts['tiles'], 'tile')} of {of}{problems}", files, following)
    return Result(job.out, counts, {"contact_sheet": job.out / SHEET, **files}, following)


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "slides": len(rows),
        "problems": sum(bool(row["problem"]) for row in rows),
        "tiles": sum(row["tiles"] for row in rows),
    }


def _shown(row: dict[str, Any]) -> str:
    """A line below a slide's picture."""
    tissue = f", {row['tissue_mm2']:.3g} mm²" if "tissue_mm2" in row else ""
    return f"{counted(row['tiles'], 'tile')}{tissue}" if row["tiles"] else str(row["problem"])
