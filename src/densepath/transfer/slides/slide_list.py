"""The slides that a verb works on: of a folder, list or pattern, or those that ``densepath tile`` has tiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.digests import digest_of
from densepath.core.errors import UserError, that_or_these
from densepath.core.output_names import names_below, output_names
from densepath.sources.corrupt import CorruptImage
from densepath.sources.listing import Passed
from densepath.sources.slides.find import find_slides
from densepath.sources.slides.open import open_slide
from densepath.sources.slides.resolution import MppTable
from densepath.sources.slides.slide import NO_MPP, Slide
from densepath.sources.tiles.identity import identity_of_slide
from densepath.sources.tiles.tile_files import SlideTiling, is_tile_folder, read_slide_rows, read_tile_folder
from densepath.sources.tiles.tiled_slide import open_tiled

GIVEN_LATER = ("mpp_table", "default_mpp")  # options; slides whose µm per pixel were missing are then done again

Share = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]


@dataclass(frozen=True, eq=False)
class ListedSlide:
    """A slide of a list, which is opened when it is used.

    Args:
        name: its name among the results; it may contain "/".
        path: of the file.
        mpp: µm per pixel that the user gives.
        tiling: its tiles, where the slides were tiled before.
    """

    name: str
    path: str
    mpp: MppTable
    tiling: SlideTiling | None = None

    def open(self) -> Slide:
        """Open it.

        Raises:
            CorruptImage: it cannot be read, its µm per pixel are unknown, or it is not the one that was tiled.
            UserError: a library is not installed.
        """
        if self.tiling is None:
            slide = open_slide(self.path, self.mpp.given(self.path), self.mpp.default)
            if slide.spacing is None:
                raise CorruptImage(self.path, NO_MPP)
            return slide
        return open_tiled(self.tiling)

    def identity(self) -> list[Any]:
        """What changes if the slide is another one, or has other µm per pixel or other tiles."""
        own = [self.name, *identity_of_slide(self.path)]
        if self.tiling is None:
            return [*own, self.mpp.given(self.path), self.mpp.default]
        tiles = self.tiling
        return [*own, *tiles.spacing, tiles.mpp, tiles.size, digest_of([np.ascontiguousarray(tiles.corners).tobytes()])]


def list_of_slides(
    data: str | Path,
    exclude: Sequence[str] = (),
    mpp: MppTable | None = None,
    passed: Passed | None = None,
) -> list[ListedSlide]:
    """The slides of a folder, a text list or a glob pattern, or of a folder of ``densepath tile``.

    Raises:
        UserError: there is none, or an option has no effect on slides that are tiled.
    """
    mpp = mpp or MppTable()
    if is_tile_folder(data):
        if mpp.path is not None or mpp.default is not None or exclude:
            raise UserError(f"{data} was tiled before; give exclude, mpp_table and default_mpp to densepath tile")
        return [ListedSlide(each.name, each.path, mpp, each) for each in read_tile_folder(data)]
    paths = find_slides(data, exclude, passed)
    names = output_names([Path(name) for name in names_below(paths, data)])
    return [ListedSlide(name, path, mpp) for name, path in zip(names, paths, strict=True)]


def names_of_slides(data: str | Path, exclude: Sequence[str] = ()) -> list[str]:
    """The names of the slides of some data, as results have them, before they are tiled; with those without tiles.

    Raises:
        UserError: there is none, or the folder of tiles is unfinished or damaged.
    """
    if is_tile_folder(data):
        return [row["slide"] for row in read_slide_rows(Path(data))]
    return [slide.name for slide in list_of_slides(data, exclude)]


def check_tiles(
    data: str | Path, trained: Sequence[tuple[str, float, float | None]], same: Callable[[float, float], bool]
) -> None:
    """Refuse tiles unlike those of a training.

    Args:
        data: the folder of ``densepath tile``.
        trained: a property of the tiles in words, its value, and that in the training; None if that is unknown.
        same: whether two values are the same.

    Raises:
        UserError: a property differs.
    """
    for what, own, needed in trained:
        if needed is not None and not same(own, needed):
            raise UserError(f"the tiles of {data} have {own:g} {what}, those of the training {needed:g}; tile again")


def share_of_tiles(tiling: SlideTiling) -> Share:
    """A function of rectangles (B, 4) top, left, height, width in µm: 1 for those that a tile touches, otherwise 0."""
    tiles = tiling.boxes_um()
    tiles = tiles[np.argsort(tiles[:, 0], kind="stable")]
    side = tiling.size * tiling.mpp

    def share(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        first = np.searchsorted(tiles[:, 0], boxes[:, 0] - side, side="right")
        last = np.searchsorted(tiles[:, 0], boxes[:, 0] + boxes[:, 2], side="left")
        lefts = tiles[:, 1]
        touched = [
            bool(((lefts[a:b] < box[1] + box[3]) & (lefts[a:b] + side > box[1])).any())
            for box, a, b in zip(boxes, first, last, strict=True)
        ]
        return np.array(touched, np.float64)

    return share


def refuse_options(what: str, options: Mapping[str, Any]) -> None:
    """Refuse options that have no effect on the data.

    Args:
        what: what they are for.
        options: their values by name.

    Raises:
        UserError: one has a value.
    """
    if given := [name for name, value in options.items() if value is not None]:
        raise UserError(f"{' and '.join(given)}: only for {what}; leave {that_or_these(given)} out")
