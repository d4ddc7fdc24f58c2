"""Tiles that other software has chosen: the HDF5 files of TRIDENT, CLAM and STAMP."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from densepath.core.errors import UserError, errors_as
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.tile_files import AT_10X, h5py_module

ENDINGS = ("_patches.h5", ".h5", ".hdf5")
_PIXELS = frozenset({"patch_size", "patch_size_level0"})  # attributes of files of TRIDENT and CLAM
_MICROMETERS = ("um", "µm", "μm")  # the second has the micro sign, the third the Greek letter


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
    mpp, side = size_of_tiles(path, of_file | notes)
    overlap = int(positive(path, notes, "overlap")) if notes.get("overlap") else 0
    return None if mpp is None or side is None else (mpp, side, overlap)


def size_of_tiles(path: str | Path, notes: Mapping[str, Any]) -> tuple[float | None, int | None]:
    """µm per pixel and side in pixels of tiles, as far as attributes say, in the words of densepath, TRIDENT or STAMP.

    Args:
        path: the file.
        notes: attributes of it and of its coordinates.

    Raises:
        UserError: a size is not a positive number.
    """
    um = next((name for name in ("tile_size_um", "tile_size") if name in notes), None)
    if um is not None and "tile_size_px" in notes:
        side = positive(path, notes, "tile_size_px")
        return positive(path, notes, um) / side, int(side)
    tile = int(positive(path, notes, "patch_size")) if "patch_size" in notes else None
    if "mpp" in notes:
        return positive(path, notes, "mpp"), tile
    if "target_magnification" in notes:
        return AT_10X / positive(path, notes, "target_magnification"), tile
    return None, tile


def positive(path: str | Path, notes: Mapping[str, Any], name: str) -> float:
    """A size that an attribute says.

    Args:
        path: the file.
        notes: its attributes.
        name: that of the attribute.

    Raises:
        UserError: it is not a positive number.
    """
    if not is_positive(notes[name]):
        raise UserError(f"{path} has the attribute {name} {notes[name]!r}, not a positive number; write it again")
    return float(notes[name])


def is_positive(value: Any) -> bool:
    """Whether an attribute is a positive number."""
    try:
        return 0 < float(value) < math.inf
    except (TypeError, ValueError):
        return False


def unit_of(
    path: str | Path, coords: npt.NDArray[Any], notes: Mapping[str, Any]
) -> tuple[Literal["px", "um"], float | None]:
    """The unit of a file's coordinates, and the side of its tiles in µm where STAMP's attributes say it.

    Without attributes, whole coordinates are pixels of level 0, and others µm.

    Args:
        path: the file.
        coords: as stored.
        notes: attributes of the file and of its coordinates. STAMP's are ``unit``, ``tile_size_um`` and, of earlier
            versions, ``tile_size``.

    Raises:
        UserError: the side is not a positive number.
    """
    unit = notes.get("unit")
    if unit is not None:
        micrometers = str(unit) in _MICROMETERS
    else:
        whole = bool((coords == np.round(coords)).all())
        micrometers = "tile_size_um" in notes or not (whole or _PIXELS & notes.keys())
    if not micrometers:
        return "px", None
    name = next((name for name in ("tile_size_um", "tile_size") if notes.get(name) is not None), None)
    return "um", None if name is None else positive(path, notes, name)


def read_coords(path: str, slide: Slide) -> GivenTiles:
    """The tiles of a slide in a file of TRIDENT, CLAM or STAMP.

    Without attributes, the tiles are taken to touch each other: their side is the step of the grid.

    Raises:
        UserError: it cannot be read, or is of another slide.
    """
    coords, notes, of_file = _read(path)
    if not len(coords):
        return GivenTiles(coords, (0.0, 0.0))
    y, x = slide.mpp
    unit, side_um = unit_of(path, coords, of_file | notes)
    if unit == "px" and "tile_size_um" in of_file:
        raise UserError(f"{path} has coordinates in {of_file['unit']}, not in µm; write it again")
    if unit == "um":
        um = _step(path, coords) if side_um is None else side_um
        given = GivenTiles(coords / (x, y), (um / y, um / x))
    elif "size_um" in notes:
        um = positive(path, notes, "size_um")
        given = GivenTiles(coords, (um / y, um / x))
    elif "patch_size_level0" in notes:
        given = GivenTiles(coords, (positive(path, notes, "patch_size_level0"),) * 2)
    elif "patch_size" in notes and "downsample" in notes:
        side, (across, down) = positive(path, notes, "patch_size"), _downsample(path, notes["downsample"])
        given = GivenTiles(coords, (side * down, side * across))
    else:
        given = GivenTiles(coords, (_step(path, coords),) * 2)
    height, width = slide.size
    low, high = given.corners.min(axis=0), given.corners.max(axis=0)
    if (high >= (width, height)).any() or (low < 0).any():
        place = f"x {low[0]:.0f}, y {low[1]:.0f} to x {high[0]:.0f}, y {high[1]:.0f}"
        raise UserError(
            f"{path} has tiles from {place}, outside of this slide of {width} x {height} px; of another one?"
        )
    return given


def _downsample(path: str, value: Any) -> tuple[float, float]:
    """The factor along x and y: CLAM's is one number, or both."""
    both = value if isinstance(value, list) and len(value) == 2 else [value, value]
    across, down = (positive(path, {"downsample": each}, "downsample") for each in both)
    return across, down


def attributes_of(of: Any) -> dict[str, Any]:
    """The attributes of an HDF5 file or dataset as plain values."""
    return {name: _plain(value) for name, value in of.attrs.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _step(path: str, coords: npt.NDArray[np.float64]) -> float:
    """The step of the grid of tiles that touch each other."""
    steps = np.concatenate([np.diff(np.unique(axis)) for axis in coords.T])
    if not len(steps):
        raise UserError(f"{path} does not say how large its tiles are; write it again with attributes")
    return float(steps.min())


def _read(path: str) -> tuple[npt.NDArray[np.float64], dict[str, Any], dict[str, Any]]:
    """Coordinates (N, 2), their attributes, and those of the file."""
    with errors_as(lambda error: _refusal(path, error)), h5py_module().File(path) as file:
        coords = np.asarray(file["coords"][:], np.float64)
        notes, of_file = attributes_of(file["coords"]), attributes_of(file)
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords  # TRIDENT's features have a first axis of 1
    if coords.ndim != 2 or coords.shape[1] != 2 or not np.isfinite(coords).all():
        raise UserError(f"{path} has coords of shape {coords.shape}, not pairs of numbers; write it again")
    return coords, notes, of_file


def _refusal(path: str, error: Exception) -> UserError:
    if isinstance(error, KeyError):
        return UserError(f"{path} has no coords; give files of TRIDENT, CLAM or STAMP")
    return UserError(f"{path} is not an HDF5 file, or is damaged; copy it again")
