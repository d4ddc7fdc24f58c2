"""Objects of whole slides: found in windows of a size in µm where there is tissue, and put back on the slide."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from densepath.core.csv_files import LineFeeds
from densepath.core.errors import UserError, counted
from densepath.core.files import atomic_write
from densepath.core.locks import shared_work
from densepath.core.remains import remove_abandoned
from densepath.core.shared_work import LOCKS, Shard
from densepath.core.spacing import evenly_spaced
from densepath.core.system import with_progress
from densepath.runs.progress import say
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.borders import report_borders
from densepath.sources.slides.failures import report_problem
from densepath.sources.slides.resolution import spacing_text
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.sources.tiles.tissue import find_tissue
from densepath.transfer.detection.found import Window
from densepath.transfer.detection.prediction_files import COLUMNS, MICRONS, Grid
from densepath.transfer.detection.predictor import TrainedDetector
from densepath.transfer.detection.windows import merged, windows_of
from densepath.transfer.predict_records import TABLE, record_of
from densepath.transfer.slides.heat_map import files_of_map, write_density
from densepath.transfer.slides.object_files import ObjectFiles, centroids_in
from densepath.transfer.slides.object_pictures import draw_objects
from densepath.transfer.slides.slide_list import ListedSlide, Share, share_of_tiles
from densepath.transfer.slides.slide_work import UNFINISHED, SlideWork, as_corrupt

SLIDES = "slides.csv"
_FACTS = ("slide", "path", "mpp", "windows", "skipped", "damaged", "objects", "problem")


@dataclass(frozen=True)
class Search:
    """How objects are searched for in slides.

    Args:
        mpp: µm per pixel at which the detector sees them.
        window: side of the windows, in pixels of ``mpp``.
        overlap: share of a window that the next one covers.
        score: the lowest score of an object.
        precision: "32" or "bf16-mixed".
    """

    mpp: float
    window: int
    overlap: float
    score: float
    precision: str


def search_of(
    detector: TrainedDetector, mpp: float | None, window: int | None, overlap: float, score: float, precision: str
) -> Search:
    """How a detector searches, where by default it sees slides as its training images.

    Raises:
        UserError: it does not know their resolution or size, or it cannot see slides.
    """
    notes = detector.notes
    if len(notes.mean) != 3 or detector.dtype is not np.uint8:
        raise UserError("the detector was trained on grey or 16-bit images, and slides are RGB; train another one")
    mpp = notes.mpp if mpp is None else mpp
    if mpp is None:
        raise UserError("the detector does not know the µm per pixel of its training images; give them with --mpp")
    if not mpp > 0:
        raise UserError(f"mpp is {mpp}; give µm per pixel, such as 0.5")
    window = detector.window if window is None else window
    if not window:
        raise UserError("slides are searched in windows; give their side in pixels with --window")
    return Search(mpp, window, overlap, score, precision)


def predict_slides(
    detector: TrainedDetector,
    slides: Sequence[ListedSlide],
    out: Path,
    search: Search,
    pictures: int | Literal["all"],
    shard: Shard | None,
    on_begin: Callable[[], None],
) -> dict[str, Any]:
    """Find the objects of slides, and write the files of each and those of all.

    Args:
        detector: on its device.
        slides: the slides.
        out: the folder, which other processes may share.
        search: how to search.
        pictures: number of slides to draw, or "all".
        shard: the share of this process; None for all slides.
        on_begin: called when nothing refuses the work any more.

    Returns:
        The numbers of "slides", "damaged" ones, those "left" to other processes, and "objects" so far, of all
        processes.

    Raises:
        UserError: no slide can be read.
    """
    by_name = {slide.name: slide for slide in slides}
    chosen = evenly_spaced(len(slides) if pictures == "all" else pictures, len(slides))
    drawn = {slides[position].name for position in chosen}

    identities, paths = {slide.name: slide.identity() for slide in slides}, {slide.name: slide.path for slide in slides}
    default_mpp = slides[0].mpp.default  # one for all
    shared = SlideWork(
        out,
        identities,
        lambda name: _files(out, name),
        lambda name: _table(out, name).exists(),
        (out / TABLE, out / SLIDES),
        paths=paths,
        default_mpp=default_mpp,
    )

    def is_done(name: str) -> bool:
        others = (path for path in _files(out, name) if name in drawn or path != _picture(out, name))
        return shared.succeeded(name) and all(path.exists() for path in others)

    def work(name: str) -> dict[str, Any]:
        return _predict_slide(detector, by_name[name], out, search, name in drawn)

    shared.do(is_done, work, shard, f"; windows of {search.window} px at {search.mpp:g} µm/px", on_begin=on_begin)
    with shared_work(out / LOCKS / "tables", "tables"):
        found = shared.found()
        objects = _write_tables(out, slides, found)
    counts, line = shared.summary(found)
    report_borders({name: facts.get("scan_corner", (0, 0)) for name, facts in found.items()})
    done = counts["slides"] - counts["damaged"] - counts["left"]
    say(f"densepath: {counted(objects, 'object')} in {counted(done, 'slide')}{line}")
    return counts | {"objects": objects}


def _predict_slide(
    detector: TrainedDetector, listed: ListedSlide, out: Path, search: Search, drawn: bool
) -> dict[str, Any]:
    """Write the files of a slide, and return what is known of it.

    Raises:
        CorruptImage: it cannot be read.
    """
    name = listed.name
    with as_corrupt(listed):
        slide = listed.open()
        share, problems = _share_of_tissue(slide, listed.tiling)
    level = slide.at_mpp(search.mpp)
    reduced = slide.levels[level.level].at(level.scale)
    grid = Grid(reduced.downsample, reduced.shift, slide.mpp)
    y, x = (search.window * search.mpp / (own * step) for own, step in zip(slide.mpp, grid.step, strict=True))
    windows = windows_of(level.size, (max(1, round(y)), max(1, round(x))), search.overlap)
    kept = [window for window, own in zip(windows, share(_boxes(windows, grid)), strict=True) if own > 0]
    damaged: list[tuple[Window, CorruptImage]] = []
    geojson, table = out / "geojson" / f"{name}.geojson", _table(out, name)
    for path in (geojson, table):
        remove_abandoned(path)
    with ObjectFiles(name, detector.classes, grid, geojson, table) as files:
        found = detector.find(level, kept, (y, x), search.score, search.precision, damaged)
        for each in merged(with_progress(found, len(kept), f"windows of {name}"), level.size):
            files.add(each)
    points = centroids_in(table)[:, ::-1] * slide.mpp
    write_density(out / "heat_maps" / name, slide, points, share)
    if drawn:
        draw_objects(level, grid, geojson, table, _picture(out, name))
    facts = {"mpp": slide.mpp, "windows": len(kept), "skipped": len(windows) - len(kept), "damaged": len(damaged)}
    facts |= {"objects": files.count, "scan_corner": slide.file.scan_corner}
    if not kept:
        say(f"densepath: {name}: no tissue was found, so it has no objects")
    if damaged:
        x, y = grid.place([(damaged[0][0].left, damaged[0][0].top)])[0].round().astype(int)
        where = f"{len(damaged)} of {len(kept)} windows cannot be read, the first at x {x}, y {y}"
        problems.append(f"{where} ({damaged[0][1].why})")
    if problems:
        facts["problems"] = text = "; ".join(problems)
        report_problem(name, text)
    return facts


def _share_of_tissue(slide: Slide, tiling: SlideTiling | None) -> tuple[Share, list[str]]:
    """The share of tissue in rectangles, or whether tiles touch them, and what is wrong with the slide."""
    problems = list(slide.file.problems)
    if tiling is not None:
        return share_of_tiles(tiling), problems
    tissue = find_tissue(slide)
    if lost := tissue.overview.damaged:
        problems.append(f"tissue is not found in {lost:.1%} of it, which cannot be read: {tissue.overview.error}")
    return tissue.share, problems


def _files(out: Path, name: str) -> list[Path]:
    """All files of a slide but its record."""
    maps = files_of_map(out / "heat_maps" / name)
    return [out / "geojson" / f"{name}.geojson", _table(out, name), _picture(out, name), *maps]


def _picture(out: Path, name: str) -> Path:
    return out / "pictures" / f"{name}.png"


def _table(out: Path, name: str) -> Path:
    return record_of(out, name).with_suffix(".csv")


def _boxes(windows: Sequence[Window], grid: Grid) -> npt.NDArray[np.float64]:
    """Windows as rectangles (N, 4) top, left, height, width in µm."""
    edges = np.array(windows, np.float64).reshape(-1, 2, 2)  # y, x of two corners
    edges = (edges - grid.shift) * grid.step * np.array(grid.spacing)
    return np.concatenate([edges[:, 0], edges[:, 1] - edges[:, 0]], axis=1)


def _write_tables(out: Path, slides: Sequence[ListedSlide], found: Mapping[str, dict[str, Any]]) -> int:
    """Write the tables, with the objects of all slides that are done, and return the number of objects."""
    objects = 0
    with (
        atomic_write(out / TABLE) as table_part,
        atomic_write(out / SLIDES) as slides_part,
        table_part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as table,
        slides_part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as listing,
    ):
        table.write(",".join([*COLUMNS, *MICRONS]) + "\n")
        rows = csv.DictWriter(LineFeeds(listing), _FACTS, restval="", extrasaction="ignore")
        rows.writeheader()
        for slide in slides:
            row = {"slide": slide.name, "path": slide.path} | found.get(slide.name, {"problem": UNFINISHED})
            if "problem" not in row:
                objects += row["objects"]
                row["mpp"] = spacing_text(row["mpp"])
                row["problem"] = row.get("problems", row.get("unread", ""))  # of earlier versions
                with _table(out, slide.name).open(newline="", encoding="utf-8", errors="surrogateescape") as own:
                    next(own)
                    table.writelines(own)
            rows.writerow(row)
    return objects
