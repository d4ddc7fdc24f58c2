"""Pictures of images and volumes with their true and predicted classes in color."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from scipy import ndimage

from densepath.core.files import atomic_write
from densepath.core.fonts import font
from densepath.core.slices import AXIAL, CORONAL, SAGITTAL, size_in_mm, slice_of
from densepath.sources.pixel_source import PixelSpec
from densepath.transfer.segment.legend import IGNORED, ClassMap, Legend
from densepath.transfer.segment.volume_slices import SUFFIX, write_slices

# Of the classes besides the background; distinct for the color-blind (Okabe and Ito), then darker each time.
_COLORS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_FILL = 0.3
_SIDE = 512  # pixels of the longer side of a picture of one plane; smaller ones are enlarged by whole factors
_GAP, _LINE, _FONT = 6, 18, 14
_NARROWEST, _MARK, _SPACE = 320, 14, 8  # pixels of a picture; before and after a name
_SHADES = 0.6
_IGNORED = (128, 128, 128)

Planes = list[tuple[npt.NDArray[np.uint8], list[ClassMap]]]


def draw_case(
    folder: Path,
    name: str,
    pixels: npt.NDArray[Any],
    spec: PixelSpec,
    found: ClassMap,
    truth: ClassMap | None,
    legend: Legend,
    shares: Sequence[float] | npt.NDArray[np.float64] = (),
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
) -> Path:
    """Draw an image, or three slices of a volume, with the truth, if it is known, and with the prediction.

    Of a volume all slices are saved beside the picture, for a report.

    Args:
        folder, name: of the picture, a PNG file.
        pixels: (*size, C) stored pixels.
        spec: of the pixels.
        found, truth: (*size) classes.
        legend: of the classes.
        shares: the Dice of each scored region.
        spacing: of a volume, mm between voxels along its axes S, A and R.

    Returns:
        The file.
    """
    maps = [found] if truth is None else [truth, found]
    background, grey = legend.background, _grey(pixels, spec)
    planes = _planes(grey, maps, background, spacing)
    rows = [[_colored(image, own[number], background) for image, own in planes] for number in range(len(maps))]
    if pixels.ndim == 3:  # an image: truth and prediction side by side
        rows = [[row[0] for row in rows]]
    texts = ["prediction"] if truth is None else ["truth", "prediction"]
    if pixels.ndim == 4:
        write_slices(folder / f"{name}{SUFFIX}", grey, dict(zip(texts, maps, strict=True)), background, spacing)
    scores = [f"{name} {share:.2f}" for name, share in zip(legend.scored, shares, strict=False) if np.isfinite(share)]
    shown = {int(k) for _, own in planes for classes in own for k in np.unique(classes)} - {background}
    names = {number: "ignored" if number == IGNORED else legend.names[number] for number in sorted(shown)}
    sheet = _sheet(rows, [" | ".join([*texts, *["Dice:"] * bool(scores)]), *scores], names, background)
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        sheet.save(part, "PNG")
    return path


def side_by_side(image: npt.NDArray[np.uint8], maps: Sequence[ClassMap], background: int) -> Image.Image:
    """A plane (H, W, 3) once for each of its classes (H, W)."""
    parts = [np.asarray(_colored(image, classes, background)) for classes in maps]
    gap = np.full((len(parts[0]), _GAP, 3), 255, np.uint8)
    return Image.fromarray(np.hstack([piece for part in parts for piece in (part, gap)][:-1]))


def _planes(grey: npt.NDArray[np.uint8], maps: Sequence[ClassMap], background: int, spacing: Sequence[float]) -> Planes:
    """RGB planes with the classes in them: of a volume those through the middle of the largest structure, in mm."""
    if grey.ndim == 3:
        return [(grey, list(maps))]
    marked = (maps[0] != background) & (maps[0] != IGNORED)
    center = [
        int(np.argmax(marked.sum(tuple(a for a in range(3) if a != axis)))) if marked.any() else marked.shape[axis] // 2
        for axis in range(3)
    ]
    shape = grey.shape[:3]
    longest = max(side * step for side, step in zip(shape, spacing, strict=True))
    scale = min(_SIDE, max(_SIDE // 2, *shape)) / longest
    planes: Planes = []
    for axis in (AXIAL, CORONAL, SAGITTAL):
        size = size_in_mm(shape, spacing, axis, scale)
        image, *own = (slice_of(each, axis, center[axis], size) for each in (grey, *maps))
        planes.append((image, own))
    return planes


def _grey(pixels: npt.NDArray[Any], spec: PixelSpec) -> npt.NDArray[np.uint8]:
    """Stored pixels (*size, C) as (*size, 3) of a picture; of channels other than colors the first."""
    low, high = spec.window
    grey = np.clip((pixels.astype(np.float32) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    return grey if grey.shape[-1] == 3 else np.repeat(grey[..., :1], 3, axis=-1)


def _colored(image: npt.NDArray[np.uint8], classes: ClassMap, background: int) -> Image.Image:
    """A plane with its classes filled faintly, and their outlines, at a size that can be looked at."""
    factor = max(1, round(_SIDE / 2 / max(image.shape[:2])))
    step = max(1, max(image.shape[:2]) // _SIDE) if factor == 1 else 1
    canvas = np.repeat(np.repeat(image[::step, ::step], factor, 0), factor, 1).astype(np.float32)
    own = np.repeat(np.repeat(classes[::step, ::step], factor, 0), factor, 1)
    for k in np.unique(own):
        if k == background:
            continue
        color, mask = np.array(color_of(int(k), background), np.float32), own == k
        canvas[mask] = (1 - _FILL) * canvas[mask] + _FILL * color
        canvas[mask & ~ndimage.binary_erosion(mask, iterations=2)] = color
    return Image.fromarray(canvas.astype(np.uint8))


def color_of(number: int, background: int) -> tuple[int, int, int]:
    """The color of a class."""
    if number == IGNORED:
        return _IGNORED
    place = number - (0 <= background < number)
    share = _SHADES ** (place // len(_COLORS))
    red, green, blue = (round(part * share) for part in _COLORS[place % len(_COLORS)])
    return red, green, blue


def _sheet(
    rows: Sequence[Sequence[Image.Image]], caption: Sequence[str], names: Mapping[int, str], background: int
) -> Image.Image:
    """Pictures in rows, under a caption and the names of the classes, both in as many lines as they need.

    Args:
        rows: the pictures.
        caption: its words, which are not divided.
        names: of the classes in the pictures, by their numbers.
        background: the class without a color.
    """
    letters, measure = font(_FONT), ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength
    heights = [max(each.height for each in row) for row in rows]

    def length(text: str, mark: int = 0) -> int:
        return mark + int(measure(text, letters)) + _SPACE

    above, below = [length(text) for text in caption], [length(name, _MARK) for name in names.values()]
    width = max(_NARROWEST, *above, *below, *(sum(each.width + _GAP for each in row) - _GAP for row in rows))
    first, second = _in_lines(above, width), _in_lines(below, width)
    lines = (first[-1][1] + 1) + (second[-1][1] + 1 if second else 0)
    sheet = Image.new("RGB", (width, lines * _LINE + sum(heights) + _GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for (x, line), text in zip(first, caption, strict=True):
        draw.text((x, line * _LINE), text, "black", letters)
    for (x, line), (number, name) in zip(second, names.items(), strict=True):
        y = (first[-1][1] + 1 + line) * _LINE
        draw.rectangle((x, y + 4, x + 10, y + 14), color_of(number, background))
        draw.text((x + _MARK, y), name, "black", letters)
    y = lines * _LINE
    for row, height in zip(rows, heights, strict=True):
        x = 0
        for each in row:
            sheet.paste(each, (x, y))
            x += each.width + _GAP
        y += height + _GAP
    return sheet


def _in_lines(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """The x and the line of texts that follow each other."""
    places, x, line = [], 2, 0
    for length in lengths:
        if x > 2 and x + length > width:
            x, line = 2, line + 1
        places.append((x, line))
        x += length
    return places
