"""A whole slide as one small picture, and what is drawn next to such pictures: scale bars and color bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from densepath.core.fonts import font
from densepath.sources.slides.slide import Slide
from densepath.sources.tiles.overview import read_overview

_INK = "#2b2b33"
_GAP, _BAR = 12, 22  # pixels
_MARGIN = 150  # pixels at the right, for a color bar and its numbers
_FOOT = 48  # pixels at the bottom, for a scale bar


@dataclass(frozen=True, eq=False)
class SlidePicture:
    """A whole slide, reduced.

    Args:
        pixels: (H, W, 3) uint8.
        step: pixels of level 0 for one of these, along y and x.
        spacing: µm per pixel along y and x.
    """

    pixels: npt.NDArray[np.uint8]
    step: tuple[float, float]
    spacing: tuple[float, float]


def slide_picture(slide: Slide, longest: int = 1600) -> SlidePicture:
    """The whole slide, at most ``longest`` pixels wide and high; parts that cannot be read are white.

    Also those that a disk fails to give: it shows results, and is not one.

    Raises:
        CorruptImage: none of it can be read, or a disk or a network fails in many parts.
        UserError: its µm per pixel are unknown.
    """
    wanted = max(1.0, max(slide.size) / longest)
    found = read_overview(slide, wanted * max(slide.mpp), strict=False).pixels
    height, width = (max(1, round(side / wanted)) for side in slide.size)
    pixels = np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.BOX))
    step = slide.size[0] / height, slide.size[1] / width
    return SlidePicture(pixels, step, (slide.mpp[0] * step[0], slide.mpp[1] * step[1]))


def framed(
    picture: Image.Image,
    spacing: tuple[float, float],
    label: str = "",
    limits: tuple[float, float] | None = None,
    colors: str = "",
) -> Image.Image:
    """A picture with a scale bar below it and, for values, a color bar at its right.

    Args:
        picture: of a slide.
        spacing: µm per pixel along y and x.
        label: what is shown.
        limits: the lowest and the highest value of the color bar; None for no bar.
        colors: matplotlib's name of its colors.
    """
    width, height = picture.size
    room = _MARGIN if limits is not None else 0
    letters, length = font(15), nice_length(0.25 * width * spacing[1])
    end = _GAP + max(1, round(length / spacing[1]))
    place = max(end, 90) + 2 * _GAP  # of the label
    needed = place + round(letters.getlength(label)) + _GAP if label else 0
    canvas = Image.new("RGB", (max(width + room, 360, needed), height + _FOOT), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((_GAP, height + 8, end, height + 13), fill=_INK)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    draw.text((_GAP, height + 17), text, _INK, letters)
    if label:
        draw.text((place, height + 17), label, _INK, letters)
    if limits is not None:
        left, top, bottom = width + _GAP, _GAP, max(height - _GAP, _GAP + 40)
        shades = matplotlib.colormaps[colors](np.linspace(1, 0, bottom - top))[:, None, :3]
        bar = Image.fromarray(np.rint(shades * 255).astype(np.uint8)).resize((_BAR, bottom - top))
        canvas.paste(bar, (left, top))
        ticks = 5 if bottom - top > 120 else 2
        values = np.linspace(*limits, ticks).tolist()
        for y, text in zip(np.linspace(bottom, top, ticks), shown_apart(values), strict=True):
            draw.line((left + _BAR, y, left + _BAR + 5, y), _INK)
            draw.text((left + _BAR + 9, y), text, _INK, letters, anchor="lm")
    return canvas


def nice_length(most: float) -> float:
    """The longest of 1, 2, 5, 10, 20 ... that is not above a length."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(step for step in (1, 2, 5) if step * power <= most * 1.000001) * power)


def shown_apart(values: Sequence[float]) -> list[str]:
    """Three digits, or whole numbers (1.25, 980 and 3,920), or as many digits more as different numbers need."""
    for digits in range(3, 8):
        rounded = [float(f"{value:.{digits}g}") for value in values]
        texts = [f"{each:.{digits}g}" if abs(each) < 1000 else f"{each:,.0f}" for each in rounded]
        if len(set(texts)) == len(set(values)):
            break
    return texts
