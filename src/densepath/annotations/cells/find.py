"""``densepath cells``: the cells of slides and images as points, found or imported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from densepath.annotations.cells.cell_files import CELLS, read_cell_rows, write_cell_rows
from densepath.annotations.cells.finders import MODELS, check_finder, digest_of_weights
from densepath.annotations.cells.imported import PointsFile
from densepath.annotations.cells.one_area import Job, is_finder, owners_of_paths, spellings
from densepath.annotations.cells.points_files import ENDINGS, read_tables
from densepath.core.closing import command, say_end
from densepath.core.errors import UserError, counted, first_few, one_line, refuse
from densepath.core.locks import shared_work
from densepath.core.output_names import names_below, output_names, refuse_repeated
from densepath.core.paths import AnyPath, as_path
from densepath.core.remains import remove_remains
from densepath.core.result import Result
from densepath.core.shared_work import LOCKS, Shard
from densepath.core.single_values import take_single_values
from densepath.core.stopwatch import Stopwatch
from densepath.core.streams import say
from densepath.core.system import available_memory, check_workers, usable_cores
from densepath.core.work_folder import work_folder
from densepath.sources.listing import Passed, list_images
from densepath.sources.slides.borders import report_borders
from densepath.sources.tiles.identity import scan_corner_of
from densepath.sources.tiles.named_files import NamedFiles
from densepath.sources.tiles.tile_files import is_tile_folder, read_tile_folder

LOG = "cells.log"
_FREE = ("data", "points", "weights", "exclude")  # may change when the same command continues
_LATER = ("default_mpp",)  # may be given where it was missing: files that failed are then read again
_MOST_WORKERS = 16
_OBJECTS = 14  # bytes of Python's numbers and lists that become of a byte of text
Source = Literal["blobs", "geojson", "csv", "hovernet", "cellpose", "stardist", "histomicstk"]


@take_single_values
def cells(
    *,
    data: AnyPath,
    out: str | Path,
    source: Source = "blobs",
    points: AnyPath | None = None,
    weights: AnyPath | None = None,
    model_mpp: float | None = None,
    default_mpp: float | None = None,
    exclude: Sequence[str] = (),
    shard: str | None = None,
    workers: int | None = None,
) -> Result:
    """Find the cells of slides or images, or import them, as points with a class: a prior of pre-training.

    For each slide or image: its cells as HDF5. For all: cells.csv. The cells of tiles are found in the slides
    themselves, at the resolution that they need, whatever that of the tiles. A slide or image that fails is reported
    and passed over. Any number of processes and machines may fill one folder; the same command continues after a stop.

    Args:
        data: a folder that densepath tile wrote, or images: a folder, a text list of files, a glob, or an image.
        out: the folder of the results.
        source: how they are found: "blobs", built in for H&E, without weights; or the networks "cellpose", "stardist"
            and "hovernet" (with ``weights``), and "histomicstk", each of the package of that name (of HoVer-Net:
            tiatoolbox). With ``points``, what is imported: "geojson" of QuPath, CellViT or ``densepath predict``, JSON
            of "hovernet", TIAToolbox or CellViT, or "csv" tables with columns x, y (pixels of level 0) or x_um, y_um,
            and class.
        points: a folder with a file for each slide or image, of its name; a file for a single one; or for "csv" one
            table with a column slide. CSV, TSV and Parquet.
        weights: the file or folder of a network; nothing is downloaded.
        model_mpp: µm per pixel of the images that the network was trained on, if not the usual ones.
        default_mpp: µm per pixel of images.
        exclude: patterns of slides or images to leave out: ``*`` and ``?`` in a path below ``data``, a folder or a
            name.
        shard: this process's share of the slides: 2/8 is the second of eight. By default that of torchrun or srun, if
            one of them started it; other processes, such as those of job arrays, share by locks.
        workers: number of processes; 0 for none besides this one, which is the default for networks. Otherwise the
            default is one for each core.

    Returns:
        ``out``, with the numbers of "slides", "problems" and "cells".

    Raises:
        UserError: there is no image, options contradict each other, ``out`` holds other results, no image can be read,
            or an import has no cell, only annotations with an area.
    """
    data, points, weights = as_path(data), as_path(points), as_path(weights)
    watch, out = Stopwatch(), Path(out)
    part = Shard.of(shard)
    _check_options(source, points, weights, model_mpp, default_mpp, workers)
    also = ""
    if is_tile_folder(data):
        tilings = {tiling.name: tiling for tiling in read_tile_folder(data, exclude=exclude)}
        paths = {name: tiling.path for name, tiling in tilings.items()}
        what = "slides"
    else:
        passed = Passed()
        listed = list(list_images(data, exclude, passed, runs=False))
        refuse_repeated(below := names_below(listed, data), data)
        names = output_names(list(map(Path, below)))
        paths, tilings, what = dict(zip(names, listed, strict=True)), {}, "images"
        also = passed.also()
    given = _given_points(points, source, paths)
    job = Job(out, paths, tilings, source, given, weights, model_mpp, default_mpp)
    if default_mpp is not None and tilings:
        raise UserError("tiles have their slides' µm per pixel; leave --default_mpp out")
    if not tilings and default_mpp is None and points is None:
        raise UserError("cells have a size in µm; give the µm per pixel of the images: --default_mpp 0.5")
    options = {
        "data": str(data),
        "source": source,
        "points": None if points is None else str(points),
        "weights": None if weights is None else str(weights),
        "weights_sha256": None if weights is None else digest_of_weights(weights),
        "model_mpp": model_mpp,
        "default_mpp": default_mpp,
        "exclude": list(exclude),
    }
    with work_folder(out, options, log=LOG, free=_FREE, later=_LATER) as write_added, job.together(default_mpp):
        network = given is None and source in MODELS
        job.work(
            data,
            CELLS,
            items=what,
            what="finding cells",
            workers=lambda: (0 if network else min(_most_workers(job), usable_cores())) if workers is None else workers,
            shard=part,
            also=also,
            lines=(job.describe_unmatched(),),
            on_begin=write_added,
        )
        return _gather(job, data, what, part, watch)


def _check_options(
    source: str,
    points: str | Path | None,
    weights: str | Path | None,
    model_mpp: float | None,
    default_mpp: float | None,
    workers: int | None,
) -> None:
    if points is not None and source not in ENDINGS:
        raise UserError(f"{source} finds cells in pixels, so that --points has no use; choose geojson, csv or hovernet")
    if points is None and not is_finder(source):
        raise UserError(f"{source} imports cells; give the files with --points")
    if points is None:
        check_finder(source, weights, model_mpp)
    elif weights is not None or model_mpp is not None:
        raise UserError("cells are imported, so that --weights and --model_mpp have no use; leave them out")
    if default_mpp is not None and not 0.02 <= default_mpp <= 100:
        raise UserError(f"default_mpp is {default_mpp}; give µm per pixel, such as 0.5")
    check_workers(workers)


def _given_points(
    points: str | Path | None, source: str, paths: Mapping[str, str]
) -> NamedFiles | dict[str, PointsFile | Path] | None:
    """The files of cells, or the cells of a table, by the names of slides."""
    if points is None:
        return None
    path, names = Path(points), list(paths)
    if path.is_dir():
        return NamedFiles(path, ENDINGS[source], "points", "files of cells", names)
    if not path.exists():
        raise UserError(f"there is no file or folder {path} of cells; correct --points")
    if not path.name.lower().endswith(ENDINGS[source]):
        raise UserError(
            f"{path} is not a file of {source} ({', '.join(ENDINGS[source])}); correct --points or --source"
        )
    if source == "csv":
        tables = dict(read_tables(path))
        if "" not in tables:
            owners = Counter(spelling for item in paths.items() for spelling in set(spellings(*item)))
            exact = owners_of_paths(paths)
            alike = [one_line(name) for name in tables if name not in exact and owners[name] > 1]
            refuse(alike, f"{path} has names that several slides or images have", "write their folders before them")
            return dict(tables)
    if len(names) > 1:
        more = ", or a table with a column slide" if source == "csv" else ""
        raise UserError(f"{path} is one file, and there are {len(names)}; give a folder with a file of each name{more}")
    return {names[0]: path}


def _most_workers(job: Job) -> int:
    """How many processes can read the largest file of cells at a time, which becomes objects in memory."""
    room = available_memory() // 2
    return max(1, min(_MOST_WORKERS, room // max(1, job.largest_file() * _OBJECTS)))


def _gather(job: Job, data: str | Path, what: str, part: Shard | None, watch: Stopwatch) -> Result:
    """Write the table of all slides, if all are done, and print the last lines."""
    rows = [row for name in job.paths if (row := job.record(name))]
    if job.left_to_others(rows, what, part, CELLS):
        return Result(job.out, _counts(rows))
    with shared_work(job.out / LOCKS / "tables", "tables"):
        if not _is_written(job.out, rows):
            remove_remains(job.out, shared=True)
            write_cell_rows(job.out, rows)
    counts = _counts(rows)
    failed = [row for row in rows if row["cells"] is None]
    regions = [row for row in rows if row.get("left_out")]
    if len(failed) == len(rows) or (regions and not counts["cells"]):
        telling = (regions or rows)[0]
        first = f"{one_line(telling['slide'])}: {telling['problem']}"
        raise UserError(f"none of {len(rows)} {what} has cells ({first}); see {job.out / CELLS}")
    origins: dict[str, list[str]] = {}
    for row in rows:
        for origin in row.get("origins", ()):
            origins.setdefault(origin, []).append(one_line(row["slide"]))
    for origin, names in origins.items():
        say(f"densepath: {counted(len(names), what.removesuffix('s'))}: {origin}: {first_few(names)}")
    if job.source == "geojson" and job.tilings:
        report_borders({row["slide"]: scan_corner_of(Path(data), row["slide"]) for row in rows})
    files = {"table": job.out / CELLS}
    problems = f", {counts['problems']} with problems" if counts["problems"] else ""
    if failed:
        shown = first_few([one_line(row["slide"]) for row in failed])
        say(f"densepath: no cells of {counted(len(failed), what.removesuffix('s'))} that failed: {shown}")
    following = (command("show", "cells", "--cells", job.out, "--data", Path(data), "--out", Path(f"{job.out}.png")),)
    of = counted(counts["slides"], what.removesuffix("s"))
    say_end(watch, f"{counted(counts['cells'], 'cell')} of {of}{problems}", files, following)
    return Result(job.out, counts, files, following)


def _is_written(out: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether the table is that of these slides."""
    try:
        old = read_cell_rows(out)
    except UserError:
        return False
    columns = ("slide", "path", "mpp", "cells")
    shown = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
    return [[row.get(name) for name in columns] for row in old] == shown


def _counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    return {
        "slides": len(rows),
        "problems": sum(bool(row["problem"]) for row in rows),
        "cells": sum(row["cells"] or 0 for row in rows),
    }
