"""A volume as it is stored: in axes S, A, R, resampled if asked for, as 16-bit integers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from densepath.core.spacing import some_values
from densepath.core.volume_sampling import resized_numbers, sample_volumes
from densepath.sources.volumes.encode import encode
from densepath.sources.volumes.read import on_voxels_of
from densepath.sources.volumes.volume import (
    Array,
    Channel,
    Spacing,
    Volume,
    check_size,
    spacing_of,
    to_ras,
    whole_labels,
)

_SAME = 1e-3  # relative difference of spacings that are equal
_PERCENTILES = (0.5, 99.5)  # nnU-Net's
_NUMBERS = 2**18  # values that percentiles are computed of
_FEW = 16  # different values of a label map at most
_HIGHEST = 2**15 - 1
_LEVELS = 256  # of stored numbers between the percentiles at least, or it is reported
_LIKE_LABELS = f"at most {_FEW} different values, as label maps have"
_OUTLIERS = f"outliers: 99% of their values lie within fewer than {_LEVELS} of 65,536 levels; clip them"
MEASURED = 2  # how facts of values are measured: 1, not recorded, took every n-th value, often of one slice


@dataclass(frozen=True, eq=False)
class Prepared:
    """A volume as it is stored.

    Args:
        facts: name, affine map, slope, intercept and window of each channel, where the file's voxels were, and how
            many different values it has, as far as a sample tells, or 0 if that is not known; ``measured`` is how.
        channels: (D, H, W) each.
        labels: (D, H, W) uint8 or int16.
    """

    facts: dict[str, Any]
    channels: list[npt.NDArray[np.int16]]
    labels: Array | None


def prepare(name: str, volume: Volume, labels: Volume | None, target: Spacing | None) -> Prepared:
    """Make a volume ready to be stored.

    Args:
        name: its name.
        volume: as its file has it.
        labels: its labels, on the same voxels, in any order and direction of axes.
        target: mm between voxels along x, y, z; None for the volume's own.

    Raises:
        CorruptImage: the labels do not fit the volume, or are not labels.
        TooLarge: it would not fit into memory.
    """
    if labels is not None:
        labels = on_voxels_of(f"labels of {name}", labels, name, volume)
    notes = [*volume.notes, *(f"in its labels {note}" for note in (labels.notes if labels else ()))]
    channels, scales, affine, codes = [], [], volume.affine, ""
    for channel in volume.channels:
        turned, affine, codes = to_ras(channel.values, volume.affine)
        values, affine = resampled(name, turned, affine, target)
        stored, slope, intercept = encode(Channel(values, channel.slope, channel.intercept))
        channels.append(stored.transpose(2, 1, 0))
        scales.append({"slope": slope, "intercept": intercept})
    codes_of_labels = None
    if labels is not None:
        whole = whole_labels(f"labels of {name}", labels.channels, 16)
        whole = whole.astype(np.uint8 if whole.min() >= 0 and whole.max() <= 255 else np.int16)
        own, own_affine, _ = to_ras(whole, volume.affine)
        codes_of_labels = resampled(name, own, own_affine, target, nearest=True)[0].transpose(2, 1, 0)
        if codes_of_labels.min() < 0:
            notes.append("labels below 0, which densepath segment takes only with --ignore")
    origin = {"shape": list(volume.shape), "affine": volume.affine.tolist(), "codes": codes}
    facts = {"name": name, "affine": affine.tolist(), "scales": scales, "origin": origin, "notes": notes}
    return Prepared(measured(facts, channels), channels, codes_of_labels)


def measured(facts: Mapping[str, Any], channels: Sequence[npt.NDArray[np.int16]]) -> dict[str, Any]:
    """The facts of a volume with those that its values show: windows, number of different values, and notes on these.

    Args:
        facts: all others, or those of an earlier version, whose values were measured otherwise.
        channels: (D, H, W) each, as they are stored.
    """
    pairs = zip(facts["scales"], channels, strict=True)
    scales = [
        {**scale, "window": percentile_window(channel, scale["slope"], scale["intercept"])} for scale, channel in pairs
    ]
    squeezed = any(map(_is_squeezed, channels))
    count = 0 if squeezed else max(len(np.unique(some_values(channel, _NUMBERS))) for channel in channels)
    notes = [note for note in facts["notes"] if note not in (_LIKE_LABELS, _OUTLIERS)]
    found = [_OUTLIERS] if squeezed else [_LIKE_LABELS] * (count <= _FEW)
    return {**facts, "scales": scales, "notes": notes + found, "values": count, "measured": MEASURED}


def resampled(
    name: str, values: Array, affine: npt.NDArray[np.float64], target: Spacing | None, nearest: bool = False
) -> tuple[Array, npt.NDArray[np.float64]]:
    """Values (X, Y, Z) at another spacing, and their affine map; whole numbers stay whole.

    The low corner of the volume stays where it is. Values are interpolated linearly, or averaged where voxels become
    larger. A volume at most half as thick as a new voxel becomes one voxel of its own thickness.

    Args:
        name: of the volume.
        values: the values.
        affine: their affine map.
        target: mm between voxels; None for no change.
        nearest: take the nearest voxel instead, for labels.

    Raises:
        TooLarge: the result would not fit into memory.
    """
    old = spacing_of(affine)
    if target is None or np.allclose(old, target, rtol=_SAME, atol=0):
        return values, affine
    thick = np.multiply(values.shape, old)
    size = [round(side / b) for side, b in zip(thick.tolist(), target, strict=True)]
    step = np.where(np.equal(size, 0), thick, target)
    size = [max(1, m) for m in size]
    share = size * step / thick
    made = affine.copy()
    made[:3, :3] *= step / old
    made[:3, 3] += (made[:3, :3].sum(axis=1) - affine[:3, :3].sum(axis=1)) / 2  # the first voxel's center moves
    if nearest:
        check_size(name, size, step.tolist(), math.prod(size) * values.itemsize)
        centers = [
            ((np.arange(m) + 0.5) * (b / a)).astype(int).clip(0, n - 1)
            for m, n, a, b in zip(size, values.shape, old, step, strict=True)
        ]
        return values[np.ix_(*centers)], made
    kind = np.dtype(np.float64 if values.dtype.itemsize > 4 or values.dtype.kind == "u" else np.float32)
    turned = values.transpose(2, 1, 0)
    # The stride of an axis with one voxel may be negative in an array that counts as contiguous.
    ready = turned.dtype == kind and turned.flags.c_contiguous and turned.flags.writeable and min(turned.strides) > 0
    numbers = resized_numbers(turned.shape, size[::-1]) + (0 if ready else turned.size)
    check_size(name, size, step.tolist(), kind.itemsize * numbers)
    x = torch.from_numpy(turned if ready else np.array(turned, kind, order="C"))[None, None]
    map_ = torch.from_numpy(np.hstack([np.diag(share), (share - 1)[:, None]]))[None]
    # The center of each new voxel lies in the volume: none is to be set to 0.
    extent, first = torch.tensor([turned.shape]), torch.zeros(1, dtype=torch.int64)
    new = sample_volumes(x, map_, size[::-1], "bilinear", extent, first)[0, 0].numpy().transpose(2, 1, 0)
    if values.dtype.kind in "iub":
        limits = np.iinfo(values.dtype) if values.dtype.kind != "b" else np.iinfo(np.uint8)
        new = np.rint(new, out=new).clip(limits.min, limits.max, out=new).astype(values.dtype)
    return new, made


def percentile_window(stored: npt.NDArray[Any], slope: float = 1.0, intercept: float = 0.0) -> list[float]:
    """The window of a volume's own: the percentiles of its values, or their range if these are equal.

    Args:
        stored: (D, H, W) or in another order, of values that become ``slope * stored + intercept``.
    """
    low, high = np.percentile(some_values(stored, _NUMBERS), _PERCENTILES).tolist()
    if low == high:
        low, high = float(stored.min()), float(stored.max())
    ends = sorted((slope * low + intercept, slope * high + intercept))
    return ends if ends[0] < ends[1] else [ends[0], ends[0] + max(1.0, math.ulp(ends[0]))]


def _is_squeezed(stored: npt.NDArray[np.int16]) -> bool:
    """Whether outliers take up nearly all of the levels of values that are not stored exactly."""
    low, high = np.percentile(some_values(stored, _NUMBERS), _PERCENTILES)
    return high - low < _LEVELS and (int(stored.min()), int(stored.max())) == (-_HIGHEST - 1, _HIGHEST)
