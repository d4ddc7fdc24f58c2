"""Pictures of what was tiled: the tissue and the tiles of each slide, and a sheet of all."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from densepath.core.errors import one_line
from densepath.core.files import atomic_write
from densepath.core.fonts import font
from densepath.core.spacing import evenly_spaced
from densepath.sources.tiles.tile_files import SlideTiling
from densepath.sources.tiles.tissue import Tissue

_LEAST, _LONGEST = 1024, 2048  # pixels of a picture's longer side
_COLORS = 254  # of the slide, before those of the lines
_TILE, _OUTLINE = (40, 60, 255), (0, 140, 0)
_MOST, _ACROSS = 200, 8  # panels of the sheet, and in a row
_SIDE, _GAP, _LINE, _FONT = 220, 8, 16, 12  # pixels
_LETTERS = 34  # of a line below a panel


def draw_tissue(path: Path, tissue: Tissue, tiling: SlideTiling | None) -> None:
    """Draw the outline of the tissue and the tiles on the slide's overview.

    Raises:
        UserError: the picture cannot be written.
    """
    longest = max(tissue.mask.shape)
    less, more = -(-longest // _LONGEST), max(1, _LEAST // longest)
    mask = tissue.mask[::less, ::less].repeat(more, axis=0).repeat(more, axis=1)
    image = Image.fromarray(tissue.overview.pixels[::less, ::less]).resize(mask.shape[::-1], Image.Resampling.BICUBIC)
    image = image.quantize(_COLORS, Image.Quantize.FASTOCTREE)  # a palette takes half of the time and of the disk
    palette = (image.getpalette() or [])[: 3 * _COLORS]
    if tiling is not None:
        draw, boxes = ImageDraw.Draw(image), tiling.boxes_um()
        scale = more / (np.array(tissue.spacing) * less)
        low, high = ((edge - tissue.origin) * scale for edge in (boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))
        for top, left, bottom, right in np.concatenate([low, high], axis=1).round().astype(int).tolist():
            draw.rectangle((left, top, max(right - 1, left), max(bottom - 1, top)), outline=_COLORS)
    pixels = np.array(image)
    for (down, right), edges in (((1, 0), mask[1:] != mask[:-1]), ((0, 1), mask[:, 1:] != mask[:, :-1])):
        y, x = np.nonzero(edges)
        pixels[y, x] = pixels[y + down, x + right] = _COLORS + 1
    drawn = Image.fromarray(pixels)
    drawn.putpalette([*palette, *[0] * (3 * _COLORS - len(palette)), *_TILE, *_OUTLINE])
    with atomic_write(path) as part:
        drawn.save(part, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)  # several times as fast


def draw_contact_sheet(path: Path, panels: Sequence[tuple[Path, str, str]]) -> None:
    """Draw the pictures of slides in rows; of very many slides, evenly spaced ones.

    Args:
        path: a PNG file.
        panels: for each slide its picture, which may be missing, and two lines of text.

    Raises:
        UserError: the picture cannot be written.
    """
    shown = [panels[place] for place in evenly_spaced(_MOST, len(panels))]
    across = max(1, min(_ACROSS, len(shown)))
    high, wide = _SIDE + 2 * _LINE + _GAP, _SIDE + _GAP
    sheet = Image.new("RGB", (across * wide + _GAP, -(-len(shown) // across) * high + _GAP), "white")
    draw, letters = ImageDraw.Draw(sheet), font(_FONT)
    for number, (picture, *lines) in enumerate(shown):
        left, top = _GAP + number % across * wide, _GAP + number // across * high
        for row, line in enumerate(lines):
            text = one_line(line)
            short = text if len(text) <= _LETTERS else f"{text[: _LETTERS - 3]}..."
            draw.text((left, top + (row + 0.5) * _LINE), short, "black", letters, anchor="lm")
        place = left, top + 2 * _LINE
        if picture.exists():
            with Image.open(picture) as file:
                image = file.convert("RGB")
                image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
                sheet.paste(image, place)
        else:
            draw.rectangle((*place, left + _SIDE - 1, place[1] + _SIDE - 1), outline="gray")
    with atomic_write(path) as part:
        sheet.save(part, format="PNG")
