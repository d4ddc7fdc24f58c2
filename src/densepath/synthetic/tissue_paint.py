"""Renders the procedural tissue: amounts of stain from the shapes of glands, and colors from amounts of stain."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtri

from densepath.synthetic.tissue_layout import Style
from densepath.synthetic.tissue_shapes import (
    Array,
    along_contours,
    at,
    on_canvas,
    packed_cells,
    paint_ellipses,
    scatter,
    smooth_noise,
)

# Optical densities (natural logarithm; red, green, blue) of one unit of stain: means of Macenko estimates over
# public colon slides; hemoglobin after its absorption, strongest in green and blue.
STAINS = np.array([[0.54, 0.79, 0.29], [0.14, 0.95, 0.20], [0.13, 0.90, 0.45]], np.float32)


class Painter:
    """Paints the amounts of hematoxylin, eosin and blood on a canvas of ``field``'s shape.

    Args:
        rng: the generator of all random numbers.
        style: the parameters of the image.
        field: (H, W) signed distance to the glands' contours in pixels, negative inside.
        px: pixels per µm.
    """

    def __init__(self, rng: np.random.Generator, style: Style, field: Array, px: float) -> None:
        self.rng, self.style, self.px = rng, style, px
        self.field = field
        self.shape = (field.shape[0], field.shape[1])
        self.height = np.clip(field / px, -200, 200)  # µm above the basal side of the nearest gland
        dy, dx = np.gradient(ndimage.gaussian_filter(self.height, 1.5 * px))
        self.normal = np.arctan2(dy, dx)
        self.grain = self.noise(1.6)

    def paint(self) -> Array:
        """Amounts of stain (3, H, W): hematoxylin, eosin, blood."""
        stroma, glands = self.stroma(), self.glands()
        inside = np.clip(0.5 - self.field, 0, 1)
        return np.maximum(stroma * (1 - inside) + glands * inside, 0)

    def noise(self, scale: float) -> Array:
        """Smooth noise with a wavelength of about ``scale`` µm."""
        return smooth_noise(self.rng, self.shape, scale * self.px)

    def places(self, spacing: float, jitter: float) -> Array:
        """Points (N, 2) on the canvas with a spacing of about ``spacing`` µm."""
        points = scatter(self.rng, self.shape, spacing * self.px, jitter)
        return points[on_canvas(points, self.shape)]

    def cells(
        self, points: Array, long: float, short: float, angle: Array, amount: float, hollow: float = 0.0
    ) -> Array:
        """Cells or nuclei (H, W) with about these half axes in µm and about this amount of stain."""
        n, canvas = len(points), np.zeros(self.shape, np.float32)

        def about(mean: float) -> Array:
            return (mean * np.exp(0.16 * self.rng.standard_normal(n))).astype(np.float32)

        turned = angle + self.rng.normal(0, 0.15, n)
        paint_ellipses(canvas, points, about(long * self.px), about(short * self.px), turned, about(amount), hollow)
        return canvas

    def any_angle(self, points: Array) -> Array:
        return self.rng.uniform(0, np.pi, len(points))

    def fibres(self) -> tuple[Array, Array]:
        """Wavy fibres (H, W), variance about 1, and their direction (H, W)."""
        y, x = np.mgrid[: self.shape[0], : self.shape[1]].astype(np.float32)
        turn = self.rng.uniform(0, np.pi)
        waves = np.float32(self.px) * (14 * self.noise(60) + 3 * self.noise(25))
        u = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
        v = y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn)) + waves
        u, v = u - u.min(), v - v.min()
        noise = smooth_noise(self.rng, (int(v.max()) + 2, int(u.max()) + 2), (3.2 * self.px, 45 * self.px))
        dy, dx = np.gradient(v)
        return ndimage.map_coordinates(noise, [v, u], order=1), np.arctan2(dy, dx) + np.pi / 2

    def stroma(self) -> Array:
        """Fibres, open spaces, fibroblasts, round cells and blood, ignoring glands: (3, H, W)."""
        style, rng = self.style, self.rng
        fibre, direction = self.fibres()
        patch = self.noise(45)
        texture = style.fibrous * fibre + 0.5 * (1 - style.fibrous) * self.noise(3.5) + 0.3 * self.noise(9)
        eosin = 0.40 + 0.14 * texture + 0.06 * patch + 0.03 * self.grain
        hematoxylin = 0.09 + 0.03 * texture + 0.02 * self.grain
        openness = -texture - 0.4 * patch
        white = np.clip(2 * (openness - np.quantile(openness[::4, ::4], 1 - style.loose)) + 0.3, 0, 1)
        cleft = style.halo * (1 + 0.6 * self.noise(18)) - self.height
        white = np.maximum(white, np.clip(cleft, 0, 1))
        eosin = eosin * (1 - 0.88 * white) + 0.12 * np.exp(-(((self.height - 0.8) / 1.2) ** 2)) * (1 - white)
        hematoxylin = hematoxylin * (1 - 0.88 * white)

        points = self.places(6.8, 0.42)
        height = at(self.height, points)
        dense = at(patch + 0.7 * self.noise(22), points)
        full = (height > 2) & (rng.uniform(size=len(points)) < style.cellularity * (0.62 + 0.3 * dense))
        points, height, dense = points[full], height[full], dense[full]
        round_ones = rng.uniform(size=len(points)) < style.inflamed + 0.12 * dense
        beside = rng.uniform(size=len(points)) < np.exp(
            -height / 5
        )  # these are parallel to the gland, not to the fibres
        angle = np.where(beside, at(self.normal, points) + np.pi / 2, at(direction, points))
        immune, spindle = points[round_ones], points[~round_ones]
        shifted = immune + rng.normal(0, 1.2 * self.px, immune.shape).astype(np.float32)
        plasma = self.cells(shifted, 4.2, 3.4, self.any_angle(shifted), 0.2)
        hematoxylin = hematoxylin + 0.8 * plasma
        for nuclei in (
            self.cells(immune, 2.7, 2.3, self.any_angle(immune), 1.35),
            self.cells(spindle, 5.0, 1.4, angle[~round_ones], 1.05),
        ):
            hematoxylin = np.maximum(hematoxylin, nuclei)

        points = self.places(5.2, 0.35)
        bleeding = at(self.noise(16), points) > ndtri(1 - max(style.blood, 0))
        points = points[bleeding & (at(self.height, points) > 4)]
        blood = self.cells(points, 3.0, 2.6, self.any_angle(points), 0.9)
        tissue = 1 - np.clip(4 * blood, 0, 1)
        return np.stack([hematoxylin * tissue, (eosin + 0.5 * plasma) * tissue, blood])

    def glands(self) -> Array:
        """Epithelium and lumen, ignoring the stroma: (3, H, W)."""
        style, px = self.style, self.px
        depth = -self.height
        thick = style.epithelium * (1 + 0.12 * self.noise(14))
        lumen = np.clip((depth - thick) * px + 0.5, 0, 1)
        holes = self.noise(11) - ndtri(1 - style.cribriform)
        lumen = np.maximum(lumen, np.clip(4 * holes, 0, 1) * (depth > 11))

        eosin = 0.44 + 0.06 * self.noise(10) + 0.05 * self.grain
        basal = np.clip(1 - depth / np.maximum(thick, 1), 0, 1)
        hematoxylin = 0.24 + 0.12 * style.grade + 0.14 * basal + 0.05 * self.noise(12) + 0.05 * self.grain
        borders = self.borders(thick)
        eosin, hematoxylin = eosin + 0.16 * borders, hematoxylin - 0.10 * borders

        cover, tint = self.goblets(depth, thick)
        eosin = eosin * (1 - cover) + cover * tint
        hematoxylin = hematoxylin * (1 - cover) + cover * tint

        fill = style.debris * np.clip(self.noise(9) + 0.5 * self.noise(4) - 0.7 + 2.4 * style.debris, 0, 1)
        eosin = eosin * (1 - lumen) + lumen * fill * (0.42 + 0.12 * self.grain)
        hematoxylin = hematoxylin * (1 - lumen) + lumen * fill * 0.12
        eosin = eosin + 0.14 * np.exp(-(((depth - thick + 1) / 1.2) ** 2))  # the brush border

        nuclei = self.epithelial_nuclei(depth, np.where(lumen > 0.3, 0, thick))
        hematoxylin = np.maximum(hematoxylin, nuclei * (1 + 0.12 * self.grain))
        eosin = np.where(nuclei > 0.3, 0.8 * eosin, eosin)
        return np.stack([hematoxylin, eosin, np.zeros_like(eosin)])

    def borders(self, thick: Array) -> Array:
        """The borders (H, W) between epithelial cells, across the epithelium."""
        middle = 0.55 * self.style.epithelium
        points, angle = along_contours(self.rng, self.height, -middle, 5.5 * self.px, 0.3)
        return self.cells(points, 0.4 * self.style.epithelium, 0.45, angle, 1.0)

    def goblets(self, depth: Array, thick: Array) -> tuple[Array, Array]:
        """Mucin vacuoles: cover (H, W) in [0, 1] and amount of stain (H, W)."""
        rng, style, nuclei = self.rng, self.style, 7.0
        points = self.places(9.4, 0.3)
        between = (at(depth, points) > nuclei + 3.5) & (at(depth, points) < at(thick, points) + 1)
        points = points[between & (rng.uniform(size=len(points)) < style.goblets)]
        n = len(points)
        long, short = rng.uniform(5.5, 8.5, n) * self.px, rng.uniform(4, 5.6, n) * self.px
        cover, owner = packed_cells(
            self.shape, points, long.astype(np.float32), short.astype(np.float32), at(self.normal, points), self.px
        )
        tint = rng.uniform(0.01, 0.07, n) + style.mucin * rng.uniform(0.5, 1, n)
        return cover * np.clip((depth - nuclei) * self.px, 0, 1), np.append(tint, 0).astype(np.float32)[owner]

    def epithelial_nuclei(self, depth: Array, thick: Array) -> Array:
        """Palisades of nuclei (H, W) along the basal side, in ``style.rows`` rows with disorder."""
        style, px, g = self.style, self.px, self.style.grade
        long = 3.6 + 2.2 * np.sin(np.pi * min(g, 0.8))  # pencil-like in adenomas
        short = 2.2 + 2.2 * max(g - 0.5, 0)
        nuclei = np.zeros(self.shape, np.float32)
        for row in range(style.rows):
            level = 3.6 + 1.5 * g + 5 * row
            points, angle = along_contours(self.rng, self.height, -level, (2 * short + 0.3 + 1.5 * row) * px, 0.3)
            shift = self.rng.normal(0, (0.5 + 1.6 * g) * px, len(points))[:, None]
            points = (points + shift * np.stack([np.sin(angle), np.cos(angle)], -1)).astype(np.float32)
            seen = on_canvas(points, self.shape)
            points, angle = points[seen], angle[seen]
            within = (at(depth, points) > 1) & (at(depth, points) < at(thick, points) - 1.5)
            amount = 1.3 - 0.25 * style.vesicular
            nuclei = np.maximum(nuclei, self.cells(points[within], long, short, angle[within], amount, style.vesicular))
        return nuclei


def develop(rng: np.random.Generator, stains: Array) -> NDArray[np.uint8]:
    """The image (H, W, 3) for amounts of stain (3, H, W): Beer-Lambert law, lamp, lens and sensor.

    The colors and strengths of the stains, the light, the focus and the noise vary between images, as they do between
    laboratories and scanners.
    """
    colors = np.clip(STAINS + rng.normal(0, 0.045, STAINS.shape), 0.02, None)
    colors /= np.linalg.norm(colors, axis=1, keepdims=True)
    strength = np.exp(rng.normal(0, 0.2) + rng.normal(0, [0.12, 0.2, 0.1]))
    density = np.einsum("chw,cd->hwd", stains, (colors * strength[:, None]).astype(np.float32))
    lamp = (249 + rng.uniform(-6, 5, 3)).astype(np.float32)
    unevenness = 1 + 0.015 * smooth_noise(rng, density.shape[:2], 200)
    image = lamp * unevenness[:, :, None] * np.exp(-density)
    focus = rng.uniform(0.4, 0.75)
    image = ndimage.gaussian_filter(image, (focus, focus, 0))
    image += rng.uniform(0.8, 2.5) * rng.standard_normal(image.shape, dtype=np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)
