"""Tiles that other software has chosen: the HDF5 files of TRIDENT, CLAM and STAMP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.tile_files import h5py_module

ENDINGS = ("_patches.h5", ".h5", ".hdf5")


@dataclass(frozen=True, eq=False)
class GivenTiles:
    """The tiles of a slide in a file.

    Args:
        corners: (N, 2) x, y of the upper left corners in pixels of level 0.
        side: height and width in pixels of level 0.
    """

    corners: npt.NDArray[np.float64]
    side: tuple[float, float]

    def of_size(self, side: tuple[float, float]) -> npt.NDArray[np.int64]:
        """The corners (N, 2) of tiles of another size around the same centers, in whole pixels."""
        shift = np.array([self.side[1] - side[1], self.side[0] - side[0]]) / 2
        return np.rint(self.corners + shift).astype(np.int64)


def given_size(path: str) -> tuple[float, int, int] | None:
    """µm per pixel, side and overlap in pixels of the tiles of a file; None where it does not say all of them.

    Raises:
        UserError: it cannot be read.
    """
    _, notes, of_file = _read(path)
    overlap = int(notes.get("overlap", 0))
    if "mpp" in notes and "patch_size" in notes:
        return float(notes["mpp"]), int(notes["patch_size"]), overlap
    if "target_magnification" in notes and "patch_size" in notes:
        return 10 / float(notes["target_magnification"]), int(notes["patch_size"]), overlap
    if "tile_size_um" in of_file and "tile_size_px" in of_file:
        return float(of_file["tile_size_um"]) / int(of_file["tile_size_px"]), int(of_file["tile_size_px"]), 0
    return None


def read_coords(path: str, slide: Slide) -> GivenTiles:
    """The tiles of a slide in a file of TRIDENT, CLAM or STAMP.

    Without attributes, the tiles are taken to touch each other: their side is the step of the grid.

    Raises:
        UserError: it cannot be read, or is of another slide.
    """
    coords, notes, of_file = _read(path)
    y, x = slide.mpp
    if "tile_size_um" in of_file:
        if str(of_file.get("unit", "um")) not in ("um", "µm", "μm"):
            raise UserError(f"{path} has coordinates in {of_file['unit']}, not in µm; write it again")
        um = float(of_file["tile_size_um"])
        given = GivenTiles(coords / (x, y), (um / y, um / x))
    elif "size_um" in notes:
        given = GivenTiles(coords, (float(notes["size_um"]) / y, float(notes["size_um"]) / x))
    elif "patch_size_level0" in notes:
        given = GivenTiles(coords, (float(notes["patch_size_level0"]),) * 2)
    elif "patch_size" in notes and "downsample" in notes:
        down = np.broadcast_to(np.asarray(notes["downsample"], np.float64), 2)
        side = int(notes["patch_size"])
        given = GivenTiles(coords, (side * float(down[1]), side * float(down[0])))
    else:
        steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
        if not len(steps):
            raise UserError(f"{path} does not say how large its tiles are; write it again with attributes")
        given = GivenTiles(coords, (float(steps.min()),) * 2)
    height, width = slide.size
    if not len(coords):
        return given
    low, high = given.corners.min(axis=0), given.corners.max(axis=0)
    if (high >= (width, height)).any() or (low < 0).any():
        place = f"x {low[0]:.0f}, y {low[1]:.0f} to x {high[0]:.0f}, y {high[1]:.0f}"
        raise UserError(
            f"{path} has tiles from {place}, outside of this slide of {width} x {height} px; of another one?"
        )
    return given


def _read(path: str) -> tuple[npt.NDArray[np.float64], Mapping[str, Any], Mapping[str, Any]]:
    """Coordinates (N, 2), their attributes, and those of the file."""
    try:
        with h5py_module().File(path) as file:
            coords = np.asarray(file["coords"][:], np.float64)
            notes, of_file = dict(file["coords"].attrs), dict(file.attrs)
    except UserError:
        raise
    except KeyError:
        raise UserError(f"{path} has no coords; give files of TRIDENT, CLAM or STAMP") from None
    except Exception as error:  # h5py raises nearly any type on corrupt bytes
        raise UserError(f"{path} is not an HDF5 file, or is damaged; copy it again") from error
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords  # TRIDENT's features have a first axis of 1
    if coords.ndim != 2 or coords.shape[1] != 2 or not np.isfinite(coords).all():
        raise UserError(f"{path} has coords of shape {coords.shape}, not pairs of numbers; write it again")
    return coords, notes, of_file
