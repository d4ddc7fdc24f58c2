"""The layout of glands in the procedural tissue, and its variation between images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import ndtri

from densepath.synthetic.tissue_shapes import Array, Shape, scatter, smooth_noise

FAR = np.float32(1e4)  # pixels: no gland nearby


@dataclass(frozen=True)
class Style:
    """The parameters of one image: lengths in µm, shares in [0, 1], amounts of stain without unit."""

    grade: float  # 0 healthy crypts, 0.5 crowded adenomatous glands, 1 irregular carcinoma
    radius: float  # of a gland's cross-section
    length: float  # additional length of a gland, in radii
    crowding: float  # distance of neighbors in gland diameters
    gap: float  # minimum stroma between neighbors
    bend: float  # displacement of contours
    branching: float  # share of the glands with a second branch
    bare: float  # share of the field without glands
    epithelium: float  # thickness of the epithelium
    rows: int  # rows of epithelial nuclei
    goblets: float  # share of the epithelial cells that hold mucin
    mucin: float  # amount of stain in mucin
    vesicular: float  # paleness of the inside of epithelial nuclei
    cribriform: float  # share of holes in the epithelium
    cellularity: float  # share of the stroma's lattice points with a nucleus
    inflamed: float  # share of round ones among these nuclei
    fibrous: float  # share of fibres in the stroma's texture
    loose: float  # share of the stroma that is open
    halo: float  # width of the cleft around glands
    blood: float  # share of the stroma with red cells
    debris: float  # share of the lumen filled with debris

    @classmethod
    def draw(cls, rng: np.random.Generator, grade: float | None = None) -> Style:
        """A style of the given grade, or of any grade."""
        g = float(rng.uniform()) if grade is None else float(grade)
        sick = float(np.clip(2 * g - 0.6, 0, 1))  # increases only for higher grades: desmoplasia, disorder
        crowded = 1 - abs(2 * g - 1)

        def between(low: float, high: float) -> float:
            return float(rng.uniform(low, high))

        radius = between(27, 40) + 8 * g * between(0.3, 1)
        lengthwise = rng.uniform() < 0.3 + 0.3 * g
        return cls(
            grade=g,
            radius=radius,
            length=between(1.2, 3.5) if lengthwise else between(0, 0.6),
            crowding=between(1.06, 1.3) - 0.15 * crowded + 0.1 * sick,
            gap=between(5, 12) - 3 * g,
            bend=between(4, 8) + 16 * g * between(0.4, 1),
            branching=0.5 * g,
            bare=between(0, 0.15) + 0.35 * sick * between(0, 1),
            epithelium=radius * between(0.72, 0.95) * (1 - g) + between(17, 27) * g,
            rows=1 + int(g > 0.3) + int(g > 0.55),
            goblets=float(np.clip(1.2 - 2 * g, 0, 1)) * between(0.75, 1),
            mucin=0.22 * between(0, 1) ** 2,
            vesicular=sick * between(0.1, 0.75) + 0.15,
            cribriform=0.04 * sick * between(0, 1),
            cellularity=between(0.5, 1) - 0.15 * sick,
            inflamed=between(0.6, 0.95) * (1 - sick) + between(0.1, 0.5) * sick,
            fibrous=between(0.1, 0.5) + 0.5 * sick,
            loose=between(0.02, 0.4) * (1 - 0.6 * sick),
            halo=between(1, 4) if rng.uniform() < 0.35 else 0.0,
            blood=0.06 * between(-0.6, 1) ** 3,
            debris=between(0, 0.5) + 0.3 * sick,
        )


Capsule = tuple[float, float, float, float, float]  # y, x, angle, half length, radius; pixels and radians


def _capsules(rng: np.random.Generator, style: Style, shape: Shape, px: float) -> list[list[Capsule]]:
    """Glands, each of one or two capsules, on a jittered lattice with a random rotation."""
    across, stretch = style.radius * px, 1 + style.length
    # The lattice spacing is in gland widths; one axis is stretched to fit long glands.
    side = int(np.hypot(*shape) + 4 * across * stretch)
    lattice = scatter(rng, (side, int(side / stretch)), 2 * across * style.crowding, jitter=0.16)
    v, u = lattice[:, 0] - side / 2, lattice[:, 1] * stretch - side / 2
    turn = rng.uniform(0, np.pi)
    y = shape[0] / 2 + v * np.cos(turn) + u * np.sin(turn)
    x = shape[1] / 2 + u * np.cos(turn) - v * np.sin(turn)
    ground = smooth_noise(rng, shape, 100 * px)
    rows, columns = np.clip(y, 0, shape[0] - 1).astype(int), np.clip(x, 0, shape[1] - 1).astype(int)
    near = 2 * across * stretch
    wanted = (y > -near) & (y < shape[0] + near) & (x > -near) & (x < shape[1] + near)
    wanted &= ground[rows, columns] > ndtri(style.bare)
    glands = []
    for cy, cx in zip(y[wanted], x[wanted], strict=True):
        radius = across * rng.uniform(0.75, 1.12)
        half = across * style.length * rng.uniform(0.6, 1.1)
        angle = turn + rng.normal(0, 0.12 + 0.5 * style.grade)
        gland = [(cy, cx, angle, half, radius)]
        if rng.uniform() < style.branching:
            end, fork, arm = rng.choice([-1, 1]) * half, angle + rng.uniform(-1.3, 1.3), radius * rng.uniform(0.6, 0.9)
            tip_y = cy + end * np.sin(angle) + arm * np.sin(fork)
            tip_x = cx + end * np.cos(angle) + arm * np.cos(fork)
            gland.append((tip_y, tip_x, fork, arm, arm))
        glands.append(gland)
    return glands


def gland_field(rng: np.random.Generator, style: Style, shape: Shape, px: float) -> Array:
    """Approximate signed distance (H, W) in pixels to the nearest gland's contour; negative inside.

    Glands are unions of capsules in coordinates displaced by smooth noise. Where two glands would be closer than
    ``style.gap`` (at least 3 pixels) both are reduced, so that no two touch.
    """
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    for scale, share in ((70, 1.0), (26, 0.4), (11, 0.1 + 0.1 * style.grade)):
        strength = np.float32(style.bend * px * share)
        y += strength * smooth_noise(rng, shape, scale * px)
        x += strength * smooth_noise(rng, shape, scale * px)
    first, second = np.full(shape, FAR), np.full(shape, FAR)
    for gland in _capsules(rng, style, shape, px):
        distance = np.full(shape, FAR)
        for capsule in gland:
            cy, cx, angle, half, radius = (np.float32(value) for value in capsule)
            dy, dx = y - cy, x - cx
            u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
            u -= np.clip(u, -half, half)
            np.minimum(distance, np.sqrt(u * u + v * v) - radius, out=distance)
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    gap = np.maximum(style.gap * px * (1 + np.float32(0.3) * smooth_noise(rng, shape, 30 * px)), 3).astype(np.float32)
    half_way = (first - second + gap) / 2
    corner = np.float32(14 * px)  # a smooth maximum: corners between crowded glands become round
    rounding = np.maximum(corner - np.abs(first - half_way), 0) ** 2 / (4 * corner)
    return np.maximum(first, half_way) + rounding


def number_glands(field: Array, margin: int, smallest: int) -> tuple[Array, NDArray[np.int32]]:
    """Number the glands; those with a too small visible area are removed from the tissue.

    Args:
        field: (H, W) signed distance in pixels, margin included.
        margin: pixels on each side that are not visible in the image.
        smallest: minimum visible area of a gland in pixels.

    Returns:
        field (H, W) without the removed glands; labels (H, W) int32, 0 outside, 1..N for the visible glands.
    """
    parts, count = ndimage.label(field < 0)
    shown = np.bincount(parts[margin:-margin, margin:-margin].ravel(), minlength=count + 1)
    kept = (shown == 0) | (shown >= smallest)
    kept[0] = True
    number = np.zeros(count + 1, np.int32)
    named = kept & (shown > 0)
    named[0] = False
    number[named] = np.arange(1, named.sum() + 1)
    if not kept.all():
        inside = kept[parts] & (parts > 0)
        away = ndimage.distance_transform_edt(~inside) if inside.any() else np.full(field.shape, FAR)
        field = np.where(inside, field, away).astype(np.float32)
    return field, number[parts]
