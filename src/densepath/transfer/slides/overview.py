"""A whole slide as one small picture, and what is drawn next to such pictures: scale bars and color bars."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from densepath.sources.corrupt import CorruptImage
from densepath.sources.slides.slide import Slide

_BLOCK = 1024  # pixels of a level that are read at a time
_UNREADABLE = 160  # grey
_INK = "#2b2b33"
_GAP, _BAR = 12, 22  # pixels
_MARGIN = 150  # pixels at the right, for a color bar and its numbers
_FOOT = 48  # pixels at the bottom, for a scale bar


@dataclass(frozen=True, eq=False)
class Overview:
    """A slide, reduced.

    Args:
        pixels: (H, W, 3) uint8; parts that cannot be read are grey.
        step: pixels of level 0 for one of these, along y and x.
        spacing: µm per pixel along y and x; None where unknown.
    """

    pixels: npt.NDArray[np.uint8]
    step: tuple[float, float]
    spacing: tuple[float, float] | None


def overview(slide: Slide, longest: int = 1600) -> Overview:
    """The whole slide, at most ``longest`` pixels wide and high: read from the coarsest level that is fine enough, in
    parts, and averaged."""
    wanted = max(1.0, max(slide.size) / longest)
    choices = [
        (max(level.at(scale).downsample), scale, number)
        for number, level in enumerate(slide.levels)
        for scale in level.scales
    ]
    _, scale, number = max([choice for choice in choices if choice[0] <= wanted * 1.001] or [min(choices)])
    level = slide.levels[number].at(scale)
    whole = max(1, int(wanted / max(level.downsample)))
    block = max(1, _BLOCK // whole) * whole
    rows = []
    for top in range(0, level.size[0], block):
        height = min(block, level.size[0] - top)
        parts = []
        for left in range(0, level.size[1], block):
            box = top, left, height, min(block, level.size[1] - left)
            try:
                part = slide.read(number, box, scale)
            except CorruptImage:
                part = np.full((*box[2:], 3), _UNREADABLE, np.uint8)
            parts.append(np.asarray(Image.fromarray(part).reduce(whole)))
        rows.append(np.concatenate(parts, axis=1))
    small = Image.fromarray(np.concatenate(rows))
    size = [max(1, round(side / wanted)) for side in slide.size]
    pixels = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX if min(size) > 1 else None))
    step = slide.size[0] / size[0], slide.size[1] / size[1]
    known = slide.spacing
    return Overview(pixels, step, None if known is None else (known[0] * step[0], known[1] * step[1]))


def framed(
    picture: Image.Image,
    spacing: tuple[float, float] | None,
    label: str = "",
    limits: tuple[float, float] | None = None,
    colors: str = "",
) -> Image.Image:
    """A picture with a scale bar below it and, for values, a color bar at its right.

    Args:
        picture: of a slide.
        spacing: µm per pixel; without it there is no scale bar.
        label: what is shown.
        limits: the lowest and the highest value of the color bar; None for no bar.
        colors: matplotlib's name of its colors.
    """
    width, height = picture.size
    room = _MARGIN if limits is not None else 0
    canvas = Image.new("RGB", (max(width + room, 360), height + _FOOT), "white")
    canvas.paste(picture, (0, 0))
    draw, letters = ImageDraw.Draw(canvas), font(15)
    end = 0
    if spacing is not None:
        length = nice_length(0.25 * width * spacing[1])
        end = _GAP + max(1, round(length / spacing[1]))
        draw.rectangle((_GAP, height + 8, end, height + 13), fill=_INK)
        text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
        draw.text((_GAP, height + 17), text, _INK, letters)
    if label:
        draw.text((max(end, 90) + 2 * _GAP, height + 17), label, _INK, letters)
    if limits is not None:
        left, top, bottom = width + _GAP, _GAP, max(height - _GAP, _GAP + 40)
        shades = matplotlib.colormaps[colors](np.linspace(1, 0, bottom - top))[:, None, :3]
        bar = Image.fromarray(np.rint(shades * 255).astype(np.uint8)).resize((_BAR, bottom - top))
        canvas.paste(bar, (left, top))
        ticks = 5 if bottom - top > 120 else 2
        for share in np.linspace(0, 1, ticks):
            y = bottom - share * (bottom - top)
            value = limits[0] + share * (limits[1] - limits[0])
            draw.line((left + _BAR, y, left + _BAR + 5, y), _INK)
            draw.text((left + _BAR + 9, y), f"{value:.3g}", _INK, letters, anchor="lm")
    return canvas


def nice_length(most: float) -> float:
    """The longest of 1, 2, 5, 10, 20 ... that is not above a length."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step for step in (1, 2, 5) if step * power <= most * 1.000001) * power)


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """A font that has the letter µ, which Pillow's own has not."""
    return ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)
