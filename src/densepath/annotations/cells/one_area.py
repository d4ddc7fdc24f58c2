"""The cells of one slide or image: whatever is wrong with it becomes a line of the table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.annotations.cells.areas import Area, ImageArea, SlideArea, inside_any
from densepath.annotations.cells.block_search import search
from densepath.annotations.cells.cell_files import Cells, cell_path, write_cells
from densepath.annotations.cells.finders import FINDERS, Finder, build_finder
from densepath.annotations.cells.imported import PointsFile
from densepath.annotations.cells.points_files import READER, read_points
from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted, first_few, one_line
from densepath.sources.decode import read_image, read_size
from densepath.sources.slides.resolution import spacing_text
from densepath.sources.tiles.identity import identity_of
from densepath.sources.tiles.named_files import NamedFiles
from densepath.sources.tiles.per_slide import PerSlide
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.sources.tiles.tiled_slide import open_tiled

_GZIP = 8  # times that text is larger than it is compressed, about


@dataclass(frozen=True, eq=False)
class Job(PerSlide[Cells]):
    """Finds the cells of each slide or image, or reads them from files.

    Args:
        out, paths: as for :class:`~densepath.sources.tiles.per_slide.PerSlide`, of slides or images.
        tilings: the tiles of the slides by name; none for images.
        source: a finder, or the kind of the files of cells.
        points: the files of cells, or those of one table by the names of slides; None with a finder.
        weights, model_mpp: of a network.
        mpp: µm per pixel of the images; None where unknown.
    """

    empty = MappingProxyType({"cells": None, "classes": ""})
    tilings: dict[str, SlideTiling]
    source: str
    points: NamedFiles | dict[str, PointsFile | Path] | None
    weights: str | Path | None
    model_mpp: float | None
    mpp: float | None

    @cached_property
    def _owners(self) -> dict[str, str]:
        return owners_of_paths(self.paths)

    def files(self, name: str) -> tuple[Path]:
        """The file of the cells."""
        return (cell_path(self.out, name),)

    def given(self, name: str) -> list[Any]:
        """What changes if the tiles of a slide, or its cells that were given, are others."""
        known: list[Any] = []
        if name in self.tilings:
            known.append(digest_of([np.ascontiguousarray(self.tilings[name].corners).tobytes()])[:16])
        with suppress(UserError):  # reported when its turn comes
            given = self._given(name)
            if isinstance(given, PointsFile):
                known.append(given.digest()[:16])
            elif given is not None:
                known += [*identity_of(given), READER]
        return known

    def record(self, name: str) -> dict[str, Any] | None:
        """The row of a slide or image that is done; one that failed is not if its µm per pixel were unknown then."""
        record = super().record(name)
        if record is None or self.mpp is None or record.get("mpp") != "":
            return record
        return None if record["cells"] is None else record | {"mpp": self.mpp}

    def do(self, name: str) -> None:
        """Find the cells of a slide or image, and write them; the record comes last.

        Raises:
            UserError: a file cannot be written, or a package is missing.
        """
        if self.points is None:
            self._finder()  # what is wrong with it is not wrong with the slide
        super().do(name)

    def find(self, name: str, row: dict[str, Any]) -> Cells:
        """The cells of a slide or image. Raises CorruptImage and UserError."""
        return self._found_cells(name, row) if self.points is None else self._imported(name, row)

    def write(self, name: str, row: dict[str, Any], found: Cells) -> None:
        """Write the cells. Raises UserError if the disk is full."""
        write_cells(cell_path(self.out, name), found)
        row |= {"cells": len(found), "classes": ";".join(found.class_names)}

    def _finder(self) -> Finder:
        return build_finder(self.source, self.weights, self.model_mpp)

    def _area(self, name: str, row: dict[str, Any]) -> Area:
        """The slide or image, opened. Raises CorruptImage and UserError."""
        if name in self.tilings:
            tiling = self.tilings[name]
            area: Area = SlideArea(open_tiled(tiling))
        else:
            assert self.mpp is not None  # without it only cells with coordinates are imported
            area = ImageArea(read_image(self.paths[name]), (self.mpp, self.mpp))
        row["height"], row["width"] = area.extent
        row["mpp"] = spacing_text(area.spacing)
        return area

    def _found_cells(self, name: str, row: dict[str, Any]) -> Cells:
        area = self._area(name, row)
        boxes = self.tilings[name].boxes_um() if name in self.tilings else None
        found = search(area, boxes, self._finder())
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
        points, notes = read.in_pixels(spacing), read.notes()
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
        row |= {"problem": "; ".join(notes), "origins": list(read.origins), "left_out": read.left_out}
        return Cells.of(points, extent, classes)

    def _known(
        self, name: str, row: dict[str, Any]
    ) -> tuple[tuple[float, float] | None, tuple[int, int], npt.NDArray[np.float64] | None]:
        """µm per pixel, extent and tiles of a slide or image, which need not be opened."""
        spacing: tuple[float, float] | None
        if name in self.tilings:
            tiling = self.tilings[name]
            spacing, extent, boxes = tiling.spacing, tiling.extent, tiling.boxes_um()
            row["mpp"] = spacing_text(tiling.spacing)
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
        own = (each for each in spellings(name, self.paths[name]) if self._owners.get(each, name) == name)
        return next((points[each] for each in own if each in points), None)

    def describe_unmatched(self) -> str:
        """A line about files or slides of a table that are none of these; empty if there are none."""
        if isinstance(self.points, NamedFiles):
            return self.points.describe_unmatched()
        used = {spelling for name in self.paths for spelling in spellings(name, self.paths[name])}
        others = [one_line(name) for name in self.points or {} if name not in used]
        what = "other slide" if self.tilings else "other image"
        return f"--points has cells of {counted(len(others), what)}: {first_few(others)}" if others else ""

    def largest_file(self) -> int:
        """The bytes of the largest file of cells; those of a compressed one as text."""
        sizes = [0]
        for name in self.paths:
            with suppress(UserError, OSError):  # reported when its turn comes
                given = self._given(name)
                if isinstance(given, str | Path):
                    sizes.append(os.path.getsize(given) * (_GZIP if str(given).lower().endswith(".gz") else 1))
        return max(sizes)


def spellings(name: str, path: str) -> tuple[str, ...]:
    """What a slide or image of some name and path may be called in a table, also with Windows' separators."""
    return *_exact(name, path), PurePath(name).name, PurePath(path).name, PurePath(path).stem, path


def owners_of_paths(paths: Mapping[str, str]) -> dict[str, str]:
    """The slide or image, among those of some names and paths, whose name or path below the folder a spelling is."""
    known = {name: name for name in paths}
    for name, path in paths.items():
        for spelling in _exact(name, path):
            known.setdefault(spelling, name)
    return known


def _exact(name: str, path: str) -> list[str]:
    below = [name, f"{name}{PurePath(path).suffix}"]
    return [*below, *(each.replace("/", "\\") for each in below)]


def is_finder(source: str) -> bool:
    """Whether cells are found in pixels, not read from files."""
    return source in FINDERS
