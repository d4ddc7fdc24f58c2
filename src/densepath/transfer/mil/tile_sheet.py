"""A sheet of the tiles of a slide with the highest and with the lowest attention."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from densepath.core.files import atomic_write
from densepath.core.fonts import font
from densepath.sources.slides.slide import Slide
from densepath.transfer.probe.metrics import Floats

_ACROSS, _SIDE, _GAP, _LINE = 8, 160, 6, 24  # tiles in a row; pixels


def draw_extremes(path: Path, slide: Slide, boxes: Floats, attention: Floats, label: str) -> Path:
    """Draw the eight tiles with the highest attention above the eight with the lowest.

    Args:
        path: a PNG file.
        slide: the slide.
        boxes: (N, 4) top, left, height, width of its tiles in µm.
        attention: (N,).
        label: what the attention is.

    Raises:
        CorruptImage: a tile cannot be decoded.
    """
    order = np.argsort(-attention, kind="stable")
    count = min(_ACROSS, max(1, len(order) // 2))
    rows = {f"highest {label}": order[:count], f"lowest {label}": order[::-1][:count]}
    height = _LINE + _SIDE + _LINE
    title_font = font(14)
    needed = _GAP + round(max(map(title_font.getlength, rows))) + _GAP
    width = max(count * (_SIDE + _GAP) + _GAP, needed)
    sheet = Image.new("RGB", (width, len(rows) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, tiles) in enumerate(rows.items()):
        top = number * height
        draw.text((_GAP, top + _LINE / 2), title, "black", title_font, anchor="lm")
        for column, tile in enumerate(tiles):
            left = _GAP + column * (_SIDE + _GAP)
            sheet.paste(_read(slide, boxes[tile]), (left, top + _LINE))
            middle = (left + _SIDE / 2, top + _LINE + _SIDE + _LINE / 2)
            draw.text(middle, f"{attention[tile]:.3g}", "black", font(12), anchor="mm")
    with atomic_write(path) as part:
        sheet.save(part, format="PNG")
    return path


def _read(slide: Slide, box: Floats) -> Image.Image:
    """A tile, resampled once to the side of the sheet's tiles."""
    top, left, height, width = map(float, box)
    region = slide.read_um((top, left, height, width), max(height, width) / _SIDE)
    y, x = ((own - origin) / step for own, origin, step in zip((top, left), region.origin, region.spacing, strict=True))
    right, bottom = x + width / region.spacing[1], y + height / region.spacing[0]
    most = region.pixels.shape
    inner = (max(x, 0.0), max(y, 0.0), min(right, float(most[1])), min(bottom, float(most[0])))
    return Image.fromarray(region.pixels).resize((_SIDE, _SIDE), Image.Resampling.BILINEAR, box=inner, reducing_gap=2)
