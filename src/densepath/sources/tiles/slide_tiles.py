"""Tiles of whole slides as images, read straight from the slides when they are needed."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densepath.core.digests import digest_of
from densepath.core.errors import UserError, refuse
from densepath.core.keywords import quoted
from densepath.core.system import usable_cores
from densepath.core.threads import in_threads
from densepath.sources.batch import fill_canvas, new_canvas
from densepath.sources.corrupt import CorruptImage, allowed, decoding
from densepath.sources.fingerprint import digest_of_samples, digest_of_sizes
from densepath.sources.pixel_source import Gathered, PixelSpec
from densepath.sources.slides.all_files import files_of
from densepath.sources.slides.decoded_tiles import decoding_in_part
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.slide import SlideLevel
from densepath.sources.tiles.resizing import resized
from densepath.sources.tiles.tile_files import SlideTiling, read_tile_folder
from densepath.sources.tiles.tiled_slide import CHANGED, is_changed, open_of_size

_OPEN = 1024  # slides that a process remembers, without open files, each in a few kB
_Box = Sequence[Sequence[float]]  # low and high corner, y and x
_ROUNDING = 1e-6  # pixels; box corners that are whole but for rounding are made whole


class SlideTiles:
    """The tiles of slides, as images of ``size`` x ``size`` pixels at exactly ``mpp`` µm per pixel.

    :meth:`gather` returns pixels as the slides store them, at the nearest resolution that is not coarser, and where
    they lie in the tile. So a view resamples once, from the slide to its own pixels. :meth:`read` resamples to the
    tile's pixels.

    Args:
        tilings: the tiles of each slide, all of one size and resolution.
        folder: the folder of ``densepath tile`` that they were read from, if they were: worker processes read it again
            instead of getting all tiles sent.

    Attributes:
        tilings: the tiles of each slide.
        size: side of a tile in pixels.
        mpp: µm per pixel of a tile.

    Raises:
        UserError: the slides have tiles of different sizes or resolutions.
    """

    decodes = True
    reads_boxes = False  # it can, but for tiles of 256 to 2048 px with usual crops that is not faster
    device = torch.device("cpu")
    dtype = torch.uint8
    corrupt: Mapping[int, str] = MappingProxyType({})  # unknown before a tile is read

    def __init__(self, tilings: Sequence[SlideTiling], folder: Path | None = None) -> None:
        kinds = {(tiling.size, tiling.mpp) for tiling in tilings}
        if len(kinds) != 1:
            shown = " and ".join(f"{size} px at {mpp:g} µm/px" for size, mpp in sorted(kinds))
            raise UserError(f"the slides have tiles of {shown or 'no size'}; tile all of them together")
        self.tilings = list(tilings)
        ((self.size, self.mpp),) = kinds
        self.folder = folder
        self.spec = PixelSpec()
        self._ends = list(accumulate(map(len, self.tilings)))
        self._all: _Box = (0, 0), (self.size, self.size)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getstate__(self) -> dict[str, Any]:
        if self.folder is None:
            return self.__dict__
        names = [tiling.name for tiling in self.tilings]
        return {"folder": self.folder, "names": names, "spec": self.spec, "count": len(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "count" not in state:
            self.__dict__.update(state)
            return
        kept = set(state["names"])
        tilings = [tiling for tiling in read_tile_folder(state["folder"]) if tiling.name in kept]
        self.__init__(tilings, state["folder"])  # type: ignore[misc]
        self.spec = state["spec"]
        if len(self) != state["count"]:
            raise UserError(f"the tiles in {self.folder} have changed; start again")

    def place(self, position: int) -> tuple[SlideTiling, int]:
        """The slide of a tile, and the tile's number among those of the slide."""
        if not 0 <= position < len(self):
            raise IndexError(position)
        slide = bisect_right(self._ends, position)
        tiling = self.tilings[slide]
        return tiling, position - self._ends[slide] + len(tiling)

    def names(self, position: int) -> str:
        """The slide's name, and the tile's corner in pixels of level 0."""
        tiling, number = self.place(position)
        x, y = tiling.corners[number].tolist()
        return f"{tiling.name}_x{x}_y{y}"

    def sizes(self, index: Tensor) -> Tensor:
        """(B, 2) int64: all the same."""
        return torch.full((len(index), 2), self.size, dtype=torch.int64)

    def spacing(self, index: Tensor) -> Tensor:
        """(B, 2) float32: all the same, in µm."""
        return torch.full((len(index), 2), self.mpp, dtype=torch.float32)

    def smallest(self) -> tuple[int, int]:
        """The first tile, and the side of all."""
        return 0, self.size

    def restricted_to(self, names: Sequence[str]) -> SlideTiles:
        """The tiles of some slides, in the order of all."""
        kept = set(names)
        return SlideTiles([tiling for tiling in self.tilings if tiling.name in kept], self.folder)

    def check(self) -> None:
        """Check that the slides are those that were tiled.

        Raises:
            UserError: some are missing, cannot be opened, or have another size or other contents.
        """
        _opened.cache_clear()  # a file may have been replaced
        found = list(in_threads(_problem, self.tilings, usable_cores(), "slides"))
        again = "run densepath tile again" + (f" with --out {quoted(self.folder)}" if self.folder else "")
        for kind, what, remedy in _PROBLEMS:
            cases = [text for problem, text in filter(None, found) if problem == kind]
            refuse(cases, what, remedy.format(again=again))

    def read(self, position: int) -> npt.NDArray[np.uint8]:
        """A tile (size, size, 3), resampled once from the slide's pixels (bicubic, antialiased).

        Raises:
            CorruptImage: it cannot be read.
        """
        pixels, found = self._stored(position, self._all)
        if found == self._all and pixels.shape[:2] == (self.size, self.size):
            return pixels
        low, high = np.array(found)
        step = (high - low) / pixels.shape[:2]  # pixels of the tile for one that is stored
        start = np.maximum(-low / step, 0)
        end = np.minimum((self.size - low) / step, pixels.shape[:2])
        return resized(pixels, start, end, (self.size, self.size))

    def gather(self, index: Tensor, boxes: Tensor | None = None, pin: bool = False) -> Gathered:
        """The slides' pixels that cover the tiles at the positions ``index`` (B,) int64, or boxes of them.

        Args:
            index: (B,) int64 on the CPU, positions in the source.
            boxes: (B, 2, 2) the boxes to read, in pixels of the tiles; None for whole tiles.
            pin: into page-locked memory, from where a GPU fetches them while other work runs.

        Returns:
            The pixels, with boxes in pixels of the tiles and with their extent. If more tiles are corrupt than a source
            may have, only those before the last corrupt one.
        """
        asked = [self._all] * len(index) if boxes is None else boxes.tolist()
        images, found, taken = [], [], []
        corrupt: dict[int, str] = {}
        for position, box in zip(index.tolist(), asked, strict=True):
            with decoding_in_part():
                readable = self._stored_or_next(position, box, corrupt)
            if readable is None:
                break
            position, pixels, own = readable
            taken.append(position)
            images.append(pixels)
            found.append(own)
        extent = torch.tensor([pixels.shape[:2] for pixels in images], dtype=torch.int64).reshape(-1, 2)
        canvas = new_canvas(len(images), extent.amax(dim=0).tolist() if images else (0, 0), 3, self.dtype, pin)
        fill_canvas(canvas.numpy(), images)
        read = torch.tensor(taken, dtype=torch.int64)
        places = torch.tensor(found, dtype=torch.float64).reshape(-1, 2, 2)
        return Gathered(canvas, self.sizes(read), read, corrupt, places, extent)

    def digest(self, cache: Path) -> str:
        """The identity of the tiles: their coordinates, and the sizes of the slides' files and samples of them.

        Whole slides are not read: a thousand of them are a terabyte.
        """
        return digest_of(self.fingerprint().values())

    def fingerprint(self) -> dict[str, str]:
        """Digests by which a resumed run knows the tiles, see :func:`densepath.sources.fingerprint.fingerprint`."""
        paths = [tiling.path for tiling in self.tilings]
        others: list[str] = []
        for path in paths:
            with decoding(path, "its files cannot be listed"):
                others += files_of(path)[1:]
        names = digest_of(
            part
            for t in self.tilings
            for part in (t.name, f"{t.mpp!r} {t.size} {t.spacing!r}", np.ascontiguousarray(t.corners).tobytes())
        )
        found = {"names": names, "sizes": digest_of_sizes(paths), "samples": digest_of_samples(paths)}
        if others:  # with a name of their own: earlier versions did not record them
            found["parts"] = digest_of([digest_of_sizes(others), digest_of_samples(others)])
        return found

    def _stored(self, position: int, box: _Box) -> tuple[npt.NDArray[np.uint8], _Box]:
        """The slide's pixels that cover a box of a tile, and the box that they are, in pixels of the tile."""
        tiling, number = self.place(position)
        x, y = tiling.corners[number].tolist()
        top, left, mpp = y * tiling.spacing[0], x * tiling.spacing[1], self.mpp
        (y0, x0), (y1, x1) = box
        try:
            level = _opened(tiling.path, tiling.spacing, tiling.extent, mpp)
            region = level.read_um((top + y0 * mpp, left + x0 * mpp, (y1 - y0) * mpp, (x1 - x0) * mpp))
        except CorruptImage as error:
            raise CorruptImage(f"{tiling.path} at x {x}, y {y}", error.why) from error
        height, width = region.pixels.shape[:2]
        y0, x0 = (region.origin[0] - top) / mpp, (region.origin[1] - left) / mpp
        y1, x1 = y0 + height * region.spacing[0] / mpp, x0 + width * region.spacing[1] / mpp
        return region.pixels, ((_whole(y0), _whole(x0)), (_whole(y1), _whole(x1)))

    def _stored_or_next(
        self, position: int, box: _Box, corrupt: dict[int, str]
    ) -> tuple[int, npt.NDArray[np.uint8], _Box] | None:
        while len(corrupt) <= allowed(len(self)):
            if position not in corrupt:
                try:
                    return position, *self._stored(position, box)
                except CorruptImage as error:
                    corrupt[position] = str(error)
            position = (position + 1) % len(self)
        return None


