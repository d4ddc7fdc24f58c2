"""Polygons with holes as masks, and back: pixels belong to them whose centers lie inside, as in QuPath."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import ndimage

LONGEST = 2**21  # rows that the sides of a polygon cross together
_SIDES = 20_000  # of an ellipse

Ring = npt.NDArray[np.float64]  # (N, 2) x y, where pixel 0 reaches from 0 to 1


def fill(rings: Sequence[Ring], height: int, width: int) -> tuple[int, int, npt.NDArray[np.bool_]]:
    """Draw a polygon by the even-odd rule: what lies in a second ring is a hole.

    The result is exact: unlike COCO's drawing, it does not round corners to fifths of a pixel.

    Args:
        rings: the outline and its holes, closed or not.
        height, width: of the image in pixels; what lies outside is cut off.

    Returns:
        Top, left, and the mask (h, w) of the part of the image that the polygon bounds; it may be empty.

    Raises:
        ValueError: the polygon has too many long sides, as a phrase for several outlines.
    """
    points = np.concatenate(rings)
    low, high = (np.clip(edge, 0, (width, height)) for edge in (points.min(axis=0), points.max(axis=0)))
    left, top = (int(np.floor(edge)) for edge in low)
    right, bottom = (int(np.ceil(edge)) for edge in high)
    crossings = np.zeros((bottom - top, right - left + 1), np.uint8)  # modulo 256, so that odd stays odd
    for ring in rings:
        after = np.roll(ring, -1, axis=0)
        # The rows whose centers lie between the ends of a side, without the lower end: a corner counts once.
        first, last = (np.ceil(side[:, 1].clip(top - 1, bottom + 1) - 0.5).astype(np.int64) for side in (ring, after))
        start, stop = (edge.clip(top, bottom) for edge in (np.minimum(first, last), np.maximum(first, last)))
        count = stop - start
        if count.sum() > LONGEST:
            raise ValueError(f"outlines that cross more than {LONGEST:,} rows")
        side = np.repeat(np.arange(len(ring)), count)
        row = np.arange(len(side)) - np.repeat(count.cumsum() - count, count) + start[side]
        (x1, y1), (x2, y2) = ring[side].T, after[side].T
        x = x1 + (row + 0.5 - y1) / (y2 - y1) * (x2 - x1)
        column = np.ceil((x - 0.5).clip(left, right)).astype(np.int64)
        np.add.at(crossings, (row - top, column - left), 1)
    return top, left, crossings[:, :-1].cumsum(axis=1, dtype=np.uint8) % 2 == 1


def ellipse(ring: Ring) -> Ring:
    """The ellipse in the bounding box of a ring, as a polygon whose sides are shorter than a pixel (up to 5000 px)."""
    low, high = ring.min(axis=0), ring.max(axis=0)
    sides = int(np.clip(4 * (high - low).max(), 16, _SIDES))
    angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    outline: Ring = (low + high) / 2 + (high - low) / 2 * around
    return outline


def polygons_of(mask: npt.NDArray[np.bool_], top: int = 0, left: int = 0) -> list[list[Ring]]:
    """The connected parts of a mask (h, w) as polygons, each with its outline first and then its holes.

    Outlines run between the centers of neighboring pixels, so that exactly the mask's pixels have their centers inside.
    Their points are corners only.

    Args:
        mask: the mask.
        top, left: of the mask in its image, to which the polygons refer.
    """
    from skimage.measure import find_contours

    parts, _ = ndimage.label(mask)
    polygons = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
        padded = np.pad(parts[rows, columns] == number, 1)
        shift = np.array([top + rows.start - 0.5, left + columns.start - 0.5])  # the pad, and pixel centers
        rings = [_corners((ring + shift)[:, ::-1]) for ring in find_contours(padded, 0.5, fully_connected="low")]
        polygons.append(sorted(rings, key=lambda ring: -np.ptp(ring[:, 0]) * np.ptp(ring[:, 1])))
    return polygons


def _corners(ring: Ring) -> Ring:
    """A closed ring (its last point is its first) without the points on straight lines."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    corners = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
    return np.concatenate([corners, corners[:1]])
