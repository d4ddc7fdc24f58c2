"""The volume of a DICOM series: its values at equal steps between slices, and where it lies."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import numpy as np

from densepath.core.errors import counted, errors_as
from densepath.sources.corrupt import CorruptImage
from densepath.sources.dicom_image import read_elements, undecodable
from densepath.sources.volumes.dicom_series import NUMBERS, Series, Slice
from densepath.sources.volumes.volume import (
    Array,
    Channel,
    Spacing,
    TooLarge,
    Volume,
    check_affine,
    check_size,
    check_values,
    spacing_of,
)

Gaps = Literal["error", "resample"]
_GAP = 0.01  # of the spacing, by which steps between slices may differ
_STATED = 0.03  # of the spacing, by which it may differ from SpacingBetweenSlices
_APART = 1e-3  # mm between slices at different places
_SAME_SIDES = 1e-3  # by which the pixel spacing of slices may differ, relatively
_TILT = 0.5  # degrees between the slices' normal and the direction in which they follow each other


def read_series(series: Series, gaps: Gaps = "error", spacing: Spacing | None = None) -> Volume:
    """Read a series.

    Args:
        series: its slices.
        gaps: what to do if steps between slices differ by over 1% of the spacing: "error", or "resample" to equal
            steps, linearly between the two neighbors.
        spacing: mm along x, y and z of the pixels of files that name none.

    Raises:
        CorruptImage: a slice cannot be read or is missing, different ones lie at one place, acquisitions overlap in
            depth, pixels differ in spacing, or the volume would not fit into memory at equal steps.
    """
    steps = np.diff([part.depth for part in series.slices])
    apart = steps[steps > _APART]
    if not apart.size:
        raise CorruptImage(series.name, "all of its slices lie at one place")
    usual = float(np.median(apart))
    slices, notes = _without_duplicates(series, usual)
    notes += _joined(series, slices, usual)
    depths = np.array([part.depth for part in slices])
    steps = np.diff(depths)
    if len(slices) < 2:
        raise CorruptImage(series.name, "it has a single slice")
    uneven = np.flatnonzero(np.abs(steps - usual) > _GAP * usual)
    if uneven.size and gaps == "error":
        k = int(uneven[0])
        raise CorruptImage(
            series.name,
            f"{counted(len(uneven), 'step between slices is', 'steps between slices are')} not "
            f"{usual:.4g} mm, first {steps[k]:.4g} mm after slice {k + 1} "
            f"of {len(slices)}; complete it, or give --gaps resample",
        )
    affine, more = _affine(series, slices, usual if uneven.size else None, spacing)
    values, slope, intercept, finite = _values(series, slices)
    if uneven.size:
        rows, columns = slices[0].size
        sides = columns, rows, round(float(depths[-1] - depths[0]) / usual) + 1
        try:
            check_size(series.name, sides, spacing_of(affine), math.prod(sides) * values.itemsize)
        except TooLarge as error:
            raise CorruptImage(series.name, f"{error.why}; leave out --gaps resample") from error
        values = _even(values, depths, usual)
        notes.append("uneven steps between slices, resampled to equal ones")
    return Volume((Channel(values, slope, intercept),), affine, (*notes, *more, *finite))


def _without_duplicates(series: Series, usual: float) -> tuple[list[Slice], list[str]]:
    """The slices of a series, one for each place, and a note if there were several.

    Args:
        series: its slices.
        usual: the median step in mm; slices at most 1% of it apart lie at one place.

    Raises:
        CorruptImage: the values of two slices at one place differ.
    """
    slices = list(series.slices)
    same = np.flatnonzero(np.diff([part.depth for part in slices]) <= _GAP * usual)
    for k in same[::-1].tolist():
        one, other = (pixels * a + b for pixels, (a, b) in (_pixels(series, part) for part in slices[k : k + 2]))
        if not np.array_equal(one, other):
            _joined(series, series.slices, usual)
            where = f"{slices[k].depth:.2f} mm"
            raise CorruptImage(series.name, f"different images lie at one place ({where}): time points or echoes")
        del slices[k + 1]
    return slices, ["duplicate slices, used once"] if same.size else []


def _joined(series: Series, slices: Sequence[Slice], usual: float) -> list[str]:
    """Notes on acquisitions, time points or echoes that are one volume. A scanner may number each slice: no note.

    They are if they adjoin in depth, or if all steps are equal and those that SpacingBetweenSlices states.

    Raises:
        CorruptImage: others overlap in depth, or are at most 1% of a step apart.
    """
    notes = []
    steps = np.diff([part.depth for part in slices])
    equal = bool((np.abs(steps - usual) <= _GAP * usual).all())
    stated = all(part.step is not None and abs(abs(part.step) - usual) <= _STATED * usual for part in slices)
    for place, tag in enumerate(NUMBERS):
        depths: dict[str, list[float]] = defaultdict(list)
        for part in slices:
            depths[part.numbers[place]].append(part.depth)
        depths.pop("", None)
        ranges = sorted(each for number, own in depths.items() for each in _ranges(number, own, usual, equal))
        if len(depths) < 2 or all(low == high for low, high, _ in ranges):
            continue
        how = "adjoining"
        for (_, high, one), (low, end, other) in pairwise(ranges):
            if low <= high + _GAP * usual:
                if not (equal and stated):
                    raise _overlap(series, tag, (one, other), (low, min(high, end)))
                how = "interleaved"
        notes.append(f"{how} slices of different {tag}, joined")
    return notes


def _ranges(number: str, depths: Sequence[float], usual: float, equal: bool) -> list[tuple[float, float, str]]:
    """The depths in mm, from and to, of the slices of a number: one range, or one for each slice.

    A number of slices, not of acquisitions, may repeat where the numbers start again: its slices have more steps
    between them than there are slices. This is told only from equal steps.
    """
    low, high, count = min(depths), max(depths), len(depths)
    repeats = equal and high - low > (count + _GAP) * (count - 1) * usual
    return [(depth, depth, number) for depth in depths] if repeats else [(low, high, number)]


def _overlap(series: Series, tag: str, numbers: tuple[str, str], depths: tuple[float, float]) -> CorruptImage:
    where = "{:.2f} to {:.2f} mm".format(*depths)
    return CorruptImage(
        series.name,
        f"its slices of {tag} {' and '.join(numbers)} overlap in depth ({where}); convert the files of each from a "
        f"folder of its own, or if they are interleaved slices of one volume, remove {tag} from the files",
    )


def _even(values: Array, depths: Array, step: float) -> Array:
    """Slices (X, Y, Z) at equal steps, linearly between their neighbors."""
    wanted = depths[0] + step * np.arange(round(float(depths[-1] - depths[0]) / step) + 1)
    wanted = np.minimum(wanted, depths[-1])
    left = np.clip(np.searchsorted(depths, wanted, side="right") - 1, 0, len(depths) - 2)
    share = (wanted - depths[left]) / (depths[left + 1] - depths[left])
    out = np.empty((*values.shape[:2], len(wanted)), values.dtype)
    for k, (before, weight) in enumerate(zip(left.tolist(), share.tolist(), strict=True)):
        mixed = (1 - weight) * values[..., before].astype(np.float64) + weight * values[..., before + 1]
        out[..., k] = np.rint(mixed) if values.dtype.kind in "iu" else mixed
    return out


def _affine(
    series: Series, slices: Sequence[Slice], step: float | None, spacing: Spacing | None
) -> tuple[Array, list[str]]:
    """The affine map, which keeps the shear of a tilted gantry, and a note about that."""
    first, last = slices[0], slices[-1]
    along = last.position - first.position
    across = along / np.linalg.norm(along)
    depths = np.array([part.depth - first.depth for part in slices])
    line = first.position + depths[:, None] / depths[-1] * along
    off = np.abs(np.array([part.position for part in slices]) - line).max()
    if off > max(0.1, _GAP * depths[-1] / (len(slices) - 1)):
        raise CorruptImage(series.name, f"its slices do not lie on a line, by up to {off:.3g} mm")
    tilt = float(np.degrees(np.arccos(np.clip(across @ first.normal, -1, 1))))
    between = along / (len(slices) - 1) if step is None else along * step / depths[-1]
    affine = np.eye(4)
    axes = np.array(first.orientation).reshape(2, 3)  # along a row, along a column
    sides = _pixel_spacing(series, slices)
    if sides is None and spacing is not None:
        sides = spacing[int(np.abs(axes[1]).argmax())], spacing[int(np.abs(axes[0]).argmax())]
    if sides is None:
        raise CorruptImage(series.name, "its files have no PixelSpacing; give it with --spacing X Y Z")
    affine[:3, 0], affine[:3, 1] = axes[0] * sides[1], axes[1] * sides[0]
    affine[:3, 2], affine[:3, 3] = between, first.position
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # DICOM's axes point left and posterior
    check_affine(series.name, affine)
    tilted = f"a tilted gantry, {tilt:.1f} degrees: the affine map keeps the shear"
    return affine, [tilted] if tilt > _TILT else []


def _pixel_spacing(series: Series, slices: Sequence[Slice]) -> tuple[float, float] | None:
    """mm between the pixels of all slices along a column and a row; None if no file names it."""
    first = slices[0].spacing
    for part in slices:
        if (part.spacing is None) != (first is None) or not np.allclose(
            part.spacing or 0, first or 0, rtol=_SAME_SIDES, atol=0
        ):
            shown = [f"{sides[0]:g} x {sides[1]:g} mm" if sides else "none" for sides in (first, part.spacing)]
            raise CorruptImage(
                series.name, f"its slices differ in PixelSpacing ({shown[0]} and {shown[1]}); separate them"
            )
    return first


def _values(series: Series, slices: Sequence[Slice]) -> tuple[Array, float, float, tuple[str, ...]]:
    """(X, Y, Z) with slope and intercept, and notes; of slices with different ones the values themselves."""
    read = [_pixels(series, part) for part in slices]
    scales = {scale for _, scale in read}
    if len(scales) == 1:
        ((slope, intercept),) = scales
        values = np.stack([pixels.T for pixels, _ in read], axis=-1)
    else:
        slope, intercept = 1.0, 0.0
        values = np.stack([(pixels * np.float64(a) + b).T.astype(np.float32) for pixels, (a, b) in read], axis=-1)
    (values,), notes = check_values(series.name, [values])
    return values, slope, intercept, notes


def _pixels(series: Series, part: Slice) -> tuple[Array, tuple[float, float]]:
    """The pixels (H, W) of a slice, and its slope and intercept."""
    with errors_as(lambda error: _undecodable(series, part, error)):
        content = read_elements(part.path)
        pixels = content.pixel_array
        scale = float(content.get("RescaleSlope", 1) or 1), float(content.get("RescaleIntercept", 0) or 0)
    if pixels.shape != part.size:
        raise CorruptImage(series.name, f"a slice has {pixels.shape} pixels instead of {part.size}")
    return pixels, scale


def _undecodable(series: Series, part: Slice, error: Exception) -> CorruptImage:
    number = series.slices.index(part) + 1
    return CorruptImage(series.name, f"slice {number} {undecodable(error)}")
