"""Procedural whole slides that look like stained tissue on glass: data of the demo, the tests and the benchmarks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image

from densepath.core.errors import UserError
from densepath.core.files import atomic_write
from densepath.core.random import check_seed
from densepath.synthetic.tissue import MARGIN
from densepath.synthetic.tissue_layout import Style, gland_field
from densepath.synthetic.tissue_paint import Painter, develop
from densepath.synthetic.tissue_shapes import smooth_noise

Pixels = npt.NDArray[np.uint8]

_FIELD, _OVERLAP = 320, 64  # pixels of a painted field, and by which it fades into the next
_FIELDS = 4  # painted fields; each is seen turned and mirrored in eight ways
_COARSE = 32  # pixels for one of the map of the tissue
_GLASS = (244, 242, 245)
_STAIN = 7  # the fields of a slide have the same stain
_QUALITY = 80
_COMPRESSIONS = {"JPEG": 7, "JPEG 2000": 33005}  # TIFF's numbers
_SUBSAMPLING = 530  # YCbCrSubSampling


class SlidePainter:
    """A slide whose parts are painted on demand: each pixel depends on the seed and its place only.

    Args:
        size: height and width in pixels.
        mpp: µm per pixel.
        seed: of the tissue.
    """

    def __init__(self, size: tuple[int, int], mpp: float = 0.5, seed: int = 0) -> None:
        self.size, self.mpp, self.seed = size, mpp, seed

    @cached_property
    def tissue(self) -> npt.NDArray[np.float32]:
        """The share of tissue, 0 to 1, for each square of 32 pixels: one section with a ragged outline and holes."""
        rng = np.random.default_rng((self.seed, 1))
        shape = -(-self.size[0] // _COARSE) + 2, -(-self.size[1] // _COARSE) + 2
        y, x = (np.linspace(-1, 1, length, dtype=np.float32) for length in shape)
        section = 0.72 - np.hypot(y[:, None], x[None] * rng.uniform(1, 1.25))
        outline = smooth_noise(rng, shape, max(shape) / 5) * 0.16 + smooth_noise(rng, shape, max(shape) / 16) * 0.05
        holes = np.maximum(smooth_noise(rng, shape, max(shape) / 24) - 1.9, 0)
        steep = max(shape) / 3.0
        border = 0.82 - np.maximum(np.abs(y)[:, None], np.abs(x)[None])
        return np.clip(np.minimum(section + outline - holes, border) * steep + 0.5, 0, 1).astype(np.float32)

    def part(self, top: int, left: int, height: int, width: int) -> Pixels:
        """Pixels (height, width, 3) of the slide; those outside are glass."""
        rows = _interpolated(self.tissue, top, height)
        share = _interpolated(rows.T, left, width).T[..., None]
        glass = np.array(_GLASS, np.float32)
        if not share.any():
            return np.full((height, width, 3), _GLASS, np.uint8)
        texture = self._texture(top, left, height, width)
        if share.min() < 1:
            texture = glass + share * (texture - glass)
        return np.rint(texture, out=texture).astype(np.uint8)

    def _texture(self, top: int, left: int, height: int, width: int) -> npt.NDArray[np.float32]:
        """Tissue everywhere: fields on a lattice, each fading into its neighbors."""
        fields, side = _painted(self.seed, self.mpp), _FIELD + _OVERLAP
        out = np.zeros((height, width, 3), np.float32)
        for row in range((top - _OVERLAP) // _FIELD, (top + height - 1) // _FIELD + 1):
            for column in range((left - _OVERLAP) // _FIELD, (left + width - 1) // _FIELD + 1):
                state = np.random.SeedSequence((self.seed, row + 2**20, column + 2**20)).generate_state(3)
                field = np.rot90(fields[state[0] % _FIELDS], int(state[1] % 4))
                y, x = row * _FIELD - top, column * _FIELD - left
                here = out[max(y, 0) : y + side, max(x, 0) : x + side]
                shown = (field[:, ::-1] if state[2] % 2 else field)[max(-y, 0) :, max(-x, 0) :]
                here += shown[: here.shape[0], : here.shape[1]]
        return out


@lru_cache(4)
def _painted(seed: int, mpp: float) -> npt.NDArray[np.float32]:
    """Tissue (F, side, side, 3) that fades out towards its borders."""
    rng = np.random.default_rng(seed)
    style, px = Style.draw(rng), 1 / mpp
    margin = int(np.ceil(MARGIN * px))
    inner, shape = slice(margin, -margin), (_FIELD + _OVERLAP + 2 * margin,) * 2
    ramp = (np.arange(_OVERLAP, dtype=np.float32) + 0.5) / _OVERLAP
    fade = np.concatenate([ramp, np.ones(_FIELD - _OVERLAP, np.float32), ramp[::-1]])
    painted = []
    for _ in range(_FIELDS):
        stains = Painter(rng, style, gland_field(rng, style, shape, px), px).paint()
        image = develop(np.random.default_rng((seed, _STAIN)), stains)[inner, inner]
        painted.append(image * fade[:, None, None] * fade[None, :, None])
    return np.stack(painted)


def _interpolated(rows: npt.NDArray[np.float32], first: int, count: int) -> npt.NDArray[np.float32]:
    """Some pixels' rows between the rows of a coarse map, which begins half a square before the slide."""
    place = (np.arange(first, first + count, dtype=np.float32) + 0.5) / _COARSE + 0.5
    place = place.clip(0, len(rows) - 1.001)
    low = place.astype(np.int64)
    return rows[low] + (place - low)[:, None].astype(np.float32) * (rows[low + 1] - rows[low])


