"""Declarations of crops: which part of an image a view shows, and how it is flipped and rotated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from densepath.core.errors import UserError
from densepath.views.appearance import check_not_negative, check_probability, check_range

_AXES = "xyz"


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How a part of an image is flipped, rotated and resampled.

    Args:
        flip: probability of a flip along x, y and z; 0 for axes that are left out.
        rotation: largest rotation in degrees, either way, in the unit of the images' spacing where that is known. A
            crop that would leave the image shrinks about its center.
        rotation_axes: for volumes: "xy" rotates in that plane only, "all" about each of the three axes.
        quarter_turns: whether to also rotate in the xy-plane by 0, 90, 180 or 270 degrees, with equal probability.
        interpolation: the filter of the resampling.
    """

    flip: tuple[float, ...] = (0.5,)
    rotation: float = 0.0
    rotation_axes: Literal["xy", "all"] = "xy"
    quarter_turns: bool = False
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        for axis, probability in zip(_AXES, self.flip, strict=False):
            check_probability(f"the probability of a flip along {axis}", probability)
        if len(self.flip) > len(_AXES):
            raise UserError(f"flips have a probability along x, y and z, not {len(self.flip)}")
        check_not_negative("the rotation", self.rotation)
        if self.rotation_axes not in ("xy", "all"):
            raise UserError(f"unknown rotation axes {self.rotation_axes!r}; choose xy or all")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise UserError(f"unknown interpolation {self.interpolation!r}; choose bilinear or bicubic")

    def check(self, size: Sequence[int]) -> None:
        """Raise UserError if views of this size, in the order of the tensor's axes, cannot be flipped or rotated so."""
        check_flips(self.flip, size)
        if self.quarter_turns:
            check_square(size)


@dataclass(frozen=True, kw_only=True)
class Crop(Pose):
    """A random resized crop.

    Args:
        scale: range of the crop's area, or volume, as a share of the image's.
        ratio: range of the crop's aspect ratio, width / height, relative to that of the view; its logarithm is uniform.
            In volumes, the ratio of any two sides lies within the wider of the range's ends and their inverses.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("the scale of a crop", self.scale)
        check_range("the aspect ratio of a crop", self.ratio)
        if self.scale[1] > 1:
            raise UserError(f"the scale of a crop is a share of the image: at most 1, not {self.scale[1]}")


@dataclass(frozen=True, kw_only=True)
class Window(Pose):
    """A part of the image with as many pixels as the view, from a whole pixel on: nothing is resized."""


@dataclass(frozen=True, kw_only=True)
class WindowPair(Pose):
    """The first of two overlapping windows of given sizes: pairs are uniform among all with at least the minimum IoU.

    Args:
        windows: their sizes in pixels of the image, in the order of the tensor's axes, tried with equal probability.
            Sides longer than the image's are cut to it.
        iou: the minimum intersection over union of the two, before they are rotated.
        equal: whether both have the same size.
        border: minimum distance of windows from an image's edges along each axis, in pixels, if it is large enough.

    Source: PCRL (ICCV 2021), section 4.1; there pairs are drawn until one has the minimum IoU.
    """

    windows: tuple[tuple[int, ...], ...]
    iou: float = 0.2
    equal: bool = True
    border: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.windows or any(side < 1 for window in self.windows for side in window):
            raise UserError(f"windows need sides of at least one pixel, not {self.windows}")
        if not 0 <= self.iou < 1:
            raise UserError(f"the minimum IoU of two windows is at least 0 and less than 1, not {self.iou}")
        if any(width < 0 for width in self.border):
            raise UserError(f"the border must be at least 0, not {self.border}")

    def check(self, size: Sequence[int]) -> None:
        super().check(size)
        for sides in (*self.windows, self.border or size):
            if len(sides) != len(size):
                raise UserError(f"windows and borders need {len(size)} sides for these images, not {list(sides)}")


@dataclass(frozen=True, kw_only=True)
class SecondWindow(Pose):
    """The other window of a :class:`WindowPair`.

    Args:
        of: the name of the view with the first.
    """

    of: str


@dataclass(frozen=True, kw_only=True)
class Pattern(Pose):
    """A window at one of a number of places, which are the same in all images: see ``patterns.py``.

    Args:
        count: number of places.
        whole_epochs: whole epochs at the start of the run in which views show whole images instead.
        middle: whether images that are too large for that show their middle.
    """

    count: int
    whole_epochs: int = 0
    middle: bool = False


def pose_of(crop: Pose) -> dict[str, Any]:
    """The arguments of :class:`Pose` that a crop has, for a crop of another kind."""
    return {field.name: getattr(crop, field.name) for field in fields(Pose)}


def check_flips(flip: Sequence[float], size: Sequence[int]) -> None:
    """Raise UserError if flips are requested along an axis that views do not have."""
    for axis, probability in list(zip(_AXES, flip, strict=False))[len(size) :]:
        if probability:
            raise UserError(f"images of {len(size)} dimensions cannot be flipped along {axis}")


def check_square(size: Sequence[int]) -> None:
    """Raise UserError if a view cannot be rotated by a quarter turn in its xy-plane."""
    height, width = size[-2:]
    if height != width:
        raise UserError(f"views of {width} x {height} px cannot be rotated by quarter turns; make both sides equal")
