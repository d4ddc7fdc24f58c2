"""Finders of cells in pixels: the built-in one, and those of other packages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from densepath.annotations.cells import networks
from densepath.annotations.cells.blobs import MPP, REACH, StainLevels, find_cells
from densepath.core.digests import digest_of, digest_of_file
from densepath.core.errors import UserError

Pixels = npt.NDArray[np.uint8]
FINDERS = ("blobs", "cellpose", "stardist", "hovernet", "histomicstk")
MODELS = ("cellpose", "stardist", "hovernet")  # that need weights
_PACKAGES = {**{name: name for name in FINDERS[1:]}, "hovernet": "tiatoolbox"}
FinderName = Literal["blobs", "cellpose", "stardist", "hovernet", "histomicstk"]


@dataclass(frozen=True, eq=False)
class Found:
    """Cells in an image.

    Args:
        points: (N, 2) x, y in pixels, from the upper left corner of the upper left pixel.
        classes: the names of their classes, or None.
        scores: (N,) or None.
    """

    points: npt.NDArray[Any]
    classes: Sequence[str] | None = None
    scores: npt.NDArray[Any] | None = None


Find = Callable[[Pixels], Found]


class Finder(Protocol):
    """Finds cells at one resolution.

    Attributes:
        mpp: µm per pixel of the images that it gets.
        reach: µm; what is farther away from a cell hardly changes it.
    """

    @property
    def mpp(self) -> float: ...

    @property
    def reach(self) -> float: ...

    def prepare(self, parts: Sequence[Pixels]) -> Find:
        """The function that finds the cells of one slide or image (H, W, 3), of which some parts are given."""
        ...


@dataclass(frozen=True)
class Blobs:
    """The built-in finder: :func:`~densepath.annotations.cells.blobs.find_cells`."""

    mpp: float = MPP
    reach: float = REACH

    def prepare(self, parts: Sequence[Pixels]) -> Find:
        """With the stain of all parts."""
        levels = StainLevels.of(parts)
        return lambda pixels: Found(find_cells(pixels, self.mpp, levels) if levels else np.zeros((0, 2)))


@dataclass(frozen=True, eq=False)
class Nuclei:
    """A finder of another package, which divides an image into nuclei."""

    segmenter: networks.Segmenter

    @property
    def mpp(self) -> float:
        """µm per pixel of the images that it gets."""
        return self.segmenter.mpp

    @property
    def reach(self) -> float:
        """µm; what is farther away from a cell hardly changes it."""
        return self.segmenter.reach

    def prepare(self, parts: Sequence[Pixels]) -> Find:
        """The centers of the nuclei of an image."""
        return self._find

    def _find(self, pixels: Pixels) -> Found:
        labels, names = self.segmenter.segment(pixels)
        return Found(center_points(labels), None if names is None else [names[k] for k in np.unique(labels) if k])


@lru_cache(1)
def build_finder(name: FinderName, weights: str | Path | None = None, mpp: float | None = None) -> Finder:
    """Build a finder; in each process once, because networks are large.

    Args:
        name: one of :data:`FINDERS`.
        weights: the file or folder of a network.
        mpp: µm per pixel of the images that a network was trained on; None for the usual ones.

    Raises:
        UserError: its package is not installed, or the weights cannot be read.
    """
    if name == "blobs":
        return Blobs()
    if name == "histomicstk":
        return Nuclei(networks.histomicstk(mpp))
    return Nuclei(
        {"cellpose": networks.cellpose, "stardist": networks.stardist, "hovernet": networks.hovernet}[name](
            weights, mpp
        )
    )


def check_finder(name: str, weights: str | Path | None, mpp: float | None) -> None:
    """Check the options of a finder before any slide is read.

    Raises:
        UserError: weights or the package are missing, or an option has no effect.
    """
    if name in MODELS and weights is None:
        raise UserError(f"{name} needs its weights; give the path with --weights, nothing is downloaded")
    if name in MODELS and not Path(str(weights)).exists():
        raise UserError(f"there are no weights at {weights}; correct --weights")
    if name not in MODELS and weights is not None:
        raise UserError(f"{name} has no weights; leave --weights out")
    if name == "blobs" and mpp is not None:
        raise UserError("blobs works at its own resolution; leave --model_mpp out")
    if mpp is not None and not 0.05 <= mpp <= 10:
        raise UserError(f"model_mpp is {mpp}; give µm per pixel, such as 0.5")
    if name in _PACKAGES:
        networks.check_package(_PACKAGES[name])


def digest_of_weights(path: str | Path) -> str:
    """A digest of the file of a network, or of the files in its folder. Raises UserError if one cannot be read."""
    path = Path(path)
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    try:
        return digest_of(part for each in files for part in (str(each.relative_to(path)), digest_of_file(each)))
    except OSError as error:
        raise UserError(f"the weights {path} cannot be read ({error}); correct --weights") from error


def center_points(labels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The centers (N, 2) x, y of the objects of a label map (H, W) whose background is 0, in pixels."""
    y, x = np.nonzero(labels)
    _, number = np.unique(labels[y, x], return_inverse=True)
    if not len(number):
        return np.zeros((0, 2))
    count = np.bincount(number)
    return np.stack([np.bincount(number, axis + 0.5) / count for axis in (x, y)], axis=1)
