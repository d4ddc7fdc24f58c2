"""The levels of a slide: their sizes, and by which factors they are reduced."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """A resolution at which a slide is stored.

    Args:
        size: height and width in pixels.
        downsample: pixels of level 0 for one of this level, along y and x.
        scales: factors by which it can be reduced while it is decoded; the first is 1.
        codec: how it is compressed.
        shift: pixels of this level by which each lies up and left of the square of finer pixels that it stands for.
    """

    size: tuple[int, int]
    downsample: tuple[float, float] = (1.0, 1.0)
    scales: tuple[int, ...] = (1,)
    codec: str = ""
    shift: float = 0.0

    def at(self, scale: int) -> Level:
        """The level reduced by one of its ``scales``: without the last pixels, where they are not a whole square.

        JPEG averages squares. The low pass of JPEG 2000 has its samples at the first pixel of each square.
        """
        height, width = (max(1, length // scale) for length in self.size)
        y, x = self.downsample
        shift = (scale - 1) / (2 * scale) if self.codec == "JPEG 2000" else 0.0
        return Level((height, width), (y * scale, x * scale), (1,), self.codec, shift)


def downsamples(sizes: Sequence[tuple[int, int]]) -> list[tuple[float, float]]:
    """Pixels of the first size for one of each size, along y and x.

    Levels are made by whole factors, most by powers of two, and their sizes rounded: where such a factor explains a
    size, it is that. The sizes of coarse levels fit several.
    """
    (height, width), found = sizes[0], []
    for rows, columns in sizes:
        about = max(1.0, (height / rows + width / columns) / 2) if rows and columns else 1.0
        likely = (2 ** round(math.log2(about)), round(about))
        factor = next((f for f in likely if abs(height / f - rows) < 1 and abs(width / f - columns) < 1), None)
        found.append((height / rows, width / columns) if factor is None else (float(factor), float(factor)))
    return found


def disagree(largest: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a level shows another area than level 0: no downsampling explains both its sides, within 2 pixels."""
    ranges = [(full / (side + 2), full / max(side - 2, 0.5)) for full, side in zip(largest, size, strict=True)]
    return max(low for low, _ in ranges) > min(high for _, high in ranges)
