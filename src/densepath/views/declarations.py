"""Declarations of views: what a method sees of each image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from densepath.core.errors import UserError, counted
from densepath.sources.pixel_source import PixelSpec
from densepath.views.appearance import Appearance
from densepath.views.crops import Crop, Pattern, SecondWindow, Window, WindowPair, check_flips, check_square, pose_of

MAX_COUNT = 128  # crops of one view, and views of one method: their numbers share 16 bits

_PLAIN = Crop()


@dataclass(frozen=True)
class RandomView:
    """A random part of an image with a changed appearance: one crop, or several of one kind.

    Args:
        crop: which part, and how it is flipped and rotated.
        appearance: the operations on its appearance, in this order.
        size: its sides relative to the run's view size: 96 / 224 for the local crops of DINO.
        count: crops of each image, which form one :class:`~densepath.views.view.View`: row k * B + b is crop k of
            image b.
    """

    crop: Crop | Window | WindowPair | SecondWindow | Pattern = _PLAIN
    appearance: tuple[Appearance, ...] = ()
    size: float = 1.0
    count: int = 1

    def check(self, spec: PixelSpec, size: Sequence[int]) -> None:
        """Raise UserError if the view cannot be made of these images in this size."""
        if not 1 <= self.count <= MAX_COUNT:
            raise UserError(f"a view has 1 to {MAX_COUNT} crops of each image, not {self.count}")
        self.crop.check(size)
        if wrong := [each for each in self.appearance if each.channels not in (None, spec.channels)]:
            names = " and ".join(type(each).__name__ for each in wrong)
            options = ", ".join(f"augment.{option}" for each in wrong for option in each.turned_off_by)
            advice = f"set {options} to 0, as an option or in the recipe"
            if not all(each.turned_off_by for each in wrong):  # there are options for some of them at most
                advice = f"leave {'it' if len(wrong) == 1 else 'them'} out"
            raise UserError(
                f"images with {counted(spec.channels, 'channel')}, not {wrong[0].channels}, cannot have {names}; "
                f"{advice}"
            )


@dataclass(frozen=True)
class Cover:
    """The smallest upright view that covers two others, with untouched colors: ConCL's reference view.

    Args:
        of: the names of the views to cover.
        interpolation: the released ConCL takes bicubic here.
    """

    of: tuple[str, str]
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"

    def check(self, spec: PixelSpec, size: Sequence[int]) -> None:
        """Every image can be covered."""


@dataclass(frozen=True)
class Turned:
    """Another view, flipped and rotated exactly, with its own random numbers: PCRL's targets.

    :func:`densepath.views.turns.indicator` recovers the flips and turns from the maps of both.

    Args:
        of: the name of the other view.
        flip: probability of a flip along x, y and z; 0 for axes that are left out.
        quarter_turns: whether to rotate in the xy-plane, after the flips, by 0, 90, 180 or 270 degrees, with equal
            probability.
        clean: whether it shows the original image instead of the other view's changed appearance.
    """

    of: str
    flip: tuple[float, ...] = (0.5, 0.5, 0.5)
    quarter_turns: bool = True
    clean: bool = False

    def check(self, spec: PixelSpec, size: Sequence[int]) -> None:
        """Raise UserError if views of this size cannot be flipped or rotated so."""
        check_flips(self.flip[: spec.ndim], size)
        if self.quarter_turns:
            check_square(size)


@dataclass(frozen=True)
class Center:
    """The plain view: the largest box of the view's aspect ratio in the middle of an image, with untouched colors.

    Args:
        share: share of that box along each axis. The default is that of "resize to 256, crop 224".
        interpolation: the filter of its resampling.
    """

    share: float = 224 / 256
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def check(self, spec: PixelSpec, size: Sequence[int]) -> None:
        """Every image has a middle."""


Declaration = RandomView | Cover | Turned | Center


def are_scaled(views: Mapping[str, Declaration]) -> bool:
    """Whether a view is a random crop, whose scale and ratio are drawn; windows have a size of their own."""
    return any(isinstance(view, RandomView) and type(view.crop) is Crop for view in views.values())


def window_views(
    view: RandomView,
    windows: tuple[tuple[int, ...], ...],
    iou: float,
    border: tuple[int, ...] = (),
    equal: bool = True,
) -> tuple[RandomView, RandomView]:
    """Two views as a given one, but of a pair of windows; the first is to be named "first". See :class:`WindowPair`."""
    pose = pose_of(view.crop)
    pair = WindowPair(windows=windows, iou=iou, equal=equal, border=border, **pose)
    return replace(view, crop=pair), replace(view, crop=SecondWindow(of="first", **pose))


def view_sizes(views: Mapping[str, Declaration], size: int | Sequence[int], ndim: int) -> dict[str, tuple[int, ...]]:
    """The sizes of views in pixels, in the order of the tensor's axes.

    Args:
        views: name -> declaration.
        size: the run's view size: one for each axis, or one for all.
        ndim: spatial dimensions of the images.

    Raises:
        UserError: the size has another number of axes, or a view would have no pixels.
    """
    along = (size,) * ndim if isinstance(size, int | np.integer) else tuple(size)
    if len(along) != ndim:
        raise UserError(
            f"view_size {list(along)} has {counted(len(along), 'side')}, and the images have {ndim} dimensions"
        )
    sizes: dict[str, tuple[int, ...]] = {}
    for name, view in views.items():
        if isinstance(view, RandomView):
            sizes[name] = tuple(round(side * view.size) for side in along)
        elif isinstance(view, Turned):
            sizes[name] = sizes[_known(view.of, name, sizes)]
        else:
            sizes[name] = along
        if min(sizes[name]) < 1:
            raise UserError(f"the view {name} would have {' x '.join(map(str, sizes[name]))} px; make views larger")
    return sizes


def crop_counts(views: Mapping[str, Declaration]) -> dict[str, int]:
    """The number of crops of each image in each view, by name."""
    counts: dict[str, int] = {}
    for name, view in views.items():
        counts[name] = view.count if isinstance(view, RandomView) else 1
        if isinstance(view, Turned):
            counts[name] = counts[_known(view.of, name, counts)]
    return counts


def check_views(views: Mapping[str, Declaration], spec: PixelSpec, size: int | Sequence[int]) -> None:
    """Check that views can be made of images.

    Raises:
        UserError: they cannot: an operation needs other channels, an axis does not exist, sides that must be equal are
            not, or a view is declared before one that it refers to.
    """
    if len(views) > MAX_COUNT:
        raise UserError(f"a method has at most {MAX_COUNT} views, not {len(views)}")
    counts, sizes = crop_counts(views), view_sizes(views, size, spec.ndim)
    before: list[str] = []
    for name, view in views.items():
        view.check(spec, sizes[name])
        if isinstance(view, Cover):
            for other in view.of:
                if counts[_known(other, name, before)] > 1:
                    raise UserError(f"the view {name} can cover {other} only if that has one crop of each image")
        if isinstance(view, RandomView) and isinstance(view.crop, SecondWindow):
            first = views[_known(view.crop.of, name, before)]
            if not isinstance(first, RandomView) or not isinstance(first.crop, WindowPair) or first.count != view.count:
                raise UserError(f"the view {name} is the second window of {view.crop.of}, which lacks its first one")
        before.append(name)


def without_color(
    views: Mapping[str, Declaration], defaults: Mapping[str, Declaration], spec: PixelSpec
) -> tuple[dict[str, Declaration], tuple[str, ...]]:
    """Adapt views to images without colors: replace or leave out the color operations of a method's defaults.

    Color operations that the user set to other values than the method's defaults stay, and :func:`check_views` refuses
    them, unless no part of them needs colors.

    Args:
        views: the method's views with the user's augmentation.
        defaults: the method's views with its default augmentation.
        spec: the specification of the images.

    Returns:
        The views, and the names of the operations that were replaced or left out.
    """
    if spec.channels == 3:
        return dict(views), ()
    changed: dict[str, Declaration] = {}
    names: dict[str, None] = {}
    for name, view in views.items():
        default = defaults.get(name)
        if isinstance(view, RandomView):
            own = default.appearance if isinstance(default, RandomView) else ()
            left: list[Appearance] = []
            for operation in view.appearance:
                rest: Appearance | None = operation
                if operation.channels is not None and (operation in own or not operation.changes_colors):
                    names[type(operation).__name__] = None
                    rest = operation.without_color()
                left += [] if rest is None else [rest]
            view = replace(view, appearance=tuple(left))
        changed[name] = view
    return changed, tuple(names)


def _known(other: str, name: str, before: Mapping[str, object] | Sequence[str]) -> str:
    if other not in before:
        raise UserError(f"the view {name} refers to {other!r}, which must be declared before it")
    return other