def read_tiles(folder: str | Path, exclude: Sequence[str] = ()) -> SlideTiles:
    """The tiles in a folder that ``densepath tile`` wrote.

    Args:
        folder: the folder.
        exclude: patterns of slides to leave out: ``*`` and ``?`` in a slide's name, or in that of its file.

    Raises:
        UserError: the folder is unfinished, damaged or empty, or its slides are not those that were tiled.
    """
    tiles = SlideTiles(read_tile_folder(folder, exclude=exclude), Path(folder))
    tiles.check()
    return tiles


def _whole(length: float) -> float:
    nearest = round(length)
    return nearest if abs(length - nearest) < _ROUNDING else length


@lru_cache(_OPEN)
def _opened(path: str, spacing: tuple[float, float], extent: tuple[int, int], mpp: float) -> SlideLevel:
    """A slide at a resolution, with the µm per pixel with which it was tiled. Raises CorruptImage."""
    return open_of_size(path, spacing, extent).at_mpp(mpp)


def _replaced(size: tuple[int, int], extent: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]} px instead of {extent[1]} x {extent[0]}"


_MISSING, _UNREADABLE, _OTHER = range(3)
_PROBLEMS = (
    (_MISSING, "slides have been moved or removed since they were tiled", "put them back, or {again}"),
    (_UNREADABLE, "slides that were tiled cannot be opened", "copy them again, or leave them out with --exclude"),
    (_OTHER, "slides have been replaced since they were tiled", "{again}"),
)


def _problem(tiling: SlideTiling) -> tuple[int, str] | None:
    """What is wrong with a slide, and which kind of problem it is."""
    if not os.path.exists(tiling.path):
        return _MISSING, tiling.path
    try:
        size = open_slide(tiling.path).size
    except CorruptImage as error:
        return _UNREADABLE, str(error)
    if size != tiling.extent:
        return _OTHER, f"{tiling.path} ({_replaced(size, tiling.extent)})"
    return (_OTHER, f"{tiling.path} ({CHANGED})") if is_changed(tiling) else None
