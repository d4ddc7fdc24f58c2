"""Pictures of detections next to the ground truth: the same image twice, with sharp outlines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as rle
from scipy import ndimage

# Colors that contrast with the pinks and purples of a stained section.
_PALETTE = ((0, 255, 64), (0, 255, 255), (255, 255, 0), (40, 90, 255), (255, 150, 0), (255, 255, 255))
_UNMATCHED = (255, 0, 0)
_MATCH_IOU = 0.5
_MIN_SIDE = 384  # pixels: a smaller image is enlarged, otherwise outlines would cover it
_GAP = 8
_HEADER = 26
_ROOM = 1.5  # a score is written if its object is larger than its text by this factor


def overlay(
    image: np.ndarray,
    truth: Sequence[np.ndarray],
    found: Sequence[np.ndarray],
    scores: Sequence[float],
    least_score: float = 0.5,
) -> Image.Image:
    """Draw true outlines on the left, and detected ones with their scores, where there is space, on the right.

    A detection has the color of the true object that it matches (mask IoU of at least 0.5), and is red without a match.

    Args:
        image: (H, W, 3) uint8.
        truth: masks (H, W) bool.
        found: detected masks (H, W) bool, best first.
        scores: scores of the detections, from 0 to 1.
        least_score: detections with a lower score are left out.
    """
    found = [mask for mask, score in zip(found, scores, strict=True) if score >= least_score]
    scores = [score for score in scores if score >= least_score]
    zoom = max(1, round(_MIN_SIDE / min(image.shape[:2])))
    true_colors = [_PALETTE[i % len(_PALETTE)] for i in range(len(truth))]
    match = match_masks(truth, found)
    found_colors = [_UNMATCHED if m is None else true_colors[m] for m in match]
    left = _outlined(image, truth, true_colors, zoom)
    right = _outlined(image, found, found_colors, zoom)
    _write_scores(right, found, scores, zoom)
    width, height = left.size
    picture = Image.new("RGB", (2 * width + _GAP, height + _HEADER), "white")
    picture.paste(left, (0, _HEADER))
    picture.paste(right, (width + _GAP, _HEADER))
    draw = ImageDraw.Draw(picture)
    draw.text((4, 4), f"truth: {len(truth)}", "black", _font(16))
    missed = len(truth) - len({m for m in match if m is not None})
    wrong = sum(m is None for m in match)
    caption = f"score >= {least_score:.0%}: {len(found) - wrong} correct, {missed} missed, {wrong} false (red)"
    draw.text((width + _GAP + 4, 4), caption, "black", _font(16))
    return picture


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


def _outlined(
    image: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[tuple[int, int, int]], zoom: int
) -> Image.Image:
    """The image ``zoom`` times larger, with the outlines of masks (H, W) bool."""
    canvas = np.asarray(Image.fromarray(image).resize((image.shape[1] * zoom, image.shape[0] * zoom)))
    placed = []
    for mask in masks:
        (place,) = ndimage.find_objects(mask.astype(np.uint8)) or [None]  # its bounding box; none if it is empty
        rows, columns = place or (slice(0, 0), slice(0, 0))
        placed.append((rows.start * zoom, columns.start * zoom, mask[rows, columns].repeat(zoom, 0).repeat(zoom, 1)))
    return outlined(canvas, placed, colors)


def outlined(
    image: np.ndarray, masks: Sequence[tuple[int, int, np.ndarray]], colors: Sequence[tuple[int, int, int]]
) -> Image.Image:
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


def _write_scores(picture: Image.Image, masks: Sequence[np.ndarray], scores: Sequence[float], zoom: int) -> None:
    """Write each score, in percent, in the center of its object, unless the object is too small for it."""
    draw = ImageDraw.Draw(picture)
    for mask, score in zip(masks, scores, strict=True):
        rows, columns = np.nonzero(mask)
        if not len(rows):
            continue
        middle = (float(columns.mean() + 0.5) * zoom, float(rows.mean() + 0.5) * zoom)
        text: dict[str, Any] = {"text": f"{100 * score:.0f}", "font": _font(15), "anchor": "mm", "stroke_width": 2}
        left, top, right, bottom = draw.textbbox(middle, **text)
        if _ROOM * (right - left) < zoom * np.ptp(columns) and _ROOM * (bottom - top) < zoom * np.ptp(rows):
            draw.text(middle, fill="white", stroke_fill="black", **text)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
