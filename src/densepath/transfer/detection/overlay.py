"""Pictures of detections next to the ground truth: the same image twice, with sharp outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as rle
from scipy import ndimage

from densepath.core.fonts import font
from densepath.transfer.detection.object_colors import color_numbers, color_of, near_boxes

Shape = tuple[int, int, np.ndarray]  # the top and left of an object, and its mask (h, w) bool

_WRONG = ((255, 0, 0), (160, 0, 0), (255, 120, 120), (200, 0, 70), (255, 70, 30))  # others for those that touch
_DASH = 6  # pixels
_MATCH_IOU, _LEAST_SCORE = 0.5, 0.5
_MIN_SIDE = 384  # pixels: a smaller image is enlarged, otherwise outlines would cover it
_GAP = 8
_HEADER = 26
_LETTERS, _SMALLEST = 16, 8  # pixels
_ROOM = 1.5  # a score is written if its object is larger than its text by this factor


def overlay(
    image: np.ndarray, truth: Sequence[np.ndarray], found: Sequence[np.ndarray], scores: Sequence[float]
) -> Image.Image:
    """Draw true outlines on the left, and detected ones with their scores, where there is space, on the right.

    A score has the color of its outline. A detection has the color of the true object that it matches (mask IoU of at
    least 0.5), where no neighbor has it; without a match it is red. Objects that were missed are dashed. Objects that
    touch differ in color.

    Args:
        image: (H, W, 3) uint8.
        truth: masks (H, W) bool.
        found: detected masks (H, W) bool, best first.
        scores: scores of the detections, from 0 to 1; those below 0.5 are left out.
    """
    found = [mask for mask, score in zip(found, scores, strict=True) if score >= _LEAST_SCORE]
    scores = [score for score in scores if score >= _LEAST_SCORE]
    zoom = max(1, round(_MIN_SIDE / min(image.shape[:2])))
    canvas = np.asarray(Image.fromarray(image).resize((image.shape[1] * zoom, image.shape[0] * zoom)))
    true_shapes, found_shapes = ([_placed(mask, zoom) for mask in masks] for masks in (truth, found))
    match = match_masks(truth, found)
    true_numbers = color_numbers(near_boxes(list(map(_box, true_shapes))))
    wishes = {position: true_numbers[m] for position, m in enumerate(match) if m is not None}
    near = near_boxes(list(map(_box, found_shapes)))
    correct = color_numbers({p: near[p] & wishes.keys() for p in wishes}, wishes)
    wrong = set(near) - set(wishes)
    reds = color_numbers({p: near[p] & wrong for p in wrong}, dict.fromkeys(wrong, 0))
    found_colors = [color_of(correct[p]) if p in correct else _WRONG[reds[p] % len(_WRONG)] for p in range(len(found))]
    matched = set(match)
    lost = [shape for position, shape in enumerate(true_shapes) if position not in matched]
    left = outlined(canvas, true_shapes, [color_of(true_numbers[position]) for position in range(len(truth))])
    right = outlined(dashed(canvas, lost), found_shapes, found_colors)
    _write_scores(right, found, scores, found_colors, zoom)
    width, height = left.size
    picture = Image.new("RGB", (2 * width + _GAP, height + _HEADER), "white")
    picture.paste(left, (0, _HEADER))
    picture.paste(right, (width + _GAP, _HEADER))
    draw = ImageDraw.Draw(picture)
    _write_line(draw, 4, f"truth: {len(truth)}", width)
    counts = f"{len(correct)} correct, {len(lost)} missed (dashed), {len(wrong)} false (red)"
    _write_line(draw, width + _GAP + 4, f"score >= {_LEAST_SCORE:.0%}: {counts}", width)
    return picture


def _write_line(draw: ImageDraw.ImageDraw, left: int, text: str, width: int) -> None:
    """Write a line above a panel, in letters so small that it fits its width in pixels."""
    size = next((size for size in range(_LETTERS, _SMALLEST, -1) if font(size).getlength(text) <= width - 8), _SMALLEST)
    draw.text((left, _HEADER / 2), text, "black", font(size), anchor="lm")


def match_masks(truth: Sequence[np.ndarray], found: Sequence[np.ndarray]) -> list[int | None]:
    """For each detected mask, best first, the unmatched true mask with the highest IoU, if that is at least 0.5."""
    if not truth or not found:
        return [None] * len(found)
    # Run lengths: comparing hundreds of masks pixel by pixel would take minutes.
    runs = ([rle.encode(np.asfortranarray(mask, np.uint8)) for mask in masks] for masks in (found, truth))
    overlaps = np.asarray(rle.iou(*runs, [0] * len(truth)))  # (found, truth)
    match: list[int | None] = []
    for row in overlaps:
        best = int(row.argmax())
        match.append(best if row[best] >= _MATCH_IOU else None)
        if match[-1] is not None:
            overlaps[:, best] = -1  # matched
    return match


def _placed(mask: np.ndarray, zoom: int) -> Shape:
    """A mask (H, W) bool, ``zoom`` times larger."""
    (place,) = ndimage.find_objects(mask.astype(np.uint8)) or [None]  # its bounding box; none if it is empty
    rows, columns = place or (slice(0, 0), slice(0, 0))
    return rows.start * zoom, columns.start * zoom, mask[rows, columns].repeat(zoom, 0).repeat(zoom, 1)


def _box(shape: Shape) -> tuple[int, int, int, int]:
    top, left, mask = shape
    return top, left, top + mask.shape[0], left + mask.shape[1]


def outlined(image: np.ndarray, masks: Sequence[Shape], colors: Sequence[tuple[int, int, int]]) -> Image.Image:
    """The image with lines of two pixels inside the masks, and a thin dark border.

    Args:
        image: (H, W, 3) uint8.
        masks: (top, left, mask (h, w) bool) of each object.
        colors: of each object.
    """
    canvas = image.copy()
    for (top, left, mask), color in zip(masks, colors, strict=True):
        large = np.pad(mask, 1)
        inner = ndimage.binary_erosion(large, iterations=2)
        rim = (inner & ~ndimage.binary_erosion(inner))[1:-1, 1:-1]
        part = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
        rows, columns = part.shape[:2]  # a mask may exceed a reduced image by a pixel
        part[(large & ~inner)[1:-1, 1:-1][:rows, :columns]] = color
        rim = rim[:rows, :columns]
        part[rim] = (part[rim] * 0.4).astype(np.uint8)
    return Image.fromarray(canvas)


def dashed(image: np.ndarray, masks: Sequence[Shape]) -> np.ndarray:
    """The image (H, W, 3) with dashed lines, red and white, of three pixels inside the masks."""
    canvas = image.copy()
    dashes = np.add.outer(*map(np.arange, image.shape[:2])) // _DASH % 2 == 0
    for top, left, mask in masks:
        place = slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1])
        rim = mask & ~ndimage.binary_erosion(mask, iterations=3)
        canvas[place][rim] = _WRONG[0]
        canvas[place][rim & ~dashes[place]] = 255
    return canvas


def _write_scores(
    picture: Image.Image,
    masks: Sequence[np.ndarray],
    scores: Sequence[float],
    colors: Sequence[tuple[int, int, int]],
    zoom: int,
) -> None:
    """Write each score, in percent, in the center of its object, best first.

    It is left out if the object is too small for it, or a better one is written there.
    """
    draw = ImageDraw.Draw(picture)
    written: list[tuple[float, float, float, float]] = []
    for mask, score, color in zip(masks, scores, colors, strict=True):
        rows, columns = np.nonzero(mask)
        if not len(rows):
            continue
        middle = (float(columns.mean() + 0.5) * zoom, float(rows.mean() + 0.5) * zoom)
        text: dict[str, Any] = {"text": f"{100 * score:.0f}", "font": font(15), "anchor": "mm", "stroke_width": 2}
        left, top, right, bottom = draw.textbbox(middle, **text)
        large = _ROOM * (right - left) < zoom * np.ptp(columns) and _ROOM * (bottom - top) < zoom * np.ptp(rows)
        covered = any(left < x2 and x1 < right and top < y2 and y1 < bottom for x1, y1, x2, y2 in written)
        if large and not covered:
            written.append((left, top, right, bottom))
            draw.text(middle, fill=color, stroke_fill="black", **text)
