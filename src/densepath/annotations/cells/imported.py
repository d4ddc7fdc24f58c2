"""Cells that were read from a file of other software."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from densepath.core.digests import digest_of
from densepath.core.errors import UserError, counted

_AT_10X = 10.0  # µm per pixel times magnification
_POWER = 0.15  # by which a ratio of magnifications may differ from a power of two


@dataclass(frozen=True, eq=False)
class PointsFile:
    """The cells in a file.

    Args:
        points: (N, 2) x, y in ``unit``, from the upper left corner of the upper left pixel.
        classes: the name of each cell's class; None for none.
        unit: "px" of level 0, "um", or the magnification at which pixels are counted.
        origins: what the cells are, where the file marks none as cells.
        left_out: annotations with an area that are not taken as cells.
    """

    points: npt.NDArray[np.float64]
    classes: Sequence[str | None]
    unit: str | float = "px"
    origins: tuple[str, ...] = ()
    left_out: int = 0

    def digest(self) -> str:
        """A digest of all cells."""
        names = "\0".join(f"{name}" for name in self.classes)
        return digest_of([np.ascontiguousarray(self.points).tobytes(), str(self.unit), names])

    def notes(self) -> list[str]:
        """What the user should know about the file."""
        regions = counted(self.left_out, "annotation") + " with an area"
        if not len(self.points):
            only = f", only {regions}; export cells as detections, or give a table of points" if self.left_out else ""
            return [f"its file has no cells{only}"]
        return [f"{regions} and without a score left out: not taken for cells"] * bool(self.left_out)

    def in_pixels(self, spacing: tuple[float, float] | None) -> npt.NDArray[np.float64]:
        """The points in pixels of level 0, of ``spacing`` µm per pixel along y and x.

        Raises:
            UserError: the µm per pixel are needed and unknown.
        """
        if self.unit == "px":
            return self.points
        if spacing is None:
            where = "in µm" if self.unit == "um" else f"counted in pixels at {self.unit:g}x"
            raise UserError(f"its points are {where}, and its µm per pixel are unknown; give --default_mpp")
        if self.unit == "um":
            return self.points / spacing[::-1]
        ratio = _AT_10X / float(self.unit) / (sum(spacing) / 2)
        power = float(2.0 ** np.round(np.log2(ratio)))  # of a level: magnifications are nominal
        return self.points * (power if abs(ratio / power - 1) <= _POWER else ratio)
