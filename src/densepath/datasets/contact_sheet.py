"""A picture of some images of each split with the outlines of their objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from densepath.annotations.coco import CocoImages
from densepath.annotations.splits import fit_window
from densepath.core.errors import counted
from densepath.core.files import atomic_write
from densepath.core.fonts import font
from densepath.core.spacing import evenly_spaced
from densepath.transfer.detection.object_colors import color_numbers, color_of, neighbors
from densepath.transfer.detection.overlay import outlined

_SIDE = 360  # pixels of a panel's longer side
_COLUMNS = 4
_GAP, _LINE, _FONT = 8, 22, 14
_LONGEST = 40  # characters of a name


def draw_sheet(splits: Mapping[str, CocoImages], path: Path, count: int) -> Path:
    """Draw evenly spaced images of each split with the outlines of their objects, in rows of four.

    Args:
        splits: the images of each split.
        path: a PNG file.
        count: the number of images of a split.
    """
    fit_window(*splits.values())
    rows: list[tuple[str, list[tuple[Image.Image, str]]]] = []
    for split, images in splits.items():
        panels = [_panel(images, place) for place in evenly_spaced(count, len(images))]
        heading = f"{split}: {counted(images.objects, 'object')} in {counted(len(images), 'image')}"
        starts = range(0, len(panels), _COLUMNS)
        rows += [(heading if start == 0 else "", panels[start : start + _COLUMNS]) for start in starts]
    with atomic_write(path) as part:
        compose_sheet(rows).save(part, format="PNG")
    return path


def _panel(images: CocoImages, place: int) -> tuple[Image.Image, str]:
    """An image with its outlines, and its name with the number of objects."""
    sample, labels = images.sample(place, masks=False), images.label_map(place)
    height, width = labels.shape
    scale = _SIDE / max(height, width)
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    pixels = images.spec.to_rgb(np.ascontiguousarray(sample["image"]))
    small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS if scale < 1 else 0))
    shown = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    numbers = color_numbers(neighbors(shown))
    boxes = [(label, box) for label, box in enumerate(ndimage.find_objects(shown), 1) if box]
    shapes = [(box[0].start, box[1].start, shown[box] == label) for label, box in boxes]
    picture = outlined(small, shapes, [color_of(numbers[label]) for label, _ in boxes])
    return picture, f"{short_name(sample['name'])}: {len(sample['boxes'])}"


def short_name(name: str) -> str:
    """The end of a long name."""
    return name if len(name) <= _LONGEST else f"...{name[3 - _LONGEST :]}"


def compose_sheet(rows: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]], side: int = _SIDE) -> Image.Image:
    """Rows of panels with a line above each, under headings.

    Args:
        rows: heading ("" for none), and the panels of the row with their lines.
        side: the largest width of a panel in pixels.
    """
    heights = [_LINE * (2 if heading else 1) + max(p.height for p, _ in panels) + _GAP for heading, panels in rows]
    across = max(len(panels) for _, panels in rows)
    sheet = Image.new("RGB", (across * (side + _GAP) + _GAP, sum(heights) + _GAP), "white")
    draw, top = ImageDraw.Draw(sheet), _GAP
    plain, bold = font(_FONT), font(_FONT + 3)
    for (heading, panels), height in zip(rows, heights, strict=True):
        if heading:
            draw.text((_GAP, top + _LINE / 2), heading, "black", bold, anchor="lm")
        line = top + (_LINE if heading else 0)
        for column, (picture, label) in enumerate(panels):
            left = _GAP + column * (side + _GAP)
            draw.text((left, line + _LINE / 2), label, "black", plain, anchor="lm")
            sheet.paste(picture, (left, line + _LINE))
        top += height
    return sheet