def write_slide(
    path: str | Path,
    *,
    size: tuple[int, int] = (2048, 3072),
    mpp: float = 0.5,
    levels: tuple[int, ...] = (1, 4, 16),
    tile: int = 256,
    seed: int = 0,
    layout: Literal["tiff", "aperio"] = "tiff",
    codec: Literal["JPEG", "JPEG 2000"] = "JPEG",
    painter: SlidePainter | None = None,
) -> Path:
    """Write a procedural slide as a tiled pyramid, in about a hundredth of the memory that its pixels take.

    Args:
        path: the new file.
        size: height and width of level 0 in pixels.
        mpp: µm per pixel of level 0.
        levels: downsampling of each level, 1 first; each divides the next.
        tile: side of the tiles in pixels, a multiple of 16 and of the second level.
        seed: of the tissue.
        layout: a plain TIFF with µm per pixel in its resolution tags, or the descriptions of Aperio's SVS.
        codec: JPEG is YCbCr with 4:2:0 chroma in a plain TIFF, and RGB in Aperio's.
        painter: paints another slide than that of ``size``, ``mpp`` and ``seed``.

    Returns:
        ``path``.

    Raises:
        UserError: a number is invalid.
    """
    check_seed(seed)
    painter = painter or SlidePainter(size, mpp, seed)
    size, mpp = painter.size, painter.mpp
    if min(size) < 1 or tile < 16 or tile % 16 or levels[:1] != (1,) or not mpp > 0:
        raise UserError("a slide needs a positive size and mpp, tiles of a multiple of 16 px, and levels from 1")
    if any(low < 1 or high % low or high == low for low, high in pairwise(levels)):
        raise UserError(f"levels are {levels}; each must be a multiple of the one before")
    factor = levels[1] if len(levels) > 1 else 1
    if tile % factor:
        raise UserError(f"tiles have {tile} px, and level 1 is {factor} times smaller; give a multiple of that")
    rgb = layout == "aperio" and codec == "JPEG"
    reduced = _Reduced(size, factor)
    with atomic_write(path) as part:
        with tifffile.TiffWriter(part) as tiff:
            for number, level in enumerate(levels):
                shape = max(size[0] // level, 1), max(size[1] // level, 1)
                parts = _level_0(painter, tile, reduced) if number == 0 else reduced.tiles(level, tile)
                lines = (
                    f"Aperio Image Library v12\nsynthetic {size[1]}x{size[0]} ({tile}x{tile}) -> {shape[1]}x{shape[0]}"
                )
                tiff.write(
                    (_encoded(pixels, codec, rgb) for pixels in parts),
                    shape=(*shape, 3),
                    dtype=np.uint8,
                    tile=(tile, tile),
                    photometric="rgb",
                    compression="zlib",  # tifffile knows the others only with imagecodecs
                    subfiletype=int(number > 0 and layout == "tiff"),
                    resolution=(1e4 / (mpp * level),) * 2 if layout == "tiff" else None,
                    resolutionunit="centimeter" if layout == "tiff" else None,
                    description=f"{lines}|AppMag = {round(10 / mpp)}|MPP = {mpp:.6g}" if layout == "aperio" else None,
                    metadata=None,
                    software=False,
                    extratags=[(_SUBSAMPLING, 3, 2, (2, 2), True)] * (codec == "JPEG" and not rgb),
                )
        with tifffile.TiffFile(part, mode="r+") as tiff:
            pages: list[Any] = list(tiff.pages)
            for page in pages:
                page.tags["Compression"].overwrite(_COMPRESSIONS[codec])
                page.tags["PhotometricInterpretation"].overwrite(2 if rgb or codec != "JPEG" else 6)
    return Path(path)


class _Reduced:
    """Level 0 reduced by the factor of the next level, collected while level 0 is written."""

    def __init__(self, size: tuple[int, int], factor: int) -> None:
        self.factor = factor
        self.pixels = np.zeros((max(size[0] // factor, 1), max(size[1] // factor, 1), 3), np.uint8)

    def add(self, top: int, left: int, pixels: Pixels) -> None:
        """Add a tile whose corner is a multiple of the factor."""
        small = _mean(pixels, self.factor)
        y, x = top // self.factor, left // self.factor
        room = self.pixels[y : y + small.shape[0], x : x + small.shape[1]]
        room[:] = small[: room.shape[0], : room.shape[1]]

    def tiles(self, level: int, side: int) -> Iterator[Pixels]:
        """The tiles of a level, padded with glass."""
        pixels = _mean(self.pixels, level // self.factor)
        for top in range(0, pixels.shape[0], side):
            for left in range(0, pixels.shape[1], side):
                out = np.full((side, side, 3), _GLASS, np.uint8)
                part = pixels[top : top + side, left : left + side]
                out[: part.shape[0], : part.shape[1]] = part
                yield out


def _level_0(painter: SlidePainter, side: int, reduced: _Reduced) -> Iterator[Pixels]:
    for top in range(0, painter.size[0], side):
        for left in range(0, painter.size[1], side):
            pixels = painter.part(top, left, side, side)
            reduced.add(top, left, pixels)
            yield pixels


def _mean(pixels: Pixels, factor: int) -> Pixels:
    """Means of squares; without the last pixels where they are not a whole square."""
    rows, columns = (max(length // factor, 1) for length in pixels.shape[:2])
    high, wide = min(factor, pixels.shape[0]), min(factor, pixels.shape[1])
    squares = pixels[: rows * high, : columns * wide].reshape(rows, high, columns, wide, 3)
    return np.rint(squares.mean((1, 3), dtype=np.float32)).astype(np.uint8)


def _encoded(pixels: Pixels, codec: str, rgb: bool) -> bytes:
    file = io.BytesIO()
    if codec == "JPEG":
        Image.fromarray(pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0 if rgb else 2, keep_rgb=rgb)
    else:
        Image.fromarray(pixels).save(
            file, "JPEG2000", no_jp2=True, irreversible=True, quality_mode="dB", quality_layers=[45]
        )
    return file.getvalue()
