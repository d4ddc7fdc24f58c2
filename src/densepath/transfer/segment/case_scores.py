"""Dice, IoU and the 95% Hausdorff distance of one image or volume."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import KDTree

from densepath.transfer.segment.legend import IGNORED, ClassMap, Legend

Mask = npt.NDArray[np.bool_]
Steps = Sequence[float] | npt.NDArray[np.float64]
_PERCENTILE = 95
COLUMNS = ("overlap", "predicted", "true", "hd95")  # of a case and a region: pixels in both and in each; distance


def score_case(found: ClassMap, truth: ClassMap, legend: Legend, spacing: Steps | None) -> npt.NDArray[np.float64]:
    """(R, 4): of each scored region the ``COLUMNS``; the distance is NaN unless it is in both maps.

    Args:
        found, truth: (*size) classes; pixels that are ``IGNORED`` in the truth count nowhere.
        legend: says what is scored.
        spacing: as for :func:`hausdorff95`; None to leave distances out.
    """
    known = truth != IGNORED
    rows = []
    for _, members in legend.regions:
        own, true = np.isin(found, members) & known, np.isin(truth, members)
        counts = [(own & true).sum(), own.sum(), true.sum()]
        rows.append([*counts, float("nan") if spacing is None else hausdorff95(own, true, spacing)])
    return np.array(rows, np.float64).reshape(-1, len(COLUMNS))


def hausdorff95(one: Mask, other: Mask, spacing: Steps) -> float:
    """The larger of the 95th percentiles of the distances from the edge of each mask to that of the other.

    The edge of a mask are its pixels with a neighbor, along an axis, outside of it; what is beyond the image is
    outside. NaN if a mask is empty.

    Args:
        one, other: (*size).
        spacing: distance of neighboring pixels along each axis (d,), in the unit of the result; or, for axes that are
            not at right angles, the step along each axis as a vector (d, d).

    Source: the definition of MONAI's ``compute_hausdorff_distance(percentile=95)``.
    """
    if not one.any() or not other.any():
        return float("nan")
    box = tuple(
        slice(places.min(), places.max() + 1)
        for axis in range(one.ndim)
        for places in [np.flatnonzero((one | other).any(tuple(a for a in range(one.ndim) if a != axis)))]
    )
    padded = (np.pad(part[box], 1) for part in (one, other))
    own, true = (mask & ~ndimage.binary_erosion(mask) for mask in padded)
    return float(max(np.percentile(far, _PERCENTILE) for far in _distances(own, true, spacing)))


def _distances(one: Mask, other: Mask, spacing: Steps) -> list[npt.NDArray[np.float64]]:
    """Of each pixel of a mask the distance to the nearest one of the other, for both."""
    if np.ndim(spacing) == 1:
        return [_distances_to(b, a, np.asarray(spacing, np.float64)) for a, b in ((one, other), (other, one))]
    places = [np.argwhere(mask) @ np.asarray(spacing) for mask in (one, other)]
    return [KDTree(b).query(a)[0] for a, b in (places, places[::-1])]


def _distances_to(mask: Mask, asked: Mask, spacing: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Of each pixel of a mask, ``asked``, the distance to the nearest one of another mask, which is not empty.

    The numbers are those of ``ndimage.distance_transform_edt``, which takes about 50 bytes for each voxel of a volume
    to compute the distances of all of them; the places of the nearest ones take about 15.
    """
    nearest = ndimage.distance_transform_edt(
        ~mask, sampling=spacing, return_distances=False, return_indices=True
    )  # (d, *size) int32
    steps = (nearest[:, asked] - np.stack(np.nonzero(asked))) * spacing[:, None]
    return np.sqrt(np.add.reduce(steps * steps, axis=0))


def dice(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """2 |A and B| / (|A| + |B|) from (..., 4) of :func:`score_case`; NaN if both are empty."""
    return _divide(2 * columns[..., 0], columns[..., 1] + columns[..., 2])


def iou(columns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """|A and B| / |A or B| from (..., 4) of :func:`score_case`; NaN if both are empty."""
    return _divide(columns[..., 0], columns[..., 1] + columns[..., 2] - columns[..., 0])


def _divide(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)
