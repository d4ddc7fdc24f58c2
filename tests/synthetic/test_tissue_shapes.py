"""The drawing functions of the tissue, compared with geometry."""

import numpy as np

from densepath.synthetic.tissue_shapes import along_contours, packed_cells, paint_ellipses, scatter, smooth_noise


def test_noise_has_unit_variance_and_the_given_scale() -> None:
    noise = smooth_noise(np.random.default_rng(0), (400, 400), (4, 16))
    assert abs(noise.mean()) < 0.1
    assert abs(noise.std() - 1) < 0.1

    def correlation(axis: int, lag: int) -> float:
        return float((noise * np.roll(noise, lag, axis)).mean())

    # A cubic B-spline of white knots is still well correlated one knot away, and no more at four.
    assert 0.3 < correlation(0, 4) < 0.7 and 0.3 < correlation(1, 16) < 0.7
    assert abs(correlation(0, 16)) < 0.15 and abs(correlation(1, 64)) < 0.15


def test_scattered_points_cover_the_canvas_at_their_spacing() -> None:
    points = scatter(np.random.default_rng(0), (200, 300), 10.0, jitter=0.0)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + 1e9 * np.eye(len(points))
    np.testing.assert_allclose(distance.min(1), 10.0, rtol=0.01)
    pixels = np.stack(np.mgrid[:200:7, :300:7], -1).reshape(-1, 1, 2)
    assert np.linalg.norm(pixels - points, axis=-1).min(1).max() < 10.0


def test_points_along_the_contour_of_a_disc() -> None:
    y, x = np.mgrid[:100, :100].astype(np.float32)
    radius = np.hypot(y - 50, x - 48)
    points, angle = along_contours(np.random.default_rng(0), radius, 30.0, step=5.0, jitter=0.0)
    offset = points - [50, 48]
    assert len(points) == int(2 * np.pi * 30 / 5)
    np.testing.assert_allclose(np.hypot(*offset.T), 30, atol=0.1)
    outward = np.stack([np.sin(angle), np.cos(angle)], -1)
    np.testing.assert_allclose(np.abs((outward * offset).sum(1)) / 30, 1, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(np.diff(points, axis=0), axis=1), 5, rtol=0.05)


def test_no_contour_gives_no_points() -> None:
    points, angle = along_contours(np.random.default_rng(0), np.zeros((20, 20), np.float32), 1.0, 3.0, 0.3)
    assert points.shape == (0, 2) and angle.shape == (0,)


def test_an_ellipse_has_its_area_axes_and_direction() -> None:
    canvas = np.zeros((60, 60), np.float32)
    one = np.ones(1, np.float32)
    paint_ellipses(canvas, np.array([[30.3, 28.6]], np.float32), 16 * one, 5 * one, np.pi / 3 * one, 2 * one)
    assert canvas.max() == 2
    assert abs(canvas.sum() / 2 - np.pi * 16 * 5) < 0.03 * np.pi * 16 * 5
    y, x = np.mgrid[:60, :60]
    dy, dx = y - 30.3, x - 28.6
    direction = 0.5 * np.arctan2(2 * (canvas * dx * dy).sum(), (canvas * (dx**2 - dy**2)).sum())
    assert abs(direction - np.pi / 3) < 0.01


def test_ellipses_beyond_the_canvas_are_clipped() -> None:
    canvas = np.zeros((10, 10), np.float32)
    ones = np.ones(2, np.float32)
    paint_ellipses(canvas, np.array([[0, 0], [40, -9]], np.float32), 3 * ones, 3 * ones, 0 * ones, ones)
    assert canvas[:3, :3].sum() > 5 and canvas[5:].sum() == canvas[:, 5:].sum() == 0


def test_a_wall_runs_half_way_between_touching_cells() -> None:
    points = np.array([[20, 14], [20, 26]], np.float32)
    eights = np.full(2, 8, np.float32)
    cover, owner = packed_cells((40, 40), points, eights, eights, 0 * eights, wall=2.0)
    assert (owner[20, 6:20] == 0).all() and (owner[20, 21:34] == 1).all() and owner[0, 0] == -1
    assert cover[20, 20] == 0 and cover[20, 16] == 1 and cover[20, 24] == 1
    np.testing.assert_allclose(cover[:, 1:], cover[:, :0:-1], atol=1e-5)


def test_no_cells_cover_nothing() -> None:
    none = np.zeros(0, np.float32)
    cover, owner = packed_cells((5, 6), np.zeros((0, 2), np.float32), none, none, none, wall=1.0)
    assert not cover.any() and (owner == -1).all()
