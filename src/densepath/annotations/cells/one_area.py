"""The cells of one slide or image: whatever is wrong with it becomes a line of the table."""

from __future__ import annotations

import os
import traceback
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.cells.areas import Area, ImageArea, SlideArea, inside_any
from densepath.annotations.cells.block_search import search
from densepath.annotations.cells.cell_files import Cells, cell_path, write_cells
from densepath.annotations.cells.finders import FINDERS, build_finder
from densepath.annotations.cells.points_files import PointsFile, read_points
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, first_few, one_line
from densepath.core.log import log
from densepath.core.streams import say
from densepath.sources.corrupt import CorruptImage
from densepath.sources.decode import read_image, read_size
from densepath.sources.slides.open import open_slide
from densepath.sources.tiles.named_files import NamedFiles
from densepath.sources.tiles.records import identity_of, read_record, write_record
from densepath.sources.tiles.tile_files import SlideTiling


@dataclass(frozen=True, eq=False)
class Job:
    """What is done with each slide or image.

    Args:
        out: the folder of the results.
        paths: the slides or images by name.
        tilings: the tiles of the slides by name; none for images.
        source: a finder, or the kind of the files of cells.
        points: the files of cells, or those of one table by the names of slides; None with a finder.
        weights, model_mpp: of a network.
        mpp: µm per pixel of the images; None where unknown.
    """

    out: Path
    paths: dict[str, str]
    tilings: dict[str, SlideTiling]
    source: str
    points: NamedFiles | dict[str, PointsFile | Path] | None
    weights: str | Path | None
    model_mpp: float | None
    mpp: float | None
    _identities: dict[str, list[Any]] = field(default_factory=dict)

    def identity(self, name: str) -> list[Any]:
        """What changes if the slide, its tiles or the file of its cells are others."""
        if name not in self._identities:
            known: list[Any] = list(identity_of(self.paths[name]))
            if name in self.tilings:
                known.append(digest_of([np.ascontiguousarray(self.tilings[name].corners).tobytes()])[:16])
            with suppress(UserError):  # reported when its turn comes
                given = self._given(name)
                if isinstance(given, PointsFile):
                    known.append(given.digest()[:16])
                elif given is not None:
                    known += identity_of(given)
            self._identities[name] = known
        return self._identities[name]

    def record(self, name: str) -> dict[str, Any] | None:
        """The row of a slide that is done, with its current path; None if it is not done."""
        record = read_record(self.out, name)
        if record is None or record["identity"] != self.identity(name):
            return None
        if record["cells"] is not None and not cell_path(self.out, name).exists():
            return None
        return record | {"path": os.path.abspath(self.paths[name])}

    def is_done(self, name: str) -> bool:
        """Whether a slide is done, with cells or with a problem."""
        return self.record(name) is not None

    def do(self, name: str) -> None:
        """Find the cells of a slide or image, and write them; the record comes last.

        Raises:
            UserError: a file cannot be written, or a package is missing.
        """
        row = self._row(name)
        finder = build_finder(self.source, self.weights, self.model_mpp) if self.points is None else None
        cells = None
        try:
            cells = self._imported(name, row) if finder is None else self._found(name, row, finder)
        except CorruptImage as error:
            row["problem"] = error.why
        except (UserError, OSError, MemoryError) as error:
            row["problem"] = str(error) or type(error).__name__
        except Exception as error:  # a fault of this program must not end a long run
            log("".join(traceback.format_exception(error)).rstrip())
            row["problem"] = f"a bug in densepath, please report it: {type(error).__name__}: {error}"
        path = cell_path(self.out, name)
        path.unlink(missing_ok=True)
        if cells is not None:
            write_cells(path, cells)
            row |= {"cells": len(cells), "classes": ";".join(cells.class_names)}
        self._finish(name, row)

    def give_up(self, name: str, why: str) -> None:
        """Record that the cells of a slide cannot be found."""
        self._finish(name, self._row(name) | {"problem": why})

    def _row(self, name: str) -> dict[str, Any]:
        path = os.path.abspath(self.paths[name])
        return {"slide": name, "path": path, "cells": None, "classes": "", "problem": ""}

    def _finish(self, name: str, row: dict[str, Any]) -> None:
        row["problem"] = one_line(row["problem"])
        if row["problem"]:
            say(f"densepath: {one_line(name)}: {row['problem']}")
        write_record(self.out, row, self.identity(name))

    def _area(self, name: str, row: dict[str, Any]) -> Area:
        """The slide or image, opened. Raises CorruptImage and UserError."""
        if name in self.tilings:
            tiling = self.tilings[name]
            slide = replace(open_slide(tiling.path), given=tiling.spacing)
            if slide.size != tiling.extent:
                raise UserError("another slide than the one that was tiled; run densepath tile again")
            area: Area = SlideArea(slide)
        else:
            if self.mpp is None:
                raise UserError("its µm per pixel are unknown; give --default_mpp")
            area = ImageArea(read_image(self.paths[name]), (self.mpp, self.mpp))
        row["height"], row["width"] = area.extent
        row["mpp"] = float(f"{sum(area.spacing) / 2:.6g}")
        return area

    def _found(self, name: str, row: dict[str, Any], finder: Any) -> Cells:
        area = self._area(name, row)
        boxes = self.tilings[name].boxes_um() if name in self.tilings else None
        found = search(area, boxes, finder)
        if found.lost:
            row["problem"] = f"{found.lost:.1%} of it cannot be read: {found.error}"
        points = found.points / area.spacing[::-1]
        return Cells.of(points, area.extent, found.classes or None, found.scores)

    def _imported(self, name: str, row: dict[str, Any]) -> Cells:
        given = self._given(name)
        if given is None:
            raise UserError(f"--points has no cells of this {'slide' if self.tilings else 'image'}")
        spacing, extent, boxes = self._known(name, row)
        read = given if isinstance(given, PointsFile) else read_points(Path(given), self.source)
        points, notes = read.in_pixels(spacing), []
        inside = ((points >= 0) & (points <= extent[::-1])).all(axis=1)
        if len(points) > 2 * inside.sum():
            raise UserError(
                f"{len(points) - inside.sum():,} of its {len(points):,} cells lie outside of its {extent[1]} x "
                f"{extent[0]} px; are they of another slide, or not in pixels of level 0?"
            )
        if not inside.all():
            notes.append(f"{len(points) - inside.sum():,} of {len(points):,} cells lie outside of it and are left out")
        points, classes = points[inside], [read.classes[k] for k in np.flatnonzero(inside).tolist()]
        if boxes is not None and spacing is not None and len(points):
            off = len(points) - int(inside_any(points * spacing[::-1], boxes).sum())
            notes += [f"{off:,} of {len(points):,} cells lie outside of all tiles"] * bool(off)
        row["problem"] = "; ".join(notes)
        return Cells.of(points, extent, classes)

    def _known(
        self, name: str, row: dict[str, Any]
    ) -> tuple[tuple[float, float] | None, tuple[int, int], npt.NDArray[np.float64] | None]:
        """µm per pixel, extent and tiles of a slide or image, which need not be opened."""
        spacing: tuple[float, float] | None
        if name in self.tilings:
            tiling = self.tilings[name]
            spacing, extent, boxes = tiling.spacing, tiling.extent, tiling.boxes_um()
            row["mpp"] = float(f"{sum(tiling.spacing) / 2:.6g}")
        else:
            height, width = read_size(self.paths[name])
            extent, boxes = (height, width), None
            spacing = None if self.mpp is None else (self.mpp, self.mpp)
            row["mpp"] = "" if self.mpp is None else self.mpp
        row["height"], row["width"] = extent
        return spacing, extent, boxes

    def _given(self, name: str) -> PointsFile | Path | str | None:
        """The file of the cells, or the cells themselves; None if there are none."""
        if isinstance(self.points, NamedFiles):
            return self.points.of(name)
        points = self.points or {}
        return next((points[each] for each in self._spellings(name) if each in points), None)

    def describe_unmatched(self) -> str:
        """A line about files or slides of a table that are none of these; empty if there are none."""
        if isinstance(self.points, NamedFiles):
            return self.points.describe_unmatched(list(self.paths))
        used = {spelling for name in self.paths for spelling in self._spellings(name)}
        others = [one_line(name) for name in self.points or {} if name not in used]
        what = "slides" if self.tilings else "images"
        return f"--points has cells of {len(others)} other {what}: {first_few(others)}" if others else ""

    def _spellings(self, name: str) -> tuple[str, ...]:
        """What a slide may be called in a table."""
        path = PurePath(self.paths[name])
        return name, PurePath(name).name, path.name, path.stem, self.paths[name]


def is_finder(source: str) -> bool:
    """Whether cells are found in pixels, not read from files."""
    return source in FINDERS
