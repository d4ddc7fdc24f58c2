"""Drawing functions for the procedural tissue: smooth noise, scattered points, ellipses, packed cells, contours.

Arrays are float32 fields (H, W); points are (N, 2) y, x in pixels; angles are radians from x towards y.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

Array = NDArray[Any]
Shape = tuple[int, int]


def _spline(grid: Array, length: int, scale: float) -> Array:
    """Cubic B-spline over the rows of ``grid`` (G, W), one knot per ``scale`` rows -> (length, W)."""
    position = np.arange(length, dtype=np.float32) / np.float32(scale)
    knot = position.astype(np.int64)
    f = (position - knot)[:, None]
    weights = ((1 - f) ** 3, 3 * f**3 - 6 * f**2 + 4, -3 * f**3 + 3 * f**2 + 3 * f + 1, f**3)
    out = weights[0] * grid[knot]
    for k in (1, 2, 3):
        out += weights[k] * grid[knot + k]
    return out / np.float32(6)


def smooth_noise(rng: np.random.Generator, shape: Shape, scale: float | tuple[float, float]) -> Array:
    """Gaussian noise (H, W) of mean 0 and variance about 1 with a wavelength of about ``scale`` pixels (y, x)."""
    high, wide = (max(float(s), 1.0) for s in (scale if isinstance(scale, tuple) else (scale, scale)))
    knots = int(shape[0] / high) + 5, int(shape[1] / wide) + 5
    grid = rng.standard_normal(knots, dtype=np.float32)
    noise = _spline(_spline(grid, shape[0], high).T, shape[1], wide).T
    return noise / np.float32(0.479)  # the spline reduces a standard deviation of 1 to this


def on_canvas(points: Array, shape: Shape) -> NDArray[np.bool_]:
    """Which of the points lie on the canvas."""
    return np.all((points >= 0) & (points < np.asarray(shape) - 1), axis=1)


def scatter(rng: np.random.Generator, shape: Shape, spacing: float, jitter: float) -> Array:
    """Points on a hexagonal lattice over the canvas, each displaced by up to ``jitter`` spacings."""
    rows, columns = int(shape[0] / (spacing * 0.866)) + 2, int(shape[1] / spacing) + 2
    y, x = np.mgrid[:rows, :columns].astype(np.float32)
    lattice = np.stack([y * 0.866, x - 0.5 * (y % 2)], -1).reshape(-1, 2)
    return ((lattice + rng.uniform(-jitter, jitter, lattice.shape)) * spacing).astype(np.float32)


def at(field: Array, points: Array) -> Array:
    """The values of ``field`` at the pixels nearest to ``points``: (N,)."""
    y, x = np.rint(points).astype(np.int64).T
    return field[y, x]


def along_contours(
    rng: np.random.Generator, field: Array, level: float, step: float, jitter: float
) -> tuple[Array, Array]:
    """Evenly spaced points on the lines where ``field`` equals ``level``, each displaced by up to ``jitter`` steps.

    Returns:
        points (N, 2); angles (N,) of the lines' normals.
    """
    points, angles = [np.zeros((0, 2), np.float32)], [np.zeros(0, np.float32)]
    for contour in find_contours(field, level):
        edges = np.diff(contour, axis=0)
        arc = np.concatenate([[0.0], np.cumsum(np.hypot(edges[:, 0], edges[:, 1]))])
        count = int(arc[-1] / step)
        if count < 3:
            continue
        middle = (np.arange(count) + rng.uniform(-jitter, jitter, count)) * (arc[-1] / count)
        # The tangent is taken over half a step on each side, so that it does not follow the pixel grid.
        where = np.stack([middle, middle - step / 2, middle + step / 2]) % arc[-1]
        y, x = (np.interp(where, arc, coordinate) for coordinate in contour.T)
        points.append(np.stack([y[0], x[0]], -1).astype(np.float32))
        angles.append(np.arctan2(x[2] - x[1], y[1] - y[2]).astype(np.float32))
    return np.concatenate(points), np.concatenate(angles)


def _under_ellipses(shape: Shape, points: Array, long: Array, short: Array, angle: Array) -> tuple[Array, ...]:
    """The pixels in N ellipses and their soft borders.

    Returns:
        index (M,) flat pixel numbers; radius (M,), 1 on the contour; which (M,) ellipse, ascending.
    """
    reach = int(np.ceil(np.max(long, initial=1.0))) + 1
    offset = np.arange(-reach, reach + 1)
    center = np.rint(points).astype(np.int64)
    y, x = center[:, 0, None] + offset, center[:, 1, None] + offset  # (N, w)
    dy, dx = (y - points[:, 0, None])[:, :, None], (x - points[:, 1, None])[:, None, :]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u, v = (dx * cos + dy * sin) / long[:, None, None], (dy * cos - dx * sin) / short[:, None, None]
    radius = np.sqrt(u * u + v * v)
    seen = ((y >= 0) & (y < shape[0]))[:, :, None] & ((x >= 0) & (x < shape[1]))[:, None, :]
    which, row, column = np.nonzero(seen & (radius < 1 + 0.5 / short[:, None, None]))
    return y[which, row] * shape[1] + x[which, column], radius[which, row, column].astype(np.float32), which


def paint_ellipses(
    canvas: Array, points: Array, long: Array, short: Array, angle: Array, value: Array, hollow: float = 0.0
) -> None:
    """Paint ellipses into ``canvas``; a later one covers an earlier one, and its soft border separates both.

    Args:
        canvas: (H, W), changed in place.
        points: (N, 2) centers.
        long, short: (N,) half axes in pixels.
        angle: (N,) of the long axes.
        value: (N,) values to paint.
        hollow: reduction of the value in the center, 0 to 1.
    """
    index, radius, which = _under_ellipses((canvas.shape[0], canvas.shape[1]), points, long, short, angle)
    cover = np.clip((1 - radius) * short[which] + 0.5, 0, 1)
    canvas.reshape(-1)[index] = value[which] * cover * (1 - hollow * np.clip(1 - radius, 0, 1))


def packed_cells(
    shape: Shape, points: Array, long: Array, short: Array, angle: Array, wall: float
) -> tuple[Array, NDArray[np.int64]]:
    """Ellipses that touch: where two would overlap, a wall of ``wall`` pixels runs between them.

    Returns:
        cover (H, W) in [0, 1]; owner (H, W) index of the ellipse, -1 for none.
    """
    index, radius, which = _under_ellipses(shape, points, long, short, angle)
    none = np.float32(9)
    first = np.full(shape[0] * shape[1], none)
    np.minimum.at(first, index, radius)
    nearest = radius == first[index]
    owner = np.full(first.shape, -1, np.int64)
    owner[index[nearest]] = which[nearest]
    others = which != owner[index]
    second = np.full_like(first, none)
    np.minimum.at(second, index[others], radius[others])
    width = np.append(short, np.float32(1))[owner]
    cover = np.minimum(1 - first, (second - first) / 2) * width - wall / 2 + 0.5
    return np.clip(cover, 0, 1).reshape(shape), owner.reshape(shape)
