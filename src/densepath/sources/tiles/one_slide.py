"""Tiling one slide: whatever is wrong with it becomes a line of the table."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from densepath.core.digests import digest_of_file
from densepath.core.errors import UserError, one_line
from densepath.core.streams import say
from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import MppTable, spacing_text
from densepath.sources.slides.slide import NO_MPP, Slide
from densepath.sources.tiles.coords import read_coords
from densepath.sources.tiles.grid import grid_of, tiles_with_tissue
from densepath.sources.tiles.identity import identity_of, is_identity, read_record
from densepath.sources.tiles.named_files import NamedFiles
from densepath.sources.tiles.outlines import outlines_of, read_tissue, write_outlines
from densepath.sources.tiles.overview import read_overview
from densepath.sources.tiles.per_slide import PerSlide
from densepath.sources.tiles.pictures import draw_tissue
from densepath.sources.tiles.tile_files import SlideTiling, tiling_folder, tiling_path, write_tiling
from densepath.sources.tiles.tissue import Holes, Pen, Tissue, find_tissue

_Tiled: TypeAlias = tuple[Slide, Tissue, SlideTiling | None, npt.NDArray[np.float64] | None]
_COARSER = 1.1  # times the asked µm per pixel: a coarser slide is reported


@dataclass(frozen=True, eq=False)
class Job(PerSlide[_Tiled]):
    """Finds the tissue of each slide, and covers it with tiles.

    Args:
        out, paths: as for :class:`~densepath.sources.tiles.per_slide.PerSlide`.
        mpp, size, overlap: µm per pixel of a tile, its side, and by how much neighbors overlap in pixels.
        min_tissue: the least share of tissue of a tile.
        given_mpp: µm per pixel of slides, given by the user.
        outlines, coords: files that give the tissue or the tiles; None to find them.
        holes, pen: as for :func:`~densepath.sources.tiles.tissue.find_tissue`.
        align: as for :func:`~densepath.sources.tiles.grid.grid_of`.
    """

    empty = MappingProxyType({"tiles": 0, "aligned": ""})
    mpp: float
    size: int
    overlap: int
    min_tissue: float
    given_mpp: MppTable
    outlines: NamedFiles | None
    coords: NamedFiles | None
    holes: Holes
    pen: Pen
    align: bool

    def tiles(self, name: str) -> Path:
        """The file of a slide's tiles."""
        return tiling_path(self.out / tiling_folder(self.mpp, self.size, self.overlap), name)

    def mask(self, name: str) -> Path:
        """The picture of a slide's tissue and tiles."""
        return self.out / "masks" / f"{name}.png"

    def outline(self, name: str) -> Path:
        """The outlines of a slide's tissue."""
        return self.out / "tissue" / f"{name}.geojson"

    def files(self, name: str) -> tuple[Path, ...]:
        """The files of a slide, first its tiles; its outlines only if they are known to be as they were written."""
        return (*self.made(name), self.outline(name)) if self._as_written(name) else self.made(name)

    def made(self, name: str) -> tuple[Path, ...]:
        """The files of a slide without its outlines, which may have been corrected by hand."""
        return self.tiles(name), self.mask(name)

    def _as_written(self, name: str) -> bool:
        """Whether a slide has the outlines that were written; False if that is unknown."""
        written = (read_record(self.out, name) or {}).get("outlines")  # earlier versions did not note it
        with suppress(OSError):
            return written is not None and digest_of_file(self.outline(name)) == written
        return False

    def given(self, name: str) -> list[Any]:
        """What changes if the µm per pixel, the tissue or the tiles that were given for a slide are others."""
        return self._given(name, whole=True)

    def _given(self, name: str, whole: bool) -> list[Any]:
        files = []
        for each in (self.outlines, self.coords):
            with suppress(UserError):  # reported when the slide is tiled
                files += [path] if each and (path := each.of(name)) else []
        return [self.given_mpp.given(self.paths[name]), *identity_of(*files, whole=whole)]

    def is_same(self, name: str, recorded: Any) -> bool:
        """Whether what was recorded of a slide is its identity; earlier versions digested only the ends of files."""
        if super().is_same(name, recorded):
            return True
        former = [*self.identity(name)[:2], *self._given(name, whole=False)]
        return is_identity(recorded, former, self.paths[name])

    def record(self, name: str) -> dict[str, Any] | None:
        """The row of a slide that is done, also with these ``default_mpp``, and that has its outlines."""
        record = super().record(name)
        if record and record.get("default_mpp", self.given_mpp.default) != self.given_mpp.default:
            return None
        return None if record and "outlines" in record and not self.outline(name).exists() else record

    def find(self, name: str, row: dict[str, Any]) -> _Tiled:
        """The tissue and the tiles of a slide; what is missing is noted. Raises CorruptImage and UserError."""
        slide = self._open(name, row)
        return slide, *self._find(name, slide, row)

    def write(self, name: str, row: dict[str, Any], found: _Tiled) -> None:
        """Write the tissue and the tiles of a slide. Raises UserError if the disk is full."""
        slide, tissue, tiling, shares = found
        draw_tissue(self.mask(name), tissue, tiling)
        if tiling is not None:
            write_tiling(self.tiles(name), tiling, self.overlap, shares)
        if self.coords is None:  # last: without a record, outlines count as corrected by hand
            row["outlines"] = self._write_outlines(name, outlines_of(tissue, slide))
        row["tiles"] = 0 if tiling is None else len(tiling)

    def _write_outlines(self, name: str, outlines: bytes) -> str:
        """Write outlines, unless others are there, perhaps corrected by hand. Returns the digest of the new ones."""
        path = self.outline(name)
        if path.exists() and path.read_bytes() != outlines:
            say(
                f"densepath: {one_line(name)}: {path} is kept, as it may have been corrected by hand, but tiles do not "
                "follow it; give its folder to --tissue with another --out, or remove it for new outlines"
            )
        else:
            write_outlines(path, outlines)
        return hashlib.sha256(outlines).hexdigest()

    def _open(self, name: str, row: dict[str, Any]) -> Slide:
        """Open a slide, and note what is known of it. Raises CorruptImage and UserError."""
        path = self.paths[name]
        given = self.given_mpp.given(path)
        slide = open_slide(path, given, self.given_mpp.default)
        row["height"], row["width"] = slide.size
        row["scan_corner"] = slide.file.scan_corner
        if given is None and slide.file.spacing is None:
            row["default_mpp"] = self.given_mpp.default
        if slide.spacing is None:
            raise UserError(NO_MPP)
        row["mpp"] = spacing_text(slide.spacing)
        if damage := slide.file.check():
            raise CorruptImage(path, "; ".join(damage))
        problems = [*slide.file.problems, *filter(None, [slide.end_problem()])]
        if min(slide.spacing) > self.mpp * _COARSER:
            problems.append(
                f"its {row['mpp']} µm per pixel are coarser than the asked {self.mpp:g}: its tiles are enlarged"
            )
        row["problem"] = "; ".join(problems)
        return slide

    def _find(
        self, name: str, slide: Slide, row: dict[str, Any]
    ) -> tuple[Tissue, SlideTiling | None, npt.NDArray[np.float64] | None]:
        """The tissue and the tiles of a slide; what is missing is noted. Raises CorruptImage and UserError."""
        side = (self.size * self.mpp / slide.mpp[0], self.size * self.mpp / slide.mpp[1])
        if self.coords is not None:
            path = self.coords.of(name)
            if path is None:
                raise UserError("the folder of --coords has no file of this slide")
            corners, shares = read_coords(path, slide).of_size(side), None
            overview = read_overview(slide)
            tissue = Tissue(np.zeros(overview.pixels.shape[:2], bool), overview.spacing, overview.origin, overview)
        else:
            tissue = self._tissue(name, slide)
            grid = grid_of(slide, self.mpp, self.size, self.overlap, self.align)
            corners, shares = tiles_with_tissue(tissue, slide, grid, self.size * self.mpp, self.min_tissue)
            row["aligned"], row["tissue_mm2"] = grid.why or "yes", round(tissue.mm2, 4)
        notes = [row["problem"]] * bool(row["problem"])
        if tissue.overview.damaged:
            notes.append(f"{tissue.overview.damaged:.1%} of it cannot be read: {tissue.overview.error}")
        if not len(corners):
            notes.append(self._why_none(slide, tissue, side))
        row["problem"] = "; ".join(notes)
        if not len(corners):
            return tissue, None, None
        assert slide.spacing is not None
        tiling = SlideTiling(name, self.paths[name], corners, self.mpp, self.size, slide.spacing, slide.size)
        return tissue, tiling, shares

    def _tissue(self, name: str, slide: Slide) -> Tissue:
        if self.outlines is None:
            return find_tissue(slide, holes=self.holes, pen=self.pen)
        path = self.outlines.of(name)
        if path is None:
            raise UserError("the folder of --tissue has no outlines of this slide")
        return read_tissue(Path(path), slide)

    def _why_none(self, slide: Slide, tissue: Tissue, side: tuple[float, float]) -> str:
        if self.coords is not None:
            return "its file of --coords has no tiles"
        if not tissue.mask.any():
            return "no tissue found"
        if side[0] > slide.size[0] or side[1] > slide.size[1]:
            return f"smaller than a tile of {self.size * self.mpp:g} µm"
        return f"no tile has the share {self.min_tissue:g} of tissue"
